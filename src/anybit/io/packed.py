"""From another tool's tensor to a QTensor in the layout that kernels read, some rows at a time. The one place in io/ that knows tensors."""

from __future__ import annotations

from functools import lru_cache
from math import prod

import numpy as np

from anybit.formats import Format
from anybit.io.coded import Blocks, Coded
from anybit.layouts import LAYOUTS, default_layout, scale_parts, sizes_known
from anybit.layouts.tile import tile_blocks
from anybit.tensor import QTensor

SLAB = 1 << 20  # weights that are converted at once
_UNIT = 256  # rows: what `pack_codes` works through


@lru_cache(maxsize=256)
def _format(expression: str) -> Format:
    return Format(expression)


def packed(coded: Coded, layout: str | None = None) -> QTensor:
    """The tensor with the same codes and scales. ShapeError: `layout` cannot hold it.

    Cost: the result alone where the tensor is a matrix of `Blocks`; else the result and the parts of a million weights at a time (of all of
    them where blocks reach over rows or there are no rows).
    """
    fmt, shape = _format(coded.format), coded.shape
    name = layout or default_layout(fmt, shape)
    if name == "tile16x4" and coded.blocks is not None:
        return QTensor.from_stored(fmt, shape, name, _tiled(coded.blocks, fmt, shape))
    per_row = all(block is None or block.per_row or block.kind == "tensor" for block in (fmt.block, *(level.block for level in fmt.levels)))
    step = max(1, SLAB // max(1, prod(shape[1:]) * _UNIT)) * _UNIT
    if not per_row or len(shape) < 2 or step >= shape[0] or not sizes_known(fmt, shape, name):
        return QTensor.pack(fmt, shape, _checked(coded, fmt, shape, 0, shape[0]), name)
    kept = LAYOUTS[name]
    stored = {part: np.empty(size, dtype) for part, (dtype, size) in kept.parts(fmt, shape).items()}
    tiles = -(-shape[0] // kept.tile[0])
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        local = (stop - start, *shape[1:])
        for part, made in kept.pack(fmt, local, _checked(coded, fmt, local, start, stop)).items():
            target = stored[part]
            # rows of the tensor that one entry stands for: all of them, a tile's, or one
            each = shape[0] if target.shape[0] == 1 else kept.tile[0] if target.shape[0] == tiles else 1
            target[start // each : start // each + made.shape[0]] = made
    return QTensor.from_stored(fmt, shape, name, stored)


def _tiled(blocks: Blocks, fmt: Format, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Stored parts straight from another container's blocks."""
    numbers = {name: (n.terms, n.flip, n.item) for name, n in blocks.numbers.items()}
    parts = tile_blocks(fmt, shape, blocks.data, blocks.bytes, blocks.weights, blocks.planes, blocks.flip, numbers, blocks.order)
    return {"codes": parts.pop("codes"), **blocks.finish(parts)}


def logical(coded: Coded, start: int, stop: int) -> dict[str, np.ndarray]:
    """Logical parts of some rows in the dtypes and shapes that the format gives them."""
    return _checked(coded, _format(coded.format), (stop - start, *coded.shape[1:]), start, stop)


def _checked(coded: Coded, fmt: Format, shape: tuple[int, ...], start: int, stop: int) -> dict[str, np.ndarray]:
    """Logical parts of some rows in the shapes that the format gives them."""
    parts = coded.rows(start, stop)
    wanted = {"codes": (fmt.element.code_dtype, shape), **scale_parts(fmt, shape)}
    assert parts.keys() == wanted.keys(), (coded.format, list(parts))
    return {name: parts[name].reshape(size).astype(dtype, copy=False) for name, (dtype, size) in wanted.items()}
