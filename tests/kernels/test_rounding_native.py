"""Native rounding equals Element.encode and decode: kinds of element, modes, overflow, specials, ISA, threads, sizes, alignment, blocks."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import anybit
from anybit.errors import FormatError, NonFiniteError
from anybit.formats import ROUNDS, Element, Spec, parse_element
from anybit.formats.stochastic import drawn, stochastic_codes
from anybit.kernels import cpu
from anybit.kernels.rounding import rounding
from anybit.kernels.switch_tables import drawn_search
from anybit.methods.round_trip import round_trip
from anybit.methods.rtn import dequantize_parts, quantize_parts

IRREGULAR = "codebook_" + "_".join(f"{v:.5f}" for v in np.sort(np.random.default_rng(1).permutation(4000)[:256] / 1024 - 2))
PATHS = {
    "fp8_e4m3fn": "steps", "fp8_e5m2": "steps", "fp4_e2m1": "steps", "int4": "steps", "int8": "steps", "int8_sym": "steps",
    "uint3": "steps",
    "fp8_e4m3fnuz": "steps", "fp5_e2m2ieee_b40": "steps", "fp16": "steps", "int16": "steps", "ufp8_e5m3": "steps", "fp8_e0m7none": "steps",
    "bf16": "prefix", "fp9_e8m0": "prefix", "nf4": "search", "binary": "search", "ternary": "search", "codebook_-3_1_0.25_2": "search",
    "posit8": "tapered", "posit8_es0": "tapered", "posit8_es1": "tapered", "posit16": "tapered", "posit3": "search",
    "posit12_es3": "buckets",
    "e8m0": "buckets", "fp6_e3m2_b5_ns": "tapered", "codebook_1_2_4": "search", IRREGULAR: "buckets",
    "codebook_" + "_".join(f"{v:.8f}" for v in [*np.linspace(1, 2, 20), 1.00000012, 1.00000024]): "bisect",
}  # fmt: skip
MODES = (*ROUNDS, "sr1", "sr24", "sr32")


def stress(element: Element) -> np.ndarray:
    """float32: values, middles, their neighbours, tiny, huge and random numbers."""
    rng = np.random.default_rng(0)
    chain = np.r_[element.beyond[0], element.finite, element.beyond[1]]
    chain = chain if len(chain) < 400 else np.r_[chain[:50], rng.choice(chain, 200), chain[-50:]]
    with np.errstate(over="ignore"):
        points = np.r_[chain, chain[:-1] / 2 + chain[1:] / 2].astype(np.float32)
        spread = (rng.standard_normal(900) * np.exp2(rng.integers(-40, 40, 900))).astype(np.float32)
        scaled = np.clip(rng.standard_normal(700) * element.max, -3e38, 3e38).astype(np.float32)
        x = np.concatenate(
            [points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf)), spread, scaled,
             np.array([0.0, -0.0, 3.4e38, -3.4e38, 1e-45, -1e-45, 1e-40], np.float32)]
        )  # fmt: skip
    return x[np.isfinite(x)]


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


@cache
def stressed(name: str, nonfinite: bool) -> np.ndarray:
    x = stress(parse_element(name))
    if nonfinite:
        x[[5, 77, 300]] = np.nan, np.inf, -np.inf
    return x


@cache
def by_python(name: str, mode: str, over: str, nonfinite: str) -> np.ndarray:
    """What is expected on every instruction set, computed once."""
    return parse_element(name).encode(stressed(name, nonfinite != "error"), mode, over, nonfinite, 7)


@pytest.mark.parametrize("name", PATHS)
def test_every_policy(name: str, isa: str) -> None:
    element = parse_element(name)
    found = rounding(element, "nearest-even", "saturate", "error")
    assert found is not None and found.path == (PATHS[name] if (isa, PATHS[name]) != ("generic", "tapered") else "buckets")
    for mode in MODES:
        for over in ("saturate", "inf", "nan", "error"):
            for nonfinite in ("error", "saturate", "propagate"):
                try:
                    element.check_policy(mode, over, nonfinite)
                except FormatError:
                    continue
                if element.bits > 8 and (nonfinite != "error" or mode in ("sr1", "odd")):
                    continue  # the same code as below; their Python path takes long
                plan = rounding(element, mode, over, nonfinite)
                assert (plan is None) == (mode.startswith("sr") and over == "error")
                if plan is None:
                    continue
                x = stressed(name, nonfinite != "error")
                codes, values = np.full(x.shape, 99, element.code_dtype), np.full(x.shape, np.nan, np.float32)
                bad, _, outside, first = plan.codes(x, codes, 7)
                assert (bad, outside, first) == (0, outside, first) and plan.values(x, values, 7) == (bad, -1, outside, first)
                if outside:
                    with pytest.raises(FormatError, match=rf"^{outside} value.* at index \({first}\)"):
                        element.encode(x, mode, over, nonfinite)
                    continue
                expected = by_python(name, mode, over, nonfinite)
                assert np.array_equal(codes, expected), (mode, over, nonfinite)
                assert same(values, element.values[expected].astype(np.float32)), (mode, over, nonfinite)
                back = np.full(x.shape, np.nan, np.float32)
                assert plan.decode(codes, back) and same(back, values)


@pytest.mark.parametrize("name", ["fp8_e4m3fn", "bf16", "nf4", "posit8", "e8m0"])
@pytest.mark.parametrize("threads", [1, 3])
def test_sizes_threads_and_misaligned_memory(name: str, threads: int, isa: str) -> None:
    """Numbers around the results stay; places, not chunks, decide what is drawn."""
    element = parse_element(name)
    before = cpu.native.threads()
    cpu.set_threads(threads)
    try:
        for n in (0, 1, 2, 7, 15, 16, 17, 31, 33, 63, 64, 65, 127, 1000, 2047, 2049, 70_000, 140_001):
            for offset in (0, 1, 3):
                x = np.abs(np.random.default_rng(n).standard_normal(n + 4, np.float32))[offset : offset + n] + np.float32(0.01)
                for mode in ("nearest-even", "sr24"):
                    plan = rounding(element, mode, "saturate", "error")
                    assert plan is not None
                    held, coded = np.full(n + 8, np.nan, np.float32), np.full(n + 8, 251, element.code_dtype)
                    plan.values(x, held[offset : offset + n], 5)
                    plan.codes(x, coded[offset : offset + n], 5)
                    expected = element.encode(x, mode, seed=5)
                    assert np.array_equal(coded[offset : offset + n], expected)
                    assert same(held[offset : offset + n], element.values[expected].astype(np.float32))
                    assert np.isnan(held[:offset]).all() and np.isnan(held[offset + n :]).all()
                    assert (coded[:offset] == 251).all() and (coded[offset + n :] == 251).all()
    finally:
        cpu.set_threads(before)


OVERFLOW = 128 << 28
"""The place from which on the counters' upper half is no longer 0."""


