"""Native weights: what stored parts become for the native kernels, which read codes and scales where they lie."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from anybit.errors import ShapeError
from anybit.formats import Element, Format
from anybit.layouts import LAYOUTS, Geometry, Parts, geometry
from anybit.layouts.tile import paired, tile_rows
from anybit.native import native

DENSE_KINDS = {"fp32": 1, "fp16": 2, "bf16": 3}
_NO_TABLE = np.empty(0, np.float32)


@lru_cache(maxsize=256)
def scale_kind(element: Element) -> dict[str, object] | None:
    """How native code reads a scale element in its stored width; None: it cannot (more than 8 bits and no machine type)."""
    plain = {"bits": element.bits, "mantissa": 0, "factor": 1.0, "has_sign": False, "table": _NO_TABLE}
    machine = {"fp32": 1, "fp16": 2, "bf16": 3}.get(element.name)
    if machine:
        return plain | {"kind": machine, "bits": 0}
    if element.bits > 8:
        return None
    values = element.values
    table = np.resize(values.astype(np.float32), 256)
    plain["table"] = table
    finite = np.isfinite(values)
    codes = np.arange(len(values))
    if np.array_equal(values[finite], np.ldexp(1.0, codes[finite] - 127)):
        return plain | {"kind": 4}
    for signed in (False, True):
        half = len(values) // 2 if signed else len(values)
        integers = np.where(codes >= half, codes - len(values), codes)
        if np.array_equal(values[finite], integers[finite].astype(np.float64)):
            return plain | {"kind": 6, "has_sign": signed}
        size, sign = codes % half, np.where(codes >= half, -1.0, 1.0)
        for mantissa in range(element.bits):
            if half < 2 or values[1] <= 0 or not finite[1]:
                break
            as_float = (size.astype(np.uint32) << np.uint32(23 - mantissa)).view(np.float32).astype(np.float64)
            factor = values[1] / as_float[1]
            decoded = as_float * factor * sign
            same = np.array_equal(values[finite], decoded[finite])
            # the kernel knows special codes by their size; a NaN in place of -0 (fnuz) it cannot tell
            if factor < 2.0**127 and same and np.all(np.abs(decoded[~finite]) > element.max):
                return plain | {"kind": 5, "mantissa": mantissa, "factor": float(factor), "has_sign": signed}
    return plain | {"kind": 7}


def _collapsed(fmt: Format, parts: Parts, name: str, shape: tuple[int, int]) -> np.ndarray:
    """float32 scales (or offsets) on level 0's grid: the product of all levels, in their order, in float32."""
    total = _element(fmt, name, 0).decode(parts[f"{name}.0"]).astype(np.float32)
    for i, block in enumerate(fmt.blocks[1:], start=1):
        values = _element(fmt, name, i).decode(parts[f"{name}.{i}"]).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # a hostile file's scales may overflow: the engine says where
            total = total * values[np.ix_(*block.owners(fmt.blocks[0], shape))]
    return total


def _whole_zero(fmt: Format, stored: Parts, logical: Parts, where: Geometry, n: int) -> tuple[np.ndarray, int] | None:
    """Zero points as bytes [n/16, blocks, 16] and the bit that makes them signed; None: not whole numbers that fit a byte."""
    element = fmt.zero
    if element is None or not fmt.whole_zero:
        return None
    if where.rows == 1 and element.fields["family"] == "integer":
        return np.ascontiguousarray(stored["zero"]).reshape(-1), 1 << (element.bits - 1) if element.signed else 0
    grid = element.decode(logical["zero"]).astype(np.int16).astype(np.uint8)
    rows = np.arange(n) // where.rows if where.rows else np.zeros(n, np.int64)
    return tile_rows(grid[rows]).reshape(-1), 128 if element.min < 0 else 0


_FLOAT32 = {"kind": 1, "bits": 0, "mantissa": 0, "factor": 1.0, "has_sign": False, "table": _NO_TABLE}


def _scale(values: np.ndarray, element: Element | None, where: Geometry, **more: Any) -> Any:
    kind = scale_kind(element) if element is not None else _FLOAT32
    assert kind is not None
    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return native.Scale.make(data=flat, rows=where.rows, columns=where.grid_columns, **{"whole": 1.0, **more}, **kind)


def _element(fmt: Format, name: str, level: int) -> Element:
    """The element that scales or offsets of a level are stored in."""
    return fmt.offset if name == "offset" and level == 0 and fmt.offset is not None else fmt.levels[level].element


