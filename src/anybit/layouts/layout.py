"""What a layout has to say, the registry that finds it, and how the scales of a tensor are shared.

A layout maps *logical parts* (codes in the tensor's own order, one entry a weight; scales in block-grid order) to *stored parts*, the
arrays that a checkpoint holds and that kernels read in place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anybit.errors import ShapeError
from anybit.formats import Element, Format
from anybit.registry import Registry

Parts = Mapping[str, np.ndarray]
Sizes = dict[str, tuple[np.dtype, tuple[int, ...]]]

ANY = -1
"""A size that depends on the data: known when a tensor has been packed, and then held to what else is stored."""


class Layout(ABC):
    """One way to store a quantized tensor. A layout's file derives from this and adds an instance to `LAYOUTS`.

    name: in checkpoints and to dispatch. tile: (outputs, k), where a matrix may be cut without repacking.
    priority: of the layouts that accept a tensor, a new one gets that of the highest; below that of `rows`, 0: only by name.
    """

    name: ClassVar[str]
    tile: ClassVar[tuple[int, int]]
    priority: ClassVar[int] = 20

    @abstractmethod
    def accepts(self, fmt: Format, shape: tuple[int, ...]) -> str | None:
        """None, or the reason why this layout cannot hold such a tensor; of a format with a packing, only that layout holds any."""

    @abstractmethod
    def parts(self, fmt: Format, shape: tuple[int, ...]) -> Sizes:
        """dtype and shape of every stored part, before anything is allocated; a size may be ANY."""

    @abstractmethod
    def pack(self, fmt: Format, shape: tuple[int, ...], logical: Parts) -> dict[str, np.ndarray]:
        """Stored parts of logical parts."""

    @abstractmethod
    def unpack(self, fmt: Format, shape: tuple[int, ...], stored: Parts) -> dict[str, np.ndarray]:
        """Logical parts of stored parts."""

    def grids(self, fmt: Format, shape: tuple[int, ...], stored: Parts) -> Parts:
        """The logical parts without the codes. Here: stored as they are."""
        return {name: stored[name] for name in scale_parts(fmt, shape)}

    def renew(self, fmt: Format, shape: tuple[int, ...], stored: Parts) -> Parts:
        """Stored parts of a tensor as today's anybit stores them, from those of any version. ShapeError: codes beyond their element's."""
        return stored

    def check(self, fmt: Format, shape: tuple[int, ...], stored: Parts) -> None:
        """ShapeError: a part of another shape or dtype than announced, or one of size ANY that does not fit the others."""
        for name, (dtype, size) in self.parts(fmt, shape).items():
            found = stored[name]
            same = len(found.shape) == len(size) and all(want in (ANY, got) for want, got in zip(size, found.shape, strict=True))
            if found.dtype != dtype or not same:
                wanted = str(list(size)).replace(str(ANY), "any")
                raise ShapeError(f"part {name} must be {dtype}{wanted}, not {found.dtype}{list(found.shape)}")

    def check_scales(self, fmt: Format, shape: tuple[int, ...], stored: Parts) -> None:
        """ShapeError: a scale, offset or zero point that has more bits than its element."""
        for name in scale_parts(fmt, shape):
            if name != "table":
                check_codes(name, stored[name], stored_element(fmt, name))

    def cut(self, fmt: Format, shape: tuple[int, ...], stored: Parts, start: int, stop: int) -> dict[str, np.ndarray]:
        """The stored parts of the rows [start, stop) of a matrix: whole tiles, and whole blocks of rows that share a scale."""
        owned, parts = rows_owned(fmt, shape), {}
        for name, (_, size) in self.parts(fmt, (stop - start, shape[1])).items():
            first = start // (self.tile[0] if name == "codes" else owned.get(name, shape[0]))
            parts[name] = stored[name][first : first + size[0]]
        return parts


LAYOUTS: Registry[Layout] = Registry("layout", folder="anybit.layouts")


def default_layout(fmt: Format, shape: tuple[int, ...]) -> str:
    """The layout that a new tensor gets. ShapeError: rows that the element's codes cannot fill."""
    layouts = sorted((LAYOUTS[name] for name in LAYOUTS), key=lambda layout: (-layout.priority, layout.name))
    for layout in layouts:
        if layout.accepts(fmt, shape) is None:
            return layout.name
    asked = LAYOUTS[fmt.pack or "rows"]
    raise ShapeError(f"{fmt} cannot hold an array of shape {list(shape)}: {asked.accepts(fmt, shape)}")


def sizes_known(fmt: Format, shape: tuple[int, ...], layout: str) -> bool:
    """Whether the sizes of all parts are known before a tensor is packed."""
    return not any(ANY in size for _, size in LAYOUTS[layout].parts(fmt, shape).values())


# ---------------------------------------------------------------------------------------------- scales
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


def rows_owned(fmt: Format, shape: tuple[int, ...]) -> dict[str, int]:
    """How many rows of a matrix one row of each grid of scales, offsets or zero points serves."""
    owned = {}
    for i, block in enumerate(fmt.blocks):
        owned[f"scale.{i}"] = owned[f"offset.{i}"] = block.on(shape)[0]
    return owned | {"zero": owned["scale.0"]} if owned else owned


def scale_parts(fmt: Format, shape: tuple[int, ...]) -> Sizes:
    """Names, dtypes and grid shapes of everything but the codes, in logical order."""
    parts: Sizes = {}
    for i, (level, grid) in enumerate(zip(fmt.levels, fmt.grids(shape), strict=True)):
        parts[f"scale.{i}"] = (level.element.code_dtype, grid)
        if fmt.offset is not None:
            parts[f"offset.{i}"] = ((level.element if i else fmt.offset).code_dtype, grid)
    if fmt.zero is not None:
        parts["zero"] = (fmt.zero.code_dtype, fmt.grids(shape)[0])
    if fmt.element.table_shape is not None:
        parts["table"] = (np.dtype(np.float32), fmt.element.table_shape)
    return parts


def stored_element(fmt: Format, name: str) -> Element:
    """What a part of scales, offsets or zero points is stored in."""
    kind, _, level = name.partition(".")
    if kind == "zero":
        assert fmt.zero is not None
        return fmt.zero
    return fmt.levels[int(level)].element if kind == "scale" else fmt.offset_element(int(level))


def check_codes(name: str, part: np.ndarray, element: Element, two: bool = False) -> None:
    """ShapeError: codes, or two of them a byte, that have more bits than their element."""
    ones = (1 << element.bits) - 1
    mask = ones | ones << 4 if two else ones
    if mask < (1 << 8 * part.dtype.itemsize) - 1 and part.size:
        most = int(np.bitwise_or.reduce(part, axis=None))
        if most & ~mask:
            found = int(max((part & 15).max(), (part >> 4).max())) if two else int(part.max())
            raise ShapeError(f"part {name} holds the code {found}, but {element} has only {1 << element.bits}")
