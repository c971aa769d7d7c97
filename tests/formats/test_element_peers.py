"""Cross-checks with libraries where they are right, and the places where others go wrong, as tests of ours."""

from __future__ import annotations

import warnings

import ml_dtypes
import numpy as np
import pytest

from anybit.errors import FormatError, NonFiniteError, ShapeError
from anybit.formats import ROUNDS, parse_element

PEERS = {
    "fp8_e4m3fn": "float8_e4m3fn", "fp8_e4m3": "float8_e4m3", "fp8_e5m2": "float8_e5m2", "fp8_e3m4": "float8_e3m4",
    "fp8_e4m3fnuz": "float8_e4m3fnuz", "fp8_e5m2fnuz": "float8_e5m2fnuz", "fp6_e3m2": "float6_e3m2fn", "fp6_e2m3": "float6_e2m3fn",
    "fp4_e2m1": "float4_e2m1fn", "bf16": "bfloat16", "fp8_e4m3fnuz_b11": "float8_e4m3b11fnuz",
}  # fmt: skip


def halves() -> np.ndarray:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    x = np.concatenate([patterns.view(np.float16).astype(np.float32), (patterns.astype(np.uint32) << 16).view(np.float32)])
    return x[np.isfinite(x)]


@pytest.mark.parametrize("name", PEERS)
def test_ml_dtypes_values_and_nearest_even(name: str) -> None:
    """All codes and all finite half-precision inputs. What overflows there becomes infinity, else NaN, else the largest value."""
    element, peer = parse_element(name), np.dtype(getattr(ml_dtypes, PEERS[name]))
    codes = np.arange(1 << element.bits, dtype=element.code_dtype)
    with np.errstate(invalid="ignore"):
        theirs = codes.view(peer).astype(np.float64)
    assert np.array_equal(element.values, theirs, equal_nan=True)
    numbers = ~np.isnan(theirs)
    assert np.array_equal(np.signbit(element.values[numbers]), np.signbit(theirs[numbers]))
    x = halves()
    over = "inf" if element.has_inf else "nan" if element.has_nan else "saturate"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = x.astype(peer).astype(np.float64)
    ours = element.decode(element.encode(x, over=over))
    assert np.array_equal(ours, expected, equal_nan=True)
    numbers = ~np.isnan(expected)
    assert np.array_equal(np.signbit(ours[numbers]), np.signbit(expected[numbers]))


def test_numpy_half() -> None:
    """float16 from float64 is rounded once by NumPy: a peer for the wide path, ties and double-rounding traps included."""
    rng = np.random.default_rng(0)
    half = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
    half = np.sort(half[np.isfinite(half)])
    middle = half[:-1] / 2 + half[1:] / 2
    x = np.r_[half, middle, middle * (1 + 2.0**-40), middle * (1 - 2.0**-40), rng.standard_normal(10_000) * 1000]
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16)
    ours = parse_element("fp16").encode(x, over="inf")
    assert np.array_equal(ours, expected.view(np.uint16))
    narrow = x.astype(np.float32)
    assert np.array_equal(parse_element("fp16").encode(narrow, over="inf"), narrow.astype(np.float16).view(np.uint16))


def test_e8m0() -> None:
    """ml_dtypes rounds ties up, we round to the even code; it also rounds 1.0 to 1.5 times 2^-127 (subnormal in float32) up to 2^-126.

    Elsewhere in the range they agree. Zero and negatives: its NaN is our over=nan.
    """
    element, peer = parse_element("e8m0"), np.dtype(ml_dtypes.float8_e8m0fnu)
    assert np.array_equal(element.values, np.arange(256, dtype=np.uint8).view(peer).astype(np.float64), equal_nan=True)
    x = halves()
    x = x[(x >= 2.0**-126) & (np.frexp(x)[0] != 0.75)]
    assert np.array_equal(element.encode(x, over="nan"), x.astype(peer).view(np.uint8))
    assert element.encode([3.0, 6.0, 1.5, 0.75]).tolist() == [128, 130, 128, 126]
    assert element.encode([-4.0, 2.0**-140]).tolist() == [0, 0]
    assert element.encode([-4.0, 2.0**-140], over="nan").tolist() == [255, 255]
    # 0 lies in the middle of nothing: it is where the grid would go on below, so it is out of range.
    assert element.encode([0.0]).tolist() == [0] and element.encode([0.0], over="nan").tolist() == [255]


