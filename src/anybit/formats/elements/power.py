"""Power-exponent numbers: a uniform grid seen through a power, dense near zero (PowerQuant, NUPES)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import lru_cache
from typing import Any

import numpy as np

from anybit.errors import FormatError
from anybit.formats.element import Element
from anybit.formats.family import FAMILIES, Family

_FORM = re.compile(r"pow([0-9]{1,3})_a([0-9]{0,4}(?:\.[0-9]{0,12})?)")
# 60 digits: far more than any of these powers needs to be told from the middle between two float32 numbers.
_DECIMAL = Context(prec=60, rounding=ROUND_HALF_EVEN)


@lru_cache(maxsize=64)
def _magnitudes(bits: int, exponent: str) -> np.ndarray:
    """float64[2^(bits-1)]: the float32 numbers nearest to (q / qmax)^(1 / a)."""
    top = (1 << (bits - 1)) - 1
    inverse = _DECIMAL.divide(Decimal(1), Decimal(exponent))
    found = [0.0]
    for q in range(1, top + 1):
        value = _DECIMAL.power(_DECIMAL.divide(Decimal(q), Decimal(top)), inverse)
        # The significand as a whole number of 24 bits, rounded once.
        shift = 24 - int(np.frexp(float(value))[1])
        whole = _DECIMAL.to_integral_value(_DECIMAL.multiply(value, _DECIMAL.power(Decimal(2), shift)))
        found.append(float(np.ldexp(float(whole), -shift)))
    array = np.array(found)
    array.flags.writeable = False
    return array


@dataclass(frozen=True)
class Power(Element):
    """`powN_aX`: sign(q) (|q| / qmax)^(1 / X), qmax = 2^(N-1) - 1, each as the nearest float32; -1 to 1 with zero.

    Codes are two's complement q; the code of -2^(N-1) is not used and decodes like the least value. X is decimal: 0.5 squares the grid, 1
    leaves it uniform, above 1 it is dense at the ends. Rounding is by value (not of |x|^X, as the papers do); ties to the even code.
    Source: Yvinec, Dapogny, Cord, Bailly 2023, PowerQuant, arXiv 2301.09858, and NUPES, arXiv 2308.05600.
    """

    exponent: str

    @property
    def fields(self) -> dict[str, Any]:
        return {"family": "power", "bits": self.bits, "exponent": self.exponent, "symmetric": True}

    @property
    def unused(self) -> tuple[int, ...]:
        return (1 << (self.bits - 1),)

    def decode(self, codes: Any) -> np.ndarray:
        c = self._checked(codes)
        q = c - ((c >> (self.bits - 1)) << self.bits)
        magnitudes = _magnitudes(self.bits, self.exponent)
        return np.where(q < 0, -1.0, 1.0) * magnitudes[np.minimum(np.abs(q), magnitudes.size - 1)]


def parse(text: str) -> Power | None:
    found = _FORM.fullmatch(text)
    if not found or found[2] in ("", "."):
        return None
    bits = int(found[1])
    if not 2 <= bits <= 10:
        raise FormatError(f"power-exponent numbers have 2 to 10 bits, not {bits}")
    value = Decimal(found[2])
    if value == 0:
        raise FormatError("a = 0 has no inverse; a is positive, 0.5 for squares, 1 for a uniform grid")
    exponent = f"{value.normalize():f}"
    if len(exponent.partition(".")[2]) > 6:
        raise FormatError(f"a has at most 6 decimals, not {exponent[:20]}")
    # (1 / qmax)^(1 / a) and the ratio of the last two values, told apart in float32 by a wide margin.
    top = (1 << (bits - 1)) - 1
    if top > 1 and np.log2(top) / float(value) > 126:
        raise FormatError(f"a = {exponent} is too small: the least value leaves float32's range; a is {np.log2(top) / 126:.3g} or more")
    if top > 1 and float(value) > 1000:
        raise FormatError(f"a = {exponent} is too large: all values are nearly 1; a is at most 1000")
    return Power(f"pow{bits}_a{exponent}", bits, exponent)


FAMILIES.add(
    "power",
    Family(
        "power",
        "power-exponent: sign(q) (|q| / qmax)^(1 / a), as float32",
        "powN_aX with N 2 to 10, X a positive decimal",
        parse,
        {
            "pow3_a0.5": "0 1/9 4/9 1 and negatives",
            "pow4_a0.5": "squares of sevenths and negatives (PowerQuant's usual a)",
            "pow8_a0.55": "8 bits, a = 0.55",
        },
    ),
)
