"""Integers: two's complement, two's complement without the most negative value, unsigned."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from anybit.errors import FormatError
from anybit.formats.element import Element
from anybit.formats.family import FAMILIES, Family
from anybit.formats.rounding import raise_out_of_range, round_integral

_FORM = re.compile(r"(u?)int([0-9]{1,3})(_sym)?")


@dataclass(frozen=True)
class Integer(Element):
    """Whole numbers: intN is -2^(N-1) .. 2^(N-1)-1, intN_sym leaves out the least one, uintN is 0 .. 2^N-1.

    Codes of negative numbers are two's complement (int4: -1 is 15). The code that intN_sym does not use (int4_sym: 8) decodes like its
    neighbour, the least value. No -0, no specials. Ties to even numbers, which have the even codes. int1 is 0 and -1.

    over=wrap keeps the lowest N bits of the rounded number (int4: 9 becomes -7); not for intN_sym, whose codes are not all numbers.
    """

    negative: bool
    symmetric: bool

    @property
    def fields(self) -> dict[str, Any]:
        return {"family": "integer", "bits": self.bits, "signed": self.negative, "symmetric": self.symmetric}

    @property
    def unused(self) -> tuple[int, ...]:
        return (1 << (self.bits - 1),) if self.symmetric else ()

    @property
    def reach(self) -> tuple[float, float]:
        # Both ends to the same magnitude: a block's extreme of either sign lands on a code, and the grid of positive and negative is one.
        return (self.max or 1.0, self.max) if self.negative else (0.0, self.max)

    @property
    def wraps(self) -> bool:
        return not self.symmetric

    def decode(self, codes: Any) -> np.ndarray:
        c = self._checked(codes)
        if self.negative:
            c = c - ((c >> (self.bits - 1)) << self.bits)
        if self.symmetric:
            c = np.maximum(c, 1 - (1 << (self.bits - 1)))
        return c.astype(np.float64)

    def _codes(self, x: np.ndarray, round: str, over: str) -> np.ndarray:
        whole = round_integral(x, round)
        if over == "wrap":
            return wrapped(whole, self)
        if over == "error":
            outside = (whole < self.min) | (whole > self.max)
            if outside.any():
                raise_out_of_range(self, x, outside)
        np.clip(whole, self.min, self.max, out=whole)
        return self._wrap(whole)

    def _wrap(self, whole: np.ndarray) -> np.ndarray:
        """Codes of whole numbers that are in range."""
        if self.bits > 8:
            return (whole.astype(np.int32) & ((1 << self.bits) - 1)).astype(self.code_dtype)
        if not self.negative:
            return whole.astype(np.uint8)
        codes = whole.astype(np.int8).view(np.uint8)
        return codes if self.bits == 8 else np.bitwise_and(codes, np.uint8((1 << self.bits) - 1), out=codes)


def wrapped(whole: np.ndarray, element: Element) -> np.ndarray:
    """Codes of whole numbers of any size: their lowest bits. An infinite one has none and becomes the end of the range on its side."""
    low, count = -(1 << (element.bits - 1)) if element.signed else 0, 1 << element.bits
    finite = np.where(np.isinf(whole), np.where(whole > 0, low + count - 1.0, low), whole)
    return (np.fmod(finite, float(count)).astype(np.int64) & (count - 1)).astype(element.code_dtype)


def parse(text: str) -> Integer | None:
    found = _FORM.fullmatch(text)
    if not found:
        return None
    unsigned, bits, symmetric = bool(found[1]), int(found[2]), bool(found[3])
    if not 1 <= bits <= 16:
        raise FormatError(f"integers have 1 to 16 bits, not {bits}")
    if unsigned and symmetric:
        raise FormatError("an unsigned integer has no negative side to make symmetric; write uint without _sym")
    if symmetric and bits == 1:
        raise FormatError("int1 is 0 and -1: without its least value only zero is left; use binary or ternary")
    return Integer(f"{'u' if unsigned else ''}int{bits}{'_sym' if symmetric else ''}", bits, not unsigned, symmetric)


FAMILIES.add(
    "integer",
    Family(
        "integer",
        "whole numbers: two's complement, symmetric (most negative value unused), unsigned",
        "intN, intN_sym, uintN with N 1 to 16",
        parse,
        {
            **{f"int{n}": f"two's complement, {-(1 << (n - 1))} to {(1 << (n - 1)) - 1}" for n in range(2, 9)},
            **{f"int{n}_sym": f"symmetric, {1 - (1 << (n - 1))} to {(1 << (n - 1)) - 1}" for n in range(2, 9)},
            **{f"uint{n}": f"unsigned, 0 to {(1 << n) - 1}" for n in range(1, 9)},
            "int16": "two's complement, -32768 to 32767",
            "uint16": "unsigned, 0 to 65535",
        },
    ),
)
