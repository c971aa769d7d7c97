"""Outlier-victim pairs: two weights a code; one of them may be an outlier if its neighbour gives way."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from anybit.errors import FormatError
from anybit.formats.family import FAMILIES, Family
from anybit.formats.vector import Vector, scores

# Magnitudes of 4-bit flint: ANT, Guo et al. 2022, arXiv 2208.14286 (a sign and 3 bits, the place of the first one being the exponent).
FLINT4 = (0, 1, 2, 3, 4, 6, 8, 16)
# Name: bits of a weight, normal values, exponent and mantissa bits of the outliers, their bias.
KINDS = {"ovp4_int": (4, "int", 2, 1, 2), "ovp4_flint": (4, "flint", 2, 1, 3), "ovp8_int": (8, "int", 4, 3, 4)}


@lru_cache
def normals(width: int, kind: str) -> np.ndarray:
    """float64[2**width]: normal values by code; the code 10..0, which marks a victim, stands for zero.

    int: two's complement without the least value. flint: a sign before an index into FLINT4.
    """
    codes = np.arange(1 << width)
    half = 1 << (width - 1)
    if kind == "int":
        return np.where(codes == half, 0, codes - ((codes >= half) << width)).astype(np.float64)
    return np.array(FLINT4)[codes % half] * np.where(codes > half, -1.0, 1.0)


@lru_cache
def outliers(width: int, mantissa: int, bias: int) -> np.ndarray:
    """float64[2**width]: abfloat values by code: a sign, then (2^m + mantissa) 2^(exponent + bias); magnitude 0 is no outlier: zero."""
    codes = np.arange(1 << width)
    size = codes % (1 << (width - 1))
    value = np.ldexp(((1 << mantissa) + size % (1 << mantissa)).astype(np.float64), (size >> mantissa) + bias)
    return np.where(size == 0, 0.0, np.where(codes >= 1 << (width - 1), -value, value))


def places(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64[n - 1] points and codes[n]: with r points at or below x, codes[r] is the smallest code of the nearest of these values
    (distinct but for repeats); of two equally near, the smaller code."""
    distinct, codes = np.unique(values, return_index=True)
    middle = (distinct[1:] + distinct[:-1]) / 2  # exact: few bits
    return np.where(codes[1:] < codes[:-1], middle, np.nextafter(middle, np.inf)), codes


def _placed(values: np.ndarray, x: np.ndarray) -> np.ndarray:
    points, codes = places(values)
    return codes[np.searchsorted(points, x, side="right")]


@dataclass(frozen=True)
class OutlierVictim(Vector):
    """`ovp4_int`, `ovp4_flint`, `ovp8_int`: two weights of W bits in a code of 2 W, the first in the low half.

    A half is a normal value (`int`: -7..7 or -127..127; `flint`: 0, 1, 2, 3, 4, 6, 8, 16 with sign), or the identifier 10..0, which says
    that this weight is a victim, zero, and that the other half is an outlier in abfloat: with 4 bits E2M1, 12 to 96 over int and 24 to 192
    over flint; with 8 bits E4M3, 144 to 7864320. An outlier beside two identifiers or of magnitude code 0 is zero; encoding never gives it.
    Any pair may hold one outlier, normal values up to both.

    Source: OliVe, Guo et al. 2023, arXiv 2304.07493, section 3. Differs: the nearest pair is taken, where OliVe makes a victim of the
    neighbour of whatever lies beyond the normal values.
    """

    kind: str
    exponent: int
    mantissa: int
    bias: int

    @property
    def fields(self) -> dict[str, Any]:
        return {
            "family": "ovp", "bits": self.bits, "dim": 2, "normal": self.kind, "exponent": self.exponent, "mantissa": self.mantissa,
            "bias": self.bias,
        }  # fmt: skip

    @cached_property
    def halves(self) -> tuple[np.ndarray, np.ndarray]:
        """float64[2**width] each, by the code of one weight: normal values, outliers (zero: none)."""
        width = self.bits // 2
        return normals(width, self.kind), outliers(width, self.mantissa, self.bias)

    @property
    def edge(self) -> float:
        """The middle between normal values and outliers: below it a pair of normal values is nearest, its victim would not gain either."""
        normal, outlier = self.halves
        return float(normal.max() + outlier[outlier > 0].min()) / 2

    @property
    def reach(self) -> tuple[float, float]:
        # Extremes go to the largest normal value: outliers are what a smaller scale makes of them.
        top = float(self.halves[0].max())
        return top, top

    def decode(self, codes: Any) -> np.ndarray:
        c = self._checked(codes)
        normal, outlier = self.halves
        width, identifier = self.bits // 2, 1 << (self.bits // 2 - 1)
        low, high = c & ((1 << width) - 1), c >> width
        first = np.where(high == identifier, np.where(low == identifier, 0.0, outlier[low]), normal[low])
        second = np.where(low == identifier, np.where(high == identifier, 0.0, outlier[high]), normal[high])
        return np.stack([first, second], axis=-1)

    def _nearest(self, groups: np.ndarray) -> np.ndarray:
        normal, _ = self.halves
        width = self.bits // 2
        plain = _placed(normal, groups)
        codes = plain[:, 0] | plain[:, 1] << width
        far = np.flatnonzero((np.abs(groups) >= self.edge).any(axis=1))
        if far.size:
            codes[far] = self._with_outliers(groups[far], codes[far])
        return codes

    def _with_outliers(self, groups: np.ndarray, plain: np.ndarray) -> np.ndarray:
        """The nearest of three: the pair of normal values, an outlier first, an outlier second."""
        _, outlier = self.halves
        width, identifier = self.bits // 2, 1 << (self.bits // 2 - 1)
        held = np.flatnonzero(outlier)
        far = held[_placed(outlier[held], groups)]
        codes = np.stack([plain, far[:, 0] | identifier << width, identifier | far[:, 1] << width])
        score = scores(self.values[codes], groups)
        return np.where(score == score.max(axis=0), codes, 1 << self.bits).min(axis=0)


def parse(text: str) -> OutlierVictim | None:
    if not text.startswith("ovp"):
        return None
    if text not in KINDS:
        raise FormatError(f"outlier-victim pairs are {', '.join(KINDS)}")
    width, kind, exponent, mantissa, bias = KINDS[text]
    return OutlierVictim(text, 2 * width, 2, kind, exponent, mantissa, bias)


FAMILIES.add(
    "outlier-victim pair",
    Family(
        "outlier-victim pair",
        "two weights a code, one of which may be an outlier if the other gives way to zero (OliVe)",
        "ovp4_int, ovp4_flint, ovp8_int",
        parse,
        {
            "ovp4_int": "4 bits a weight: -7 to 7, or an outlier of 12 to 96 beside a zero",
            "ovp4_flint": "4 bits a weight: 0 1 2 3 4 6 8 16 with sign, or an outlier of 24 to 192 beside a zero",
            "ovp8_int": "8 bits a weight: -127 to 127, or an outlier from 144 up beside a zero",
        },
    ),
)
