"""Lattice codebooks: magnitudes from a list, signs with a parity, over groups of four or eight weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from anybit.formats.family import FAMILIES, Family
from anybit.formats.vector import Vector, half_norms, nearest

# Where the 29 padding entries of E8P have 1/2 (elsewhere 3/2), in the order of the published codebook, which lists 045 twice.
E8P_PADDING = (
    "123", "023", "013", "012", "367", "357", "347", "356", "346", "345", "267", "257", "247", "256", "246", "245", "167", "157", "147",
    "156", "146", "045", "067", "057", "047", "056", "046", "045", "237",
)  # fmt: skip


@lru_cache
def half_integers(dim: int, norm: int) -> np.ndarray:
    """float64[count, dim]: the magnitudes of the half-integer vectors of squared length up to `norm` whose signed sum can be even, sorted.

    Every such vector's can: turning one sign changes the sum by an odd number.
    """
    sizes = [s / 2 for s in range(1, 2 * int(norm**0.5) + 2, 2)]
    found = [v for v in product(sizes, repeat=dim) if sum(s * s for s in v) <= norm]
    return np.array(sorted(found))


@lru_cache
def magnitudes(name: str) -> np.ndarray:
    """float64[2**index bits, dim]: the magnitudes of a lattice's vectors before shifting."""
    if name == "d4":
        return half_integers(4, 9)
    padding = np.full((len(E8P_PADDING), 8), 1.5)
    for row, places in zip(padding, E8P_PADDING, strict=True):
        row[[int(p) for p in places]] = 0.5
    return np.concatenate([half_integers(8, 10), padding])


