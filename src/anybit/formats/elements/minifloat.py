"""Minifloats: sign, exponent and mantissa fields of any width; FP32, FP16, BF16, TF32, the FP8s, FP6s, FP4 and E8M0 are instances."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from anybit.errors import FormatError
from anybit.formats.element import Element
from anybit.formats.family import FAMILIES, Family
from anybit.formats.rounding import raise_out_of_range
from anybit.formats.stochastic import goes_far

_FORM = re.compile(r"(u?)fp([0-9]{1,2})_e([0-9]{1,2})m([0-9]{1,2})(ieee|fnuz|fn|none)?(?:_b(-?[0-9]{1,9}))?(_ns)?")
_NAMED = {"fp32": "fp32_e8m23", "fp16": "fp16_e5m10", "bf16": "fp16_e8m7", "tf32": "fp19_e8m10"}
_SHORT = {text: name for name, text in _NAMED.items()}


@dataclass(frozen=True)
class Minifloat(Element):
    """Codes are sign | exponent | mantissa. With exponent field E > 0 the magnitude is 2^(E - bias) (1 + M / 2^mantissa).

    subnormals: E = 0 means 2^(1 - bias) M / 2^mantissa. Without them E = 0 is a binade like the others, except that code 0 (and its
        negative) is zero (as in AdaptivFloat, and gfloat's has_subnormals=False); with `zero` off, code 0 is a power of two too (E8M0).
    specials_kind: "ieee" the highest exponent means infinity (M = 0) and NaN; "fn" only the code of all ones (under the sign) is NaN, no
        infinity; "fnuz" the code of -0 is the only NaN; "none" every code is a number.
    -0 exists in signed formats but fnuz. Ties go to the even code, which is IEEE 754's even mantissa.
    """

    negative: bool
    exponent: int
    mantissa: int
    bias: int
    specials_kind: str
    subnormals: bool = True
    zero: bool = True

    @property
    def fields(self) -> dict[str, Any]:
        return {
            "family": "minifloat", "bits": self.bits, "signed": self.negative, "exponent": self.exponent, "mantissa": self.mantissa,
            "bias": self.bias, "specials": self.specials_kind, "subnormals": self.subnormals, "zero": self.zero,
        }  # fmt: skip

    @property
    def _top(self) -> int:
        """The code of the largest finite magnitude."""
        ones = (1 << (self.exponent + self.mantissa)) - 1
        if self.specials_kind == "ieee":
            return (((1 << self.exponent) - 1) << self.mantissa) - 1
        return ones - 1 if self.specials_kind == "fn" else ones

    def _magnitude(self, code: Any) -> np.ndarray:
        """float64 magnitudes of codes without sign, specials disregarded; goes on past the last code."""
        c = np.asarray(code, dtype=np.int64)
        e, m = c >> self.mantissa, c & ((1 << self.mantissa) - 1)
        normal = (e > 0) | (not self.subnormals)
        significand = (m + (normal << self.mantissa)).astype(np.float64)
        value = np.ldexp(significand, np.maximum(e, int(self.subnormals)) - self.bias - self.mantissa)
        return np.where((c == 0) & self.zero, 0.0, value)

    def decode(self, codes: Any) -> np.ndarray:
        c = self._checked(codes)
        width = self.exponent + self.mantissa
        sign, magnitude = c >> width, c & ((1 << width) - 1)
        value = self._magnitude(magnitude)
        if self.specials_kind == "ieee":
            value = np.where(magnitude > self._top, np.where(magnitude == self._top + 1, np.inf, np.nan), value)
        elif self.specials_kind == "fn":
            value = np.where(magnitude > self._top, np.nan, value)
        value = np.where(sign != 0, -value, value)
        return np.where(c == 1 << width, np.nan, value) if self.specials_kind == "fnuz" else value

    @cached_property
    def max(self) -> float:
        return float(self._magnitude(self._top))

    @cached_property
    def min(self) -> float:
        return -self.max if self.negative else float(self._magnitude(0))

    @cached_property
    def smallest(self) -> float:
        return float(self._magnitude(int(self.zero)))

    @cached_property
    def has_zero(self) -> bool:
        return self.zero

    @cached_property
    def specials(self) -> dict[str, int]:
        sign = 1 << (self.exponent + self.mantissa)
        found: dict[str, int] = {}
        if self.specials_kind == "ieee":
            if self.mantissa:
                found["nan"] = self._top + 1 + (1 << (self.mantissa - 1))  # quiet: the highest mantissa bit
            found["inf"] = self._top + 1
            if self.negative:
                found["-inf"] = sign | found["inf"]
        elif self.specials_kind == "fn":
            found["nan"] = self._top + 1
        elif self.specials_kind == "fnuz":
            found["nan"] = sign
        if self.negative and self.specials_kind != "fnuz":
            found["-0"] = sign
        return found

    @cached_property
    def beyond(self) -> tuple[float, float]:
        above = float(self._magnitude(self._top + 1))
        return (-above if self.negative else self.min - self.smallest), above

    def _codes(self, x: np.ndarray, round: str, over: str) -> np.ndarray:
        if self.bits <= 8:
            return super()._codes(x, round, over)
        magnitude = self._fast(x) if round == "nearest-even" and x.dtype == np.float32 else None
        return self._finish(x, self._round(x, round) if magnitude is None else magnitude, over)

    def _stochastic(self, x: np.ndarray, bits: int, over: str, word: np.ndarray) -> np.ndarray:
        if self.bits <= 16:
            return super()._stochastic(x, bits, over, word)
        return self._finish(x, self._round(x, "stochastic", bits, word), over)

    def _fast(self, x: np.ndarray) -> np.ndarray | None:
        """Magnitude codes of float32 by integer arithmetic where the format has float32's exponents, by the hardware for fp16."""
        if self.name == "fp16":
            with np.errstate(over="ignore"):
                return x.astype(np.float16).view(np.uint16).astype(np.uint32) & np.uint32(0x7FFF)
        if self.name not in _NAMED:
            return None
        pattern = np.array(x, order="C").view(np.uint32) & np.uint32(0x7FFFFFFF)
        shift = 23 - self.mantissa
        if shift:
            pattern += ((pattern >> np.uint32(shift)) & np.uint32(1)) + np.uint32((1 << (shift - 1)) - 1)
            pattern >>= np.uint32(shift)
        return pattern

    def _round(self, x: np.ndarray, mode: str, bits: int = 0, word: np.ndarray | None = None) -> np.ndarray:
        """Magnitude codes of float64 values, past the top code where they are out of range. Exact: every scaling is by a power of two.

        `bits`, `word`: of stochastic rounding.
        """
        with np.errstate(under="ignore"):
            a, negative = np.minimum(np.abs(x, dtype=np.float64), 4 * self.max), np.signbit(x)
            least = (1 if self.subnormals else 0) - self.bias
            e = np.where(a > 0, np.maximum(np.frexp(a)[1] - 1, least), least)
            # A positive value must stay positive, whatever the bias: it decides the directed modes.
            scaled = np.maximum(np.ldexp(a, self.mantissa - e), np.where(a > 0, 1e-300, 0.0))
        whole = np.floor(scaled)
        rest = scaled - whole
        low = whole.astype(np.int64) + ((e.astype(np.int64) - least - (not self.subnormals)) << self.mantissa)
        if word is not None:
            gap = a < self.smallest
            return np.where(gap, 0, low) + goes_far(word, bits, np.where(gap, a, rest), np.where(gap, self.smallest, 1.0))
        if not self.subnormals:
            gap, half = a < self.smallest, self.smallest / 2
            low = np.where(gap, 0, low)
            rest = np.where(gap, np.where(a > half, 0.75, np.where(a == half, 0.5, np.where(a > 0, 0.25, 0.0))), rest)
        if mode == "nearest-even":
            up = (rest > 0.5) | ((rest == 0.5) & (low & 1 == 1))
        elif mode in ("nearest-away", "nearest-zero"):
            up = rest >= 0.5 if mode == "nearest-away" else rest > 0.5
        elif mode in ("up", "down"):
            up = (rest > 0) & (negative == (mode == "down"))
        else:
            up = (rest > 0) & (low & 1 == 0) & (mode == "odd")
        return low + up

    def _finish(self, x: np.ndarray, magnitude: np.ndarray, over: str) -> np.ndarray:
        """Codes from magnitude codes: overflow, sign."""
        negative = np.signbit(x)
        top = self._top
        outside = magnitude > top
        width = self.exponent + self.mantissa
        below = np.zeros_like(outside) if self.negative else negative & (magnitude > 0)
        if over == "error" and (outside | below).any():
            raise_out_of_range(self, x, outside | below)
        limit = self.specials["inf"] if over == "inf" else self.specials["nan"] if over == "nan" else top
        code = np.where(outside, limit, magnitude).astype(self.code_dtype)
        if not self.negative:
            return np.where(below, self.code_dtype.type(self.specials["nan"] if over == "nan" else 0), code)
        keep = negative & (code != 0) if self.specials_kind == "fnuz" else negative
        if over == "nan":
            keep &= ~outside
        return code | (keep.astype(self.code_dtype) << self.code_dtype.type(width))


def default_specials(bits: int) -> str:
    """OCP's small formats have no specials; from 8 bits on, IEEE 754's."""
    return "none" if bits < 8 else "ieee"


def default_bias(exponent: int, specials_kind: str) -> int:
    """2^(e-1) - 1; fnuz formats have one more; no exponent field: 0."""
    return max(0, (1 << exponent) // 2 - (specials_kind != "fnuz"))


def make(
    negative: bool, exponent: int, mantissa: int, bias: int | None = None, specials_kind: str = "", subnormals: bool = True
) -> Minifloat:
    """A minifloat with its canonical name. FormatError: fields that contradict each other or values that float32 cannot hold."""
    bits = exponent + mantissa + negative
    if exponent + mantissa == 0:
        raise FormatError("no exponent and no mantissa bits; a minifloat needs at least one")
    if exponent > 8 or mantissa > 23:
        raise FormatError("a minifloat has at most 8 exponent and 23 mantissa bits (float32's)")
    kind = specials_kind or default_specials(bits)
    if kind == "ieee" and exponent == 0:
        raise FormatError("IEEE specials take the highest exponent, and there are no exponent bits; use none or fn")
    if kind == "fnuz" and not negative:
        raise FormatError("fnuz puts NaN at -0, which an unsigned format does not have; use fn or none")
    if not subnormals and exponent == 0:
        raise FormatError("without exponent bits all values are subnormal; leave out _ns")
    standard = default_bias(exponent, kind)
    bias = standard if bias is None else bias
    if abs(bias) > 999:
        raise FormatError(f"a bias of {bias} puts all values out of float32's range; the usual one is {standard}")
    name = f"{'' if negative else 'u'}fp{bits}_e{exponent}m{mantissa}"
    name += ("" if kind == default_specials(bits) else kind) + ("" if bias == standard else f"_b{bias}") + ("" if subnormals else "_ns")
    element = Minifloat(_SHORT.get(name, name), bits, negative, exponent, mantissa, bias, kind, subnormals)
    if element._top < 1:
        raise FormatError(f"with {kind} specials no finite value but zero is left; use none")
    if not (element.max < 2.0**128 and math.frexp(element.smallest)[1] - 1 >= (mantissa if not subnormals else 0) - 149):
        raise FormatError(f"values from {element.smallest:g} to {element.max:g} leave float32's range; choose another bias or specials")
    if element.max < 2.0**-64:
        raise FormatError(f"the largest value {element.max:g} is below 2^-64; choose a smaller bias, the scale does the rest")
    return element


def parse(text: str) -> Minifloat | None:
    if text == "e8m0":
        return Minifloat("e8m0", 8, False, 8, 0, 127, "fn", subnormals=False, zero=False)
    found = _FORM.fullmatch(_NAMED.get(text, text))
    if not found:
        return None
    unsigned, bits, exponent, mantissa, suffix, bias, flat = found.groups()
    e, m, signed = int(exponent), int(mantissa), not unsigned
    if e + m + signed != int(bits):
        raise FormatError(f"{e} exponent, {m} mantissa{' and 1 sign' if signed else ''} bits are {e + m + signed}, not {int(bits)}")
    return make(signed, e, m, None if bias is None else int(bias), suffix or "", not flat)


FAMILIES.add(
    "minifloat",
    Family(
        "minifloat",
        "sign, exponent, mantissa of any width; ieee, fn, fnuz or no specials; any bias; subnormals on or off",
        "fpN_eXmY[ieee|fn|fnuz|none][_bBIAS][_ns], ufpN_... unsigned",
        parse,
        {
            "fp32": "IEEE binary32",
            "tf32": "19 bits: float32's exponent, fp16's mantissa",
            "bf16": "bfloat16: float32's exponent, 7 mantissa bits",
            "fp16": "IEEE binary16",
            "fp8_e4m3fn": "OCP FP8 E4M3: to 448, NaN, no infinity",
            "fp8_e5m2": "OCP FP8 E5M2: to 57344, IEEE specials",
            "fp8_e4m3": "IEEE-like E4M3: to 240, infinity and NaN",
            "fp8_e3m4": "IEEE-like E3M4: to 15.5, infinity and NaN",
            "fp8_e4m3fnuz": "E4M3 with one NaN at -0, bias 8: to 240",
            "fp8_e5m2fnuz": "E5M2 with one NaN at -0, bias 16: to 57344",
            "fp7_e3m3": "7 bits, no specials: to 30",
            "fp6_e3m2": "OCP FP6 E3M2: to 28, no specials",
            "fp6_e2m3": "OCP FP6 E2M3: to 7.5, no specials",
            "fp5_e2m2": "5 bits, no specials: to 7",
            "fp4_e2m1": "OCP FP4 E2M1: 0 0.5 1 1.5 2 3 4 6 and negatives",
            "fp3_e2m0": "0 1 2 4 and negatives",
            "ufp8_e5m3": "unsigned UE5M3, a scale format; IEEE specials",
            "ufp7_e4m3": "unsigned UE4M3 in 7 bits, no specials",
            "e8m0": "powers of two 2^-127 to 2^127 and NaN, the OCP MX scale; no zero, no sign",
        },
    ),
)
