"""Values that another format holds, and reasons why it does not."""

from __future__ import annotations

import numpy as np
import pytest

import anybit
from anybit.formats import Format
from anybit.io.targets.fit import NoFit, fit
from anybit.methods.rtn import dequantize_parts, quantize_parts

SHAPE = (6, 256)
W = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)

FITS = [
    ("int4@128", "int4@32:fp16"), ("int3@256", "int4@32:fp16"), ("int4_sym@64", "int8@32:fp32"), ("ternary@channel:bf16", "int2@64:bf16"),
    ("int4@32:e8m0", "int4@32:bf16"), ("uint4@64:fp16+zp", "uint4@32:fp16+zp"), ("int4@64:bf16+zp", "uint4@64:bf16+zp"),
    ("uint3@64:fp16+off", "uint4@32:fp16+off"), ("nvfp4", "fp4_e2m1@16:fp8_e4m3fn@tensor:fp32"), ("int4@tensor:bf16", "int4@32:bf16"),
    ("uint4@32:uint6@256:fp16+off", "uint5@16:uint8@256:fp16+off"), ("fp4_e2m1@32:e8m0", "fp8_e4m3fn@32:bf16"),
    ("int4@2x64", "int4@64"), ("int4@3x128:bf16", "int4@1x64:fp32"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "target"), FITS)
def test_values_stay(source: str, target: str) -> None:
    here, there = Format(source), Format(target)
    parts = quantize_parts(W, source)
    made = fit(here, there, SHAPE).parts(parts, SHAPE)
    assert np.array_equal(dequantize_parts(made, there, SHAPE), dequantize_parts(parts, here, SHAPE))


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("int4@32", "int3@32", "missing"),
        ("int4@48", "int4@32", "not cut into blocks"),
        ("int4@32", "uint4@32:fp16+off", "no offsets"),
        ("int4@32", "uint4@32:fp16+zp", "no zero points"),
        ("nvfp4", "fp4_e2m1@16:bf16", r"2 level\(s\)"),
        ("nf4@32", "int8@32", "missing"),
        ("bf16", "int8@32", r"0 level\(s\)"),
    ],
)
def test_reasons(source: str, target: str, reason: str) -> None:
    with pytest.raises(NoFit, match=reason):
        fit(Format(source), Format(target), SHAPE)


def test_scales_are_looked_at() -> None:
    """float32 scales fit float16 where they happen to be such numbers, and only there."""
    here, there = Format("int4@32:fp32"), Format("int4@32:fp16")
    fitted = fit(here, there, SHAPE)
    assert fitted.look
    parts = quantize_parts(W, "int4@32:fp32")
    with pytest.raises(NoFit, match="is not exact in fp16"):
        fitted.parts(parts, SHAPE)
    rounded = parts["scale.0"].view(np.float32).astype(np.float16).astype(np.float32)
    made = fitted.parts({**parts, "scale.0": rounded.view(np.uint32)}, SHAPE)
    assert np.array_equal(made["scale.0"].view(np.float16), rounded.astype(np.float16))


@pytest.mark.parametrize("outside", [None, 2.0**-24, 2.0**-14 - 2.0**-23, 0.0, 2.0**16, 2.0**-25])
def test_bfloat16_scales_become_float16(outside: float | None) -> None:
    """All that are normal numbers of both, of both signs, and one that is not."""
    fitted = fit(Format("int4@1:bf16"), Format("int4@1:fp16"), (2, 30 * 128))
    magnitudes = np.arange(113 << 7, 143 << 7, dtype=np.uint16)
    scales = np.stack([magnitudes, magnitudes | np.uint16(0x8000)])
    if outside is not None:
        scales[1, 77] = np.float32(outside).view(np.uint32) >> np.uint32(16)
    values = (scales.astype(np.uint32) << np.uint32(16)).view(np.float32)
    parts = {"codes": np.ones(scales.shape, np.uint8), "scale.0": scales}
    if outside in (2.0**16, 2.0**-25):
        with pytest.raises(NoFit, match="is not exact in fp16"):
            fitted.parts(parts, scales.shape)
    else:
        made = fitted.parts(parts, scales.shape)["scale.0"].view(np.float16)
        assert np.array_equal(made.astype(np.float32), values)


def test_wider_scales_are_not_looked_at() -> None:
    assert not fit(Format("int4@32:bf16"), Format("int4@32:fp32"), SHAPE).look
    assert fit(Format("int4@32:fp16"), Format("int4@32:bf16"), SHAPE).look, "neither has all numbers of the other"
    assert anybit.Format("int4@32").levels[0].element.name == "bf16"
