"""HQQ against its published loop in float64; never worse than nearest on its own objective, and better where it can move."""

import numpy as np
import pytest
from calibrated import gathered, layer, rounded

from anybit.errors import UsageError
from anybit.formats import Spec
from anybit.methods.hqq import Hqq, shrunk
from anybit.methods.rtn import dequantize_parts, quantize_parts, stored_grids
from anybit.methods.step import STEPS


def cost(w: np.ndarray, q: np.ndarray) -> float:
    return float((np.abs(w.astype(np.float64) - q) ** 0.7).sum())


def by_the_paper(w: np.ndarray, scale: np.ndarray, offset: np.ndarray, top: int, turns: int) -> np.ndarray:
    """uint codes, value = code s + m (z = -m / s), blocks of 32, in float64; each block keeps its best."""
    blocks, s, m = w.astype(np.float64).reshape(-1, 32), scale.reshape(-1, 1).astype(np.float64), offset.reshape(-1, 1).astype(np.float64)
    beta, best, least = 10.0, np.zeros(blocks.shape), np.full((len(blocks), 1), np.inf)
    for _ in range(turns + 1):
        q = np.clip(np.rint((blocks - m) / s), 0, top)
        value = q * s + m
        found = (np.abs(blocks - value) ** 0.7).sum(axis=1, keepdims=True)
        best, least = np.where(found < least, value, best), np.minimum(found, least)
        e = blocks - value
        outliers = np.sign(e) * np.maximum(np.abs(e) - np.maximum(np.abs(e), 1e-30) ** -0.3 / beta, 0)
        m = (blocks - outliers - q * s).mean(axis=1, keepdims=True)
        beta *= 1.01
    return best.reshape(w.shape)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_equals_the_paper(bits: int) -> None:
    w, x, _ = layer()
    expression = f"uint{bits}@32:fp32+off"
    target = rounded(Hqq(turns=6), w * 40, expression, gathered(x))
    held = stored_grids(quantize_parts(w * 40, expression), Spec.parse(expression).format, w.shape)
    assert held.offset is not None
    expected = by_the_paper(w * 40, held.scale, held.offset, (1 << bits) - 1, 6)
    assert abs(cost(w * 40, target.rounded) / cost(w * 40, expected) - 1) < 1e-5


FORMATS = ("uint4@32+off", "uint2@32:fp16+zp=fp16", "int3@32+zp", "int4@32", "nf4@32", "mxfp4", "fp4_e2m1@16:fp8_e4m3fn@tensor:fp32",
           "uint3@16:uint6@96:fp16+off", "int4@8x32", "int4@tensor", "d4@32")  # fmt: skip


@pytest.mark.parametrize("expression", FORMATS)
def test_never_worse(expression: str) -> None:
    w, x, _ = layer()
    spec = Spec.parse(expression)
    nearest = dequantize_parts(quantize_parts(w, spec), spec.format, w.shape)
    found = cost(w, rounded(Hqq(), w, expression, gathered(x)).rounded)
    assert found <= cost(w, nearest) * (1 + 1e-6)
    if expression in ("uint4@32+off", "uint2@32:fp16+zp=fp16", "int4@32", "nf4@32"):
        assert found < 0.995 * cost(w, nearest)


def test_shrinking() -> None:
    assert shrunk(np.float32([0, 1e-9, 0.5, -2.0]), 10, 0.7).tolist() == pytest.approx([0, 0, 0.5 - 0.5**-0.3 / 10, -(2 - 2**-0.3 / 10)])


def test_what_it_leaves_alone() -> None:
    w, x, _ = layer()
    for expression, why in (("fp8_e4m3fn", "it has no blocks to fit"), ("kmeans3@32", "the values of kmeans3 were learned with its scales"),
                            ("int4@32+round=sr8", "round=sr8 draws codes by chance")):  # fmt: skip
        target = rounded(Hqq(), w, expression, gathered(x))
        assert target.notes == [f"{why}: rounded to nearest"]
    with pytest.raises(UsageError, match=r"hqq: p in \(0, 1\]"):
        STEPS["hqq"].made({"p": 2}, "hqq")
