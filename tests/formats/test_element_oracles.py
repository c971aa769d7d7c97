"""Every built-in element against two independent definitions: all codes, all float16 and bfloat16 inputs, every switch point."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from anybit.errors import FormatError
from anybit.formats import OVERS, ROUNDS, Element, named_formats, parse_element
from anybit.reference.grid import Grid
from anybit.reference.rational import Rational

BUILT_IN = [n.name for n in named_formats() if not n.blocked]
BUILT_IN = [name for name in BUILT_IN if parse_element(name).dim == 1 and not parse_element(name).learned]  # those: test_vectors.py
# Beside the built-in ones: a tie between codes of one parity, no zero at all, odd biases, no subnormals, no exponent, every special.
EXTRA = [
    "codebook_-3_1_0.25_2", "codebook_1_2_4", "codebook_-4_-1", "codebook_0.1_-0.7_1e-10_3", "codebook_0.1_1e-11", "codebook_0.1_3e-11",
    "codebook_-0.1_-7e-12", "codebook_0.1_1e-12", "fp6_e3m2_b5_ns", "fp6_e3m2fn", "fp5_e3m1ieee",
    "fp4_e3m0_ns", "fp4_e0m3", "fp3_e1m1ieee", "fp8_e2m5_b-3", "fp8_e4m3none", "fp8_e7m0", "fp8_e4m3fnuz_ns", "ufp4_e2m2", "ufp6_e3m3fn",
    "fp8_e4m3fn_ns", "ufp5_e5m0_ns", "fp2_e1m0", "ufp1_e1m0", "fp5_e2m2ieee_b40", "fp4_e2m1fn",
    "int1", "bipolar1", "bipolar5", "fixed1_f3", "fixed5_f-20", "fixed6_f40", "ufixed3_f3", "ufixed6_f2_k2", "fixed5_f0_k1",
    "posit3", "posit3_es0", "posit3_es4", "posit4", "posit5_es1", "posit6", "posit7_es3", "posit8_es4", "posit8_es3",
    "pot2", "pot2_nz", "pot6", "pot7_nz", "pot3_k2", "pot4_k3", "pot6_k3", "pot7_k2", "pot8_k3", "pot6_k4", "pot8_k7",
    "log3_f1", "log5_f3", "log8_f1", "log7_f4",
    "pow2_a3", "pow3_a1", "pow4_a2", "pow5_a0.1", "pow6_a0.543", "pow4_a1000",
    "p3109_p1f", "p3109_p7f", "p3109_p1u", "p3109_p8u", "p3109_p3uf", "p3109_k3_p1", "p3109_k4_p2u", "p3109_k5_p3uf", "p3109_k6_p2",
]  # fmt: skip
SMALL = [name for name in BUILT_IN + EXTRA if parse_element(name).bits <= 8]
HALVES = [*SMALL, *(name for name in BUILT_IN if 8 < parse_element(name).bits <= 16)]
WIDE = ["fp16", "bf16", "int16", "uint16", "fp9_e4m4", "fp12_e5m6_ns", "fp11_e3m7fn", "ufp10_e4m6",
        "fp10_e0m9none", "fp13_e5m7fnuz", "fp9_e8m0_ns",
        "ufp11_e4m7ieee_b3", "fp16_e7m8none_b60", "fp10_e4m5_b-40",
        "bipolar10", "fixed12_f20", "ufixed16_f-30", "fixed16_f3_k3", "fixed9_f12_k3",
        "posit9_es4", "posit11_es1", "posit12", "posit14_es3", "posit16",
        "pot11_k4",
        "log12_f6", "pow10_a0.25",
        "p3109_k10_p4", "p3109_k12_p5u", "p3109_k13_p6f",
]  # fmt: skip


@cache
def grid(name: str) -> Grid:
    return Grid(parse_element(name).fields)


@cache
def rational(name: str) -> Rational:
    return Rational(parse_element(name).fields)


@cache
def all_halves() -> np.ndarray:
    """float32: every finite float16 and every finite bfloat16 value, -0 included."""
    patterns = np.arange(1 << 16, dtype=np.uint16)
    x = np.concatenate([patterns.view(np.float16).astype(np.float32), (patterns.astype(np.uint32) << 16).view(np.float32)])
    return x[np.isfinite(x)]


def policies(element: Element) -> list[str]:
    """What the element can do on overflow; "error" last."""
    can = {"inf": element.has_inf, "nan": element.has_nan, "wrap": element.wraps}
    return sorted((o for o in OVERS if can.get(o, True)), key=lambda o: o == "error")


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal including NaN and the sign of zero."""
    numbers = ~np.isnan(a)
    return np.array_equal(a, b, equal_nan=True) and np.array_equal(np.signbit(a[numbers]), np.signbit(b[numbers]))


