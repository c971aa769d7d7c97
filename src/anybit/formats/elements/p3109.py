"""The floats of IEEE P3109 (machine learning arithmetic): one zero, one NaN, infinities or none, signed or not, any precision."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from anybit.errors import FormatError
from anybit.formats.element import Element
from anybit.formats.family import FAMILIES, Family

_FORM = re.compile(r"p3109(?:_k([0-9]{1,2}))?_p([0-9]{1,2})(u?)(f?)")


@dataclass(frozen=True)
class P3109(Element):
    """`p3109_pP` is binary8pP: 8 bits, P of precision (P - 1 fraction bits), signed, with infinities; `_kK` says another width.

    Signed: NaN is the code that would be -0 (0x80), infinity the last code of each sign (0x7F, 0xFF); the exponent bias is 2^(K-P-1), 1
    for P = K - 1. `u`, unsigned: NaN is the last code (0xFF), infinity the one before; the bias is 2^(K-P). `f`, the finite domain: the
    codes of infinity are numbers. All have subnormals, so code 0 is zero, and there is no -0.
    Ties go to the even code. Source: IEEE P3109 interim report, formats; all values equal those of the gfloat library.
    """

    precision: int
    negative: bool
    infinite: bool

    @property
    def fields(self) -> dict[str, Any]:
        return {
            "family": "p3109", "bits": self.bits, "precision": self.precision, "signed": self.negative, "infinite": self.infinite,
        }  # fmt: skip

    @property
    def bias(self) -> int:
        return 1 << (self.bits - self.precision) if not self.negative else (1 << (self.bits - self.precision)) // 2

    @property
    def _top(self) -> int:
        """The code of the largest finite value."""
        return (1 << (self.bits - self.negative)) - 1 - self.infinite - (not self.negative)

    def _magnitude(self, code: Any) -> np.ndarray:
        """float64 magnitudes of codes without sign, specials disregarded; goes on past the last code."""
        c, fraction = np.asarray(code, dtype=np.int64), self.precision - 1
        exponent, significand = c >> fraction, c & ((1 << fraction) - 1)
        significand = significand + np.where(exponent > 0, 1 << fraction, 0)
        return np.ldexp(significand.astype(np.float64), np.maximum(exponent, 1) - self.bias - fraction)

    def decode(self, codes: Any) -> np.ndarray:
        c = self._checked(codes)
        half = 1 << (self.bits - 1)
        sign, magnitude = (c >= half, c % half) if self.negative else (np.zeros(c.shape, bool), c)
        value = np.where(magnitude > self._top, np.inf, self._magnitude(magnitude))
        value = np.where(sign, -value, value)
        return np.where(c == (half if self.negative else 2 * half - 1), np.nan, value)

    @cached_property
    def beyond(self) -> tuple[float, float]:
        above = float(self._magnitude(self._top + 1))
        return (-above if self.negative else -self.smallest), above


def parse(text: str) -> P3109 | None:
    found = _FORM.fullmatch(text)
    if not found:
        return None
    bits, precision, negative, infinite = int(found[1] or 8), int(found[2]), not found[3], not found[4]
    if not 3 <= bits <= 15:
        raise FormatError(f"P3109 formats have 3 to 15 bits here, not {bits}")
    if not 1 <= precision <= bits - negative:
        raise FormatError(f"the precision of a P3109 format of {bits} bits is 1 to {bits - negative}, not {precision}")
    name = "p3109" + ("" if bits == 8 else f"_k{bits}") + f"_p{precision}{found[3]}{found[4]}"
    element = P3109(name, bits, precision, negative, infinite)
    if element._top < 2:
        raise FormatError("after NaN and infinity fewer than two positive numbers are left; use more bits")
    if bits - precision > 7 + negative:
        raise FormatError(
            f"exponents of {bits} bits with precision {precision} leave float32's range; use a precision of {bits - 7 - negative} or more"
        )
    return element


FAMILIES.add(
    "p3109",
    Family(
        "p3109",
        "IEEE P3109's floats of K bits and precision P: one zero, one NaN, subnormals; u unsigned, f without infinities",
        "p3109_pP[u][f] of 8 bits, p3109_kK_pP[u][f], K 3 to 15",
        parse,
        {
            "p3109_p1": "binary8p1: powers of two 2^-63 to 2^62, zero, infinities",
            **{f"p3109_p{p}": f"binary8p{p}: {p - 1} fraction bits, infinities" for p in range(2, 8)},
            "p3109_p3f": "binary8p3 without infinities",
            "p3109_p4u": "unsigned, 3 fraction bits",
        },
    ),
)
