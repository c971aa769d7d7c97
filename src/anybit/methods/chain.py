"""Scales of scales: choosing, storing and multiplying the levels of a format, some rows of blocks at a time."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from anybit.formats import Block, Element, Format

Shape = tuple[int, ...]
Owners = list[np.ndarray]


def blocks(fmt: Format) -> list[Block]:
    """The block of each level: the format's, then that of each level but the last."""
    if fmt.block is None:
        return []
    return [fmt.block, *(level.block for level in fmt.levels if level.block is not None)]


def grids(fmt: Format, shape: Shape) -> list[Shape]:
    """The block grid of each level."""
    return [block.grid(shape) for block in blocks(fmt)]


def _owners(shape: Shape, inner: Block, outer: Block) -> Owners:
    """For each axis, which outer block each inner block lies in."""
    return [np.arange(-(-n // i)) * i // o for n, i, o in zip(shape, inner.on(shape), outer.on(shape), strict=True)]


def _largest(values: np.ndarray, owners: Owners) -> np.ndarray:
    """The largest of each outer block that owns any of them."""
    for axis, owner in enumerate(owners):
        starts = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
        values = np.maximum.reduceat(values, starts, axis=axis)
    return values


class Chain:
    """The levels of one format on one shape. `elements[i]` stores level i, which level i + 1 scales.

    Levels 1 and up are small and fixed first, by `settle` or `load`; first-level numbers are then handled for a range of rows of the block
    grid (its first axis), so that nothing grows with the array.
    """

    def __init__(self, fmt: Format, shape: Shape, elements: list[Element]) -> None:
        self.elements = elements
        walk = blocks(fmt)
        self.owners = [_owners(shape, inner, outer) for inner, outer in pairwise(walk)]
        self.grid = walk[0].grid(shape)
        self.higher: list[np.ndarray] = []
        self._factors: list[np.ndarray] = []
        self._outer = np.ones((1,) * len(shape))

    @property
    def deep(self) -> bool:
        """Whether there are levels above the first, which have to be settled."""
        return len(self.elements) > 1

    def _local(self, per_outer: np.ndarray, rows: slice) -> np.ndarray:
        """Numbers on level 1's grid, for each first-level block in some rows."""
        first, *others = self.owners[0]
        return per_outer[np.ix_(first[rows], *others)]

    def load(self, higher: list[np.ndarray]) -> None:
        """Takes stored codes of levels 1 and up."""
        self.higher, self._factors = higher, []
        for i, codes in enumerate(higher, start=1):
            factor = self.elements[i].decode(codes)
            for owners in reversed(self.owners[1:i]):
                factor = factor[np.ix_(*owners)]
            self._factors.append(factor.astype(np.float32))

    def settle(self, targets: Iterable[tuple[slice, np.ndarray]]) -> None:
        """Chooses levels 1 and up from first-level targets (float64, any sign), given as (rows of the grid, targets).

        A first level without sign takes it from the last level: there, targets of the sign that the largest lacks will become zero.
        """
        above = np.zeros([owner[-1] + 1 for owner in self.owners[0]])
        below = above.copy()
        for rows, target in targets:
            first, *others = self.owners[0]
            owners = [first[rows], *others]
            held = slice(owners[0][0], owners[0][-1] + 1)
            above[held] = np.maximum(above[held], _largest(target, owners))
            below[held] = np.maximum(below[held], _largest(-target, owners))
        wanted = [np.maximum(above, below) / self.elements[0].max]
        for element, owners in zip(self.elements[1:], self.owners[1:], strict=False):
            wanted.append(_largest(wanted[-1], owners) / element.max)
            above, below = _largest(above, owners), _largest(below, owners)
        sign = np.where((below > above) & (not self.elements[0].signed), -1.0, 1.0)
        codes: list[np.ndarray] = []
        outer = np.ones_like(wanted[-1])
        for i in range(len(self.elements) - 1, 0, -1):
            element = self.elements[i]
            # Never zero, infinite or NaN: clipped to the element's positive range.
            stored = element.encode(np.clip(wanted[i - 1] / outer, element.smallest, element.max) * sign)
            outer, sign = outer * np.abs(element.decode(stored)), np.ones(())
            codes.insert(0, stored)
            if i > 1:
                outer = outer[np.ix_(*self.owners[i - 1])]
        self.load(codes)
        flipped = np.ones_like(outer)
        for factor in self._factors:
            flipped = flipped * np.where(factor < 0, -1.0, 1.0)
        self._outer = outer * flipped

    def outer(self, rows: slice) -> np.ndarray:
        """float64: the product of levels 1 and up for each first-level block in some rows."""
        return self._local(self._outer, rows) if self.deep else self._outer

    def factor(self, rows: slice) -> np.ndarray:
        """float32: the stored second level for each first-level block in some rows. For two levels."""
        return self._local(self._factors[0], rows)

    def product(self, first: np.ndarray, rows: slice) -> np.ndarray:
        """float32 meaning of first-level codes in some rows: fl(fl(s0 * s1) * s2) ..."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            total = self.elements[0].decode(first).astype(np.float32)
            for factor in self._factors:
                total = total * self._local(factor, rows)
        return total

    def scales(self, target: np.ndarray, limit: np.ndarray, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """First-level codes for target scales (float64, may be negative), and the float32 scales, none above `limit` in magnitude.

        A zero target gets the smallest positive scale.
        """
        outer, negative = self.outer(rows), target < 0
        codes = self._nonzero(np.abs(target) / outer, negative, "nearest-even")
        scale = self.product(codes, rows)
        too_large = ~(np.abs(scale) <= limit)
        if too_large.any():
            codes = np.where(too_large, self._nonzero(limit / outer, negative, "zero"), codes)
            scale = self.product(codes, rows)
        return codes, scale

    def _nonzero(self, magnitude: np.ndarray, negative: np.ndarray, round: str) -> np.ndarray:
        first = self.elements[0]
        held = np.clip(magnitude, first.smallest, first.max)
        return first.encode(np.where(negative, -held, held), round=round)

    def offsets(self, target: np.ndarray, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """First-level codes for target offsets (float64, any sign), and the float32 offsets."""
        first = self.elements[0]
        codes = first.encode(np.clip(target / self.outer(rows), first.min, first.max))
        return codes, self.product(codes, rows)
