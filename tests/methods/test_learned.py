"""Learned elements: the table of an array, what it takes to read it, and what it is worth."""

from __future__ import annotations

import numpy as np
import pytest

import anybit
from anybit.errors import FormatError, ShapeError
from anybit.formats import Format, bound, parse_element
from anybit.methods import dequantize_parts, part_shapes, quantize_parts
from anybit.methods.learn import lloyd
from anybit.methods.rtn import stored_grids
from anybit.reference.linear import matmul
from anybit.reference.rational import Rational
from anybit.tensor import QTensor


def example(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).laplace(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    "text", ["kmeans3@32", "kmeans2@channel", "kmeans4@16:fp8_e4m3fn@tensor:fp32", "kmeans1@64:fp16+off", "kmeans6@32:e8m0"]
)
def test_table_is_the_optimum_of_the_ratios(text: str) -> None:
    """The table against the best of 20 runs of Lloyd's algorithm on numbers over stored scales, each weighted with its scale squared."""
    x, fmt = example((6, 320)), Format(text)
    parts = quantize_parts(x, text)
    assert {k: (v.dtype, v.shape) for k, v in parts.items()} == part_shapes(fmt, x.shape)
    table = parts["table"]
    assert table.dtype == np.float32 and table.shape == (1 << fmt.element.bits,) and np.all(np.diff(table) > 0)
    assert fmt.block is not None
    grids = stored_grids(parts, fmt, x.shape)
    owner = tuple(i // n for i, n in zip(np.indices(x.shape), fmt.block.on(x.shape), strict=True))
    scale = grids.scale[owner].astype(np.float64)
    ratio = ((x - grids.offset[owner] if grids.offset is not None else x) / scale).reshape(-1)
    weight = np.square(scale).reshape(-1)

    def error(book: np.ndarray) -> float:
        return float((weight * np.square(ratio[:, None] - book).min(axis=1)).sum())

    for seed in range(20):
        other = np.random.default_rng(seed).choice(ratio, len(table), replace=False)
        for _ in range(30):
            near = np.abs(ratio[:, None] - other).argmin(axis=1)
            total = np.bincount(near, weight, len(other))
            other = np.where(total > 0, np.bincount(near, weight * ratio, len(other)) / np.where(total > 0, total, 1), other)
        assert error(table) <= error(other) * (1 + 1e-5)
    exact = Rational(bound(fmt, parts).element.fields)
    codes = parts["codes"].reshape(-1)[::37]
    narrow = (((x - grids.offset[owner]) if grids.offset is not None else x) / grids.scale[owner]).reshape(-1)[::37]
    assert [exact.encode(float(v), "nearest-even") for v in narrow] == codes.tolist()


def test_better_than_what_is_not_learned() -> None:
    for seed, source in enumerate(("normal", "laplace")):
        x = getattr(np.random.default_rng(seed), source)(size=(64, 512)).astype(np.float32)

        def noise(text: str, x: np.ndarray = x) -> float:
            return float(np.square(anybit.fake_quantize(x, text) - x).sum())

        assert noise("kmeans4@64") < noise("nf4@64") < noise("int4@64")
        assert noise("kmeans2@channel") < noise("int2@channel+scale=mse")
        assert noise("vq8d4@channel") < 0.95 * noise("kmeans2@channel")
        assert noise("vq8d8_k4@channel") < noise("vq8d8_k3@channel") < noise("vq8d8_k2@channel") < noise("vq8d8@channel")


def test_additive_codes_are_nearly_the_nearest() -> None:
    """Two books of 256: the search book by book keeps within 12 % of the best of all 65536 sums, and never ends worse than it began."""
    x = example((8, 512))
    parts = quantize_parts(x, "vq8d8_k2@tensor")
    fmt = bound(Format("vq8d8_k2@tensor"), parts)
    element = fmt.element
    groups = (x / stored_grids(parts, fmt, x.shape).scale.item()).reshape(-1, 8)[:200].astype(np.float64)
    found = np.square(element.decode(parts["codes"].reshape(-1)[:200]) - groups).sum()
    best = sum(np.square(element.values - g).sum(axis=1).min() for g in groups)
    assert best <= found <= 1.12 * best
    small = quantize_parts(x, "vq4d4_k2@tensor")
    exact = bound(Format("vq4d4_k2@tensor"), small).element
    groups = (x / stored_grids(small, Format("vq4d4_k2@tensor"), x.shape).scale.item()).reshape(-1, 4).astype(np.float64)
    chosen = np.square(exact.decode(small["codes"].reshape(-1)) - groups).sum(axis=1)
    assert np.allclose(chosen, [np.square(exact.values - g).sum(axis=1).min() for g in groups], rtol=1e-12)


def test_lloyd() -> None:
    x = example((3000, 4)).astype(np.float64)
    w = np.random.default_rng(1).exponential(size=3000)
    book, chosen = lloyd(x, w, 32)
    again = lloyd(x, w, 32)
    assert np.array_equal(book, again[0]) and np.array_equal(chosen, again[1])
    assert not np.array_equal(book, lloyd(x, w, 32, seed=1)[0])
    for i in range(32):
        assert np.allclose(book[i], np.average(x[chosen == i], axis=0, weights=w[chosen == i]))
    start = x[np.random.default_rng(5).choice(3000, 32, replace=False)]
    first = np.square(x[:, None] - start).sum(axis=2).min(axis=1)
    assert (w * np.square(x - book[chosen]).sum(axis=1)).sum() < 0.8 * (w * first).sum()
    few, at = lloyd(np.repeat(x[:5], 3, axis=0), np.ones(15), 8)
    assert np.array_equal(few[at], np.repeat(x[:5], 3, axis=0)) and not few[5:].any()


@pytest.mark.parametrize("act", [None, "int8"])
@pytest.mark.parametrize("text", ["kmeans3@32", "kmeans4@channel", "kmeans8@32:e8m0", "kmeans2@16:fp8_e4m3fn@tensor:fp32"])
def test_kernels_run_them_as_any_codebook(text: str, act: str | None) -> None:
    w, x = example((33, 96)), example((3, 96), 1)
    q = anybit.quantize(w, text)
    assert q.layout == "tile16x4" and set(q.parts) >= {"codes", "table"}
    assert np.array_equal(q.matmul(x, act), matmul(x, q.logical(), q.bound, q.shape, act))
    assert np.array_equal(q.dequantize(), dequantize_parts(q.logical(), q.format, q.shape))
    rows = q.to("rows")
    assert np.array_equal(rows.dequantize(), q.dequantize()) and np.array_equal(rows.matmul(x, act), q.matmul(x, act))
    assert np.array_equal(q.narrow(16, 33).dequantize(), q.dequantize()[16:])
    fields = q.bound.element.fields
    assert fields["family"] == "codebook" and fields["entries"] == q.parts["table"].tolist()


def test_a_table_belongs_to_its_array() -> None:
    fmt = Format("kmeans3@32")
    a, b = (anybit.quantize(example((16, 64), seed), fmt) for seed in (0, 1))
    assert a.format == b.format == fmt and a.bound.element != b.bound.element
    assert a.bound.element == bound(fmt, a.parts).element and hash(a.bound.element) != hash(b.bound.element)
    assert fmt.size_bits((16, 64)) == 16 * 64 * 3 + 32 * 16 + 8 * 32
    mixed = QTensor.from_stored(fmt, a.shape, a.layout, {**a.parts, "table": b.parts["table"]})
    assert not np.array_equal(a.dequantize(), mixed.dequantize())


def test_without_a_table_codes_mean_nothing() -> None:
    for name in ("kmeans3", "vq8d4"):
        element = parse_element(name)
        with pytest.raises(FormatError, match=f"the values of {name} are learned from each array"):
            element.decode([0])
        with pytest.raises(FormatError, match="are learned"):
            _ = element.values
    q = anybit.quantize(example((16, 64)), "kmeans3@32")
    with pytest.raises(ShapeError, match="part 'table' of kmeans3@32"):
        dequantize_parts({k: v for k, v in q.logical().items() if k != "table"}, q.format, q.shape)
    with pytest.raises(ShapeError, match=r"has the parts codes, scale.0, table"):
        QTensor.from_stored(q.format, q.shape, q.layout, {k: v for k, v in q.parts.items() if k != "table"})
    with pytest.raises(ShapeError, match="part 'table', which is missing"):
        bound(q.format, {})
    with pytest.raises(FormatError, match="there is no table to bind"):
        parse_element("nf4").bind(np.zeros(16, np.float32))


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (np.zeros(8, np.float64), r"is float32\[8\], not float64\[8\]"), (np.zeros(7, np.float32), r"not float32\[7\]"),
        (np.full(8, np.nan, np.float32), "not finite"), (np.r_[np.zeros(7), np.inf].astype(np.float32), "not finite"),
        (np.full(8, 0.5, np.float32), "one value only"), (np.zeros(8, np.float32), "between 2"),
        (np.full(8, 1e30, np.float32), "between 2"),
    ],
)  # fmt: skip
def test_tables_that_are_none(table: np.ndarray, reason: str) -> None:
    with pytest.raises(FormatError, match=f"kmeans3.*{reason}"):
        parse_element("kmeans3").bind(table)


