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
Sizes = dict[str, tuple[np.dtype, tuple[int, ...]]]

ANY = -1
"""A size that depends on the data: known when a tensor has been packed, and then held to what else is stored."""


class Layout(Protocol):
    """One way to store a quantized tensor. `tile` is (outputs, k): where a tensor may be cut without repacking."""

    name: str
    tile: tuple[int, int]

    def accepts(self, fmt: Format, shape: tuple[int, ...]) -> str | None:
        """None, or the reason why this layout cannot hold such a tensor."""

    def parts(self, fmt: Format, shape: tuple[int, ...]) -> Sizes:
        """dtype and shape of every stored part, before anything is allocated; a size may be ANY."""

    def pack(self, fmt: Format, shape: tuple[int, ...], logical: Parts) -> dict[str, np.ndarray]:
        """Stored parts of logical parts."""

    def unpack(self, fmt: Format, shape: tuple[int, ...], stored: Parts) -> dict[str, np.ndarray]:
        """Logical parts of stored parts."""

    def renew(self, fmt: Format, shape: tuple[int, ...], stored: Parts) -> Parts:
        """Stored parts of a tensor as today's anybit stores them, from those of any version. ShapeError: codes beyond their element's."""

    def check(self, fmt: Format, shape: tuple[int, ...], stored: Parts) -> None:
        """ShapeError: parts of any size that do not fit the others."""

    def cut(self, fmt: Format, shape: tuple[int, ...], stored: Parts, start: int, stop: int) -> dict[str, np.ndarray]:
        """Of the rows [start, stop) of a matrix, a whole number of tiles, the parts that are not cut like other arrays."""


class FixedSizes:
    """For layouts whose sizes follow from format and shape: nothing is left to check, and all parts are cut alike."""

    def renew(self, fmt: Format, shape: tuple[int, ...], stored: Parts) -> Parts:
        """As they are."""
        return stored

    def check(self, fmt: Format, shape: tuple[int, ...], stored: Parts) -> None:
        """Sizes have been compared already."""

    def cut(self, fmt: Format, shape: tuple[int, ...], stored: Parts, start: int, stop: int) -> dict[str, np.ndarray]:
        """None."""
        return {}


LAYOUTS: Registry[Layout] = Registry("layout", folder="anybit.layouts")


@dataclass(frozen=True)
class Geometry:
    """How the scales of a matrix [n, k] are shared: `rows` rows (0: all of them) by `columns` k; the grid is [grid_rows, grid_columns]."""

    rows: int
    columns: int
    grid_rows: int
    grid_columns: int


def geometry(fmt: Format, shape: tuple[int, ...], level: int = 0) -> Geometry:
    """The block geometry of a matrix [n, k] in a coded format, of one level of its scales.

    >>> geometry(Format("int4@128"), (4096, 1000))
    Geometry(rows=1, columns=128, grid_rows=4096, grid_columns=8)
    """
    n, k = shape
    block = fmt.blocks[level]
    sizes: tuple[int | None, int | None] = (1, None)  # channel, token: a row
    if block.kind == "tensor":
        sizes = (None, None)
    elif block.kind == "sized":
        tail = block.sizes[-2:]
        sizes = (tail[0] if len(tail) == 2 else 1, tail[-1])
    rows = n if sizes[0] is None else min(sizes[0], n)
    columns = k if sizes[1] is None else min(sizes[1], k)
    grid_rows, grid_columns = -(-n // rows), -(-k // columns)
    # A single row in all is stored like any other per-row scale, except when the format shares one scale over all rows.
    return Geometry(0 if sizes[0] is None or rows == n > 1 else rows, columns, grid_rows, grid_columns)


def sizes_known(fmt: Format, shape: tuple[int, ...], layout: str) -> bool:
    """Whether the sizes of all parts are known before a tensor is packed."""
    return not any(ANY in size for _, size in LAYOUTS[layout].parts(fmt, shape).values())


def default_layout(fmt: Format, shape: tuple[int, ...]) -> str:
    """The layout that kernels want for such a tensor: the first that accepts it. ShapeError: rows that the element's codes cannot fill."""
    for name in (fmt.pack,) if fmt.pack else ("tile16x4", "tile16x1", "rows"):
        if LAYOUTS[name].accepts(fmt, shape) is None:
            return name
    raise ShapeError(f"{fmt} cannot hold an array of shape {list(shape)}: {LAYOUTS[fmt.pack or 'rows'].accepts(fmt, shape)}")
