"""Every form of format with every kind of awkward array: right (as the plain array, or as the reference) or refused in one line."""

from __future__ import annotations

import re

import numpy as np
import pytest

import anybit
from anybit.errors import FormatError, NonFiniteError
from anybit.formats import Format
from anybit.methods import dequantize_parts, quantize_parts

FORMS = [
    "int4@16", "int4@channel", "int4@token:fp16", "int8_sym@tensor", "int4@2x16", "int4@allx8:fp32", "int4@2x1x8", "mxfp4", "nvfp4",
    "fp4_e2m1@16:ufp8_e5m3", "int4@16:uint8", "int4@16:fp8_e5m2", "nf4@16:fp8_e4m3fn@4096:fp32", "int4@16:uint6@2x64:fp16@tensor",
    "int4@16+zp", "uint4@16:fp16+zp=fp16", "int4@16+zp=uint3", "uint4@32:fp16+off", "int2@3x1:fp16+off", "q4_k", "q3_k", "msfp12",
    "ternary@16", "binary@16", "codebook_-1_0_1_2@16", "int12@16", "e8m0@16",
]  # fmt: skip
RULES = ["", "+scale=mse", "+scale=lp2.4", "+scale=p99", "+scale=sigma3", "+scale=kquant", "+scale=ceil", "+scale=clip"]


def served(x: np.ndarray, text: str) -> dict[str, np.ndarray] | str:
    """The parts, or the line that refuses."""
    try:
        return quantize_parts(x, text, "w")
    except (FormatError, NonFiniteError) as error:
        line = str(error)
        assert "\n" not in line and len(line) < 300, line
        return line


def same(a: dict[str, np.ndarray] | str, b: dict[str, np.ndarray] | str) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return a.keys() == b.keys() and all(np.array_equal(a[part], b[part]) for part in a)


def example() -> np.ndarray:
    """Three dimensions, no multiple of any block."""
    rng = np.random.default_rng(4)
    return (rng.standard_normal((2, 5, 75)) * np.exp2(rng.integers(-3, 4, (2, 5, 1)))).astype(np.float32)


