"""Number formats by explicit grids: all values written down step by step, numbers placed on them by counting. Shares no code with `formats`
or with the rational reference.

Comparisons are exact in float64: a + b is kept as a sum and its rounding error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from anybit.reference import grid_scalars as scalars


def values(definition: Mapping[str, Any]) -> np.ndarray:
    """float64[2**bits]: the value of each code, built by walking up the grid. ValueError: a family not defined here."""
    family, count = definition["family"], 1 << definition["bits"]
    if family == "integer":
        if not definition["signed"]:
            return np.arange(count, dtype=np.float64)
        half = count // 2
        negative = np.arange(-half, 0, dtype=np.float64)
        if definition["symmetric"]:
            negative[0] = negative[1] if half > 1 else 0
        return np.concatenate([np.arange(half, dtype=np.float64), negative])
    if family == "opened":  # an integer's values, as far apart as the bits left out make them
        coarse = values({"family": "integer", "bits": definition["bits"], "signed": definition["signed"], "symmetric": False})
        for _ in range(definition["master"] - definition["bits"]):
            coarse = coarse + coarse
        return coarse
    if family in ("ternary", "binary"):
        return np.array([-1.0, 0.0, 1.0, 1.0] if family == "ternary" else [-1.0, 1.0])
    if family == "codebook":
        entries = [float(v) for v in definition["entries"]]
        return np.array(entries + entries[-1:] * (count - len(entries)))
    if family == "minifloat":
        return _minifloat(definition)
    if family in scalars.VALUES:
        return scalars.VALUES[family](definition)
    if family == "listed":  # as in the rational reference
        return np.array(definition["values"])
    raise ValueError(f"no reference for the family '{family}'")


def opened(masters: np.ndarray, definition: Mapping[str, Any]) -> np.ndarray:
    """What opening makes of stored integers: the nearest value of the coarser grid, the upper one of two."""
    grid = np.sort(values(definition))
    distance = np.abs(masters[:, None] - grid)
    return grid[len(grid) - 1 - np.argmin(distance[:, ::-1], axis=1)]


def _walk(definition: Mapping[str, Any], count: int) -> list[float]:
    """`count` magnitudes in the order of their codes: steps of one size through a binade, then twice the size."""
    per_binade = 1 << definition["mantissa"]
    start = 2.0 ** (1 - definition["bias"])
    if definition["subnormals"]:
        step, value = start / per_binade, 0.0
        to_next = 2 * per_binade  # the subnormals and the first binade have one step
    else:
        step, value = start / 2 / per_binade, start / 2
        to_next = per_binade
    out = []
    for _ in range(count):
        out.append(value)
        value += step
        to_next -= 1
        if to_next == 0:
            step, to_next = 2 * step, per_binade
    if definition["zero"]:
        out[0] = 0.0
    return out


def _minifloat(definition: Mapping[str, Any]) -> np.ndarray:
    width = definition["exponent"] + definition["mantissa"]
    half = np.array(_walk(definition, 1 << width))
    kind = definition["specials"]
    if kind == "ieee":
        first = len(half) - (1 << definition["mantissa"])
        half[first:] = np.nan
        half[first] = np.inf
    elif kind == "fn":
        half[-1] = np.nan
    if not definition["signed"]:
        return half
    negative = -half
    if kind == "fnuz":
        negative[0] = np.nan
    return np.concatenate([half, negative])


class Grid:
    """One element as a list of values; `encode` places whole arrays on it."""

    def __init__(self, definition: Mapping[str, Any]) -> None:
        self.definition = definition
        self.values = values(definition)
        table: dict[float, int] = {}
        for code in range(len(self.values) - 1, -1, -1):
            if definition.get("symmetric", False) and 2 * code == len(self.values):
                continue  # the code that a symmetric integer leaves out
            if np.isfinite(self.values[code]) and not (self.values[code] == 0 and np.signbit(self.values[code])):
                table[self.values[code]] = code
        self.points = np.array(sorted(table))
        self.codes = np.array([table[v] for v in self.points])
        below, above = 2 * self.points[0] - self.points[1], 2 * self.points[-1] - self.points[-2]
        if definition["family"] == "minifloat":
            above = _walk(definition, int(self.codes[-1]) + 2)[-1]
            below = -above if definition["signed"] else below
        further = scalars.above(definition, self.points)
        if further is not None:
            above, below = further, -further if self.points[0] < 0 else below
        self.chain = np.concatenate([[below], self.points, [above]])
        self.chain_codes = np.concatenate([[self.codes[0] ^ 1], self.codes, [self.codes[-1] ^ 1]])
        self.ties = scalars.ties(definition, self.chain)
        signs = np.signbit(self.values)
        self.minus_zero = np.flatnonzero((self.values == 0) & signs)
        self.zero = np.flatnonzero((self.values == 0) & ~signs)
        self.inf = np.flatnonzero(self.values == np.inf)
        self.minus_inf = np.flatnonzero(self.values == -np.inf)
        nan = np.flatnonzero(np.isnan(self.values))
        self.nan = nan[:1]
        if nan.size and definition.get("specials") == "ieee":
            self.nan = self.inf + (1 << definition["mantissa"] >> 1)

    def index(self, x: np.ndarray) -> np.ndarray:
        """The last point of `chain` that is not above x, -1 if there is none: counted, or looked up where there are very many points."""
        if len(self.chain) > 1000:
            return np.searchsorted(self.chain, x, side="right") - 1
        index = np.full(x.shape, -1)
        for point in self.chain:
            index += x >= point
        return index

    def place(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For finite float64 x: the index into `chain` of the last point <= x (-1: none), and -1, 0, 1 as x lies before, on or after the
        middle to the next point; 2 where x is the point itself."""
        index = self.index(x)
        inside = np.clip(index, 0, len(self.chain) - 2)
        a, b = self.chain[inside], self.chain[inside + 1]
        total = a + b
        part = total - a
        error = (a - (total - part)) + (b - part)
        side = np.sign(2 * x - total) + (2 * x == total) * -np.sign(error)
        if self.ties is not None:
            side = np.sign(x - self.ties[inside])
        return index, np.where((index >= 0) & (self.chain[np.maximum(index, 0)] == x), 2, side)

    def encode(self, x: np.ndarray, mode: str, over: str, place: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
        """int64 codes of finite float64 values; -1 where over="error" refuses. `place` may be given where it is known."""
        if over == "wrap":
            return scalars.wrap(self.definition, x, mode)
        index, side = place if place is not None else self.place(x)
        last = len(self.chain) - 1
        inside = np.clip(index, 0, last - 1)
        a, b = self.chain[inside], self.chain[inside + 1]
        code_a, code_b = self.chain_codes[inside], self.chain_codes[inside + 1]
        mixed = (code_a + code_b) % 2 == 1
        even_up = np.where(mixed, code_b % 2 == 0, code_b < code_a)
        if mode == "up":
            step = np.ones(x.shape, bool)
        elif mode == "down":
            step = np.zeros(x.shape, bool)
        elif mode == "zero":
            step = np.where((a < 0) & (b > 0), x >= 0, x < 0)
        elif mode == "odd":
            step = np.where(mixed, ~even_up, even_up)
        else:
            tie = even_up
            if mode != "nearest-even":
                tie = np.where(abs(a) == abs(b), even_up, (abs(b) > abs(a)) == (mode == "nearest-away"))
            step = np.where(side == 0, tie, side > 0)
        at = np.where((index >= 0) & (index < last) & (side != 2), inside + step, index)
        return self._coded(x, at, over)

    def stochastic(self, x: np.ndarray, bits: int, words: np.ndarray, over: str = "saturate") -> np.ndarray:
        """int64 codes of finite float64 values by stochastic rounding with `bits` upper bits of a uint32 word each; -1 as in `encode`.

        A value between two points a < b is moved by counting on from the one on zero's side: the lower one, for negative values the upper.
        """
        index, side = self.place(x)
        last = len(self.chain) - 1
        inside = np.clip(index, 0, last - 1)
        a, b = self.chain[inside], self.chain[inside + 1]
        negative = np.signbit(x)
        share = np.where(negative, b - x, x - a) * 2.0**bits
        leaves = (words // 2 ** (32 - bits)).astype(np.float64) * (b - a) < share
        between = (index >= 0) & (index < last) & (side != 2)
        return self._coded(x, np.where(between, inside + (leaves != negative), index), over)

    def _coded(self, x: np.ndarray, at: np.ndarray, over: str) -> np.ndarray:
        """Codes of points of the chain (an index before or after it is the end's)."""
        at = np.clip(at, 0, len(self.chain) - 1)
        below, above = self.codes[0], self.codes[-1]
        if over == "inf":
            below, above = (self.minus_inf[0] if self.minus_inf.size else below), self.inf[0]
        elif over == "nan":
            below = above = self.nan[0]
        elif over == "error":
            below = above = -1
        out = np.concatenate([[below], self.codes, [above]])[at]
        if self.minus_zero.size:
            out = np.where(np.signbit(x) & (out == self.zero[0]), self.minus_zero[0], out)
        return out