def test_policies() -> None:
    x = example((4, 64))
    with pytest.raises(FormatError, match="over=error: the values of kmeans3 are means"):
        anybit.quantize(x, "kmeans3@32+over=error")
    with pytest.raises(FormatError, match="round=up: vq8d4 takes the nearest vector"):
        anybit.quantize(x, "vq8d4@32+round=up")
    up = anybit.quantize(x, "kmeans3@32+round=up")
    inside = x < up.dequantize().reshape(4, 2, 32).max(axis=2).repeat(32, axis=1)
    assert np.all((up.dequantize() >= x)[inside])


@pytest.mark.parametrize("text", ["kmeans3@32", "vq4d8_k2@32", "kmeans2", "e8p@channel", "ovp4_int"])
def test_arrays_without_numbers(text: str) -> None:
    """Empty ones, and ones of nothing but NaN under nonfinite=saturate."""
    for shape in ((0, 64), (3, 0)):
        assert anybit.fake_quantize(np.zeros(shape, np.float32), text).shape == shape
    for shape in ((3, 64), (300, 64)):
        back = anybit.fake_quantize(np.full(shape, np.nan, np.float32), text + "+nonfinite=saturate")
        assert np.isfinite(back).all() and (np.abs(back).max() < 1e-30 or (text == "e8p@channel" and np.abs(back).max() < 1))


def test_inputs_are_not_kept() -> None:
    """A bound element has its own copy: neither the array nor the caller can change what codes mean."""
    table = np.linspace(-1, 1, 8, dtype=np.float32)
    element = parse_element("kmeans3").bind(table)
    table[0] = 5
    assert element.values[0] == -1
    with pytest.raises(ValueError, match="read-only"):
        element.learned_values[0] = 5  # type: ignore[attr-defined]
