"""Powers of two, their sums, logarithmic and power-exponent numbers, bipolar and fixed point: published values, and what is refused."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest

from anybit.errors import FormatError
from anybit.formats import Format, parse_element


def positive(name: str) -> list[float]:
    values = parse_element(name).finite
    return values[values > 0].tolist()


def test_powers_of_two() -> None:
    assert positive("pot3_nz") == [1, 2, 4, 8] and not parse_element("pot3_nz").has_zero  # DenseShift's 3-bit weights
    assert parse_element("pot4").values.tolist() == [0, 1, 2, 4, 8, 16, 32, 64, 0, -1, -2, -4, -8, -16, -32, -64]
    e = parse_element("pot4")
    assert e.specials == {"-0": 8} and e.encode([-0.1, 0.5, 3.0, 6.0, 5.9, 97.0, 1e9]).tolist() == [8, 0, 2, 4, 3, 7, 7]
    assert e.encode([95.0], over="error").tolist() == [7]
    with pytest.raises(FormatError, match=r"1 value\(s\) outside pot4's range -64 to 64, the first 97 at"):
        e.encode([95.0, 97.0], over="error")
    assert parse_element("pot4_nz").encode([0.0, -0.0, -0.4]).tolist() == [0, 0, 8]


# The level sets of the authors' published code (build_power_value of the APoT repository), in 1/2^n; without sign: 2, 3, 4, 5, 6 bits.
APOT = {
    "pot3_k2": [[1], [2]],
    "pot4_k2": [[1, 2, 4], [3]],
    "pot5_k2": [[1, 3, 5], [2, 4, 6]],
    "pot6_k3": [[1, 3, 6], [2, 4, 7], [5]],
    "pot7_k3": [[1, 4, 7], [2, 5, 8], [3, 6, 9]],
}


@pytest.mark.parametrize("name", APOT)
def test_sums_of_powers(name: str) -> None:
    sums = {0}
    least = max(map(max, APOT[name]))
    for levels in APOT[name]:
        sums = {total + level for total in sums for level in [0, *(2 ** (least - n) for n in levels)]}
    element = parse_element(name)
    assert [0, *positive(name)] == sorted(sums) and len(sums) == 2 ** (element.bits - 1)
    assert np.array_equal(element.finite, -element.finite[::-1])


def test_sums_decode_by_fields() -> None:
    """pot5_k2: sign, two bits of {0, 2, 8, 32}, two of {0, 1, 4, 16}."""
    values = parse_element("pot5_k2").decode([0b00000, 0b00001, 0b00110, 0b01111, 0b11001, 0b10000])
    assert values.tolist() == [0, 1, 2 + 4, 32 + 16, -8 - 1, 0] and np.signbit(values[-1])
    for name in ("pot4_k3", "pot8_k2", "pot8_k3", "pot11_k4", "pot6_k5"):
        e = parse_element(name)
        assert len(e.finite) == (1 << e.bits) - 1, "every sum is another number"


def test_logarithmic() -> None:
    """Nearest float32 of the roots, checked to the bit by 40-digit decimals; every 2^F-th value is a power of two."""
    assert positive("log4_f1") == [1, float(np.float32(np.sqrt(2))), 2, float(np.float32(np.sqrt(8))), 4, float(np.float32(np.sqrt(32))), 8]
    for name, fraction in (("log6_f2", 2), ("log8_f3", 3), ("log11_f5", 5)):
        values = positive(name)
        for i, value in enumerate(values):
            exact = Decimal(2) ** (Decimal(i) / 2**fraction)
            ulp = Decimal(float(np.spacing(np.float32(value))))
            assert abs(Decimal(value) - exact) <= ulp / 2, (name, i)
            assert i % 2**fraction or value == 2.0 ** (i >> fraction)


def test_finest_roots() -> None:
    """F = 10, where the rational reference would take minutes: 1,024 roots against long decimals."""
    from anybit.formats.elements.log import _binade
    from anybit.reference.grid_scalars import log_steps

    assert np.array_equal(_binade(10), log_steps({"bits": 12, "fraction": 10})[:1024])


def test_power_exponent() -> None:
    """a = 0.5 squares the grid, 1 leaves it, 2 takes roots; the least code is not used."""
    for name, expected in (("pow4_a0.5", (np.arange(8) / 7) ** 2), ("pow4_a1", np.arange(8) / 7), ("pow4_a2", np.sqrt(np.arange(8) / 7))):
        e = parse_element(name)
        assert np.array_equal(e.values[:8], expected.astype(np.float32)), name
        assert np.array_equal(e.values[9:], -e.values[7:0:-1]) and e.values[8] == -1 and e.encode([-1.0, -9.0]).tolist() == [9, 9]
    assert str(Format("pow4_a.50@channel")) == "pow4_a0.5@channel"


def test_bipolar() -> None:
    """sum (2 b_i - 1) 2^i, so that codes are the integers' with x = 2 n + 1 (two's complement n, highest bit flipped)."""
    assert parse_element("bipolar3").values.tolist() == [-7, -5, -3, -1, 1, 3, 5, 7]
    assert np.array_equal(parse_element("bipolar1").values, parse_element("binary").values)
    for bits in (2, 4, 8):
        codes = np.arange(1 << bits)
        twos = parse_element(f"int{bits}").decode(codes ^ (1 << (bits - 1)))
        assert np.array_equal(parse_element(f"bipolar{bits}").decode(codes), 2 * twos + 1)
    assert parse_element("bipolar4").encode([0.0, 2.0, -2.0, 99.0]).tolist() == [8, 8, 6, 15]


def test_fixed_point() -> None:
    e = parse_element("fixed8_f4")
    assert (e.min, e.max, e.smallest) == (-8, 7.9375, 0.0625) and e.decode([0x18, 0xE8]).tolist() == [1.5, -1.5]
    assert e.decode(e.encode([7.96, 8.0, -8.1, 100.0])).tolist() == [7.9375, 7.9375, -8, 7.9375]
    assert e.decode(e.encode([7.96, 8.0, -8.1, 100.0, 1e300], over="wrap")).tolist() == [7.9375, -8, 7.875, 4, 0]
    for name, step in (("fixed8_f-20", 2.0**20), ("ufixed8_f70", 2.0**-70), ("fixed16_f20", 2.0**-20), ("ufixed4_f4", 2.0**-4)):
        other, whole = parse_element(name), parse_element(f"{'u' * name.startswith('u')}int{parse_element(name).bits}")
        assert np.array_equal(other.values, whole.values * step), name
        x = np.random.default_rng(0).standard_normal(3000) * whole.max
        for mode in ("nearest-even", "up", "odd"):
            for over in ("saturate", "wrap"):
                assert np.array_equal(other.encode(x * step, mode, over), whole.encode(x, mode, over)), (name, mode, over)
    # A step of 2^20: what vanishes when it is scaled still rounds up.
    assert parse_element("fixed8_f-20").encode([5e-324, -5e-324], round="up").tolist() == [1, 0]
    assert Format("mxint8").explicit == "fixed8_f6@32:e8m0" and Format("mxint8").bits_per_weight == 8.25


def test_few_digits() -> None:
    """All numbers of 8 bits that are 0, 2^i or 2^i +- 2^j; 7 bits hold the 88 of them."""
    by_hand = {0} | {s * 2**i for i in range(8) for s in (1, -1)}
    by_hand |= {s * 2**i + t * 2**j for i in range(9) for j in range(9) for s in (1, -1) for t in (1, -1)}
    e = parse_element("fixed8_f4_k2")
    assert (e.finite * 16).tolist() == sorted(n for n in by_hand if -128 <= n <= 127) and (e.bits, len(e.finite)) == (7, 88)
    assert e.decode([87, 127]).tolist() == [7.9375, 7.9375] and e.encode([7.9, 7.95]).tolist() == [86, 87]
    assert parse_element("ufixed4_f0_k1").finite.tolist() == [0, 1, 2, 4, 8]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bipolar0", "bipolar integers have 1 to 16 bits, not 0"),
        ("fixed17_f2", "fixed point has 1 to 16 bits, not 17"),
        ("fixed0_f0", "fixed point has 1 to 16 bits, not 0"),
        ("fixed8_f200", "F of fixed8 lies between -120 and 70"),
        ("ufixed8_f-121", "F of ufixed8 lies between -119 and 71"),
        ("fixed8_f4_k0", "K counts nonzero digits and is at least 1"),
        ("fixed8_f4_k4", "every number of 8 bits has at most 4 nonzero signed digits; leave out _k4"),
        ("fixed8", "no format named 'fixed8'; did you mean fixed8_f"),
        ("pot1", "powers of two have 2 to 7 bits"),
        ("pot8_nz", "powers of two have 2 to 7 bits (a sign, and exponents up to 63), not 8"),
        ("pot4_k1", "sums have 2 or more terms; one power of two is pot4"),
        ("pot3_k3", "a sum of 3 powers has 4 to 16 bits (a sign, and a bit for each term), not 3"),
        ("pot16_k2", "the largest power would be 2^381, beyond 2^63; use fewer bits or more terms"),
        ("log2_f1", "logarithmic numbers have 3 to 16 bits, not 2"),
        ("log8_f0", "with F = 0 the base is 2; write pot8"),
        ("log8_f11", "F is 1 to 10, not 11"),
        ("log16_f2", "the largest value would be beyond 2^64; with 16 bits F is 9 to 10"),
        ("pow1_a1", "power-exponent numbers have 2 to 10 bits, not 1"),
        ("pow4_a0", "a = 0 has no inverse"),
        ("pow4_a0.0", "a = 0 has no inverse"),
        ("pow4_a0.0000001", "a has at most 6 decimals"),
        ("pow4_a0.01", "a = 0.01 is too small: the least value leaves float32's range; a is 0.0223 or more"),
        ("pow4_a1001", "a = 1001 is too large: all values are nearly 1"),
        ("pow4_a", "no format named 'pow4_a'; did you mean pow4_a0.5?"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        Format(text)
    assert message in str(caught.value)
