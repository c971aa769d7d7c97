"""Coded: a tensor of another tool's container as logical parts: a format expression, a shape, codes and scales of any rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

Rows = Callable[[int, int], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Numbers:
    """Numbers of a block, `item` bytes each: the xor of `flip` and of terms int64[numbers, terms, 4]: a byte of the block, the lowest bit
    of the field in it, how many bits it has, where they go.
    """

    terms: np.ndarray
    flip: int
    item: int


@dataclass(frozen=True)
class Blocks:
    """Rows of a matrix as blocks of bytes: data uint8[rows, blocks * bytes], `weights` codes a block in `planes` (int64[planes, 4]: offset,
    width, group, up: native/pack.h), xor `flip`; the other parts by name. `order` gives the rows in their order, None: as they are.
    `finish` checks and completes the other parts once they are tiled. FileFormatError: what the format cannot express.
    """

    data: np.ndarray
    bytes: int
    weights: int
    planes: np.ndarray
    flip: int
    numbers: Mapping[str, Numbers]
    finish: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
    order: np.ndarray | None = None


@dataclass(frozen=True)
class Coded:
    """`rows(start, stop)` gives the logical parts of some rows (the first axis), as `anybit.methods.rtn` names them: "codes"
    uint[stop - start, ...], and for each level "scale.i" and "offset.i" on the grid of these rows; a part that all rows share comes whole
    each time. FileFormatError: what `format` cannot express. `blocks` says the same of a whole matrix as data, where that can be
    said. `order`: column j stands for input order[j] (None: for input j).
    """

    format: str
    shape: tuple[int, ...]
    rows: Rows
    blocks: Blocks | None = None
    order: np.ndarray | None = None

    def reordered(self, order: np.ndarray) -> Coded:
        """The same tensor with row i taken from row order[i]. Only for parts that have one entry a row or more."""

        def rows(start: int, stop: int) -> dict[str, np.ndarray]:
            wanted = order[start:stop]
            low, high = int(wanted.min()), int(wanted.max()) + 1
            parts = self.rows(low, high)
            return {name: part[wanted - low] if part.shape[0] == high - low else part for name, part in parts.items()}

        blocks = self.blocks
        if blocks is not None:
            blocks = replace(blocks, order=order if blocks.order is None else blocks.order[order])
        return replace(self, rows=rows, blocks=blocks)


def of_arrays(format: str, shape: tuple[int, ...], parts: Mapping[str, np.ndarray]) -> Coded:
    """A tensor whose parts are arrays already, each with a row for every row of the tensor, for several of them, or for all."""

    def cut(part: np.ndarray, start: int, stop: int) -> np.ndarray:
        each = -(-shape[0] // part.shape[0])
        return part if part.shape[0] == 1 else part[start // each : -(-stop // each)]

    return Coded(format, shape, lambda start, stop: {name: cut(part, start, stop) for name, part in parts.items()})
