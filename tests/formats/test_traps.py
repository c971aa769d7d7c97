"""The places where libraries that emulate number formats go wrong, one by one, with the right answers (docs/peers.md shows who does)."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from anybit.errors import FormatError, NonFiniteError
from anybit.formats import ROUNDS, Element, Format, named_formats, parse_element
from anybit.methods import dequantize_parts, quantize_parts

ELEMENTS = [parse_element(n.name) for n in named_formats() if not n.blocked]
LISTED = [element.name for element in ELEMENTS if element.bits <= 16 and element.dim == 1 and not element.learned]
FLOATS = ["fp8_e4m3fn", "fp8_e5m2", "fp8_e4m3", "fp8_e4m3fnuz", "fp6_e3m2", "fp6_e2m3", "fp4_e2m1", "fp16", "bf16"]


def back(element: Element, x: object, **policy: str) -> np.ndarray:
    return element.decode(element.encode(x, **policy))


def fake(w: np.ndarray, text: str) -> np.ndarray:
    return dequantize_parts(quantize_parts(w, text), Format(text.split("+")[0]), w.shape)


# ------------------------------------------------------------------------------- (a) every code decodes and encodes to itself
@pytest.mark.parametrize("name", LISTED)
def test_every_code_comes_back(name: str) -> None:
    """But for codes whose value has a smaller code, which come back as that one, and for NaN, which has one code."""
    element = parse_element(name)
    codes = np.arange(1 << element.bits)
    values = element.values
    finite = np.isfinite(values)
    again = element.encode(values[finite])
    assert np.array_equal(element.values[again], values[finite])
    assert np.array_equal(np.signbit(element.values[again]), np.signbit(values[finite]))
    first: dict[tuple[float, bool], int] = {}
    for code in np.setdiff1d(codes[finite], element.unused).tolist():
        first.setdefault((values[code], bool(np.signbit(values[code]))), code)
    assert again.tolist() == [first[v, bool(np.signbit(v))] for v in values[finite].tolist()]
    if not finite.all():
        special = element.encode(values[~finite], nonfinite="propagate")
        assert np.array_equal(element.values[special], values[~finite], equal_nan=True)


# ------------------------------------------------------------------------------- (b) middles and their neighbours, float32 and float64
@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_middles_go_to_the_even_code_and_their_neighbours_to_the_nearer_value(name: str, kind: type) -> None:
    element = parse_element(name)
    points, codes = element.finite, element.finite_codes.astype(int)
    middles = points[:-1] / 2 + points[1:] / 2
    as_kind = middles.astype(kind)
    exact = as_kind.astype(float) == middles  # all, but between bfloat16's subnormals
    with np.errstate(under="ignore"):
        up, down = np.nextafter(as_kind, kind(np.inf)), np.nextafter(as_kind, kind(-np.inf))
    assert exact.mean() > 0.99
    assert np.array_equal(back(element, up[exact]), points[1:][exact])
    assert np.array_equal(back(element, down[exact]), points[:-1][exact])
    code = element.encode(as_kind[exact]).astype(int)
    low, high = codes[:-1][exact], codes[1:][exact]
    even = np.where(low % 2 == 0, low, high)
    # from -0 to the smallest negative: the tie goes to zero and keeps its sign
    assert np.array_equal(element.values[code], element.values[even])


# ------------------------------------------------------------------------------- (c) from the largest value to infinity
@pytest.mark.parametrize("name", FLOATS)
def test_nothing_beyond_the_largest_value_falls_into_a_hole(name: str) -> None:
    """Half a step beyond rounds back, then everything is out of range, through the next binades, to float32's largest."""
    element = parse_element(name)
    end = element.beyond[1]
    half = (element.max + end) / 2
    x = np.r_[element.max, np.nextafter(half, 0), half, end, end * np.exp2(np.arange(0, 60, 0.25)), 3.4028234663852886e38]
    x = np.unique(x[(x >= element.max) & (x < 2.0**128)])
    inside = x < half if int(element.finite_codes[-1]) % 2 else x <= half  # the middle goes to the even code
    for sign in (1, -1):
        assert (back(element, sign * x) == sign * element.max).all()
        if element.has_inf:
            assert np.array_equal(back(element, sign * x, over="inf"), np.where(inside, sign * element.max, sign * math.inf))
        if element.has_nan:
            assert np.array_equal(np.isnan(back(element, sign * x, over="nan")), ~inside)
        with pytest.raises(FormatError, match=rf"{(~inside).sum()} value\(s\) outside"):
            element.encode(sign * x, over="error")


