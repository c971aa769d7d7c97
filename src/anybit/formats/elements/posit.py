"""Posits: numbers with a run-length coded regime, most precise around 1 and far-reaching at both ends."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from anybit.errors import FormatError
from anybit.formats.element import Element
from anybit.formats.family import FAMILIES, Family

_FORM = re.compile(r"posit([0-9]{1,3})(?:_es([0-9]{1,2}))?")
STANDARD_ES = 2
"""Exponent bits of every posit of the Posit Standard (2022)."""


def values_of_posit(codes: np.ndarray, bits: int, es: int) -> np.ndarray:
    """float64 values of int64 codes of posits of any width up to 32 bits."""
    width = bits - 1
    mask = (1 << width) - 1
    negative = codes >> width
    body = np.where(negative != 0, -codes, codes) & mask
    first = (body >> (width - 1)) & 1
    rest = np.where(first != 0, ~body, body) & mask
    run = width - np.frexp(rest.astype(np.float64))[1].astype(np.int64)  # leading bits that are equal
    regime = np.where(first != 0, run - 1, -run)
    left = np.maximum(width - run - 1, 0)  # bits after the regime and the bit that ends it
    # Exponent bits that have been pushed out are zeros.
    tail = (body & ((1 << left) - 1)) << es
    exponent, fraction = tail >> left, tail & ((1 << left) - 1)
    value = np.ldexp((fraction + (1 << left)).astype(np.float64), regime * (1 << es) + exponent - left)
    value = np.where(negative != 0, -value, value)
    return np.where(codes == 0, 0.0, np.where(codes == 1 << width, np.nan, value))


@dataclass(frozen=True)
class Posit(Element):
    """`positN` (2022 standard, es 2) and `positN_esE`: (1 + f) 2^(r 2^es + e), negative numbers by two's complement of the whole code.

    One zero, one NaN (NaR, code 2^(N-1)), no infinities, no -0. Rounding to nearest is the standard's: as bit strings, so that the tie
    between two neighbours is the posit of one more bit between them (a geometric middle where exponents are cut off), and exact ties go to
    the even code. A number that is not zero never becomes zero: below the smallest it becomes the smallest. Beyond the largest it becomes
    the largest under over=saturate; for over=nan and error the grid goes on with one more regime step, tie in the arithmetic middle.
    Modes by direction (zero, up, down, odd) and stochastic rounding go by value between the two neighbours, zero included.

    Scales bring a block's largest magnitude to 2^(2^es), one regime above 1, not to the largest value, where posits have no precision.
    Source: Standard for Posit Arithmetic (2022), sections 3 and 4.1.
    """

    es: int

    @property
    def fields(self) -> dict[str, Any]:
        return {"family": "posit", "bits": self.bits, "es": self.es}

    def decode(self, codes: Any) -> np.ndarray:
        return values_of_posit(self._checked(codes), self.bits, self.es)

    @property
    def _regime(self) -> float:
        return 2.0 ** (1 << self.es)

    @property
    def reach(self) -> tuple[float, float]:
        return self._regime, self._regime

    @cached_property
    def beyond(self) -> tuple[float, float]:
        return -self.max * self._regime, self.max * self._regime

    @cached_property
    def ties(self) -> tuple[Fraction, ...]:
        longer = values_of_posit(2 * self.finite_codes[:-1].astype(np.int64) + 1, self.bits + 1, self.es)
        longer[(self.finite[:-1] == 0) | (self.finite[1:] == 0)] = 0
        end = (self.max + self.beyond[1]) / 2
        return tuple(map(Fraction, (-end, *longer.tolist(), end)))


def parse(text: str) -> Posit | None:
    found = _FORM.fullmatch(text)
    if not found:
        return None
    bits, es = int(found[1]), STANDARD_ES if found[2] is None else int(found[2])
    if not 3 <= bits <= 16:
        raise FormatError(f"posits have 3 to 16 bits, not {bits}")
    top = (bits - 2) << es if es <= 8 else 1 << 16
    if top > 127:
        most = max(e for e in range(5) if (bits - 2) << e <= 127)
        raise FormatError(f"es = {es} is too large: with {bits} bits the largest value leaves float32's range; es is 0 to {most}")
    if es > 4:
        raise FormatError(f"es is 0 to 4, not {es}")
    return Posit(f"posit{bits}" + ("" if es == STANDARD_ES else f"_es{es}"), bits, es)


FAMILIES.add(
    "posit",
    Family(
        "posit",
        "posits: a regime of equal bits, es exponent bits, the rest fraction; NaR is NaN",
        "positN (es 2, the 2022 standard), positN_esE with N 3 to 16, E 0 to 4",
        parse,
        {
            "posit4_es0": "es 0: 0 1/4 1/2 3/4 1 3/2 2 4 and negatives",
            "posit6_es1": "es 1: 1/256 to 256",
            "posit8": "the 2022 standard's posit8, es 2: 2^-24 to 2^24",
            "posit8_es0": "es 0: 1/64 to 64",
            "posit8_es1": "es 1: 2^-12 to 4096",
            "posit16": "the 2022 standard's posit16, es 2: 2^-56 to 2^56",
        },
    ),
)
