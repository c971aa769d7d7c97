"""Round to nearest: parts against a plain loop, every kind of block, and the inputs that break others."""

from __future__ import annotations

import re
import tracemalloc
from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anybit.errors import FormatError, NonFiniteError, ShapeError, UnknownNameError
from anybit.formats import Element, Format, Spec, named_formats
from anybit.methods import METHODS, dequantize_parts, part_shapes, quantize_parts
from anybit.methods.rtn import LIMIT, SLAB

FORMATS = [
    "int8@channel", "int4@32", "int4@128", "int3@128", "int2@64", "ternary@256", "binary@48", "mxfp8", "mxfp6", "mxfp4", "nvfp4",
    "nf4@64", "nf4@64:fp8_e4m3fn@4096:fp32", "int4@128+zp", "uint4@64:fp16+zp=fp16", "uint4@32+zp", "int4@32+zp=uint4", "q4_0",
    "q4_1", "q4_k", "q2_k", "q6_k", "int2@32x1:fp16+off", "fp8_e4m3fn@16x32:fp32", "int8@tensor", "int8@token",
    "fp4_e2m1@16:ufp8_e5m3", "codebook_-1_0_1_2@24",
    "int4@allx32", "int4@16:uint6@2x64:fp16@tensor", "fp6_e3m2@40+off", "int12@50", "uint4@32+zp+off", "fp4_e2m1@8:uint4@32:fp16+off",
    "int4@4:uint6@8:uint6@2x16:fp16@tensor:fp32",
    "int4@32:uint8", "e8m0@16", "codebook_1_2_4@16", "int4_sym@1", "int4@7x5:fp16+off", "bf16", "fp16", "fp32", "fp8_e5m2", "int8",
    "posit8@64", "posit8_es0@32+off", "posit16", "pot4@32", "pot4_nz@32", "pot6@16:e8m0", "pot7_nz@16", "pot5_k2@48", "log6_f2@32",
    "pow4_a0.5@channel", "bipolar4@64", "mxint8", "fixed8_f-20@32", "ufixed6_f2@16+off", "fixed8_f4_k2@64", "p3109_p3@32", "p3109_p1@32",
    "nf4_dq", "iq4_xs", "int1@32", "af4@64:fp16",
]  # fmt: skip
SHAPES = [(1, 1), (3, 130), (33, 64), (5,), (2, 3, 70), (4, 1, 31), (1, 300)]