def test_the_known_holes() -> None:
    assert back(parse_element("fp16"), [65519.0, 65520.0, 65536.0, 100_000.0, 131_072.0], over="inf").tolist() == [65504] + [math.inf] * 4
    assert back(parse_element("fp8_e4m3"), [247.9, 248.0, 256.0, 300.0, 511.0, 512.0], over="inf").tolist() == [240] + [math.inf] * 5
    assert back(parse_element("fp8_e4m3fn"), [464.0, 464.1, 480.0, 1e30]).tolist() == [448] * 4
    assert np.isinf(back(parse_element("bf16"), np.float64([3.4e38, 3.5e38, 1e39]), over="inf")).all()


# ------------------------------------------------------------------------------- (d) -0, NaN payloads, infinity under every policy
def test_minus_zero_nan_payloads_and_infinity() -> None:
    payloads = np.uint32([0x7FC00000, 0x7F800001, 0xFF800001, 0xFFFFFFFF, 0x7FBFFFFF]).view(np.float32)
    for name in FLOATS:
        element = parse_element(name)
        x = np.float32([-0.0, 0.0, -1e-45])
        kept = name != "fp8_e4m3fnuz"
        assert np.signbit(back(element, x)).tolist() == [kept, False, kept], name
        with pytest.raises(NonFiniteError):
            element.encode(payloads)
        assert (back(element, payloads, nonfinite="saturate") == 0).all()
        assert back(element, [math.inf, -math.inf], nonfinite="saturate").tolist() == [element.max, element.min]
        if element.has_nan:
            assert np.isnan(back(element, payloads, nonfinite="propagate")).all(), name
            ends = back(element, [math.inf, -math.inf], nonfinite="propagate")
            assert ends.tolist() == [math.inf, -math.inf] if element.has_inf else np.isnan(ends).all()
        else:
            with pytest.raises(FormatError, match="has no NaN"):
                element.encode(payloads, nonfinite="propagate")


# ------------------------------------------------------------------------------- (e) fixed points and signs in every mode
@pytest.mark.parametrize("name", LISTED)
def test_values_of_the_format_never_change(name: str) -> None:
    element = parse_element(name)
    for mode in ROUNDS:
        assert np.array_equal(back(element, element.finite, round=mode, over="error"), element.finite), mode


@pytest.mark.parametrize("name", FLOATS)
def test_modes_treat_signs_alike(name: str) -> None:
    element = parse_element(name)
    points = element.finite if element.bits <= 8 else element.finite[::97]
    x = np.r_[points, points[:-1] / 2 + points[1:] / 2, np.random.default_rng(0).standard_normal(500) * min(element.max, 1e30) / 2]
    for mode in ROUNDS:
        mirrored = {"up": "down", "down": "up"}.get(mode, mode)
        assert np.array_equal(back(element, x, round=mode), -back(element, -x, round=mirrored)), mode
    e4m3 = parse_element("fp8_e4m3")
    assert back(e4m3, [1.0625, -1.0625], round="nearest-zero").tolist() == [1.0, -1.0]
    assert back(e4m3, [1.0625, -1.0625], round="nearest-away").tolist() == [1.125, -1.125]
    assert back(e4m3, [1.0, 2.0, 1.01], round="odd").tolist() == [1.0, 2.0, 1.125]


# ------------------------------------------------------------------------------- (f) the first subnormal tie
@pytest.mark.parametrize("name", FLOATS)
def test_half_of_the_smallest_value(name: str) -> None:
    element = parse_element(name)
    for kind in (np.float32, np.float64):
        half = kind(element.smallest / 2)
        x = np.array([np.nextafter(half, kind(0)), half, np.nextafter(half, kind(1))])
        assert back(element, x).tolist() == [0, 0, element.smallest], kind
        assert back(element, -x).tolist() == [0, 0, -element.smallest], kind
    assert back(parse_element("fp8_e4m3"), np.float32([0.0009765626, 0.0009765625, 0.00097656244])).tolist() == [2.0**-9, 0, 0]


# ------------------------------------------------------------------------------- (g) blocks: rows, NaN, infinity, zero, subnormal
@pytest.mark.parametrize("text", ["mxfp4", "mxfp8", "nvfp4", "int4@32", "q4_0", "q4_k", "nf4@64"])
def test_blocks_end_with_their_row(text: str) -> None:
    """Rows that are no multiple of the block: each comes out as it does alone, whatever stands in the others."""
    w = np.ones((3, 40), np.float32)
    w[0, 39] = w[1, 0] = 1000
    if text != "nvfp4":  # whose scales share one scale over the tensor, by definition
        whole = fake(w, text)
        for row in range(3):
            assert np.array_equal(whole[row], fake(w[row : row + 1], text)[0]), row
    assert np.all(np.abs(fake(w, text)[2] - 1) < 0.25), text