@pytest.mark.parametrize("start", [0, 5, OVERFLOW - 700, (128 << 32) + 1])
def test_random_halves(start: int, isa: str) -> None:
    """Wherever a run begins and ends, and where a counter's lower half overflows."""
    words = drawn(5 + (9 << 32), start, 1500, 32)
    for lower, expected in enumerate((words >> np.uint32(16), words & np.uint32(0xFFFF))):
        for n in (0, 1, 3, 31, 32, 127, 128, 129, 255, 256, 257, 700, 1500):
            for skip in (0, 1, 15, 16, 128, 230):
                count = min(n, 1500 - skip)
                out = np.full(count + 1, 77, np.uint16)
                cpu.native.random_halves(5 + (9 << 32), start + skip, bool(lower), out[:count])
                assert np.array_equal(out[:count], expected[skip : skip + count]) and out[count] == 77


def some_values(seed: int) -> str:
    """A codebook: values of few bits, of one sign, far apart, of all of float32's bits, each at most twice the last; a third have zero."""
    rng = np.random.default_rng(seed)
    count, kind = int(rng.integers(2, 16)), seed % 5
    values = rng.standard_normal(count) * 2.0 ** rng.integers(-9, 9)
    if kind == 0:
        values = np.round(values * 16) / 16
    elif kind == 1:
        values = -np.abs(values)
    elif kind == 2:
        values *= 2.0 ** rng.integers(-20, 0, count)
    elif kind == 4:
        values = np.cumprod(1 + rng.random(count)) / 3 * np.where(seed % 3, 1, rng.choice([-1, 1], count))
    values = np.unique(np.append(values[:15], 0.0 if seed % 3 == 0 else values[0] * 1.5).astype(np.float32))
    return "codebook_" + "_".join(np.format_float_positional(np.float64(v), trim="0") for v in values)