@dataclass(frozen=True)
class SignedGrid(Vector):
    """Magnitudes by index, signs, and a shift: code = index, then dim - 1 sign bits, then one shift bit where `shift` is not 0.

    The index is in the highest bits. Sign bit i, counted from the lowest, says that weight dim - 1 - i is negative; the first weight's
    sign makes the number of negative weights odd for magnitudes in `odd`, even for others. The shift bit adds `shift`, without it `-shift`.

    `d4`: half-integer vectors of four with an even sum and squared length up to 9. `e8p`: half-integer vectors of eight with an even sum,
    up to squared length 10 (227 magnitudes) and 29 of length 12 (the published list repeats one), each plus and minus 1/4; the code is the
    published one. No zero vector, no specials. Source: QuIP#, Tseng et al. 2024, arXiv 2402.04396, section 4.2, and its code.

    `iq2xxs`, `iq2xs`: the 256 and 512 points of eight magnitudes 1, 3.125, 5.375 of GGUF's IQ2_XXS and IQ2_XS, `odd` all false, no shift;
    one code has the point's number above its signs, which the file keeps apart. Source: ggml (llama.cpp), see NOTICE.
    """

    grid: tuple[tuple[float, ...], ...]
    odd: tuple[bool, ...]
    shift: float

    @property
    def fields(self) -> dict[str, Any]:
        return {
            "family": "signed grid", "bits": self.bits, "dim": self.dim, "grid": [list(v) for v in self.grid], "odd": list(self.odd),
            "shift": self.shift,
        }  # fmt: skip

    @cached_property
    def _grid(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        grid = np.array(self.grid)
        return grid, np.array(self.odd), half_norms(grid)

    def decode(self, codes: Any) -> np.ndarray:
        c = self._checked(codes)
        grid, odd, _ = self._grid
        shifted = c & 1 if self.shift else 0 * c
        c = c >> 1 if self.shift else c
        index, signs = c >> (self.dim - 1), c & ((1 << (self.dim - 1)) - 1)
        negative = np.empty((*c.shape, self.dim), bool)
        for i in range(self.dim - 1):
            negative[..., self.dim - 1 - i] = (signs >> i) & 1
        negative[..., 0] = np.logical_xor.reduce(negative[..., 1:], axis=-1) ^ odd[index]
        values = np.where(negative, -grid[index], grid[index])
        return values + np.where(shifted, self.shift, -self.shift)[..., None] if self.shift else values

    def _nearest(self, groups: np.ndarray) -> np.ndarray:
        """By magnitudes instead of all vectors: with signs of the wrong parity, the least |x| * magnitude is lost twice.

        Whatever is not decided beyond rounding errors (ties above all) goes to the exhaustive search.
        """
        slack = (np.abs(groups).sum(axis=1) + self.dim) * (self.max * 4 * (self.dim + 4) * 2.0**-53) * (1 + self.max)
        if not self.shift:
            codes, _, margin = self._signed(groups)
        else:
            (low, below, margin), (high, above, other) = (self._signed(groups + t) for t in (self.shift, -self.shift))
            # v - t is as near to x as v to x + t; v * (x + t) - v * v / 2 exceeds the score of v - t by x * t + t * t / 2.
            step = 2 * self.shift * groups.sum(axis=1)
            up = above + step > below
            codes = np.where(up, high << 1 | 1, low << 1)
            margin = np.minimum(np.where(up, other, margin), np.abs(above + step - below))
        unsure = np.flatnonzero(margin <= slack)
        if unsure.size:
            rows, back = np.unique(groups[unsure], axis=0, return_inverse=True)
            codes[unsure] = nearest(self.values, rows)[back.reshape(-1)]
        return codes

    def _signed(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Codes (without the shift bit) of the nearest unshifted vectors, their scores, and by how much they lead."""
        if self._places is None:
            return self._searched(y)
        codes, top, lead = self._rounded(y, self._places)
        outside = np.flatnonzero(codes < 0)
        codes[outside], top[outside], lead[outside] = self._searched(y[outside])
        return codes, top, lead

    @cached_property
    def _places(self) -> np.ndarray | None:
        """int64[4**dim]: the index of magnitudes (2 bits each, whole parts, the first weight lowest), or -1; None: no half-integers."""
        grid, odd, _ = self._grid
        if grid.max() >= 4 or not np.all(grid % 1 == 0.5) or not np.array_equal(odd, grid.sum(axis=1) % 2 == 1):
            return None
        places = np.full(4**self.dim, -1)
        places[(grid.astype(np.int64) @ 4 ** np.arange(self.dim))[::-1]] = np.arange(len(grid))[::-1]
        return places

    def _rounded(self, y: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `_signed` for those whose nearest half-integer vector with an even sum is in the list; a code of -1 for others.

        Source: Conway and Sloane 1982, Fast quantizing and decoding algorithms for lattice quantizers and codes.
        """
        near = np.floor(y) + 0.5
        rest = y - near
        far = np.abs(rest)
        wrong = near.sum(axis=1) % 2 == 1
        rows, most = np.arange(len(y)), far.argmax(axis=1)
        near[rows, most] += np.where(wrong, np.copysign(1.0, rest[rows, most]), 0)
        second, largest = np.partition(far, self.dim - 2, axis=1)[:, -2:].T
        whole = np.minimum(np.abs(near), 4).astype(np.int64)
        index = np.where((whole < 4).all(axis=1), places[(whole & 3) @ 4 ** np.arange(self.dim)], -1)
        bits = 1 << np.arange(self.dim - 2, -1, -1)
        codes = np.where(index < 0, -1, index << (self.dim - 1) | (near[:, 1:] < 0) @ bits)
        score = (near * (y - near / 2)).sum(axis=1)
        return codes, score, np.where(wrong, largest - second, 1 - largest - second)

    def _searched(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `_signed`, over all magnitudes."""
        grid, odd, half = self._grid
        wrong = np.logical_xor.reduce(y < 0, axis=1)
        index, top, lead = np.empty(len(y), np.int64), np.empty(len(y)), np.empty(len(y))
        for start in range(0, len(y), _ROWS):
            part = slice(start, start + _ROWS)
            size = np.abs(y[part])
            score = size @ grid.T
            score -= half
            turned = wrong[part, None] != odd
            least = np.full(score.shape, np.inf)
            gain = np.empty(score.shape)
            for i in range(self.dim):
                np.minimum(least, np.multiply(size[:, i, None], grid[:, i], out=gain), out=least)
            least *= 2
            np.subtract(score, least, out=score, where=turned)
            index[part] = best = score.argmax(axis=1)
            rows = np.arange(len(best))
            top[part] = score[rows, best]
            score[rows, best] = -np.inf
            lead[part] = top[part] - score.max(axis=1)
        gains = np.abs(y) * grid[index]
        turned = wrong != odd[index]
        least, second = np.partition(gains, 1, axis=1)[:, :2].T
        # The next best signs: another one turned instead, or the two cheapest turned as well.
        lead = np.minimum(lead, 2 * np.where(turned, second - least, second + least))
        negative = y < 0
        negative[np.arange(len(y)), gains.argmin(axis=1)] ^= turned
        bits = 1 << np.arange(self.dim - 2, -1, -1)
        return index << (self.dim - 1) | negative[:, 1:] @ bits, top, lead


_ROWS = 1 << 11
_GGML = {"iq2xxs": (0, 256), "iq2xs": (256, 512)}
"""First row and number of rows in ggml's grids: those whose signs fill a code of eight weights by themselves."""


@lru_cache
def _ggml_points(name: str) -> np.ndarray:
    """float64[points, 8]: ggml's magnitudes 8, 25, 43 as multiples of 8, two bits a weight in the file."""
    first, count = _GGML[name]
    packed = np.load(Path(__file__).parents[2] / "data" / "ggml_grids.npy")[first : first + count]
    places = packed[..., None] >> np.arange(0, 8, 2, dtype=np.uint8) & np.uint8(3)
    return np.array([1.0, 3.125, 5.375])[places.reshape(count, 8)]


def parse(text: str) -> SignedGrid | None:
    if text not in ("d4", "e8p", *_GGML):
        return None
    grid = magnitudes(text) if text not in _GGML else _ggml_points(text)
    index_bits, dim = (len(grid) - 1).bit_length(), grid.shape[1]
    shift = 0.25 if text == "e8p" else 0.0
    odd = tuple(text not in _GGML and bool(s % 2) for s in grid.sum(axis=1))
    bits = index_bits + dim - 1 + (1 if shift else 0)
    return SignedGrid(text, bits, dim, tuple(map(tuple, grid.tolist())), odd, shift)


FAMILIES.add(
    "lattice",
    Family(
        "lattice",
        "half-integers with an even sum in a ball (QuIP#), or chosen points of eight (GGUF), four or eight weights a code",
        "d4, e8p, iq2xxs, iq2xs",
        parse,
        {
            "d4": "2 bits a weight: the 256 points of the D4 lattice, centred on a deep hole, up to squared length 9",
            "iq2xxs": "1.875 bits a weight: the 256 points of GGUF's IQ2_XXS with an even number of signs",
            "iq2xs": "2 bits a weight: the 512 points of GGUF's IQ2_XS with an even number of signs",
            "e8p": "2 bits a weight: 65536 points of the E8 lattice shifted by 1/4: E8P of QuIP#",
        },
    ),
)