def test_gfloat_any_minifloat() -> None:
    """Values of odd minifloats, and rounding in the modes that both have, saturating."""
    gfloat = pytest.importorskip("gfloat")
    formats = pytest.importorskip("gfloat.formats")
    cases = {
        "fp8_e4m3fn": formats.format_info_ocp_e4m3, "fp8_e5m2": formats.format_info_ocp_e5m2, "fp6_e3m2": formats.format_info_ocp_e3m2,
        "fp6_e2m3": formats.format_info_ocp_e2m3, "fp4_e2m1": formats.format_info_ocp_e2m1, "fp16": formats.format_info_binary16,
        "bf16": formats.format_info_bfloat16,
    }  # fmt: skip
    modes = {
        "nearest-even": gfloat.RoundMode.TiesToEven, "nearest-away": gfloat.RoundMode.TiesToAway, "zero": gfloat.RoundMode.TowardZero,
        "up": gfloat.RoundMode.TowardPositive, "down": gfloat.RoundMode.TowardNegative,
    }  # fmt: skip
    rng = np.random.default_rng(0)
    for name, info in cases.items():
        element = parse_element(name)
        for code in rng.integers(0, 1 << element.bits, 300):
            theirs = gfloat.decode_float(info, int(code)).fval
            assert np.array_equal([element.values[code]], [theirs], equal_nan=True), (name, code)
        x = np.r_[rng.standard_normal(500) * element.max / 3, element.finite[:200] * 1.03125, element.max * np.r_[1.2, -1.2]]
        for mode, theirs_mode in modes.items():
            expected = gfloat.round_ndarray(info, x, theirs_mode, sat=True)
            assert np.array_equal(element.decode(element.encode(x, round=mode)), expected), (name, mode)


def test_no_double_rounding_from_float64() -> None:
    """A middle times 1 +- 2^-40 is on one side; through float32 it would be a tie. ml_dtypes and torch misround about half of these."""
    for name in ("fp8_e4m3fn", "fp8_e5m2", "fp4_e2m1", "bf16", "int8", "nf4"):
        element = parse_element(name)
        finite = element.finite
        finite = finite[np.abs(finite) < 1e30]
        low, high = finite[:-1], finite[1:]
        middle = (low + high) / 2
        up = np.nextafter(middle, np.inf) if name == "nf4" else middle + np.abs(middle) * 2.0**-40
        down = np.nextafter(middle, -np.inf) if name == "nf4" else middle - np.abs(middle) * 2.0**-40
        off = middle != 0
        assert np.array_equal(element.decode(element.encode(up[off])), high[off]), name
        assert np.array_equal(element.decode(element.encode(down[off])), low[off]), name


def test_overflow_hole() -> None:
    """From the largest value on nothing returns to zero: half a step beyond, the next binade, float32's largest."""
    beyond = np.array([449, 463, 464, 464.1, 480, 511, 512, 1e5, 3e38], np.float32)
    e4m3fn = parse_element("fp8_e4m3fn")
    assert e4m3fn.decode(e4m3fn.encode(beyond)).tolist() == [448] * 9
    assert e4m3fn.decode(e4m3fn.encode(-beyond)).tolist() == [-448] * 9
    assert np.isnan(e4m3fn.decode(e4m3fn.encode(beyond, over="nan"))).tolist() == [False] * 3 + [True] * 6
    fp16 = parse_element("fp16")
    assert fp16.decode(fp16.encode([65504, 65519.99, 65520, 1e5], over="inf")).tolist() == [65504, 65504, np.inf, np.inf]
    assert fp16.decode(fp16.encode([65520.0, -1e9])).tolist() == [65504, -65504]


def test_first_subnormal_tie() -> None:
    """Half of the smallest value goes to zero, the next number above does not, the one below does."""
    for name in ("fp8_e4m3fn", "fp4_e2m1", "fp6_e3m2", "fp8_e5m2"):
        element = parse_element(name)
        for dtype in (np.float32, np.float64):
            half = dtype(element.smallest / 2)
            x = np.array([np.nextafter(half, dtype(0)), half, np.nextafter(half, dtype(1))])
            assert element.encode(x).tolist() == [0, 0, 1], name


def test_negative_zero_and_underflow_keep_their_sign() -> None:
    e4m3 = parse_element("fp8_e4m3fn")
    assert e4m3.encode([-0.0, -1e-30, 0.0, 1e-30]).tolist() == [128, 128, 0, 0]
    assert e4m3.encode(np.tile(np.float32([-0.0, -1e-30, 0.0, 1e-30]), 4096))[:4].tolist() == [128, 128, 0, 0]
    assert parse_element("fp8_e4m3fnuz").encode([-0.0, -1e-30]).tolist() == [0, 0]
    assert parse_element("int8").encode([-0.0, -0.2]).tolist() == [0, 0]