DRAWN = [
    "fp8_e4m3fn", "fp4_e2m1", "int8", "bf16", "nf4", "posit8", "posit16", "posit8_es0", IRREGULAR, "ternary", "af4", "codebook_-4_-3_-2_-1",
]  # fmt: skip


def test_codebooks_take_both_ways_of_drawing() -> None:
    """Distances that float32 holds exactly, and those that it does not: large gaps beside the neighbour on zero's side, or around zero."""

    def exact(name: str) -> bool:
        tables = drawn_search(parse_element(name), 24)
        return tables is not None and tables["exact"]

    assert all(map(exact, ["nf4", "ternary", "codebook_0_1", "codebook_1_3", "codebook_-5_-3_-2", some_values(9)]))
    assert not any(map(exact, ["af4", "iq4nl", "codebook_1_3.25", "codebook_-1_1", some_values(2), some_values(3)]))


@pytest.mark.parametrize("name", DRAWN + [some_values(seed) for seed in (0, 1, 2, 3, 4, 9, 14)])
@pytest.mark.parametrize("bits", [3, 16, 19, 24, 32])
def test_draws_next_to_the_word(name: str, bits: int, isa: str) -> None:
    """Numbers whose fraction of a gap is their random word's, or up to two float32 beside it: where a rounded comparison would err. Also
    where a word's upper half, or the next one, says so: there the lower half decides."""
    element = parse_element(name)
    rng = np.random.default_rng(0)
    chain = np.r_[element.beyond[0], element.finite, element.beyond[1]]
    chain = chain[np.abs(chain) < 2.0**100]
    for start, more in ((0, 0), (3, 0), (OVERFLOW - 1000, 0), (0, 1), (5, 2)):
        word = drawn(7, start, 3000, bits)
        rank = rng.integers(0, len(chain) - 1, word.size)
        a, b = chain[rank], chain[rank + 1]
        part = (word >> np.uint32(32 - bits)) / 2.0**bits if not more else np.minimum((word >> np.uint32(16)) + (more - 1), 65535) / 2.0**16
        x = np.where(b <= 0, b - part * (b - a), a + part * (b - a)).astype(np.float32)
        for step in (0, 1, -1, 2, -2):
            near = x.copy()
            for _ in range(abs(step)):
                near = np.nextafter(near, np.float32(np.inf) * np.float32(step))
            for n in (3000, 777):
                plan = rounding(element, f"sr{bits}", "saturate", "error")
                assert plan is not None
                codes, values = np.full(n, 99, element.code_dtype), np.full(n, np.nan, np.float32)
                plan.codes(near[:n], codes, 7, start), plan.values(near[:n], values, 7, start)
                expected = stochastic_codes(element, near[:n], bits, "saturate", word[:n])
                assert np.array_equal(codes, expected), (start, step)
                assert same(values, element.values[expected].astype(np.float32)), (start, step)


