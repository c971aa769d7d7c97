"""Every layout of the registry, held to what `layouts/layout.py` promises: those of tomorrow too."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import lcm

import numpy as np
import pytest

import anybit
from anybit.errors import FormatError, ShapeError
from anybit.formats import PACKINGS, Format
from anybit.layouts import LAYOUTS, Layout, default_layout, rows_owned, sizes_known
from anybit.tensor import QTensor

SHAPES = [(1, 1), (1, 40), (17, 100), (64, 128), (5,), (3, 2, 34), (2, 1, 3, 32)]
FORMATS = [
    "int4@32", "int8@channel", "uint4@32+zp", "uint4@7:fp16+zp=uint3", "ternary@20:uint4@80:fp16+off", "int2@32x1:fp16+off", "nvfp4",
    "int4@4x16:uint4@4x32:fp16", "kmeans4@64", "fp8_e4m3fn@16x16:fp32", "int12@32", "d4@channel", "bf16", "fp16", "fp32", "int8", "ternary",
]  # fmt: skip


def tensors(name: str) -> Iterator[QTensor]:
    """Some in every format and shape that the layout holds."""
    for text in FORMATS:
        try:
            fmt = Format(text + (f"+pack={name}" if name in PACKINGS else ""))
        except FormatError:
            continue
        for shape in SHAPES:
            if LAYOUTS[name].accepts(fmt, shape) is None:
                w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
                dense = fmt.block is None and fmt.element.bits <= 8
                yield anybit.quantize(w * np.float32(3 if dense else 1), fmt).to(name)


@pytest.mark.parametrize("name", LAYOUTS)
def test_parts_are_those_announced_and_nothing_is_lost(name: str) -> None:
    count = 0
    for q in tensors(name):
        layout, fmt, shape = LAYOUTS[name], q.format, q.shape
        logical, stored = q.logical(), dict(q.parts)
        announced = layout.parts(fmt, shape)
        assert list(stored) == list(announced)
        if sizes_known(fmt, shape, name):
            assert {part: (array.dtype, array.shape) for part, array in stored.items()} == announced, (str(fmt), shape)
        again = layout.pack(fmt, shape, logical)
        assert all(np.array_equal(again[part], stored[part]) for part in stored)
        grids = layout.grids(fmt, shape, stored)
        assert set(grids) == set(logical) - {"codes"}
        assert all(np.array_equal(grids[part], logical[part]) for part in grids)
        layout.check_scales(fmt, shape, stored)
        assert layout.renew(fmt, shape, stored).keys() == stored.keys()
        same = QTensor.from_stored(fmt, shape, name, stored).logical()
        assert all(np.array_equal(same[part], logical[part]) for part in logical)
        count += 1
    assert count >= 3


@pytest.mark.parametrize("name", LAYOUTS)
def test_parts_of_another_size_or_dtype_are_refused(name: str) -> None:
    for q in tensors(name):
        for part, array in q.parts.items():
            for wrong in (array.astype(np.float64), np.concatenate([array, array], axis=-1)):
                with pytest.raises((ShapeError, FormatError)):
                    QTensor.from_stored(q.format, q.shape, name, {**q.parts, part: wrong})
        with pytest.raises(ShapeError, match="has the parts"):
            QTensor.from_stored(q.format, q.shape, name, {**q.parts, "more": np.zeros(1, np.uint8)})


@pytest.mark.parametrize("name", LAYOUTS)
def test_values_products_and_rows_are_those_of_the_codes(name: str) -> None:
    for q in tensors(name):
        plain = QTensor.pack(q.format.plain, q.shape, q.logical())
        assert np.array_equal(q.dequantize(), plain.expanded(), equal_nan=True), (str(q.format), q.shape)
        assert np.array_equal(q.expanded(), plain.expanded(), equal_nan=True)
        if len(q.shape) == 2:
            x = np.random.default_rng(1).standard_normal((3, q.shape[1])).astype(np.float32)
            assert np.array_equal(q.matmul(x), plain.matmul(x)), (str(q.format), q.shape)


@pytest.mark.parametrize("name", LAYOUTS)
def test_cuts_are_the_rows_of_the_whole(name: str) -> None:
    cuts = 0
    for q in tensors(name):
        if len(q.shape) != 2:
            continue
        rows = q.shape[0]
        unit = lcm(LAYOUTS[name].tile[0], *(n for n in rows_owned(q.format, q.shape).values() if n < rows))
        for start, stop in pairwise([0, *range(unit, rows, unit), rows]):
            if stop - start < rows:
                assert np.array_equal(q.narrow(start, stop).dequantize(), q.dequantize()[start:stop]), (str(q.format), q.shape, start)
                cuts += 1
    assert cuts


class Columns(Layout):
    """Codes of a byte each, the other way round: for the test below."""

    name = "columns"
    tile = (1, 1)

    def accepts(self, fmt: Format, shape: tuple[int, ...]) -> str | None:
        return None if not fmt.pack and fmt.element.bits == 8 and len(shape) == 2 else "no"

    def parts(self, fmt: Format, shape: tuple[int, ...]) -> dict:
        return {**LAYOUTS["rows"].parts(fmt, shape), "codes": (np.dtype(np.uint8), shape[::-1])}

    def pack(self, fmt: Format, shape: tuple[int, ...], logical: dict) -> dict:
        return {"codes": np.ascontiguousarray(logical["codes"].T), **self.grids(fmt, shape, logical)}

    def unpack(self, fmt: Format, shape: tuple[int, ...], stored: dict) -> dict:
        return {"codes": np.ascontiguousarray(stored["codes"].T), **self.grids(fmt, shape, stored)}


@pytest.mark.parametrize(("priority", "chosen"), [(30, "columns"), (10, "tile16x4"), (-1, "tile16x4")])
def test_the_highest_priority_that_accepts(priority: int, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LAYOUTS, "_items", {name: LAYOUTS[name] for name in LAYOUTS})
    before = anybit.quantize(np.eye(20, 40, dtype=np.float32), "int8@32")
    LAYOUTS.add("columns", type("Chosen", (Columns,), {"priority": priority})())
    assert default_layout(Format("int8@32"), (20, 40)) == chosen
    assert default_layout(Format("int4@32"), (20, 40)) == "tile16x4", "it accepts no such codes"
    after = anybit.quantize(np.eye(20, 40, dtype=np.float32), "int8@32")
    assert after.layout == chosen and after.to("columns").parts["codes"].shape == (40, 20)
    x = np.random.default_rng(0).standard_normal((2, 40)).astype(np.float32)
    for act in (None, "int8"):
        assert np.array_equal(after.to("columns").matmul(x, act), before.matmul(x, act))
