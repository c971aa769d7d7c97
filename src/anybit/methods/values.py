"""The values of some blocks, for scale rules that need more than extremes: sums over blocks, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from anybit.formats import Block, Box, Element

_NONE = np.empty(0, np.float32)


class Elsewhere:
    """Numbers that NumPy cannot reach, under its protocols: see `device_numpy.Placed`. What an element makes of them, they know."""

    __slots__ = ()

    def encoded(self, element: Element, round: str = "nearest-even", over: str = "saturate", word: Any = None) -> Any:
        """Codes of finite numbers, an infinity counting as one out of range. `word`: for stochastic rounding."""
        raise NotImplementedError

    def decoded(self, element: Element) -> Any:
        """float64 values of codes; those of several weights along a further axis."""
        raise NotImplementedError

    def host(self) -> np.ndarray:
        """A copy that NumPy reaches."""
        raise NotImplementedError


def encoded(element: Element, x: Any, round: str = "nearest-even") -> Any:
    """`element.encode` of finite numbers, wherever they lie."""
    return x.encoded(element, round) if isinstance(x, Elsewhere) else element.encode(x, round=round)


def decoded(element: Element, codes: Any) -> Any:
    """`element.decode` of codes, wherever they lie."""
    return codes.decoded(element) if isinstance(codes, Elsewhere) else element.decode(codes)


def values_of(element: Element, codes: np.ndarray) -> np.ndarray:
    """float32 values of codes; those of a code that stands for several lie side by side along the last axis."""
    table = element.table.values if isinstance(codes, np.ndarray) else _NONE
    values: np.ndarray = table[codes] if table.size else decoded(element, codes).astype(np.float32)
    return values if element.dim == 1 else values.reshape(*codes.shape[:-1], codes.shape[-1] * element.dim)


@dataclass(frozen=True)
class Values:
    """The values of the blocks of one slab of an array.

    x: float32 or float64, strided as it comes. block: how it is cut; at most about `limit` values are handled at a time. finite: whether
    all of x is; where it is not, NaN counts as zero and an infinity as its block's extreme (low, high). importance: what an error of each
    value weighs, broadcast to x, or None. offset: float32, one a block, that is taken off, or None.
    """

    x: np.ndarray
    block: Block
    limit: int
    low: np.ndarray
    high: np.ndarray
    finite: bool = True
    importance: np.ndarray | None = None
    offset: np.ndarray | None = None

    @cached_property
    def rows(self) -> tuple[np.ndarray, int, np.ndarray | None] | None:
        """float32[n] of whole blocks one after the other, their size, and float64 importance of as many numbers as repeat, or None; None
        where memory does not hold them so, or some are not finite."""
        x, (*across, size) = self.x, self.block.on(self.x.shape)
        if not isinstance(x, np.ndarray) or x.dtype != np.float32 or not (x.flags.c_contiguous and x.flags.aligned and x.size):
            return None
        if not self.finite or any(n > 1 for n in across) or x.shape[-1] % size:
            return None
        weight = self.importance
        if weight is not None and not any(weight.strides[:-1]):
            weight = weight[(0,) * (weight.ndim - 1)]
        return x.reshape(-1), size, None if weight is None else np.ascontiguousarray(weight, np.float64).reshape(-1)

    def parts(self) -> Iterator[tuple[Box, np.ndarray]]:
        """Boxes and their values, split into blocks, all finite; before the offset."""
        for box in self.block.boxes(self.x.shape, self.limit):
            part = self.x[box.take].reshape(box.split)
            yield box, part if self.finite else tame(part, box, self.low, self.high)

    def sums(self, terms: Callable[..., tuple[np.ndarray, ...]], *numbers: np.ndarray) -> list[np.ndarray]:
        """float64 sums over each block of each array that terms(values, importance, *numbers) returns.

        `numbers` hold one a block and are spread over its values; importance is an array like the values, or 1.0.
        """
        totals: list[np.ndarray] = []
        for box, part in self.parts():
            weight: np.ndarray = np.ones(())
            if self.importance is not None:
                weight = self.importance[box.take].reshape(box.split)
            # What leaves float32 becomes an infinity, which rounds to the last code.
            with np.errstate(over="ignore", under="ignore"):
                if self.offset is not None:
                    part = part - box.spread(self.offset)
                found = terms(part, weight, *(box.spread(each) for each in numbers))
            if not totals:
                totals = [np.zeros_like(self.low) for _ in found]
            for total, term in zip(totals, found, strict=True):
                if term.ndim == 0:  # a constant: every block of a box has as many values
                    total[box.grid] += term * prod(box.split[1::2])
                else:
                    # Widened first: NumPy adds up numbers that it has to convert in runs of its buffer, whose length nothing promises.
                    total[box.grid] += np.broadcast_to(term, part.shape).astype(np.float64, copy=False).sum(axis=box.within)
        return totals


def tame(values: np.ndarray, box: Box, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """NaN to zero, infinities to the extremes of their block's finite values."""
    held = np.clip(np.where(np.isnan(values), 0, values), box.spread(low), box.spread(high))
    return np.where(np.isfinite(values), values, held).astype(values.dtype)
