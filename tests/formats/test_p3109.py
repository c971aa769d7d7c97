"""IEEE P3109's floats: the codes that the interim report prints, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from anybit.errors import FormatError
from anybit.formats import Format, parse_element


def test_binary8() -> None:
    """NaN at 0x80, infinities at 0x7F and 0xFF, one zero, 1 at 0x40; largest and smallest values by hand for each precision."""
    figures = {1: (2.0**62, 2.0**-63), 2: (2.0**31, 2.0**-32), 3: (49152, 2.0**-17), 4: (224, 2.0**-10), 5: (15, 2.0**-7),
               6: (3.875, 2.0**-6), 7: (1.96875, 2.0**-6)}  # fmt: skip
    for precision, (largest, least) in figures.items():
        e = parse_element(f"p3109_p{precision}")
        assert (e.max, e.smallest, e.specials) == (largest, least, {"nan": 0x80, "inf": 0x7F, "-inf": 0xFF}), precision
        assert e.decode([0, 0x40, 0xC0]).tolist() == [0, 1, -1] and len(e.finite) == 253
        assert e.encode([-0.0, 0.0, np.inf, -np.inf, np.nan], nonfinite="propagate").tolist() == [0, 0, 0x7F, 0xFF, 0x80]
    assert parse_element("p3109_p3f").max == 57344 and not parse_element("p3109_p3f").has_inf
    unsigned = parse_element("p3109_p4u")
    assert (unsigned.specials, unsigned.max, unsigned.signed) == ({"nan": 0xFF, "inf": 0xFE}, 53248, False)
    assert parse_element("p3109_k8_p3") == parse_element("p3109_p3")


def test_overflow() -> None:
    """From half a step beyond the largest value on, where the code of infinity would be a number: infinity, NaN or the largest."""
    e = parse_element("p3109_p4")
    x = [231.9, 232.0, 1e9, -1e9]
    assert e.decode(e.encode(x)).tolist() == [224, 224, 224, -224]
    assert e.decode(e.encode(x, over="inf")).tolist() == [224, 224, np.inf, -np.inf]  # 232: the tie goes to the even code 0x7E
    assert np.isnan(e.decode(e.encode(x, over="nan"))).tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p3109_p8", "the precision of a P3109 format of 8 bits is 1 to 7, not 8"),
        ("p3109_p9u", "the precision of a P3109 format of 8 bits is 1 to 8, not 9"),
        ("p3109_p0", "is 1 to 7, not 0"),
        ("p3109_k2_p1", "P3109 formats have 3 to 15 bits here, not 2"),
        ("p3109_k16_p9", "P3109 formats have 3 to 15 bits here, not 16"),
        ("p3109_k15_p2", "exponents of 15 bits with precision 2 leave float32's range; use a precision of 7 or more"),
        ("p3109_k9_p1u", "leave float32's range; use a precision of 2 or more"),
        ("p3109", "no format named 'p3109'; did you mean p3109_p"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        Format(text)
    assert message in str(caught.value)