@pytest.mark.parametrize("name", ["fp8_e4m3fn", "fp4_e2m1", "int8_sym", "fp6_e3m2", "fp16", "ternary", "fp8_e4m3fnuz"])
def test_modes_are_symmetric_in_sign(name: str) -> None:
    element = parse_element(name)
    x = np.r_[np.random.default_rng(0).standard_normal(2000) * element.max / 2, element.finite[1:] / 2 + element.finite[:-1] / 2]
    mirror = {"up": "down", "down": "up"}
    for mode in ROUNDS:
        there = element.decode(element.encode(x, round=mode))
        back = element.decode(element.encode(-x, round=mirror.get(mode, mode)))
        assert np.array_equal(there, -back), mode


def test_non_finite_policies() -> None:
    x = np.array([1.0, np.nan, np.inf, -np.inf])
    e4m3fn, e5m2, int4 = map(parse_element, ("fp8_e4m3fn", "fp8_e5m2", "int4"))
    with pytest.raises(NonFiniteError, match=r"3 non-finite value\(s\), the first nan at index \[1\]"):
        e4m3fn.encode(x)
    assert e4m3fn.decode(e4m3fn.encode(x, nonfinite="saturate")).tolist() == [1, 0, 448, -448]
    assert np.array_equal(e4m3fn.decode(e4m3fn.encode(x, nonfinite="propagate")), [1, np.nan, np.nan, np.nan], equal_nan=True)
    assert np.array_equal(e5m2.decode(e5m2.encode(x, nonfinite="propagate")), x, equal_nan=True)
    assert int4.decode(int4.encode(x, nonfinite="saturate")).tolist() == [1, 0, 7, -8]
    with pytest.raises(FormatError, match="int4 has no NaN; use error or saturate"):
        int4.encode(x, nonfinite="propagate")
    with pytest.raises(FormatError, match="fp4_e2m1 has no infinity; use saturate, error"):
        parse_element("fp4_e2m1").encode(x[:1], over="inf")
    # A NaN whose payload sits in low bits stays NaN; large arrays go by table.
    odd = np.full(20_000, np.uint32(0x7F800001)).view(np.float32)
    assert np.isnan(e5m2.decode(e5m2.encode(odd, nonfinite="propagate"))).all()
    assert parse_element("bf16").encode(odd, nonfinite="propagate")[0] == 0x7FC0


def test_policy_names() -> None:
    element = parse_element("int4")
    with pytest.raises(FormatError, match=r"round=nearest: use one of .*did you mean nearest-"):
        element.encode([1.0], round="nearest")
    with pytest.raises(FormatError, match=r"round=sr33: use one of .*sr1 .. sr32"):
        element.encode([1.0], round="sr33")
    with pytest.raises(FormatError, match="over=clip: use one of saturate, inf, nan, error, wrap"):
        element.encode([1.0], over="clip")


def test_arrays_of_any_kind() -> None:
    """Strided, read-only, big-endian, empty, zero-dimensional and narrow arrays are right; others are refused."""
    element = parse_element("fp8_e4m3fn")
    base = np.linspace(-500, 500, 60_000).reshape(300, 200).astype(np.float32)
    expected = element.encode(base)
    for view in (base.astype(">f4"), np.asfortranarray(base), np.repeat(base, 2, 1)[:, ::2], base.astype(np.float64)):
        view.flags.writeable = False
        assert np.array_equal(element.encode(view), expected)
    assert np.array_equal(element.encode(base[::-1, ::-3]), expected[::-1, ::-3])
    assert element.encode(np.float32(1.0)).shape == () and int(element.encode(1.0)) == 56
    assert element.encode([]).shape == (0,)
    for name in ("bf16", "fp16", "fp32", "tf32", "int4", "nf4", "fp12_e5m6"):
        for one in (1.0, np.float32(1.0), np.ones((), np.float32), np.ones((1, 1), np.float32)):
            code = parse_element(name).encode(one)
            assert np.shape(code) == np.shape(one) and parse_element(name).decode(code) == 1.0
            assert np.shape(parse_element(name).encode(np.inf * one, nonfinite="saturate")) == np.shape(one)
    assert np.array_equal(
        element.encode(base.astype(ml_dtypes.bfloat16)), element.encode(base.astype(ml_dtypes.bfloat16).astype(np.float32))
    )
    assert element.encode(np.array([3, -7], np.int8)).tolist() == element.encode([3.0, -7.0]).tolist()
    for wrong in (np.array(["1"]), np.array([1j]), np.array([None])):
        with pytest.raises(ShapeError, match="numbers are float16"):
            element.encode(wrong)
    with pytest.raises(FormatError, match="int4 has codes 0 to 15, not 3 to 16"):
        parse_element("int4").decode([3, 16])
    with pytest.raises(FormatError, match="codes are unsigned integers, not float64"):
        parse_element("int4").decode([1.0])
    with pytest.raises(FormatError, match=r"2\*\*32 codes"):
        _ = parse_element("fp32").values