@pytest.mark.parametrize("name", sorted({n for n in BUILT_IN + EXTRA + WIDE if parse_element(n).bits <= 16}))
def test_decode_of_every_code(name: str) -> None:
    element, exact, walked = parse_element(name), rational(name), grid(name)
    by_fraction = np.array([float(value) for value in exact.values])
    assert same(by_fraction, walked.values)
    assert same(element.values, by_fraction)
    assert same(element.decode(np.arange(1 << element.bits, dtype=element.code_dtype)), by_fraction)
    assert element.beyond == (float(exact.below), float(exact.above)) == (walked.chain[0], walked.chain[-1])
    finite = by_fraction[np.isfinite(by_fraction)]
    assert (element.min, element.max) == (finite.min(), finite.max())
    assert element.has_zero == bool(np.any(finite == 0)) and element.signed == bool(finite.min() < 0)
    assert element.has_nan == bool(np.isnan(by_fraction).any()) and element.has_inf == bool(np.isposinf(by_fraction).any())
    if np.any(finite > 0):
        assert element.smallest == finite[finite > 0].min()
    assert same(element.values, element.values.astype(np.float32).astype(np.float64))
    for special, code in element.specials.items():
        assert same(element.values[[code]], np.array([float(special)]))


@pytest.mark.parametrize("name", sorted({*SMALL, "fp16", "bf16"}))
def test_every_value_is_a_fixed_point_in_every_mode(name: str) -> None:
    element = parse_element(name)
    finite = element.values[np.isfinite(element.values)]
    for mode in ROUNDS:
        for values in (finite, finite.astype(np.float32)):
            assert same(element.decode(element.encode(values, round=mode, over="error")), finite)


@pytest.mark.parametrize("name", HALVES)
def test_all_float16_and_bfloat16_inputs(name: str) -> None:
    """All modes and overflow policies; float32 in a large array goes by table, float64 by search, float16 is widened."""
    element, walked, x = parse_element(name), grid(name), all_halves()
    x64 = x.astype(np.float64)
    place = walked.place(x64)
    for mode in ROUNDS:
        for over in policies(element):
            expected = walked.encode(x64, mode, over, place)
            if over == "error":
                inside = expected >= 0
                if not inside.all():  # bf16 holds them all
                    with pytest.raises(FormatError, match=f"{(expected < 0).sum()} value"):
                        element.encode(x, round=mode, over=over)
                assert np.array_equal(element.encode(x[inside], round=mode, over=over), expected[inside])
            else:
                assert np.array_equal(element.encode(x, round=mode, over=over), expected), (mode, over)
        assert np.array_equal(element.encode(x64, round=mode), walked.encode(x64, mode, "saturate", place)), mode


