"""Where bits lie: packing of codes, scales and zero points into stored arrays, and back.

A layout maps *logical parts* (codes in the tensor's own order, one entry a weight; scales in block-grid order) to *stored parts*, the
arrays that a checkpoint holds and that kernels read in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from anybit.errors import ShapeError
from anybit.formats import Format
from anybit.registry import Registry

Parts = Mapping[str, np.ndarray]


class Layout(Protocol):
    """One way to store a quantized tensor. `tile` is (outputs, k): where a tensor may be cut without repacking."""

    name: str
    tile: tuple[int, int]

    def accepts(self, fmt: Format, shape: tuple[int, ...]) -> str | None:
        """None, or the reason why this layout cannot hold such a tensor."""

    def parts(self, fmt: Format, shape: tuple[int, ...]) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """dtype and shape of every stored part: sizes before anything is allocated."""

    def pack(self, fmt: Format, shape: tuple[int, ...], logical: Parts) -> dict[str, np.ndarray]:
        """Stored parts of logical parts."""

    def unpack(self, fmt: Format, shape: tuple[int, ...], stored: Parts) -> dict[str, np.ndarray]:
        """Logical parts of stored parts."""


LAYOUTS: Registry[Layout] = Registry("layout", folder="anybit.layouts")


@dataclass(frozen=True)
class Geometry:
    """How the scales of a matrix [n, k] are shared: `rows` rows (0: all of them) by `columns` k; the grid is [grid_rows, grid_columns]."""

    rows: int
    columns: int
    grid_rows: int
    grid_columns: int


def geometry(fmt: Format, shape: tuple[int, ...]) -> Geometry:
    """The block geometry of a matrix [n, k] in a coded format.

    >>> geometry(Format("int4@128"), (4096, 1000))
    Geometry(rows=1, columns=128, grid_rows=4096, grid_columns=8)
    """
    n, k = shape
    assert fmt.block is not None
    sizes: tuple[int | None, int | None] = (1, None)  # channel, token: a row
    if fmt.block.kind == "tensor":
        sizes = (None, None)
    elif fmt.block.kind == "sized":
        tail = fmt.block.sizes[-2:]
        sizes = (tail[0] if len(tail) == 2 else 1, tail[-1])
    rows = n if sizes[0] is None else min(sizes[0], n)
    columns = k if sizes[1] is None else min(sizes[1], k)
    grid_rows, grid_columns = -(-n // rows), -(-k // columns)
    # A single row in all is stored like any other per-row scale, except when the format shares one scale over all rows.
    return Geometry(0 if sizes[0] is None or rows == n > 1 else rows, columns, grid_rows, grid_columns)


def default_layout(fmt: Format, shape: tuple[int, ...]) -> str:
    """The layout that kernels want for such a tensor: the first that accepts it. ShapeError: rows that the element's codes cannot fill."""
    for name in ("tile16x4", "tile16x1", "rows"):
        if LAYOUTS[name].accepts(fmt, shape) is None:
            return name
    raise ShapeError(f"{fmt} cannot hold an array of shape {list(shape)}: {LAYOUTS['rows'].accepts(fmt, shape)}")