def test_over_error_names_the_value() -> None:
    with pytest.raises(FormatError, match=r"2 value\(s\) outside int4's range -8 to 7, the first 9 at index \(1, 0\); use over=saturate"):
        parse_element("int4").encode([[1.0, 2.0], [9.0, -8.6]], over="error")
    with pytest.raises(FormatError, match="outside fp16's range"):
        parse_element("fp16").encode([1e6], over="error")
    with pytest.raises(FormatError, match="outside nf4's range"):
        parse_element("nf4").encode([1.5], over="error")


def test_wrapping_is_two_s_complement() -> None:
    """Rounded numbers as NumPy casts them: any size of float, any mode; infinities have no lowest bits and saturate."""
    x = np.r_[np.random.default_rng(0).uniform(-1e6, 1e6, 5000), np.arange(-600, 600) / 2, 2.0**62, -(2.0**61), 3 * 2.0**55]
    for name, dtype in (("int8", np.int8), ("uint8", np.uint8), ("int16", np.int16), ("uint16", np.uint16)):
        element = parse_element(name)
        for mode, whole in (("nearest-even", np.rint), ("up", np.ceil), ("down", np.floor), ("zero", np.trunc)):
            assert np.array_equal(element.decode(element.encode(x, round=mode, over="wrap")), whole(x).astype(np.int64).astype(dtype)), name
        ends = element.decode(element.encode([np.inf, -np.inf, np.nan], over="wrap", nonfinite="saturate"))
        assert ends.tolist() == [np.iinfo(dtype).max, np.iinfo(dtype).min, 0]
        assert element.decode(element._codes(np.array([np.inf, -np.inf]), "zero", "wrap")).tolist() == ends[:2].tolist()
    assert parse_element("int4").encode(np.float32([9, -9, 1e38]), over="wrap").tolist() == [9, 7, 0]


P3109 = [(8, p, u, f) for p in range(1, 9) for u in ("", "u") for f in ("", "f") if p < 8 or u] + [
    (3, 2, "", ""), (4, 2, "u", ""), (5, 3, "u", "f"), (6, 3, "", "f"), (9, 1, "", ""), (11, 4, "u", ""), (15, 8, "", ""),
]  # fmt: skip


@pytest.mark.parametrize("case", P3109, ids=lambda c: f"k{c[0]}p{c[1]}{c[2]}{c[3]}")
def test_gfloat_p3109(case: tuple[int, int, str, str]) -> None:
    """All codes of the P3109 formats, and rounding of numbers all over the range, ties among them, saturating and to infinity."""
    gfloat = pytest.importorskip("gfloat")
    formats = pytest.importorskip("gfloat.formats")
    bits, precision, unsigned, finite = case
    info = formats.format_info_p3109(
        bits, precision, gfloat.Signedness.Unsigned if unsigned else gfloat.Signedness.Signed,
        gfloat.Domain.Finite if finite else gfloat.Domain.Extended,
    )  # fmt: skip
    element = parse_element(f"p3109{'' if bits == 8 else f'_k{bits}'}_p{precision}{unsigned}{finite}")
    rng = np.random.default_rng(0)
    codes = np.arange(1 << bits) if bits <= 8 else rng.integers(0, 1 << bits, 400)
    theirs = np.array([gfloat.decode_float(info, int(code)).fval for code in codes])
    assert np.array_equal(element.decode(codes), theirs, equal_nan=True)
    middles = (element.finite[1:] + element.finite[:-1]) / 2
    x = np.r_[rng.choice(element.finite, 100), rng.choice(middles, 100), rng.uniform(element.min, element.max, 100), element.max * 0.999]
    for mode, theirs_mode in (("nearest-even", "TiesToEven"), ("zero", "TowardZero"), ("up", "TowardPositive"), ("down", "TowardNegative")):
        expected = gfloat.round_ndarray(info, x, getattr(gfloat.RoundMode, theirs_mode), sat=True)
        assert np.array_equal(element.decode(element.encode(x, round=mode)), expected), mode
