"""Scales of scales: choosing, storing and multiplying the levels of a format."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from anybit.formats import Block, Element, Format

Shape = tuple[int, ...]


def grids(fmt: Format, shape: Shape) -> list[Shape]:
    """The block grid of each level."""
    return [block.grid(shape) for block in blocks(fmt)]


def blocks(fmt: Format) -> list[Block]:
    """The block of each level: the format's, then that of each level but the last."""
    if fmt.block is None:
        return []
    return [fmt.block, *(level.block for level in fmt.levels if level.block is not None)]


def _owners(shape: Shape, inner: Block, outer: Block) -> list[np.ndarray]:
    """For each axis, which outer block each inner block lies in."""
    sizes = zip(shape, inner.on(shape), outer.on(shape), strict=True)
    return [np.arange(-(-n // i)) * i // o for n, i, o in sizes]


def _spread(outer: np.ndarray, owners: list[np.ndarray]) -> np.ndarray:
    """One number an outer block to one an inner block."""
    return outer[np.ix_(*owners)]


def _largest(values: np.ndarray, owners: list[np.ndarray]) -> np.ndarray:
    """The largest of each outer block."""
    for axis, owner in enumerate(owners):
        starts = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
        values = np.maximum.reduceat(values, starts, axis=axis)
    return values


def _store(element: Element, target: np.ndarray) -> np.ndarray:
    """Codes of positive scales: never zero, infinite or NaN, clipped to the element's positive range."""
    return element.encode(np.clip(target, element.smallest, element.max))


class Chain:
    """The levels of one format on one shape. `elements[i]` stores level i; level i is scaled by level i + 1."""

    def __init__(self, fmt: Format, shape: Shape, elements: list[Element]) -> None:
        self.elements = elements
        walk = blocks(fmt)
        self.owners = [_owners(shape, inner, outer) for inner, outer in pairwise(walk)]

    def outer(self, target: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Codes of levels 1 and up for these first-level magnitudes (float64), and the product of their values a first-level block."""
        wanted = [target]
        for element, owners in zip(self.elements, self.owners, strict=False):
            wanted.append(_largest(wanted[-1], owners) / element.max)
        codes: list[np.ndarray] = []
        outer = np.ones((1,) * target.ndim)
        for i in range(len(self.elements) - 1, 0, -1):
            stored = _store(self.elements[i], wanted[i] / outer)
            codes.insert(0, stored)
            outer = _spread(outer * self.elements[i].decode(stored), self.owners[i - 1])
        return codes, outer

    def product(self, codes: list[np.ndarray]) -> np.ndarray:
        """float32 scale of each first-level block: fl(fl(s0 * s1) * s2) ..."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            total = self.elements[0].decode(codes[0]).astype(np.float32)
            for i in range(1, len(codes)):
                level = self.elements[i].decode(codes[i]).astype(np.float32)
                for owners in reversed(self.owners[:i]):
                    level = _spread(level, owners)
                total = total * level
        return total

    def choose(self, target: np.ndarray, outer: np.ndarray, higher: list[np.ndarray], limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First-level codes for target scales (float64, may be negative), and the float32 products, none above `limit` in magnitude.

        A zero target gets the smallest positive scale.
        """
        first = self.elements[0]
        codes = self._signed(np.abs(target) / outer, target < 0)
        scale = self.product([codes, *higher])
        too_large = ~(np.abs(scale) <= limit)
        if too_large.any():
            fits = np.clip(limit / outer, first.smallest, first.max)
            codes = np.where(too_large, self._signed(fits, target < 0, "zero"), codes)
            scale = self.product([codes, *higher])
        return codes, scale

    def _signed(self, magnitude: np.ndarray, negative: np.ndarray, round: str = "nearest-even") -> np.ndarray:
        first = self.elements[0]
        held = np.clip(magnitude, first.smallest, first.max)
        return first.encode(np.where(negative, -held, held), round=round)

    def offsets(self, target: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Codes of all levels for offsets (float64, any sign), and the float32 offsets that they mean.

        A first level without sign takes it from the last level: there, offsets of the sign that the largest lacks become zero.
        """
        first = self.elements[0]
        higher, outer = self.outer(np.abs(target))
        if not first.signed and higher:
            above, below = np.maximum(target, 0), np.maximum(-target, 0)
            for owners in self.owners:
                above, below = _largest(above, owners), _largest(below, owners)
            flip = below > above
            higher[-1] = self.elements[-1].encode(self.elements[-1].decode(higher[-1]) * np.where(flip, -1.0, 1.0))
            for owners in reversed(self.owners):
                flip = _spread(flip, owners)
            outer = outer * np.where(flip, -1.0, 1.0)
        codes = [first.encode(np.clip(target / outer, first.min, first.max)), *higher]
        return codes, self.product(codes)