@pytest.mark.parametrize("text", FORMS)
def test_how_an_array_lies_changes_nothing(text: str) -> None:
    """Strides, byte order, read-only memory, misaligned memory and dtypes that hold the same numbers."""
    x = example().astype(np.float16).astype(np.float32)
    wide = np.zeros((4, 10, 150), np.float32)
    wide[::2, ::2, ::2] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    raw = np.empty(x.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(np.float32).reshape(x.shape)
    unaligned[...] = x
    views = [
        wide[::2, ::2, ::2], np.asfortranarray(x), frozen, unaligned, x.astype(">f4"), x.astype(">f8"), x.astype(np.float64),
        x.astype(np.float16),
        x[::-1][::-1], np.ascontiguousarray(x.transpose(2, 0, 1)).transpose(1, 2, 0),
    ]  # fmt: skip
    for rule in RULES:
        plain = served(x, text + rule)
        for i, view in enumerate(views):
            before = view.copy()
            assert same(plain, served(view, text + rule)), (rule, i)
            assert np.array_equal(view, before), "the input is left alone"


@pytest.mark.parametrize("text", ["int4@16", "uint4@32:fp16+off+scale=kquant", "int4@16+scale=kquant", "kmeans3@16", "nvfp4+scale=mse"])
def test_float64_is_narrowed_only_where_nothing_is_lost(text: str) -> None:
    """Equal arrays get equal codes; numbers that float32 does not hold are placed as they are."""
    x = np.random.default_rng(8).standard_normal((4, 96)).astype(np.float32)
    assert same(served(x, text), served(x.astype(np.float64), text))
    # 3.5 scales and a little: float32 would see the tie, and take the even code 4 either way.
    fine = np.tile([7.0, 2.5 + 2.0**-40, 3.5 - 2.0**-40, 0.5 + 2.0**-30], (1, 4))
    assert quantize_parts(fine, "int4@16")["codes"][0, :4].tolist() == [7, 3, 3, 1]


def arrays() -> dict[str, np.ndarray]:
    """Blocks that break others, by name."""
    shape, largest, tiny = (4, 75), np.float32(np.finfo(np.float32).max), np.float32(2.0**-149)
    rng = np.random.default_rng(5)
    normal = rng.standard_normal(shape).astype(np.float32)
    outlier = normal * np.float32(1e-3)
    outlier[:, 7] = 1000
    found = {
        "zeros": np.zeros(shape), "minus zeros": -np.zeros(shape), "equal": np.full(shape, 0.37), "equal, negative": np.full(shape, -5.0),
        "one outlier": outlier, "subnormal": rng.integers(-9, 9, shape) * tiny, "tiny": normal * np.float32(2.0**-126),
        "huge": normal / np.float32(5) * largest, "largest": np.full(shape, largest), "both ends": np.where(normal > 0, largest, -largest),
        "mixed": normal * np.exp2(rng.integers(-140, 120, shape)), "one row": normal[:1], "one value": normal[:1, :1],
    }  # fmt: skip
    return {name: array.astype(np.float32) for name, array in found.items()}


@pytest.mark.parametrize("text", FORMS)
def test_blocks_come_back_finite_and_close_or_are_refused(text: str) -> None:
    """Never NaN, never further off than the block is wide; refused only where a scale or an offset cannot be held."""
    fmt, refused = Format(text), []
    for rule in RULES:
        for name, x in arrays().items():
            with np.errstate(all="raise", under="ignore"):
                parts = served(x, text + rule)
                if isinstance(parts, str):
                    refused.append(parts)
                    continue
                back = dequantize_parts(parts, fmt, x.shape)
            assert np.isfinite(back).all(), (rule, name)
            if fmt.element.has_zero and not x.any():
                assert not back.any(), (rule, name)
            if fmt.block is not None and fmt.block.per_row and fmt.element.signed and fmt.element.bits > 2 and len(fmt.levels) == 1:
                error = np.abs(back.astype(np.float64) - x)
                amax = np.abs(x.astype(np.float64)).max(axis=1, keepdims=True)
                # Clipped or lost at most: a value, its offset's step, or the smallest scale's reach.
                floor = fmt.levels[0].element.smallest * max(fmt.element.max, 1)
                assert np.all(error <= 1.5 * amax + floor), (rule, name, float((error / (amax + 1e-300)).max()))
    allowed = (
        "needs the scale",
        "needs the offset",
        "looks at values",
        "symmetric",
        "finer than powers of two",
        "no sign",
        "w holds values",
    )
    assert all(any(word in line for word in allowed) for line in refused), refused


@pytest.mark.parametrize("text", FORMS)
def test_non_finite_under_each_policy(text: str) -> None:
    fmt, x = Format(text), example()
    bad = x.copy()
    bad[0, 1, 3], bad[1, 4, 70], bad[1, 4, 71] = np.nan, np.inf, -np.inf
    tamed = x.copy()
    tamed[0, 1, 3] = 0
    for rule in RULES:
        line = served(bad, text + rule)
        assert isinstance(line, str)
        if "non-finite" in line:
            assert "w holds 3 non-finite value(s), the first nan at index [0, 1, 3]" in line
        parts = served(bad, f"{text}{rule}+nonfinite=saturate")
        if isinstance(parts, str):
            assert isinstance(served(x, text + rule), str), parts  # refused whatever the values
            continue
        back = dequantize_parts(parts, fmt, x.shape)
        assert np.isfinite(back).all(), rule
        # Blocks that hold nothing bad are as they were, unless a scale of theirs is shared.
        if len(fmt.levels) == 1 and fmt.block is not None and fmt.block.per_row:
            clean = dequantize_parts(quantize_parts(x, text + rule), fmt, x.shape)
            assert np.array_equal(back[0, 2:], clean[0, 2:]) and np.array_equal(back[1, :4], clean[1, :4]), rule
        kept = served(bad, f"{text}{rule}+nonfinite=propagate")
        if isinstance(kept, str):
            assert "NaN" in kept
        else:
            values = dequantize_parts(kept, fmt, x.shape)
            assert np.isnan(values[0, 1, 3]) and np.isfinite(values[0, 2:]).all()


@pytest.mark.parametrize("text", FORMS)
def test_empty_arrays_and_rows(text: str) -> None:
    for rule in RULES:
        for shape in ((0, 75), (3, 0), (0,), (2, 0, 5)):
            parts = served(np.zeros(shape, np.float32), text + rule)
            if isinstance(parts, dict):
                assert parts["codes"].shape == shape and dequantize_parts(parts, Format(text), shape).shape == shape


def test_float64_beyond_float32() -> None:
    """Refused with the value; what rounds to the largest float32 is accepted; without a scale the policy for overflow decides."""
    x = np.ones((2, 32))
    x[1, 3] = -1e39
    for text in ("int4@16", "nvfp4", "mxfp4", "uint4@16+zp", "int4@channel+scale=mse"):
        with pytest.raises(FormatError, match=r"w holds values up to 1e\+39, and what codes mean is float32"):
            quantize_parts(x, text, "w")
    x[1, 3] = 3.40282355e38
    assert np.isfinite(dequantize_parts(quantize_parts(x, "int4@16"), Format("int4@16"), x.shape)).all()
    assert dequantize_parts(quantize_parts(np.array([-1e300, 1e300]), "bf16"), Format("bf16"), (2,)).tolist() == [
        -3.3895313892515355e38,
        3.3895313892515355e38,
    ]


@pytest.mark.parametrize(
    "text", ["posit8@32", "posit8@16:fp8_e4m3fn@tensor:fp32", "ovp4_int@channel", "e8p@channel", "d4@32", "int4@16", "int2@16"]
)
def test_near_the_end_of_float32_close_or_refused(text: str) -> None:
    """A block whose scale cannot be as large as it should: what comes back is near it, or the array is refused with what to do."""
    largest, refused = np.float32(np.finfo(np.float32).max), 0
    rng = np.random.default_rng(3)
    normal = np.clip(rng.normal(0, 0.3, (2, 64)), -1, 1)
    shapes = {"equal": np.ones((2, 64)), "ramp": np.linspace(-1, 1, 128).reshape(2, 64), "normal": normal}
    for name, shape in shapes.items():
        for down in (1, 2, 4, 2**10, 2**19, 2**20, 2**24):
            x = (shape.astype(np.float32) * (largest / np.float32(down))).astype(np.float32)
            unit = float(largest) / down
            try:
                back = dequantize_parts(quantize_parts(x, text), Format(text), x.shape)
            except FormatError as error:
                found = re.search(r"would leave float32 above [\d.e+]+; divide the array by (\d+)$", str(error))
                assert found, error
                refused += 1
                less = x / np.float32(int(found[1]))
                assert np.isfinite(dequantize_parts(quantize_parts(less, text), Format(text), x.shape)).all()
                continue
            wide = x.astype(np.float64) / unit
            error = np.square(back / unit - wide).sum() / np.square(wide).sum()
            assert error < 0.27, (name, down, error)
    assert (refused > 0) == text.startswith(("posit", "ovp", "e8p"))


def test_the_native_round_trip_refuses_the_same() -> None:
    """fake_quantize takes one native pass where it can, and says the same as the parts."""
    x = np.linspace(-1e38, 1e38, 64, dtype=np.float32)[None]
    for text in ("posit8@32", "posit8@16:fp8_e4m3fn@tensor:fp32"):
        with pytest.raises(FormatError, match=r"would leave float32 above .*; divide the array by \d+"):
            anybit.fake_quantize(x, text)
        small = x / np.float32(2**20)
        assert np.array_equal(anybit.fake_quantize(small, text), dequantize_parts(quantize_parts(small, text), Format(text), x.shape))