def is_float32(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return x.astype(np.float32).astype(np.float64) == x


def stress_points(element: Element, sample: int = 0) -> np.ndarray:
    """float64: every value, middle and end with the float64 and float32 neighbours of each."""
    lo, hi = element.beyond
    chain = np.r_[lo, element.finite, hi]
    middles = chain[:-1] / 2 + chain[1:] / 2
    points = np.r_[chain, middles, [float(tie) for tie in element.ties], 0.0]
    if sample:
        points = np.random.default_rng(1).choice(points, sample)
        points = np.r_[points, chain[:3], chain[-3:], middles[:2], middles[-2:]]
    with np.errstate(over="ignore", under="ignore"):
        near = points.astype(np.float32)
        near = near[np.isfinite(near)]
        limit = np.float32(np.inf)
        narrow = np.concatenate([near, np.nextafter(near, limit), np.nextafter(near, -limit)]).astype(np.float64)
        fine = np.concatenate(
            [points, np.nextafter(points, np.inf), np.nextafter(points, -np.inf), points * (1 + 2.0**-40), points * (1 - 2.0**-40)]
        )
    x = np.unique(np.concatenate([narrow, fine, [2 * hi, 1e30, -1e30, 5e-324, -5e-324]]))
    return np.append(x[np.isfinite(x)], -0.0)


@pytest.mark.parametrize("name", SMALL)
def test_switch_points_by_fractions(name: str) -> None:
    """The rational reference judges the neighbourhood of every switch point; the grid reference must agree before it judges more."""
    element, exact, walked = parse_element(name), rational(name), grid(name)
    x = stress_points(element, 0 if element.bits <= 6 else 60)
    narrow = is_float32(x)
    for mode in ROUNDS:
        for over in policies(element)[:-1][-2:]:
            expected = np.array([exact.encode(float(v), mode, over) for v in x])
            assert np.array_equal(walked.encode(x, mode, over), expected), mode
            assert np.array_equal(element.encode(x, round=mode, over=over), expected), mode
            assert np.array_equal(element.encode(x[narrow].astype(np.float32), round=mode, over=over), expected[narrow]), mode


@pytest.mark.parametrize("name", WIDE)
def test_wide_elements_by_fractions(name: str) -> None:
    """More than 8 bits: arithmetic instead of tables, with shortcuts for some; a sample of switch points and of random numbers."""
    element, exact = parse_element(name), rational(name)
    rng = np.random.default_rng(0)
    random = rng.standard_normal(200) * np.exp2(rng.integers(-140, 120, 200))
    x = np.r_[stress_points(element, 60), random, random.astype(np.float32), element.max * rng.uniform(-1.2, 1.2, 100)]
    x = x[np.isfinite(x)]
    narrow = is_float32(x)
    for mode in ROUNDS:
        for over in policies(element)[:-1]:
            expected = np.array([exact.encode(float(v), mode, over) for v in x])
            assert np.array_equal(element.encode(x, round=mode, over=over), expected), (mode, over)
            assert np.array_equal(element.encode(x[narrow].astype(np.float32), round=mode, over=over), expected[narrow]), (mode, over)


def test_wide_arithmetic_equals_switch_points() -> None:
    """Two ways inside the package: minifloats of up to 8 bits by arithmetic give what their switch points give."""
    from anybit.formats.elements.minifloat import Minifloat

    for name in SMALL:
        element = parse_element(name)
        if isinstance(element, Minifloat) and element.zero:
            x = stress_points(element, 200)
            for mode in ROUNDS:
                assert np.array_equal(element._finish(x, element._round(x, mode), "saturate"), element.encode(x, round=mode)), (name, mode)


def test_float32_formats_by_patterns() -> None:
    """fp32 keeps every pattern; tf32 drops 13 mantissa bits to nearest even."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 1 << 32, 100_000, dtype=np.uint32).view(np.float32)
    x = x[np.isfinite(x)]
    assert np.array_equal(parse_element("fp32").encode(x), x.view(np.uint32))
    assert np.array_equal(parse_element("fp32").encode(x.astype(np.float64)), x.view(np.uint32))
    assert np.array_equal(parse_element("fp32").decode(x.view(np.uint32)), x)
    double = rng.standard_normal(10_000) * np.exp2(rng.integers(-150, 128, 10_000))
    with np.errstate(over="ignore", under="ignore"):
        hardware = double.astype(np.float32)
    finite = np.isfinite(hardware)
    assert np.array_equal(parse_element("fp32").encode(double[finite]), hardware[finite].view(np.uint32))
    tf32 = parse_element("tf32")
    codes = tf32.encode(x)
    assert np.array_equal(codes, tf32.encode(x.astype(np.float64)))
    assert np.all(
        np.abs(tf32.decode(codes) - x) <= np.maximum(np.abs(x.astype(np.float64)) * 2.0**-11, 2.0**-137) * (1 + (np.abs(x) > tf32.max))
    )
