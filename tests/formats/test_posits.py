"""Posits: values and rounding of the 2022 standard by hand, and against SoftPosit where it is installed."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from anybit.errors import FormatError
from anybit.formats import Format, parse_element
from anybit.methods.quality import sqnr_db


def test_values() -> None:
    """posit4 and posit8 as the standard defines them: useed 16, a quarter of the codes on each side of +-1."""
    nan = float("nan")
    posit4 = [0, 2**-8, 2**-4, 0.25, 1, 4, 16, 256, nan, -256, -16, -4, -1, -0.25, -(2**-4), -(2**-8)]
    assert np.array_equal(parse_element("posit4").values, posit4, equal_nan=True)
    posit8 = parse_element("posit8")
    assert (posit8.name, posit8.max, posit8.smallest, posit8.specials) == ("posit8", 2.0**24, 2.0**-24, {"nan": 0x80})
    # 0 10 00 000 is 1, 0 10 01 101 is 2 (1 + 5/8), 0 0001 11 1 is 2^-12 8 (1 + 1/2), 1 01 11 111: two's complement of 0 10 00 001.
    assert posit8.decode([0x40, 0x4D, 0x0F, 0xBF]).tolist() == [1, 3.25, 12 * 2.0**-12, -1.125]
    posit16 = parse_element("posit16")
    assert (posit16.max, posit16.smallest) == (2.0**56, 2.0**-56) and posit16.decode([0x4C91]) == 3.1416015625  # pi
    assert parse_element("posit8_es2") == posit8 and parse_element("posit3_es0").finite.tolist() == [-2, -1, -0.5, 0, 0.5, 1, 2]
    assert parse_element("posit8_es0").max == 64 and parse_element("posit8_es1").smallest == 2.0**-12


def test_rounding_of_the_standard() -> None:
    """Ties where one more bit would be, to the even code; nothing but zero becomes zero, nothing becomes NaR."""
    e = parse_element("posit8")
    assert e.encode([1e-30, -1e-30, 0.0, -0.0, 1e30, -1e30]).tolist() == [1, 0xFF, 0, 0, 0x7F, 0x81]
    # 2^20 and 2^24 are neighbours: the posit between them has the exponent 2^22, far below the middle.
    assert e.decode(e.encode([2.0**22, 2.0**22 * 1.001, 2.0**22 * 0.999])).tolist() == [2.0**20, 2.0**24, 2.0**20]
    assert e.ties[-2] == Fraction(2**22) and e.ties[0] == -(2**27 + 2**23)
    # Near 1 it is the middle: 1.0625 between codes 0x40 and 0x41 goes to the even one, 1.1875 between 0x41 and 0x42 too.
    assert e.encode([1.0625, 1.1875, np.nextafter(1.0625, 2)]).tolist() == [0x40, 0x42, 0x41]
    assert e.encode([2.0**22, 1.0625, 1e-30], round="nearest-away").tolist() == [0x7F, 0x41, 1]
    assert e.encode([2.0**23.9, 1e-30, -1e-30], round="zero").tolist() == [0x7E, 0, 0]
    assert e.encode([np.nan, np.inf], nonfinite="propagate").tolist() == [0x80, 0x80]
    assert e.encode([1e9], over="nan").tolist() == [0x80] and e.encode([2.0**26], over="nan").tolist() == [0x7F]
    with pytest.raises(FormatError, match="posit8 has no infinity; use saturate, nan, error"):
        e.encode([1.0], over="inf")


def test_scales_leave_posits_where_they_are_precise() -> None:
    """A block's largest magnitude goes one regime above 1: by absmax to the largest value, 8 bits would be worth five."""
    for name, least in (("posit8@64", 31), ("posit8_es1@64", 36), ("posit8_es0@64", 40), ("posit6_es1@64", 24), ("posit16@64", 75)):
        for source in ("normal", "laplace", "t4"):
            assert sqnr_db(f"{name}:fp32", source) > least, (name, source)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("posit2", "posits have 3 to 16 bits, not 2"),
        ("posit17", "posits have 3 to 16 bits, not 17"),
        ("posit16_es4", "es = 4 is too large: with 16 bits the largest value leaves float32's range; es is 0 to 3"),
        ("posit8_es9", "es = 9 is too large: with 8 bits the largest value leaves float32's range; es is 0 to 4"),
        ("posit3_es5", "es is 0 to 4, not 5"),
        ("posit8_es", "no format named 'posit8_es'; did you mean posit8"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        Format(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("bits", range(3, 17))
def test_softposit(bits: int) -> None:
    """All finite float16 values and powers over the whole range: SoftPosit's posits of es 2, its posit8 (es 0) and posit16 (es 1)."""
    softposit = pytest.importorskip("softposit")
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
    x = np.r_[x[np.isfinite(x)], np.exp2(np.arange(-70, 70) / 2), -np.exp2(np.arange(-70, 70) / 3)]
    theirs = [softposit.convertDoubleToPX2(float(v), bits).v >> (32 - bits) for v in x]
    assert np.array_equal(parse_element(f"posit{bits}").encode(x), theirs)
    for name, convert in (("posit8_es0", softposit.convertDoubleToP8), ("posit16_es1", softposit.convertDoubleToP16)):
        if name.startswith(f"posit{bits}_"):
            assert np.array_equal(parse_element(name).encode(x), [convert(float(v)).v for v in x])