@pytest.mark.parametrize("size", [16, 32, 48])
def test_quotients_in_blocks(size: int, isa: str) -> None:
    """Numbers next to a scale times a middle: their quotient's last bit decides, so it has to be the division's. Zeros keep their sign."""
    rng = np.random.default_rng(size)
    element = parse_element("fp4_e2m1")
    middles = np.float32([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    for low, high in ((-20, 20), (-29, -27), (-36, -28), (50, 70), (-100, -80)):
        scale = (rng.uniform(1, 2, (400, 1)) * np.exp2(rng.integers(low, high, (400, 1)))).astype(np.float32)
        x = scale * rng.choice(middles, (400, size))
        for _ in range(3):
            x = np.where(rng.random(x.shape) < 0.5, np.nextafter(x, np.float32(np.inf)), x)
        x = (x * rng.choice(np.float32([1, -1]), x.shape)).astype(np.float32)
        x[:, 0] = 6 * scale[:, 0]
        x[:, 3:6] = np.float32([0.0, -0.0, -1e-45])
        s = (np.abs(x).max(1, keepdims=True).astype(np.float64) / 6).astype(np.float32)
        want = element.decode(element.encode(x / s)).astype(np.float32) * s
        assert want.dtype == np.float32
        out = np.full_like(x, np.nan)
        assert round_trip(x, Spec.parse(f"fp4_e2m1@{size}:fp32"), out) and same(out, want), (low, high)


def moved(x: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """float32 that lie so many places further on."""
    return (x.view(np.int32) + steps).astype(np.int32).view(np.float32)


@pytest.mark.parametrize("name", ["fp4_e2m1", "fp6_e2m3", "fp8_e4m3fn", "fp8_e5m2", "int4_sym", "int8_sym"])
def test_quotients_next_to_switch_points(name: str, isa: str) -> None:
    """Scales of any 24 bits, and those where one correction of a quotient might not do: next to 1, 1.5, 1.25, ... times a power of two."""
    rng = np.random.default_rng(0)
    element = parse_element(name)
    switch = element.finite[:-1] / 2 + element.finite[1:] / 2
    for near in (False, True):
        for _ in range(8):
            bits = rng.integers(0, 1 << 23, (500, 1))
            if near:
                bits = (rng.integers(0, 64, (500, 1)) << 17) + rng.integers(-24, 25, (500, 1))
            scale = ((rng.integers(107, 147, (500, 1)) << 23) + bits).astype(np.int32).view(np.float32)
            x = moved(scale * rng.choice(switch, (500, 32)).astype(np.float32), rng.integers(-2, 3, (500, 32)))
            x[:, 0] = moved(np.float32(element.max) * scale[:, 0], rng.integers(-1, 2, 500))
            s = (np.abs(x).max(1, keepdims=True).astype(np.float64) / element.max).astype(np.float32)
            want = element.decode(element.encode(x / s)).astype(np.float32) * s
            out = np.full_like(x, np.nan)
            assert round_trip(x, Spec.parse(f"{name}@32:fp32"), out) and same(out, want)


@pytest.mark.parametrize("text", ["nvfp4", "fp4_e2m1@16:fp8_e4m3fn", "int4_sym@16:ufp8_e5m3", "fp8_e4m3fn@32:fp8_e5m2@tensor:fp32"])
def test_scales_next_to_their_switch_points(text: str, isa: str) -> None:
    """Blocks whose target lies at a middle of two scales, or beside it, and at the ends of the scales."""
    rng = np.random.default_rng(0)
    spec = Spec.parse(text)
    element, scale = spec.format.element, spec.format.levels[0].element
    chain = scale.finite[scale.finite > 0]
    points = np.r_[chain, chain[:-1] / 2 + chain[1:] / 2, chain[0] / 2, chain[0] / 3]
    for outer in (1.0, 0.37, 3e-4, 811.0):
        outer = outer if len(spec.format.levels) == 2 else 1.0
        x = rng.uniform(-1, 1, (300, 64)).astype(np.float32) * np.float32(1e-6)
        most = rng.choice(points[points <= scale.max], (300, 4)) * element.max * outer
        x.reshape(300, 4, 16)[:, :, 0] = moved(most.astype(np.float32), rng.integers(-3, 4, (300, 4)))
        x[0, 0], x[1, :] = np.float32(scale.max * element.max * outer), 0.0
        out = np.full_like(x, np.nan)
        assert round_trip(x, spec, out) and same(out, dequantize_parts(quantize_parts(x, spec), spec.format, x.shape))


POWERS = [
    "mxfp4", "mxfp8", "fp6_e3m2@16:e8m0+scale=floor", "mxfp4+round=sr24+seed=5", "mxfp8+round=sr20",
    "fp4_e2m1@16:e8m0+scale=floor+round=sr24",
]  # fmt: skip


@pytest.mark.parametrize("text", POWERS)
def test_powers_of_two_sixteen_blocks_at_a_time(text: str, isa: str) -> None:
    """Numbers at switch points and values times scales of many sizes, beside them, tiny and zero; pieces of one scale, and of several."""
    rng = np.random.default_rng(0)
    spec = Spec.parse(text)
    element = spec.format.element
    points = np.r_[element.finite, element.finite[:-1] / 2 + element.finite[1:] / 2]
    points = points[points != 0]
    exponents = np.r_[np.repeat([0, -3, -64, 30, -30], 8), [-110, -62, -61, -60, -59, -1, 1, 2, 59, 60, 61, 90]]
    x = (rng.choice(points, (len(exponents), 512)) * np.exp2(exponents[:, None])).astype(np.float32)
    far = rng.integers(-(1 << 21), 1 << 21, x.shape)
    x = moved(x, np.where(rng.random(x.shape) < 0.7, rng.integers(-2, 3, x.shape), far).astype(np.int32))
    x[:, 3::32], x[:, 4::32], x[:, 5::32] = 1e-45, -0.0, np.float32(-1.5e-38)
    x[2, 64:96] = 0
    x[:2, :] *= rng.choice(np.exp2([0.0, -2.0, -5.0]), (2, 512)).astype(np.float32)
    want = dequantize_parts(quantize_parts(x, spec), spec.format, x.shape)
    out = np.full_like(x, np.nan)
    assert round_trip(x, spec, out) and same(out, want)


NEAR = [
    "nvfp4", "fp4_e2m1@16:fp8_e4m3fn", "fp8_e4m3fn@32:fp8_e4m3fn@tensor:fp32", "fp6_e2m3@16:ufp8_e5m3", "fp4_e2m1@32:fp8_e5m2@tensor:fp32",
]  # fmt: skip


@pytest.mark.parametrize("text", NEAR)
def test_many_blocks_whose_quotients_need_one_correction(text: str, isa: str) -> None:
    """Numbers next to every scale times a switch point, in arrays for which all scales are looked at first; also where one would not do."""
    rng = np.random.default_rng(0)
    spec = Spec.parse(text)
    assert spec.format.block is not None
    size = spec.format.block.size
    element, scale = spec.format.element, spec.format.levels[0].element
    two = len(spec.format.levels) == 2
    switch = element.finite[:-1] / 2 + element.finite[1:] / 2
    for outer in (0.371, 3e-4, 1.0, 1.5, 1.2500001) if two else (1.0,):
        chain = scale.finite[(scale.finite > 0) & (scale.finite >= scale.max * 2.0**-24)]
        factor = np.float32(outer)
        s = rng.choice(chain, (140, 512 // size, 1)).astype(np.float32) * factor
        shape = (140, 512 // size, size)
        x = moved(s * rng.choice(switch, shape).astype(np.float32), rng.integers(-2, 3, shape).astype(np.int32))
        x[:, :, 0] = (np.float32(element.max) * s[:, :, 0]).astype(np.float32)
        x[0, 0, 0] = np.float32(scale.max * element.max * float(factor))
        x = x.reshape(140, 512)
        x[1, :64] = 0
        out = np.full_like(x, np.nan)
        assert round_trip(x, spec, out) and same(out, dequantize_parts(quantize_parts(x, spec), spec.format, x.shape)), outer
    x[77, 100] = np.nan
    assert not round_trip(x, spec, out)


def test_results_that_go_past_the_caches(isa: str) -> None:
    """More than 8 MiB, in place and not, at every alignment; codes too."""
    x = np.random.default_rng(0).standard_normal((2 << 20) + 99, np.float32)
    element = parse_element("fp8_e4m3fn")
    many = np.resize(x, (8 << 20) + 99)
    for name in ("int8", "bf16"):
        wide = parse_element(name)
        expected = np.resize(wide.encode(x), many.size)
        for offset in (0, 1, 15):
            coded = np.full(many.size + 16, 99, wide.code_dtype)
            anybit.encode(many, wide, out=coded[offset : offset + many.size])
            assert np.array_equal(coded[offset : offset + many.size], expected) and np.all(coded[offset + many.size :] == 99)
    for mode in ("nearest-even", "sr24"):
        expected = element.decode(element.encode(x, mode)).astype(np.float32)
        for offset in (0, 1, 15):
            held = np.full(x.size + 16, np.nan, np.float32)
            out = held[offset : offset + x.size]
            assert anybit.round(x, element, mode, out=out) is out and same(out, expected) and np.isnan(held[offset + x.size :]).all()
        own = x.copy()
        assert anybit.round(own, element, mode, out=own) is own and same(own, expected)


def at_address(numbers: int, place: int) -> np.ndarray:
    """float32 with room for 1024 of them beyond the numbers, which begin `place` numbers (of the 1024) into a page; NaN."""
    held = np.full(numbers + 4096, np.nan, np.float32)
    first = (place - held.ctypes.data // 4) % 1024 + 1024
    return held[first - 1024 : first + numbers + 1024]


PAST = {  # with the width of their rows: whole registers or not, one block in several pieces
    "nvfp4": 96, "int4@32": 96, "nf4@64": 128, "mxfp4+round=sr24": 96, "nf4@32+round=sr24": 96, "posit8@32": 64, "int4@7:fp16": 75,
    "int8@3000": 3000,
}  # fmt: skip


@pytest.mark.parametrize("text", PAST)
def test_blocks_that_go_past_the_caches(text: str, isa: str) -> None:
    """More than 8 MiB, wherever numbers and results begin in a line and lie to each other in a page; nothing beyond the ends is written."""
    spec, width = Spec.parse(text), PAST[text]
    rows, random = (2 << 20) // width + 1, "sr" in text
    some = np.random.default_rng(0).standard_normal((rows if random else 300, width), np.float32)
    want = np.resize(dequantize_parts(quantize_parts(some, spec), spec.format, some.shape), (rows, width))
    for source, place in ((0, 0), (4, 4), (4, 3), (4, 20), (1, 33), (0, 16)):
        x = at_address(rows * width, source)[1024:-1024].reshape(rows, width)
        x[...] = np.resize(some, (rows, width))
        held = at_address(rows * width, place)
        assert round_trip(x, spec, held[1024:-1024].reshape(rows, width))
        assert same(held[1024:-1024].reshape(rows, width), want), (source, place)
        assert np.isnan(held[:1024]).all() and np.isnan(held[-1024:]).all()


def test_refused_numbers_stay_in_place() -> None:
    x = np.linspace(-3, 3, 5000, dtype=np.float32)
    x[4000], x[4500] = np.nan, np.inf
    own = x.copy()
    with pytest.raises(NonFiniteError, match=r"2 non-finite value\(s\), the first nan at index \[4000\]"):
        anybit.round(own, "int4", out=own)
    own = np.linspace(-30, 3, 5000, dtype=np.float32)
    with pytest.raises(FormatError, match=r"value\(s\) outside int4's range -8 to 7, the first -30 at index \(0\)"):
        anybit.round(own, "int4", over="error", out=own)


BLOCKS = [
    "mxfp4", "nvfp4", "mxfp8", "mxfp6", "int4@32", "int8@channel", "int4@128:fp32", "nf4@64", "int4@16:fp8_e4m3fn", "fp4_e2m1@16:ufp8_e5m3",
    "int4@7:fp16", "mxfp4+round=sr24+seed=5", "nvfp4+round=up", "int3@5:ufp7_e4m3@tensor:fp32", "ternary@16+scale=absmax",
    "fp6_e2m3@32:e8m0+round=zero", "nf4@64:fp8_e4m3fn@tensor:fp32+round=sr24", "int8@3000",
]  # fmt: skip


@pytest.mark.parametrize("text", BLOCKS)
def test_block_round_trips(text: str, isa: str) -> None:
    """One pass gives the bits that parts give: zero blocks, tiny and huge scales, short last blocks, blocks longer than a task's piece."""
    spec = Spec.parse(text)
    rng = np.random.default_rng(0)
    shapes = {(37, 100): 1.0, (3, 5, 64): 1e-3, (2, 5000): 50.0, (1, 1): 1.0, (129,): 1e-30, (64, 96): 1e30, (9, 33): 1e-40}
    for shape, size in shapes.items():
        x = (rng.standard_normal(shape) * size).astype(np.float32)
        x[0] = 0
        x.reshape(-1)[-1] = -0.0
        x.reshape(-1)[40:60] *= np.float32(1e-8)
        out = np.full(shape, np.nan, np.float32)
        try:
            want = dequantize_parts(quantize_parts(x, spec), spec.format, shape)
        except FormatError as error:  # scales beyond their element, which the other path says better
            assert size == 1e30 and "needs the scale" in str(error) and not round_trip(x, spec, out)
            continue
        assert round_trip(x, spec, out)
        assert same(out, want), shape
        assert same(anybit.fake_quantize(x, spec, out=x), out)


def test_blocks_that_the_native_pass_leaves_to_parts() -> None:
    x = np.random.default_rng(0).standard_normal((8, 64), np.float32)
    others = ["int4@32+scale=mse", "uint4@32+zp", "int4@8x8", "int4@32:fp8_e4m3fn@64:fp32", "int4@32+nonfinite=saturate"]
    for text in [*others, "int4@32:e8m0+scale=absmax"]:
        spec = Spec.parse(text)
        assert not round_trip(x, spec, np.empty_like(x)), text
        assert same(anybit.fake_quantize(x, spec), dequantize_parts(quantize_parts(x, spec), spec.format, x.shape))
    x[3, 3] = np.inf
    with pytest.raises(NonFiniteError, match=r"the first inf at index \[3, 3\]"):
        anybit.fake_quantize(x, "mxfp4")
