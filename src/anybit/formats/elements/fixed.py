"""Fixed point: whole numbers times a power of two, signed or not; and those with few nonzero signed digits, for shift-and-add hardware."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from anybit.errors import FormatError
from anybit.formats.element import Element
from anybit.formats.elements.integer import wrapped
from anybit.formats.family import FAMILIES, Family
from anybit.formats.rounding import raise_out_of_range, round_integral

_FORM = re.compile(r"(u?)fixed([0-9]{1,3})_f(-?[0-9]{1,9})(?:_k([0-9]{1,3}))?")


@dataclass(frozen=True)
class Fixed(Element):
    """`fixedW_fF` is n / 2^F for the W-bit two's complement number n, `ufixedW_fF` for the unsigned one. F may be negative or above W.

    Codes, ties (to even n) and over=wrap as of intW and uintW; no -0, no specials. As with integers a block's scale brings its extremes to
    the largest value, whatever their sign.
    """

    negative: bool
    fraction: int

    @property
    def fields(self) -> dict[str, Any]:
        return {"family": "fixed", "bits": self.bits, "signed": self.negative, "fraction": self.fraction}

    @property
    def reach(self) -> tuple[float, float]:
        return (self.max or -self.min, self.max) if self.negative else (0.0, self.max)

    @property
    def wraps(self) -> bool:
        return True

    def decode(self, codes: Any) -> np.ndarray:
        c = self._checked(codes)
        if self.negative:
            c = c - ((c >> (self.bits - 1)) << self.bits)
        return np.ldexp(c.astype(np.float64), -self.fraction)

    def _codes(self, x: np.ndarray, round: str, over: str) -> np.ndarray:
        if self.bits <= 8 and over != "wrap":
            return super()._codes(x, round, over)
        wide = np.asarray(x, dtype=np.float64)
        if over == "wrap":  # before scaling, which might overflow; exact, and as many steps as there are codes
            wide = np.where(np.isinf(wide), wide, np.fmod(np.where(np.isinf(wide), 0, wide), np.ldexp(1.0, self.bits - self.fraction)))
        with np.errstate(over="ignore", under="ignore"):
            scaled = np.ldexp(wide, self.fraction)
        # What vanishes in scaling still lies beside zero for the modes that round away from it.
        whole = round_integral(np.where((scaled == 0) & (wide != 0), np.copysign(2.0**-1000, wide), scaled), round)
        if over == "wrap":
            return wrapped(whole, self)
        low = -(1 << (self.bits - 1)) if self.negative else 0
        high = low + (1 << self.bits) - 1
        if over == "error":
            outside = (whole < low) | (whole > high)
            if outside.any():
                raise_out_of_range(self, x, outside)
        return (np.clip(whole, low, high).astype(np.int64) & ((1 << self.bits) - 1)).astype(self.code_dtype)


@lru_cache(maxsize=64)
def _few_digits(bits: int, negative: bool, digits: int) -> np.ndarray:
    """The whole numbers of a two's complement (or unsigned) range that have at most `digits` nonzero signed digits, sorted."""

    def nonzero(n: int) -> int:
        count = 0
        while n:
            if n & 1:
                n -= 2 - (n & 3)  # the digit +1 or -1 that leaves a multiple of 4
                count += 1
            n >>= 1
        return count

    low = -(1 << (bits - 1)) if negative else 0
    found = np.array([n for n in range(low, low + (1 << bits)) if nonzero(n) <= digits])
    found.flags.writeable = False
    return found


@dataclass(frozen=True)
class FewDigits(Element):
    """`fixedW_fF_kK`: those values of fixedW_fF that are sums or differences of at most K powers of two: a product is K shifts.

    A code is a position in the ascending list of these values, as in a codebook, and as many bits wide as the list needs (fixed8_f4_k2: 7);
    codes past its end decode like the last. No wrap: the list has gaps.
    Source: the multiplier-free weights of QFX, arXiv 2401.17544. Differs: they keep the W-bit code, many of whose patterns mean nothing.
    """

    negative: bool
    width: int
    fraction: int
    digits: int

    @property
    def fields(self) -> dict[str, Any]:
        return {
            "family": "fewdigits", "bits": self.bits, "signed": self.negative, "width": self.width, "fraction": self.fraction,
            "digits": self.digits,
        }  # fmt: skip

    def decode(self, codes: Any) -> np.ndarray:
        numbers = _few_digits(self.width, self.negative, self.digits)
        return np.ldexp(numbers[np.minimum(self._checked(codes), numbers.size - 1)].astype(np.float64), -self.fraction)


def parse(text: str) -> Fixed | FewDigits | None:
    found = _FORM.fullmatch(text)
    if not found:
        return None
    negative, width, fraction = not found[1], int(found[2]), int(found[3])
    if not 1 <= width <= 16:
        raise FormatError(f"fixed point has 1 to 16 bits, not {width}")
    largest = width - negative - fraction  # every magnitude is at most 2^largest
    if not (fraction <= 149 and -64 < largest <= 127):
        raise FormatError(
            f"steps of 2^{-fraction} to 2^{largest} leave the useful part of float32's range; F of {found[1]}fixed{width} lies between"
            f" {width - negative - 127} and {min(149, width - negative + 63)}"
        )
    name = f"{found[1]}fixed{width}_f{fraction}"
    if found[4] is None:
        return Fixed(name, width, negative, fraction)
    digits = int(found[4])
    if digits < 1:
        raise FormatError("K counts nonzero digits and is at least 1; with none only zero is left")
    count = _few_digits(width, negative, digits).size
    if count == 1 << width:
        raise FormatError(f"every number of {width} bits has at most {digits} nonzero signed digits; leave out _k{digits}")
    return FewDigits(f"{name}_k{digits}", (count - 1).bit_length(), negative, width, fraction, digits)


FAMILIES.add(
    "fixed",
    Family(
        "fixed",
        "fixed point: whole numbers of W bits over 2^F; with _kK only those of at most K nonzero signed digits",
        "fixedW_fF[_kK], ufixedW_fF[_kK] unsigned, W 1 to 16, F also negative",
        parse,
        {
            "fixed8_f4": "-8 to 7.9375 in steps of 1/16",
            "fixed8_f6": "-2 to 1.984375 in steps of 1/64, the element of OCP MXINT8",
            "ufixed8_f4": "0 to 15.9375 in steps of 1/16",
            "fixed16_f8": "-128 to 127.99609375 in steps of 1/256",
            "fixed8_f4_k2": "the values of fixed8_f4 that are sums or differences of two powers of two (QFX)",
        },
    ),
)
