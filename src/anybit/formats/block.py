"""Block: which values share a scale, and how an array is walked block by block in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import prod

import numpy as np

KINDS = ("tensor", "channel", "token")


@dataclass(frozen=True)
class Box:
    """A part of an array that holds whole blocks, or lies within one block, along each axis.

    take: slices of the array; grid: slices of the block grid; split: the shape (blocks, size, blocks, size, ...) to view the part in.
    """

    take: tuple[slice, ...]
    grid: tuple[slice, ...]
    split: tuple[int, ...]

    @property
    def within(self) -> tuple[int, ...]:
        """The axes of `split` that run inside a block."""
        return tuple(range(1, len(self.split), 2))

    @property
    def piece(self) -> int | None:
        """How many values of a block lie side by side where a part is contiguous: all of them. None: a block lies in several pieces."""
        return self.split[-1] if all(size == 1 for size in self.split[1:-1:2]) else None

    def coded(self, dim: int) -> Box:
        """The same part of the array's codes, each of which stands for `dim` values of the last axis."""
        if dim == 1:
            return self
        return Box((*self.take[:-1], Block.fewer(self.take[-1], dim)), self.grid, (*self.split[:-1], self.split[-1] // dim))

    def spread(self, per_block: np.ndarray) -> np.ndarray:
        """A view of one number a block (grid-shaped) that broadcasts against the split array."""
        part = per_block[self.grid]
        return part.reshape([n for size in part.shape for n in (size, 1)])


@dataclass(frozen=True)
class Block:
    """Sizes of a block, right-aligned on an array's axes; None is a whole axis, missing leading sizes are 1.

    kind "tensor" is the whole array, "channel" and "token" a row (the whole last axis), "sized" what `sizes` says. The last block along an
    axis may be short.
    """

    kind: str
    sizes: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        if self.kind in ("channel", "token"):
            object.__setattr__(self, "sizes", (None,))
        elif self.kind == "sized":
            sizes = self.sizes
            while len(sizes) > 1 and sizes[0] == 1:
                sizes = sizes[1:]
            object.__setattr__(self, "sizes", sizes)

    def __str__(self) -> str:
        return self.kind if self.kind != "sized" else "x".join("all" if s is None else str(s) for s in self.sizes)

    @property
    def per_row(self) -> bool:
        """Whether every block lies within one row (the last axis)."""
        return self.kind != "tensor" and len(self.sizes) == 1

    @property
    def size(self) -> int | None:
        """The block's length along the last axis; None for the whole axis."""
        return None if self.kind == "tensor" else self.sizes[-1]

    @staticmethod
    def fewer(values: slice, dim: int) -> slice:
        """The codes of a run of values, `dim` values a code."""
        return slice(values.start // dim, -(-values.stop // dim))

    def on(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The block's extent along each axis of an array (at least 1, at most the axis)."""
        if self.kind == "tensor":
            return tuple(max(n, 1) for n in shape)
        sizes = (1,) * (len(shape) - len(self.sizes)) + self.sizes[max(0, len(self.sizes) - len(shape)) :]
        return tuple(max(n, 1) if s is None else min(s, max(n, 1)) for s, n in zip(sizes, shape, strict=True))

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Blocks along each axis: as many axes as the array has, 1 for a whole axis.

        >>> Block("sized", (128,)).grid((4, 300))
        (4, 3)
        """
        return tuple(-(-n // size) for n, size in zip(shape, self.on(shape), strict=True))

    def owners(self, inner: Block, shape: tuple[int, ...]) -> list[np.ndarray]:
        """For each axis, which of these blocks each of the inner blocks lies in.

        >>> [owner.tolist() for owner in Block("sized", (64,)).owners(Block("sized", (16,)), (2, 100))]
        [[0, 1], [0, 0, 0, 0, 1, 1, 1]]
        """
        return [np.arange(-(-n // i)) * i // o for n, i, o in zip(shape, inner.on(shape), self.on(shape), strict=True)]

    def count(self, shape: tuple[int, ...]) -> int:
        """How many blocks an array has."""
        return prod(self.grid(shape))

    @property
    def per_weight(self) -> Fraction:
        """Blocks a weight in the limit of large arrays."""
        if self.kind == "tensor" or None in self.sizes:
            return Fraction(0)
        return Fraction(1, prod(s for s in self.sizes if s is not None))

    def holds(self, inner: Block) -> bool:
        """Whether every block of `inner` lies within one block of this on arrays of any shape."""
        if self.kind == "tensor":
            return True
        if inner.kind == "tensor":
            return False
        rank = max(len(self.sizes), len(inner.sizes))
        outer = (1,) * (rank - len(self.sizes)) + self.sizes
        small = (1,) * (rank - len(inner.sizes)) + inner.sizes
        return all(o is None or (i is not None and o % i == 0) for o, i in zip(outer, small, strict=True))

    def boxes(self, shape: tuple[int, ...], limit: int) -> Iterator[Box]:
        """Covers an array with boxes of at most about `limit` values, in order; short last blocks have boxes of their own."""
        on = self.on(shape)

        def walk(axis: int, take: tuple[slice, ...], grid: tuple[slice, ...], split: tuple[int, ...]) -> Iterator[Box]:
            if axis == len(shape):
                yield Box(take, grid, split)
                return
            n, size, rest = shape[axis], on[axis], max(prod(shape[axis + 1 :]), 1)
            for start, stop in _steps(n, size, max(1, limit // rest)):
                first, last = start // size, -(-stop // size)
                blocks = last - first
                yield from walk(
                    axis + 1, (*take, slice(start, stop)), (*grid, slice(first, last)), (*split, blocks, (stop - start) // blocks)
                )

        if prod(shape):
            yield from walk(0, (), (), ())


def _steps(n: int, size: int, step: int) -> Iterator[tuple[int, int]]:
    """Cuts an axis into runs of whole blocks of about `step` values, or into parts of one block where a block is longer."""
    full = n // size * size
    if step >= size:
        run = step // size * size
        for start in range(0, full, run):
            yield start, min(start + run, full)
        if full < n:
            yield full, n
        return
    for block in range(0, n, size):
        end = min(block + size, n)
        for start in range(block, end, step):
            yield start, min(start + step, end)
