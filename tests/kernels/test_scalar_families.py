"""The families whose codes are no plain integers or floats run on the same kernels, with the reference's bits."""

from __future__ import annotations

import numpy as np
import pytest

import anybit
from anybit.errors import NoKernelError
from anybit.formats import families, parse_element
from anybit.reference.linear import matmul

NAMES = [
    name for family in ("bipolar", "codebook", "fixed", "log", "p3109", "posit", "pot", "power") for name in families()[family].members
]


@pytest.mark.parametrize("act", [None, "int8"])
@pytest.mark.parametrize("name", [*NAMES, "int1", "fixed1_f0", "posit3", "pot2", "pot7_nz"])
def test_product(name: str, act: str | None) -> None:
    w, x = np.random.default_rng(0).standard_normal((2, 33, 100), np.float32)
    wide = parse_element(name).table.kind == "f32"
    q = anybit.quantize(w, f"{name}@32:fp32")
    assert np.array_equal(q.matmul(x, None if wide else act), matmul(x, q.logical(), q.format, q.shape, None if wide else act))
    assert np.isfinite(q.dequantize()).all()


def test_posits_that_no_integer_table_holds() -> None:
    """posit8 reaches 2^24 while blocks reach 16: 16 bits would leave nothing, so int8 activations are refused, float ones exact."""
    w, x = np.random.default_rng(0).standard_normal((2, 64, 256), np.float32)
    for name, least in (("posit8", 30), ("posit8_es1", 36)):
        q = anybit.quantize(w, f"{name}@32:fp32")
        assert np.square(x @ w.T).sum() > 10 ** (least / 10) * np.square(q.matmul(x) - x @ w.T).sum()
        with pytest.raises(NoKernelError, match="the element fits no integer table: use float activations"):
            q.matmul(x, act="int8")


def test_wrapping_is_stored_policy() -> None:
    """The scale that clips (floor) sends what is out of range round the ring, codes stay codes."""
    w = np.float32([[1.0, 1.999, -1.999, 0.5]])
    saturated, wrapped = (anybit.quantize(w, f"fixed8_f4@4:e8m0+scale=floor+over={over}") for over in ("saturate", "wrap"))
    assert saturated.dequantize()[0, 1] > 1.9 and wrapped.dequantize()[0, 1] < -1.9
    assert np.array_equal(saturated.dequantize()[0, [0, 3]], wrapped.dequantize()[0, [0, 3]])
