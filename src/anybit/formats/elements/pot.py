"""Powers of two, and sums of two or three of them: weights whose products are shifts and additions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from anybit.errors import FormatError
from anybit.formats.element import Element
from anybit.formats.family import FAMILIES, Family

_FORM = re.compile(r"pot([0-9]{1,3})(_nz|_k([0-9]{1,2}))?")
LARGEST = 64
"""Exponent of the largest value allowed: a block's scale has the rest of float32's range."""


@dataclass(frozen=True)
class PowerOfTwo(Element):
    """`potN`: a sign bit over a field E of N - 1 bits; E = 0 is zero, others 2^(E - 1). `potN_nz`: 2^E for every E, no zero.

    pot4 is 0, 1, 2, 4 ... 64 and negatives, pot3_nz is +-1, +-2, +-4, +-8. With a zero there is also -0. Rounding is by value, so the tie
    between 2^k and 2^(k+1) is 1.5 2^k; exact ties go to the even code. The grid goes on with the next power; without zero, 0 becomes 1.
    Source: zero-free: DenseShift, arXiv 2208.09708 (sign-scale decomposition).
    """

    zero: bool

    @property
    def fields(self) -> dict[str, Any]:
        return {"family": "pot", "bits": self.bits, "zero": self.zero}

    def decode(self, codes: Any) -> np.ndarray:
        c = self._checked(codes)
        half = 1 << (self.bits - 1)
        exponent = (c & (half - 1)) - self.zero
        value = np.where(exponent < 0, 0.0, np.ldexp(1.0, exponent))
        return np.where(c >= half, -value, value)

    @cached_property
    def beyond(self) -> tuple[float, float]:
        return -2 * self.max, 2 * self.max


def _exponents(widths: tuple[int, ...]) -> list[list[int]]:
    """For each term, with that many bits, the exponents of its nonzero levels, ascending.

    Exponents are dealt out from 0 up, one to each term in turn, last term first, but in each turn to the wider terms before the narrower
    ones: the terms interleave, and a narrow one, which runs out first, takes its levels at the fine end.
    """
    found: list[list[int]] = [[] for _ in widths]
    given = 0
    for turn in range((1 << max(widths)) - 1):
        for wide in sorted(set(widths), reverse=True):
            for term in reversed(range(len(widths))):
                if widths[term] == wide and turn < (1 << wide) - 1:
                    found[term].append(given)
                    given += 1
    return found


@dataclass(frozen=True)
class SumOfPowers(Element):
    """`potN_kK`: a sign bit over K fields; each field is 0 or one of its own powers of two, and the magnitude is their sum (APoT).

    The N - 1 bits are shared out as evenly as possible, wider fields first, at the high end. No power belongs to two fields, so all sums
    differ. pot5_k2: {0, 2, 8, 32} + {0, 1, 4, 16}. There is a -0. Exact ties go to the even code.
    Source: Li, Dong, Wang 2020, APoT, arXiv 1909.13144, equation 4, for equal fields; for unequal ones the levels of the authors' code
    (3 and 5 bits), continued. Differs: scaled so that the least value is 1, as every block has a scale.
    """

    terms: int

    @property
    def fields(self) -> dict[str, Any]:
        return {"family": "apot", "bits": self.bits, "terms": self.terms}

    @property
    def _widths(self) -> tuple[int, ...]:
        each, more = divmod(self.bits - 1, self.terms)
        return tuple(each + (i < more) for i in range(self.terms))

    def decode(self, codes: Any) -> np.ndarray:
        c = self._checked(codes)
        value, shift = np.zeros(c.shape), self.bits - 1
        for width, exponents in zip(self._widths, _exponents(self._widths), strict=True):
            shift -= width
            levels = np.array([0.0, *(2.0**e for e in exponents)])
            value = value + levels[(c >> shift) & ((1 << width) - 1)]
        return np.where(c >> (self.bits - 1) != 0, -value, value)


def parse(text: str) -> PowerOfTwo | SumOfPowers | None:
    found = _FORM.fullmatch(text)
    if not found:
        return None
    bits = int(found[1])
    if found[3] is None:
        if not 2 <= bits <= 7:
            raise FormatError(f"powers of two have 2 to 7 bits (a sign, and exponents up to {LARGEST - 1}), not {bits}")
        return PowerOfTwo(text, bits, zero=not found[2])
    terms = int(found[3])
    if terms < 2:
        raise FormatError(f"sums have 2 or more terms; one power of two is pot{bits}")
    if not terms + 1 <= bits <= 16:
        raise FormatError(f"a sum of {terms} powers has {terms + 1} to 16 bits (a sign, and a bit for each term), not {bits}")
    element = SumOfPowers(f"pot{bits}_k{terms}", bits, terms)
    top = sum(map(len, _exponents(element._widths)))
    if top > LARGEST:
        raise FormatError(f"the largest power would be 2^{top - 1}, beyond 2^{LARGEST - 1}; use fewer bits or more terms")
    return element


FAMILIES.add(
    "pot",
    Family(
        "pot",
        "powers of two with zero, without (_nz), and sums of K of them (_kK, APoT)",
        "potN, potN_nz with N 2 to 7, potN_kK",
        parse,
        {
            "pot3": "0 1 2 4 and negatives",
            "pot4": "0 1 2 4 ... 64 and negatives",
            "pot5": "0 1 2 4 ... 2^14 and negatives",
            "pot3_nz": "1 2 4 8 and negatives, no zero (DenseShift)",
            "pot4_nz": "1 2 4 ... 128 and negatives, no zero (DenseShift)",
            "pot4_k2": "sums of two powers: 0 1 2 3 4 6 8 10 and negatives (APoT)",
            "pot5_k2": "sums of two powers from {0 2 8 32} and {0 1 4 16} (APoT)",
            "pot6_k2": "sums of two powers, to 544 (APoT)",
            "pot7_k3": "sums of three powers, to 448 (APoT)",
        },
    ),
)