def _levels(fmt: Format, stored: Parts, logical: Parts, name: str, shape: tuple[int, int]) -> Any:
    """The native scale (or offset) of all levels: read in place where the kernels can, otherwise collapsed to float32.

    They can read two levels on grids of blocks, and above them one number for the whole tensor.
    """
    where, blocks = geometry(fmt, shape), fmt.blocks
    whole = len(blocks) > 1 and blocks[-1].kind == "tensor"
    grids = len(blocks) - whole
    elements = [_element(fmt, name, i) for i in range(len(blocks))]
    if grids > 2 or any(scale_kind(element) is None for element in elements[:grids]):
        values = _collapsed(fmt, logical, name, shape)
        return _scale(tile_rows(values) if where.rows == 1 else values, None, where)
    more: dict[str, Any] = {"paired": paired(fmt, shape, f"{name}.0")}
    if whole:
        more["whole"] = float(np.float32(elements[-1].decode(stored[f"{name}.{grids}"]).reshape(-1)[0]))
    if grids == 2:
        outer = geometry(fmt, shape, 1)
        more |= {"second": _scale(stored[f"{name}.1"], elements[1], outer), "each": -(-outer.columns // where.columns)}
    return _scale(stored[f"{name}.0"], elements[0], where, **more)


def coded_weight(fmt: Format, shape: tuple[int, int], stored: Parts, logical_scales: Parts, trits: bool = False) -> Any:
    """A native weight over tile16x4 parts, or base3 (`trits`).

    logical_scales: scale parts in grid order, for what the kernels do not read in place.
    """
    where = geometry(fmt, shape)
    element, table = fmt.element, fmt.element.table
    integer = table.ints is not None
    exact = table.kind in ("i8", "i16")
    scale = _levels(fmt, stored, logical_scales, "scale", shape)
    offset = _levels(fmt, stored, logical_scales, "offset", shape) if fmt.offset is not None else None
    whole = _whole_zero(fmt, stored, logical_scales, where, shape[0])
    zero, flip = whole or (None, 0)
    if fmt.zero is not None and whole is None:  # runs as an offset of -z * s
        values = _collapsed(fmt, logical_scales, "scale", shape)
        off = -(fmt.zero.decode(logical_scales["zero"]).astype(np.float32) * values).astype(np.float32)
        offset = _scale(tile_rows(off) if where.rows == 1 else off, None, where)
    table_float = table.ints.astype(np.float32) if exact and table.ints is not None else table.values
    return native.Weight.make(
        n=shape[0], k=shape[1], bits=element.bits, dense=0, codes=stored["codes"].reshape(-1).view(np.uint8), block=where.columns,
        scale=scale, offset=offset, zero=zero, zero_flip=flip, integers=table.ints if integer else None,
        step=float(table.step), table=table_float, float_step=float(table.step) if exact else 1.0, values=table.values,
        trits=trits,
    )  # fmt: skip


def dense_weight(kind: str, shape: tuple[int, int], codes: np.ndarray, index: np.ndarray | None = None) -> Any:
    """A native weight over tile16x1 codes, or lossless ones with their index; kind is fp32, fp16 or bf16. ShapeError: damaged codes."""
    bits = 32 if kind == "fp32" else 16
    if index is not None:
        try:
            return _dense(kind, bits, shape, codes, index)
        except ValueError as error:
            raise ShapeError(str(error)) from None
    return _dense(kind, bits, shape, codes, None)


def _dense(kind: str, bits: int, shape: tuple[int, int], codes: np.ndarray, index: np.ndarray | None) -> Any:
    return native.Weight.make(
        n=shape[0], k=shape[1], bits=bits, dense=DENSE_KINDS[kind], codes=codes.reshape(-1).view(np.uint8), block=0,
        scale=None, offset=None, zero=None, zero_flip=0, integers=None,
        step=1.0, table=_NO_TABLE, float_step=1.0, values=_NO_TABLE, index=index,
    )  # fmt: skip


def float_weight(values: np.ndarray) -> Any:
    """A native weight of float32[n, k]: a copy of 32 bits a number."""
    fmt, shape = Format("fp32"), (values.shape[0], values.shape[1])
    return dense_weight("fp32", shape, LAYOUTS["tile16x1"].pack(fmt, shape, {"codes": values.view(np.uint32)})["codes"])
