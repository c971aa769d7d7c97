"""Arrays in elements of several weights: codes against trying every vector, shapes, slabs, layouts, products."""

from __future__ import annotations

import numpy as np
import pytest

import anybit
from anybit.errors import FormatError, NoKernelError, NonFiniteError, ShapeError
from anybit.formats import Format, Spec
from anybit.kernels import choose
from anybit.kernels.cpu import op_spec
from anybit.layouts import LAYOUTS, default_layout
from anybit.methods import dequantize_parts, part_shapes, quantize_parts
from anybit.methods.rtn import stored_grids
from anybit.reference.grid_vectors import GridVectors
from anybit.reference.linear import make_operands, matmul_operands

FORMATS = [
    "ovp4_int@channel", "ovp4_flint@32", "ovp8_int@tensor", "d4@64:fp16+scale=absmax", "e8p@channel+scale=absmax", "d4@2x16", "ovp4_int",
    "d4@16:e8m0", "ovp4_int@16:fp8_e4m3fn@tensor:fp32", "d4@16:fp32+off", "ovp4_int@all", "d4@allx8+scale=absmax",
]  # fmt: skip


def example(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, shape).astype(np.float32)


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("shape", [(5, 104), (72,), (2, 3, 40), (1, 64)])
def test_codes_are_the_nearest_vectors(text: str, shape: tuple[int, ...]) -> None:
    """Each group over its stored scale, against trying every vector; values are the vectors times the scale."""
    spec, x = Spec.parse(text), example(shape)
    fmt, element = spec.format, spec.format.element
    parts = quantize_parts(x, text)
    assert {k: (v.dtype, v.shape) for k, v in parts.items()} == part_shapes(fmt, shape)
    assert parts["codes"].shape == (*shape[:-1], shape[-1] // element.dim)
    scale, offset = np.ones(shape, np.float32), np.zeros(shape, np.float32)
    if fmt.block is not None:
        grids = stored_grids(parts, fmt, shape)
        owner = tuple(i // n for i, n in zip(np.indices(shape), fmt.block.on(shape), strict=True))
        scale = grids.scale[owner]
        offset = grids.offset[owner] if grids.offset is not None else offset
    walked = GridVectors(element.fields)
    codes = walked.encode(((x - offset) / scale).astype(np.float64).reshape(-1, element.dim)).reshape(parts["codes"].shape)
    assert np.array_equal(parts["codes"], codes)
    values = walked.values[codes].reshape(shape).astype(np.float32) * scale + offset
    assert np.array_equal(dequantize_parts(parts, fmt, shape), values)


@pytest.mark.parametrize("text", [*FORMATS, "vq4d8_k2@32", "kmeans3@32"])
def test_slabs_and_strides_change_nothing(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = example((34, 96))
    twice = np.zeros((68, 192), np.float32)
    twice[::2, ::2] = x
    whole = quantize_parts(x, text)
    monkeypatch.setattr("anybit.methods.rtn.SLAB", 1000)
    monkeypatch.setattr("anybit.methods.rtn.LIMIT", 72)
    monkeypatch.setattr("anybit.methods.grids.LIMIT", 40)
    for view in (np.asfortranarray(x), twice[::2, ::2], x.astype(">f4"), x[None]):
        parts = quantize_parts(view, text)
        assert all(np.array_equal(parts[k].reshape(whole[k].shape), whole[k]) for k in whole)
    fmt = Spec.parse(text).format
    small = dequantize_parts(whole, fmt, x.shape)
    monkeypatch.undo()
    assert np.array_equal(small, dequantize_parts(whole, fmt, x.shape))


@pytest.mark.parametrize("text", ["ovp4_int@32", "e8p@channel+scale=absmax", "vq8d8_k2@32", "d4"])
def test_layout_and_product(text: str) -> None:
    """Plain rows of codes, exact sizes, and the float32 kernel's product to the bit; other layouts and int8 activations say why not."""
    shape, fmt = (35, 104), Spec.parse(text).format
    w, x = example(shape), example((3, 104), 1)
    q = anybit.quantize(w, text)
    assert q.layout == default_layout(fmt, shape) == "rows" and q.shape == shape
    assert 8 * q.nbytes == fmt.size_bits(shape)
    again = q.logical()
    assert np.array_equal(again["codes"], quantize_parts(w, text)["codes"])
    assert np.array_equal(q.dequantize(), dequantize_parts(again, fmt, shape))
    assert np.array_equal(q.rows([34, 0]), q.dequantize()[[34, 0]])
    assert np.array_equal(q.narrow(3, 20).dequantize(), q.dequantize()[3:20])
    dense = make_operands(None, q.dequantize(), 1.0, [np.ones((35, 1), np.float32)], 104)
    assert np.array_equal(q.matmul(x), matmul_operands(x, dense))
    reason = LAYOUTS["tile16x4"].accepts(fmt, shape)
    assert reason is not None
    with pytest.raises(ShapeError, match="tile16x4 cannot hold"):
        q.to("tile16x4")
    choice = choose(op_spec(fmt, "rows", None))
    assert choice.kernel.name == "linear_expanded"
    if fmt.block is not None and fmt.element.bits <= 8:
        assert choice.others["linear_tile16x4"] == "it decodes one weight a code, not 2"
        assert "codes 2 together" in reason
    with pytest.raises(NoKernelError, match="float32 only"):
        q.matmul(x, act="int8")


def test_bad_arrays() -> None:
    x = example((4, 30))
    with pytest.raises(ShapeError, match="rows of 30 are no multiple of the 8 weights that e8p codes together; pad them to 32"):
        anybit.quantize(x, "e8p@channel")
    with pytest.raises(ShapeError, match=r"rows of 30 .* vq8d4 .* pad them to 32"):
        anybit.quantize(x, "vq8d4@channel")
    with pytest.raises(ShapeError, match=r"rows of 30 .* pad them to 32"):
        default_layout(Format("d4@channel"), (4, 30))
    for text in ("ovp4_int@channel", "ovp4_int", "kmeans3@channel", "kmeans3"):
        bad = x.copy()
        bad[2, 7] = np.nan
        with pytest.raises(NonFiniteError, match=r"w holds 1 non-finite value\(s\), the first nan at index \[2, 7\]"):
            anybit.quantize(bad, text, name="w")
        bad[1, 1] = np.inf
        back = anybit.quantize(bad, text + "+nonfinite=saturate").dequantize()
        assert np.isfinite(back).all()
        if "@" in text:
            assert back[1, 1] > 2
    with pytest.raises(FormatError, match="round=up: ovp4_int takes the nearest vector"):
        anybit.quantize(x, "ovp4_int@channel+round=up")


def test_outliers_pay() -> None:
    """What OliVe is for: over weights with rare outliers, pairs beat integers of the same bits at every block; int8 pairs lose nothing."""
    w = example((64, 512), 3)

    def noise(text: str) -> float:
        return float(np.square(anybit.fake_quantize(w, text) - w).sum())

    for block in ("32", "channel", "tensor"):
        assert noise(f"ovp4_int@{block}") < 0.85 * noise(f"int4@{block}+scale=mse"), block
        assert noise(f"ovp4_int@{block}") < noise(f"ovp4_int@{block}+scale=absmax")
    assert noise("ovp8_int@channel") < noise("int8@channel+scale=mse") * 1.02


@pytest.mark.parametrize("text", ["ovp4_int@32", "d4@channel", "e8p@64", "vq8d8_k2@32", "kmeans3@32", "kmeans2@tensor", "kmeans4", "vq2d2"])
def test_degenerate_arrays(text: str) -> None:
    """All zero, all equal, one outlier, tiny, huge: finite and no further off than the block's largest value."""
    spike = np.zeros((4, 64), np.float32)
    spike[1, 5] = -3.0
    for x in (np.zeros((4, 64)), np.ones((4, 64)), spike, np.full((4, 64), 1e-20), np.full((4, 64), 3e37), -np.eye(4, 64) * 1e-3):
        back = anybit.quantize(x.astype(np.float32), text).dequantize() if "@" in text or 1e-9 < abs(x).max() < 1e9 or not x.any() else x
        assert np.isfinite(back).all() and np.abs(back - x).max() <= np.abs(x).max() + 1e-30, text
