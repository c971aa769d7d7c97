"""Every minifloat of 0 to 8 exponent and 0 to 10 mantissa bits, each with every kind of specials: accepted or refused, and right."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from anybit.errors import FormatError
from anybit.formats import parse_element
from anybit.reference.rational import decode


def possible(signed: bool, exponent: int, mantissa: int, kind: str) -> bool:
    """Whether such a format has a meaning within float32: decided here from the definition alone."""
    if exponent + mantissa == 0 or (kind == "ieee" and exponent == 0) or (kind == "fnuz" and not signed):
        return False
    codes = 1 << (exponent + mantissa)
    top = codes - {"none": 1, "fnuz": 1, "fn": 2, "ieee": 1 + (1 << mantissa)}[kind]
    if top < 1:
        return False
    bias = (1 << exponent >> 1) - (kind != "fnuz") if exponent else 0
    largest, least = (top >> mantissa or 1) - bias, 1 - bias - mantissa
    if exponent == 0 or (top >> mantissa) == 0:
        largest = top.bit_length() - 1 + least
    return largest < 128 and (least if mantissa else min(least, largest)) >= -149


@pytest.mark.parametrize("exponent", range(9))
def test_sweep(exponent: int) -> None:
    rng = np.random.default_rng(exponent)
    seen = 0
    for mantissa in range(11):
        for signed in (True, False):
            for kind in ("ieee", "fn", "fnuz", "none"):
                bits = exponent + mantissa + signed
                text = f"{'' if signed else 'u'}fp{bits}_e{exponent}m{mantissa}{kind}"
                if not possible(signed, exponent, mantissa, kind):
                    with pytest.raises(FormatError):
                        parse_element(text)
                    continue
                element = parse_element(text)
                seen += 1
                codes = np.arange(1 << bits) if bits <= 6 else np.unique(np.r_[rng.integers(0, 1 << bits, 30), 0, (1 << bits) - 1])
                for code, value in zip(codes.tolist(), element.decode(codes).tolist(), strict=True):
                    exact = decode(element.fields, code)
                    if isinstance(exact, Fraction):
                        assert Fraction(value) == exact, (text, code)
                    else:
                        assert np.array_equal([value], [float(exact)], equal_nan=True), (text, code)
                        assert exact == "nan" or np.signbit(value) == exact.startswith("-"), (text, code)
                # Nearest even by value: the code again, and the even neighbour from the middle of two codes.
                if bits <= 16 and len(element.finite) > 2:
                    at = rng.integers(0, len(element.finite) - 1, 10)
                    low, high = element.finite[at], element.finite[at + 1]
                    assert np.array_equal(element.decode(element.encode(low)), low), text
                    middle = element.encode((low + high) / 2)
                    even = np.where(element.finite_codes[at] % 2 == 0, low, high)
                    assert np.array_equal(element.decode(middle), even), text
    assert seen > 30


def test_short_names() -> None:
    """The usual names are instances."""
    for short, text in (("fp16", "fp16_e5m10"), ("bf16", "fp16_e8m7"), ("tf32", "fp19_e8m10"), ("fp32", "fp32_e8m23")):
        assert parse_element(text).name == short
    ue5m3, ue4m3, e8m0 = (parse_element(name) for name in ("ufp8_e5m3", "ufp7_e4m3fn", "e8m0"))
    assert (ue5m3.max, ue4m3.max, e8m0.max) == (61440, 448, 2.0**127) and not (ue5m3.signed or ue4m3.signed or e8m0.signed)