def example(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * np.exp2(rng.integers(-3, 4, (*shape[:-1], 1)))
    return (x + 0.1).astype(np.float32)


def numbers(fmt: Format, parts: dict[str, np.ndarray], shape: tuple[int, ...], kind: str, index: tuple[int, ...]) -> np.float32:
    """The scale or offset of the value at an index, level by level, by plain integer division of the index."""
    block, total = fmt.block, np.float32(1)
    for i, level in enumerate(fmt.levels):
        element = fmt.offset_element(i) if kind == "offset" else level.element
        at = place(block, shape, index)
        value = np.float32(element.decode(parts[f"{kind}.{i}"])[at])
        total = value if i == 0 else np.float32(total * value)
        block = level.block
    return total


def place(block, shape: tuple[int, ...], index: tuple[int, ...]) -> tuple[int, ...]:
    if block.kind == "tensor":
        return tuple(0 for _ in shape)
    sizes = [None] if block.kind != "sized" else list(block.sizes)
    sizes = ([1] * len(shape) + sizes)[-len(shape) :]
    return tuple(0 if s is None else i // s for i, s in zip(index, sizes, strict=True))


@pytest.mark.parametrize("text", FORMATS)
def test_parts_and_values_against_a_loop(text: str) -> None:
    """Shapes and dtypes of parts; each value by the formula; each code the nearest that its stored scale offers."""
    fmt = Format(text)
    for shape in SHAPES:
        x = example(shape)
        with np.errstate(all="raise", under="ignore"):
            parts = quantize_parts(x, text)
            back = dequantize_parts(parts, fmt, shape)
        assert {k: (v.dtype, v.shape) for k, v in parts.items()} == part_shapes(fmt, shape)
        assert back.dtype == np.float32 and back.shape == shape and np.isfinite(back).all()
        stored = sum(v.size * element_bits(fmt, k) for k, v in parts.items())
        assert stored == fmt.size_bits(shape)
        table = fmt.element.decode(parts["codes"]).astype(np.float32)
        usable = fmt.element.finite.astype(np.float32) if fmt.element.bits <= 12 else None
        for index in list(product(*map(range, shape)))[:: max(1, x.size // 60)]:
            if fmt.block is None:
                assert back[index] == table[index]
                continue
            scale = numbers(fmt, parts, shape, "scale", index)
            zero = np.float32(fmt.zero.decode(parts["zero"])[place(fmt.block, shape, index)]) if fmt.zero else np.float32(0)
            offset = numbers(fmt, parts, shape, "offset", index) if fmt.offset else np.float32(0)
            value = np.float32(np.float32(table[index] - zero) * scale)
            assert back[index] == np.float32(value + offset), (shape, index)
            if usable is not None:
                # In float64: the nearest, but for what two float32 roundings before the choice can move.
                s, z, m, w = float(scale), float(zero), float(offset), float(x[index])
                best = np.min(np.abs((usable.astype(np.float64) - z) * s + m - w))
                slack = 2.0**-22 * (abs(w) + abs(m) + abs(z * s))
                assert abs((float(table[index]) - z) * s + m - w) <= best + slack, (shape, index)


def element_bits(fmt: Format, part: str) -> int:
    if part == "codes":
        return fmt.element.bits
    if part == "zero":
        return fmt.zero.bits if fmt.zero else 0
    kind, level = part.split(".")
    return (fmt.levels[int(level)].element if kind == "scale" else fmt.offset_element(int(level))).bits


SLABBED = [
    "int4@32", "nvfp4", "q4_k", "nf4@64:fp8_e4m3fn@4096:fp32", "fp8_e4m3fn@16x32:fp32", "int4@32+zp", "int8@tensor", "int4@allx32",
    "mxfp4+scale=mse", "q4_k+scale=kquant", "int8@tensor+scale=p99", "nvfp4+scale=4over6",
]  # fmt: skip


@pytest.mark.parametrize("text", SLABBED)
def test_slabs_and_strides_change_nothing(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = example((70, 200))
    whole = quantize_parts(x, text)
    twice = np.zeros((140, 400), np.float32)
    twice[::2, ::2] = x
    monkeypatch.setattr("anybit.methods.rtn.SLAB", 1000)
    monkeypatch.setattr("anybit.methods.rtn.LIMIT", 170)
    monkeypatch.setattr("anybit.methods.grids.LIMIT", 130)
    for view in (x, np.asfortranarray(x), twice[::2, ::2], x.astype(">f4"), x[None]):
        parts = quantize_parts(view, text)
        assert all(np.array_equal(parts[k].reshape(whole[k].shape), whole[k]) for k in whole)
    fmt = Spec.parse(text).format
    small = dequantize_parts(whole, fmt, x.shape)
    monkeypatch.undo()
    assert np.array_equal(small, dequantize_parts(whole, fmt, x.shape))


def test_blocks_do_not_run_over_rows() -> None:
    """Row 0 holds thousands, row 1 ones; 40 columns and blocks of 32: a straddling block would lose row 1."""
    x = np.stack([np.full(40, 1000.0), np.full(40, 1.0)]).astype(np.float32)
    for text in ("mxfp4", "int4@32", "nvfp4"):
        back = dequantize_parts(quantize_parts(x, text), Format(text), x.shape)
        assert np.allclose(back, x, rtol=0.3), text


def test_nvfp4_is_the_published_rule() -> None:
    """s1 = amax / (6 * 448) in float32, s0 = e4m3(block amax / 6 / s1), code = nearest e2m1 of x / (s0 s1)."""
    x = example((8, 64))
    parts = quantize_parts(x, "nvfp4")
    s1 = np.float32(np.abs(x).max().astype(np.float64) / (6 * 448))
    assert parts["scale.1"].view(np.float32).item() == s1
    amax = np.abs(x.reshape(8, 4, 16)).max(-1)
    e4m3 = Format("fp8_e4m3fn").element
    assert np.array_equal(parts["scale.0"], e4m3.encode(amax.astype(np.float64) / 6 / s1))
    s = e4m3.decode(parts["scale.0"]).astype(np.float32) * s1
    ratio = x.reshape(8, 4, 16) / s[..., None]
    assert np.array_equal(parts["codes"].reshape(8, 4, 16), Format("fp4_e2m1").element.encode(ratio))


def test_mx_scale_is_the_published_rule() -> None:
    """OCP MX v1.0 6.3: shared exponent floor(log2(amax)) - emax, emax 2 for e2m1, 8 for e4m3; clamped to the scale's range."""
    amax = np.array([[1.0], [1.99], [6.0], [7.9], [448.0], [2.0**-126], [3e38]], np.float32)
    x = np.repeat(amax, 32, 1)
    for text, emax in (("mxfp4", 2), ("mxfp8", 8), ("mxfp6", 4)):
        expected = np.clip(np.floor(np.log2(amax.astype(np.float64))) - emax, -127, 127)
        assert np.array_equal(quantize_parts(x, text)["scale.0"], expected + 127)


@pytest.mark.parametrize("text", [f for f in FORMATS if Format(f).block is not None])
def test_blocks_that_break_others(text: str) -> None:
    """All zero, constant, one outlier, subnormal, huge: finite, in range, and zero stays zero where there is one."""
    fmt = Format(text)
    size = (4, 96)
    largest, tiny = np.finfo(np.float32).max, np.float32(2.0**-149)
    with np.errstate(all="raise", under="ignore"):
        zeros = np.zeros(size, np.float32)
        parts = quantize_parts(zeros, fmt)
        back = dequantize_parts(parts, fmt, size)
        # Exactly zero where the element has it; else what zero rounds to at the smallest scale.
        if fmt.element.has_zero:
            assert not back.any(), "zero"
        else:
            assert np.all(np.abs(back) <= fmt.levels[0].element.smallest * 4) and np.all(parts["codes"] == fmt.element.encode(0.0))
        if fmt.zero is None and fmt.offset is None:
            first = fmt.levels[0].element
            assert np.all(first.decode(parts["scale.0"]) == first.smallest), "smallest positive scale"
        mixed = zeros.copy()
        mixed[1] = 1000.0
        back = dequantize_parts(quantize_parts(mixed, fmt), fmt, size)
        if fmt.element.has_zero and fmt.block is not None and fmt.block.per_row:
            assert not back[0].any() and not back[2:].any()
        for value in (
            largest,
            -largest,
            largest / 2,
            tiny,
            -tiny,
            7 * tiny,
            np.float32(2.0**-126),
            np.float32(1e-40),
            np.float32(65504),
            1.0,
            -3.0,
        ):
            constant = np.full(size, value, np.float32)
            outlier = zeros.copy()
            outlier[:, 3] = value
            both = constant.copy()
            both[:, ::2] *= -1
            # The largest scale and offset that the format can mean; beyond, one clear line.
            ends = [prod(e.max for e in chain) for chain in chains(fmt)]
            for x in (constant, outlier, both):
                try:
                    back = dequantize_parts(quantize_parts(x, fmt), fmt, size)
                except FormatError as error:
                    reach = fmt.element.max / fmt.element.reach[1] if "would leave" in str(error) else 1  # posits: scaled to their middle
                    assert "needs the" in str(error) and abs(float(value)) > min(ends) * 0.9 / reach, (value, str(error))
                    continue
                assert np.isfinite(back).all(), value
                assert abs(float(value)) <= ends[0] * 1.1 * max(fmt.element.max - fmt.element.min, 2) + (ends[-1] if fmt.offset else 0), (
                    value
                )


def chains(fmt: Format) -> list[list[Element]]:
    """The elements of the levels of scales, and of offsets where there are any."""
    levels = range(len(fmt.levels))
    return [[level.element for level in fmt.levels]] + ([[fmt.offset_element(i) for i in levels]] if fmt.offset else [])


@pytest.mark.parametrize("text", ["int8@32", "int4@32+zp", "q4_1", "nf4@32", "mxfp8", "fp8_e4m3fn@channel", "nvfp4"])
def test_constant_blocks_are_close(text: str) -> None:
    """A block of one value c comes back within the error of one stored scale or offset and one code."""
    fmt = Format(text)
    for c in (5.0, -0.3, 1e-3, 1000.0, 2.0**-100, 1e30):
        x = np.full((2, 64), c, np.float32)
        if text == "q4_1" and not 2.0**-14 < abs(c) < 65504:
            continue  # beyond fp16, which stores its offsets: lost below, refused above
        back = dequantize_parts(quantize_parts(x, fmt), fmt, x.shape)
        # bf16 and fp16 scales; OCP's floor rule clips up to 1 - 448 / 512; E4M3 scales have half a step of 2^-4.
        limit = {"mxfp8": 0.13, "nvfp4": 2.0**-4}.get(text, 2.0**-8)
        assert np.all(np.abs(back / x - 1) <= limit), (c, back[0, 0])


def test_scales_that_their_element_cannot_hold() -> None:
    """Refused, with the block's index in the array as it was given, where the largest scale is a whole step short; less is clipped."""
    x = np.ones((2, 3, 8), np.float32)
    x[1, 2, 5] = 1e6
    for text, message in (
        ("int4@4:fp16", r"w: block [1, 2, 1] needs the scale 142857, and fp16 ends at 65504 here; use bf16 scales, or a second level,"),
        ("uint4@4:fp16+off", r"w: block [1, 2, 1] needs the scale 66666.6, and fp16 ends at 65504"),
        ("fp4_e2m1@4:ufp7_e4m3", r"w: block [1, 2, 1] needs the scale 166667, and ufp7_e4m3 ends at"),
    ):
        with pytest.raises(FormatError, match=re.escape(message)):
            quantize_parts(x, text, name="w")
    assert quantize_parts(x, "int4@4:uint8@8:fp16")["scale.0"][1, 2].tolist() == [1, 255]  # a second level holds it: 255 x 560
    x[1, 2, 5] = 1e9
    with pytest.raises(
        FormatError, match=re.escape("w: block [1, 2, 0] of the scales of level 1 needs the scale 560224, and fp16 ends at 65504")
    ):
        quantize_parts(x, "int4@4:uint8@8:fp16", name="w")
    x[1, 2, 5] = -7e5
    with pytest.raises(FormatError, match=re.escape("w: block [1, 2, 1] needs the offset -700000, and fp16 ends at -65504")):
        quantize_parts(x, "uint4@4:fp16+off", name="w")
    # Less than a step beyond: the largest scale, and values are clipped by as little.
    x[1, 2, 5] = 65510 * 7
    assert quantize_parts(x, "int4@4:fp16")["scale.0"].view(np.float16)[1, 2, 1] == 65504
    # Too small a scale is the smallest there is: such values vanish, as they do in fp16 itself.
    tiny = np.full((1, 4), 1e-9, np.float32)
    assert (
        quantize_parts(tiny, "int4@4:fp16")["scale.0"].item() == 1
        and not dequantize_parts(quantize_parts(tiny, "q4_0"), Format("q4_0"), (1, 4)).any()
    )
    # Rounding a scale up must not push the largest code out of float32.
    x = np.full((1, 32), np.finfo(np.float32).max, np.float32)
    for text in ("int4@32", "nf4@32", "int8@channel", "int4@32+zp", "int4@32:bf16+off"):
        assert np.isfinite(dequantize_parts(quantize_parts(x, text), Format(text), x.shape)).all(), text


def test_zero_points() -> None:
    """A block of 0 .. 15 is exact; one-sided blocks keep zero exact; the zero point is the code of zero."""
    x = np.arange(16, dtype=np.float32)[None]
    for text, zero in (("uint4@16+zp", 0), ("int4@16+zp", 8)):
        parts = quantize_parts(x, text)
        assert np.array_equal(dequantize_parts(parts, Format(text), x.shape), x)
        assert parts["zero"].tolist() == [[zero]] and parts["codes"][0, 0] == zero
    parts = quantize_parts(-x, "int4@16+zp")
    assert np.array_equal(dequantize_parts(parts, Format("int4@16+zp"), x.shape), -x) and parts["zero"].item() == 7
    shifted = example((4, 64)) + 50
    for text in ("uint4@64+zp", "uint4@64:fp16+zp=fp16", "int4@64+zp=uint4", "uint4@64+zp=int8"):
        error = dequantize_parts(quantize_parts(shifted, text), Format(text), shifted.shape) - shifted
        # The range includes zero, so a step is at most max / 7 where the zero point cannot go below 0, else max / 15.
        assert np.abs(error).max() <= shifted.max() / (14 if text == "int4@64+zp=uint4" else 30) * 1.05, text


def test_offsets() -> None:
    """A block far from zero keeps its own range: error within half a step of that range, and of the stored offset."""
    x = example((4, 256)) + 100
    for text, steps in (("uint4@256:fp32+off", 15), ("int4@256:fp32+off", 15), ("uint8@256:fp32+off", 255), ("fp4_e2m1@256:fp32+off", 6)):
        error = dequantize_parts(quantize_parts(x, text), Format(text), x.shape) - x
        width = x.max(1) - x.min(1)
        assert np.all(np.abs(error).max(1) <= width / steps / 2 * 1.001 + 1e-4), text
    # Unsigned first-level offsets take their sign from the super-block.
    for sign in (1, -1):
        parts = quantize_parts(sign * x, "uint4@32:uint6@256:fp16+off")
        assert np.all(np.sign(parts["offset.1"].view(np.float16)) == sign)
        back = dequantize_parts(parts, Format("q4_k"), x.shape)
        assert np.abs(back - sign * x).max() < 2.5


def test_non_finite() -> None:
    x = example((3, 4, 40))
    x[1, 2, 7], x[2, 0, 1], x[2, 0, 2] = np.nan, np.inf, -np.inf
    for text in ("int4@32", "nvfp4", "int8@tensor", "bf16", "fp8_e4m3fn"):
        with pytest.raises(NonFiniteError, match=r"layer.3 holds 3 non-finite value\(s\), the first nan at index \[1, 2, 7\]"):
            quantize_parts(x, text, name="layer.3")
    tame = x.copy()
    tame[1, 2, 7] = 0
    back = dequantize_parts(quantize_parts(x, "int4@channel+nonfinite=saturate"), Format("int4@channel"), x.shape)
    row = np.delete(x[2, 0], [1, 2])
    assert np.isfinite(back).all() and back[1, 2, 7] == 0
    # An infinity becomes the extreme of the finite values of its block.
    assert abs(back[2, 0, 1] - row.max()) < np.abs(row).max() / 14 * 1.01 and abs(back[2, 0, 2] - row.min()) < np.abs(row).max() / 14 * 1.01
    rest = np.isfinite(x)
    assert np.allclose(back[rest], x[rest], atol=np.abs(x[rest]).max() / 13)
    kept = dequantize_parts(quantize_parts(x, "fp8_e5m2@channel+nonfinite=propagate"), Format("fp8_e5m2@channel"), x.shape)
    assert np.isnan(kept[1, 2, 7]) and kept[2, 0, 1] == np.inf and kept[2, 0, 2] == -np.inf and np.isfinite(kept[rest]).all()
    dense = dequantize_parts(quantize_parts(x, "bf16+nonfinite=propagate"), Format("bf16"), x.shape)
    assert np.isnan(dense[1, 2, 7]) and dense[2, 0, 1] == np.inf
    with pytest.raises(FormatError, match="int4 has no NaN"):
        quantize_parts(x, "int4@32+nonfinite=propagate")
    whole = np.full((2, 32), np.nan, np.float32)
    assert not dequantize_parts(quantize_parts(whole, "mxfp4+nonfinite=saturate"), Format("mxfp4"), whole.shape).any()


def test_wrong_input() -> None:
    with pytest.raises(UnknownNameError, match="no scale rule named 'mze'; did you mean mse"):
        quantize_parts(np.zeros((2, 2)), "int4@2+scale=mze")
    with pytest.raises(FormatError, match="signmax needs a signed scale, and e8m0 has no sign"):
        quantize_parts(np.ones((2, 2)), "msfp12+scale=signmax")
    with pytest.raises(FormatError, match="negative side reaches"):
        quantize_parts(np.ones((2, 2)), "uint4@2+scale=signmax")
    with pytest.raises(FormatError, match="no infinity"):
        quantize_parts(np.ones((2, 2)), "int4@2+over=inf")
    with pytest.raises(
        FormatError, match=r"head: a value is 7 times its block's scale, outside fp4_e2m1's range -6 to 6; use over=saturate"
    ):
        quantize_parts(np.full((2, 64), 7.0), "mxfp4+over=error", name="head")
    with pytest.raises(ShapeError, match="array is a single number"):
        quantize_parts(np.float32(1), "int4@2")
    with pytest.raises(ShapeError, match="numbers are float16"):
        quantize_parts(np.array([["a"]]), "int4@2")
    parts = quantize_parts(np.ones((2, 4)), "int4@2")
    with pytest.raises(ShapeError, match=r"part 'scale.0' of int4@2 \[2, 4\] is \[2, 2\], not missing"):
        dequantize_parts({"codes": parts["codes"]}, Format("int4@2"), (2, 4))
    with pytest.raises(ShapeError, match=r"part 'codes' of int4@2 \[4, 2\] is \[4, 2\], not \[2, 4\]"):
        dequantize_parts(parts, Format("int4@2"), (4, 2))


def test_empty_arrays() -> None:
    for shape in ((0, 64), (3, 0), (0,)):
        for text in ("int4@32", "nvfp4", "q4_k", "int8@channel", "int8@tensor", "bf16"):
            parts = quantize_parts(np.zeros(shape, np.float32), text)
            assert parts["codes"].shape == shape and dequantize_parts(parts, Format(text), shape).shape == shape


def test_registered() -> None:
    assert METHODS["rtn"] is quantize_parts and next(iter(METHODS)) == "rtn"
    with pytest.raises(UnknownNameError, match="no method named 'rtm'; did you mean rtn"):
        METHODS["rtm"]


def test_every_named_format_round_trips() -> None:
    """Signal above noise for all; the noise of each at most that of its coarsest step."""
    x = example((8, 512), seed=3)
    for named in named_formats():
        text = named.name if named.blocked or Format(named.name).dense else f"{named.name}@64:fp32"
        fmt = Format(text)
        error = dequantize_parts(quantize_parts(x, fmt), fmt, x.shape) - x
        signed = fmt.element.signed or fmt.offset is not None
        if signed and fmt.element.bits > 2:
            assert np.square(error).sum() < 0.2 * np.square(x).sum(), text


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=30),
    st.sampled_from(["", "+scale=mse", "+round=zero", "+round=odd", "+round=up"]),
)
def test_any_finite_array_comes_back_finite(text: str, shape: list[int], values: list[float], policy: str) -> None:
    x = np.resize(np.array(values, np.float32), shape)
    try:
        parts = quantize_parts(x, text + policy)
    except FormatError as error:
        assert "needs the" in str(error) and np.abs(x).max() > 1e3, error  # uint8 scales end at 255
        return
    back = dequantize_parts(parts, Format(text), tuple(shape))
    assert back.shape == tuple(shape) and np.isfinite(back).all()
    assert {k: (v.dtype, v.shape) for k, v in parts.items()} == part_shapes(Format(text), tuple(shape))


def test_memory_of_rules_that_see_values_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs and boxes of a 32nd and a 128th of their size, on half a million values: what a rule needs must shrink with them,
    but for eight bytes an offset's block."""
    monkeypatch.setattr("anybit.methods.rtn.SLAB", SLAB // 32)
    monkeypatch.setattr("anybit.methods.rtn.LIMIT", LIMIT // 128)
    x = np.ones((512, 1024), np.float32)
    for text in ("int8@tensor+scale=p99.9", "int4@allx32+scale=sigma3", "q4_k+scale=kquant"):
        tracemalloc.start()
        parts = quantize_parts(x, text, importance=None if "p99" in text else np.ones(1024, np.float32))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        cached = x.size // 32 * 8 if "q4_k" in text else 0
        # Half of one float32 copy of the array.
        assert peak - sum(part.nbytes for part in parts.values()) - cached < x.nbytes // 2, (text, peak)


def test_memory_stays_bounded() -> None:
    """Beyond input and parts, a 16M-value array costs no more than a small multiple of a slab; also with very many or very long blocks."""
    for shape, text in (
        ((4096, 4096), "nvfp4"),
        ((1, 1 << 24), "int4@32+zp"),
        ((1 << 24,), "int8@tensor"),
        ((1 << 16, 256), "int4@allx32"),
    ):
        x = np.zeros(shape, np.float32)
        tracemalloc.start()
        parts = quantize_parts(x, text)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak - sum(part.nbytes for part in parts.values()) < 48 * SLAB, (text, peak)
