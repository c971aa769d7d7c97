"""Blocks, scale formats and scale rules against a slow reference in exact fractions, on awkward shapes."""

from __future__ import annotations

import numpy as np
import pytest

from anybit.errors import FormatError
from anybit.formats import Format, Spec
from anybit.methods import SCALES, dequantize_parts, quantize_parts
from anybit.reference.blocks import quantize

SHAPES = [(3, 70), (5,), (2, 3, 37), (1, 1)]
FORMS = [
    # Blocks of every kind.
    "int4@128", "int4@16", "int8@channel", "int8@token", "int8_sym@tensor", "int4@2x16", "int4@allx8", "int4@2x1x8", "fp8_e4m3fn@3x5:fp32",
    # Scales of every kind.
    "fp4_e2m1@16:ufp8_e5m3", "int4@16:fp32", "int4@16:fp16", "int4@16:e8m0", "int4@16:fp8_e5m2", "fp4_e2m1@16:ufp7_e4m3", "int4@16:uint8",
    "nf4@16:codebook_0.25_0.5_0.75_1_1.5@tensor:fp32", "int3@16:int6", "int4@16:tf32",
    # Two and more levels with any elements.
    "nvfp4", "nf4@16:nf4@64:fp32", "nf4@16:fp8_e4m3fn@4096:fp32", "int4@16:uint6@2x64:fp16@tensor", "fp4_e2m1@16:e8m0@tensor:fp32",
    "fp4_e2m1@8:e8m0@64:e8m0", "int4@4:uint6@8:uint6@2x16:fp16@tensor:fp32", "int4@8:fp8_e4m3fn@32:e8m0",
    # Zero points and offsets.
    "int4@16:bf16+zp", "uint4@16:fp16+zp", "uint4@16:fp16+zp=fp16", "int4@16+zp=uint3", "uint4@16+zp=int8", "uint4@2x8:e8m0+zp",
    "uint4@32:fp16+off", "int2@3x1:fp16+off", "int4@16:bf16+off", "fp4_e2m1@16:fp16+off", "uint4@16+off=int8", "int4_sym@16+off=fp32",
    "uint4@16:uint6@32:fp16+off", "uint2@16:uint4@256:fp16+off",
    # Whole formats.
    "mxfp4", "mxfp6", "mxfp8", "mxfp8_e5m2", "msfp12", "q4_0", "q4_1", "q5_0", "q8_0", "q3_k", "q6_k",
    "ternary@16:fp16", "binary@16:fp16", "fp6_e3m2@channel", "fp6_e3m2_b5_ns@32:e8m0", "codebook_-1_-0.5_0_0.5_1@64",
]  # fmt: skip
RULES = ["absmax", "clip", "full", "signmax", "floor", "floor0.75", "ceil", "even", "mse", "lp2.4", "4over6", "sigma3", "p90", "p99.9"]
RULED = [
    "int4@16",
    "nvfp4",
    "mxfp4",
    "int4@2x8:fp16",
    "codebook_-1_0_1_2@16:fp16",
    "uint4@16:uint6@32:fp16+off",
    "int3@16:int6@64:fp16",
    "int4@16+zp",
    "uint4@16:e8m0+zp",
]


def example(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * np.exp2(rng.integers(-3, 4, (*shape[:-1], 1))) + 0.1).astype(np.float32)


def compare(x: np.ndarray, text: str) -> None:
    """Parts of `text` (a format and perhaps a rule) equal the reference's: the same codes at every level."""
    spec = Spec.parse(text)
    rule = SCALES[spec.scale_rule]
    name = rule.name.removesuffix(f"{rule.number:g}") if rule.allowed and rule.number is not None else rule.name
    parts = quantize_parts(x, text)
    expected, values = quantize(x, spec.format, name, rule.number)
    assert parts.keys() == expected.keys()
    for part, codes in expected.items():
        assert np.array_equal(parts[part], codes), (text, x.shape, part, np.argwhere(parts[part] != codes)[:3])
    back = dequantize_parts(parts, spec.format, x.shape)
    assert np.array_equal(back, values) and np.array_equal(np.signbit(back), np.signbit(values)), (text, x.shape)


@pytest.mark.parametrize("text", FORMS)
def test_forms_against_the_reference(text: str) -> None:
    for shape in SHAPES:
        compare(example(shape), text)


@pytest.mark.parametrize("rule", RULES)
def test_rules_against_the_reference(rule: str) -> None:
    served = 0
    for text in RULED:
        if (rule == "4over6" and text == "mxfp4") or (rule == "signmax" and Format(text).levels[0].element.min >= 0):
            continue
        if rule == "signmax" and text.startswith("codebook"):
            continue
        if rule in ("clip", "signmax", "4over6", "sigma3", "p90", "p99.9") and "+zp" in text:
            continue
        for shape in SHAPES[:3] if rule[:3] not in ("mse", "lp2", "sig") else ((2, 37), (5,)):  # up to 100 candidates each
            compare(example(shape, seed=1), f"{text}+scale={rule}")
            served += 1
    assert served >= 3


@pytest.mark.parametrize(
    "text", ["int4@16", "int4@16:fp16", "mxfp4", "nvfp4", "uint4@16+zp", "q4_1", "uint4@16:uint6@32:fp16+off", "int8@tensor"]
)
def test_blocks_that_break_others_against_the_reference(text: str) -> None:
    """Zero, equal, one outlier, subnormal, near ties and the ends of float32 as far as the scales reach."""
    wide = Format(text).levels[-1].element.max > 1e30 or text == "mxfp4"
    largest = float(np.finfo(np.float32).max)
    for value in (0.0, 1.0, -3.0, 2.0**-149, -(2.0**-126), 1e-30, 7.5, *((largest, -largest, largest / 3) if wide else (1e4, -1e4))):
        constant = np.full((3, 40), value, np.float32)
        outlier = np.zeros((3, 40), np.float32)
        outlier[:, 3] = value
        both = constant * np.where(np.arange(40) % 2, np.float32(-1), np.float32(1))
        ramp = (np.arange(120).reshape(3, 40) - 50).astype(np.float32)
        for x in (constant, outlier, both, ramp):
            compare(x, text)


@pytest.mark.parametrize("text", ["posit8@16", "posit6_es1@16:fp16@tensor:fp32", "posit8@16:fp8_e4m3fn@tensor:fp32", "int2@16", "int4@16"])
def test_blocks_too_large_for_an_element_are_refused_where_the_reference_does(text: str) -> None:
    """From a scale that need not fall to one that would fall far: the same codes, or refused by both."""
    largest, refused = np.float32(np.finfo(np.float32).max), 0
    ramp = np.linspace(-1, 1, 48).reshape(2, 24).astype(np.float32)
    for power in (0, -1, -3, -8, -15, -18, -19, -20, -21, -22, -30):
        x = (ramp * np.float32(largest * 2.0**power)).astype(np.float32)
        try:
            compare(x, text)
        except FormatError as error:
            assert "would leave float32" in str(error)
            with pytest.raises(FormatError, match="fall more than twofold"):
                quantize(x, Format(text), "absmax")
            refused += 1
    assert (refused > 0) == text.startswith("posit") and refused < 11