def test_blocks_that_are_not_finite_zero_or_subnormal() -> None:
    w = np.random.default_rng(0).standard_normal((2, 96)).astype(np.float32)
    for bad in (math.nan, math.inf, -math.inf):
        hurt = w.copy()
        hurt[1, 40] = bad
        for text in ("mxfp4", "mxfp8", "int8@32", "nvfp4"):
            with pytest.raises(NonFiniteError, match=r"1 non-finite value\(s\), the first .* at index \[1, 40\]"):
                quantize_parts(hurt, text)
        saturated = dequantize_parts(quantize_parts(hurt, "mxfp8+nonfinite=saturate"), Format("mxfp8"), hurt.shape)
        clean = fake(w, "mxfp8")
        others = np.ones(w.shape, bool)
        others[1, 32:64] = False
        assert np.isfinite(saturated).all() and np.array_equal(saturated[others], clean[others])
    for text in ("mxfp4", "int8@32", "nvfp4", "nf4@32", "int4@32:fp16"):
        zeros = w.copy()
        zeros[0, 32:64] = 0
        assert (fake(zeros, text)[0, 32:64] == 0).all() and (fake(np.zeros((2, 64), np.float32), text) == 0).all(), text
    tiny = (w * np.float32(2.0**-140)).astype(np.float32)
    for text in ("int8@32:fp32", "mxfp8", "int8@channel"):
        found = fake(tiny, text)
        assert np.isfinite(found).all() and np.abs(found - tiny).max() <= np.abs(tiny).max(), text


# ------------------------------------------------------------------------------- (h) inputs that tie: bfloat16 numbers
@pytest.mark.parametrize("text", ["mxfp4", "mxfp6", "mxfp8"])
def test_blocks_of_bfloat16_numbers(text: str) -> None:
    """Random float32 numbers never tie, bfloat16 numbers do: here against fractions, ties to the even code."""
    fmt = Format(text)
    element = fmt.element
    raw = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    w = (raw.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    parts = quantize_parts(w, text)
    scales = fmt.levels[0].element.decode(parts["scale.0"])
    points = [(Fraction(v), int(c)) for v, c in zip(element.finite.tolist(), element.finite_codes.tolist(), strict=True)]
    ties = 0
    for i, j in np.ndindex(w.shape):
        x = Fraction(float(w[i, j])) / Fraction(float(scales[i, j // 32]))
        nearest = sorted((abs(v - x), c % 2, c) for v, c in points)
        ties += nearest[0][0] == nearest[1][0]
        assert element.values[parts["codes"][i, j]] == element.values[nearest[0][2]], (i, j)
    assert ties > 0


# ------------------------------------------------------------------------------- (i) stochastic rounding of tiny fractions
def test_tiny_fractions_survive_stochastic_rounding() -> None:
    """A thousandth of a step rounds up about once in a thousand times, so that small updates do not vanish; exact values stay."""
    element, count = parse_element("fp8_e4m3fn"), 400_000
    x = np.full(count, np.float32(1 + 1e-3 / 8))
    try:
        rounded = back(element, x, round="sr24")
    except FormatError as error:
        pytest.skip(str(error))
    share = float(x[0] - 1) * 8
    assert abs(np.mean(rounded > 1) - share) < 4 * math.sqrt(share / count) and set(rounded.tolist()) == {1.0, 1.125}
    assert (back(element, np.ones(1000), round="sr24") == 1).all()


# ------------------------------------------------------------------------------- (j) float64 is not narrowed on the way
@pytest.mark.parametrize("name", [*FLOATS, "int8", "int4_sym", "ternary"])
def test_float64_is_rounded_once(name: str) -> None:
    """Middles moved by 2^-40 of themselves: through float32 half of them would be ties again."""
    element = parse_element(name)
    points = element.finite[np.abs(element.finite) < 1e38]
    middles = points[:-1] / 2 + points[1:] / 2
    low, high = points[:-1][middles != 0], points[1:][middles != 0]
    middles = middles[middles != 0]
    assert np.array_equal(back(element, middles + np.abs(middles) * 2.0**-40), high)
    assert np.array_equal(back(element, middles - np.abs(middles) * 2.0**-40), low)
