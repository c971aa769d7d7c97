"""Scales of scales: choosing, storing and multiplying the levels of a format, some rows of blocks at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np

from anybit.errors import FormatError
from anybit.formats import Element, Format
from anybit.methods.values import Elsewhere, decoded, encoded, values_of

Shape = tuple[int, ...]
Owners = list[np.ndarray]


def _largest(values: np.ndarray, owners: Owners) -> np.ndarray:
    """The largest of each outer block that owns any of them."""
    return _reduced(np.maximum, values, owners)


def _reduced(by: np.ufunc, values: np.ndarray, owners: Owners) -> np.ndarray:
    """One number for each outer block that owns any, in host memory wherever the values lie."""
    for axis, owner in enumerate(owners):
        starts = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
        values = by.reduceat(values, starts, axis=axis)
    return values.host() if isinstance(values, Elsewhere) else values


class ScaleRangeError(FormatError):
    """A block needs a scale or an offset that its element cannot hold."""

    def __init__(self, kind: str, level: int, element: Element, index: Shape, needed: float, largest: float) -> None:
        self.kind, self.level, self.element, self.index, self.needed, self.largest = kind, level, element, index, needed, largest
        super().__init__(self.at(index))

    def at(self, index: Shape) -> str:
        """The message, naming the block by another index."""
        where = f"block {list(index)}" + (f" of the {self.kind}s of level {self.level}" if self.level else "")
        fix = f"fp32 {self.kind}s there" if self.level else f"bf16 {self.kind}s, or a second level, as in {self.element}@tensor:fp32"
        return f"{where} needs the {self.kind} {self.needed:g}, and {self.element} ends at {self.largest:g} here; use {fix}"


FALL = 2 * (1 + 2.0**-20)
"""How many times smaller than wished a scale may become so that the element's largest value stays in float32; 2 is two's complement's."""


class ReachError(ScaleRangeError):
    """A block is so large that under the scale it needs the element's largest value would leave float32."""

    def __init__(self, coded: Element, index: Shape, needed: float, limit: float) -> None:
        self.coded, self.limit = coded, limit
        super().__init__("scale", 0, coded, index, needed, limit)

    def at(self, index: Shape) -> str:
        """The message, naming the block by another index."""
        reach = max(self.coded.max, -self.coded.min)
        over = 2 ** math.ceil(math.log2(self.needed / self.limit))
        return (
            f"block {list(index)} needs the scale {self.needed:g}, and {self.coded}'s largest value, {reach:g}, would leave float32 above"
            f" {self.limit:g}; divide the array by {over}"
        )


def _top(element: Element) -> float:
    """What the largest number of a level is brought to: the element's end, but 1 where it has float32's exponents, so that the next level
    stays far from float32's own ends."""
    return element.max if element.max < 2.0**64 else 1.0


class Chain:
    """The levels of one format on one shape. `elements[i]` stores level i, which level i + 1 scales.

    Levels 1 and up are small and fixed first, by `settle` or `load`; first-level numbers are then handled for a range of rows of the block
    grid (its first axis), so that nothing grows with the array. They may lie elsewhere, where `place` takes what levels above give them.
    """

    def __init__(
        self, fmt: Format, shape: Shape, elements: list[Element], kind: str = "scale",
        place: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:  # fmt: skip
        self.elements, self.kind, self._place = elements, kind, place
        self.owners = [outer.owners(inner, shape) for inner, outer in pairwise(fmt.blocks)]
        self.higher: list[np.ndarray] = []
        self._factors: list[np.ndarray] = []
        self._outer = np.ones((1,) * len(shape))
        self._fitted = False

    @property
    def deep(self) -> bool:
        """Whether there are levels above the first, which have to be settled."""
        return len(self.elements) > 1

    def _local(self, per_outer: np.ndarray, rows: slice) -> np.ndarray:
        """Numbers on level 1's grid, for each first-level block in some rows."""
        first, *others = self.owners[0]
        held = per_outer if self._place is None else self._place(per_outer)
        return held[np.ix_(first[rows], *others)]

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
        wanted = [np.maximum(above, below) / _top(self.elements[0])]
        for element, owners in zip(self.elements[1:], self.owners[1:], strict=False):
            wanted.append(_largest(wanted[-1], owners) / _top(element))
            above, below = _largest(above, owners), _largest(below, owners)
        sign = np.where((below > above) & (not self.elements[0].signed), -1.0, 1.0)
        codes: list[np.ndarray] = []
        outer = np.ones_like(wanted[-1])
        for i in range(len(self.elements) - 1, 0, -1):
            element = self.elements[i]
            self._check(i, wanted[i - 1] / outer, outer, slice(0, None))
            # Never zero, infinite or NaN: clipped to the element's positive range.
            wish = np.clip(wanted[i - 1] / outer, element.smallest, element.max)
            stored = element.encode(wish * sign)
            # Where a coarse element rounds down so far that the level below would have to clip: up.
            under = self.elements[i - 1]
            short = wish / np.abs(element.decode(stored)) * _top(under) > (under.max + under.beyond[1]) / 2
            if short.any():
                away = np.where(sign > 0, element.encode(wish * sign, round="up"), element.encode(wish * sign, round="down"))
                stored = np.where(short, away, stored)
            outer, sign = outer * np.abs(element.decode(stored)), np.ones(())
            codes.insert(0, stored)
            if i > 1:
                outer = outer[np.ix_(*self.owners[i - 1])]
        self.load(codes)
        flipped = np.ones_like(outer)
        for factor in self._factors:
            flipped = flipped * np.where(factor < 0, -1.0, 1.0)
        self._outer = outer * flipped

    def fit(self, targets: Iterable[tuple[slice, np.ndarray, np.ndarray]]) -> None:
        """Moves the second level of two, after `settle`, to where first-level numbers lose least: targets of either sign, each with what
        the square of its error weighs. The largest ones may then be out of reach, and are clipped."""
        if len(self.elements) != 2:
            return
        first, second = self.elements
        steps = 1 + 0.3 * np.arange(-8, 7) / first.max
        tried = [second.encode(second.decode(self.higher[0]) * step) for step in (1.0, *steps[steps != 1])]
        loss = np.zeros((len(tried), *self.higher[0].shape))  # float64: squares of scales leave float32
        for rows, target, weight in targets:
            own, *others = self.owners[0]
            owners = [own[rows], *others]
            held = slice(owners[0][0], owners[0][-1] + 1)
            local = np.ix_(owners[0] - held.start, *others)
            for each, codes in zip(loss, tried, strict=True):
                outer = second.decode(codes[held]).astype(np.float32)[local]
                found = decoded(first, encoded(first, np.clip(target / outer, first.min, first.max) + 0.0)) * outer
                each[held] += _reduced(np.add, weight * np.square(target - found), owners)
        best = loss.argmin(axis=0)
        self.load([np.choose(best, tried).astype(self.higher[0].dtype)])
        self._outer, self._fitted = self.elements[1].decode(self.higher[0]), True

    def outer(self, rows: slice) -> np.ndarray:
        """float64: the product of levels 1 and up for each first-level block in some rows."""
        return self._local(self._outer, rows) if self.deep else self._outer

    def factor(self, rows: slice) -> np.ndarray:
        """float32: the stored second level for each first-level block in some rows. For two levels."""
        return self._local(self._factors[0], rows)

    def product(self, first: np.ndarray, rows: slice) -> np.ndarray:
        """float32 meaning of first-level codes in some rows: fl(fl(s0 * s1) * s2) ..."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            total = values_of(self.elements[0], first)
            for factor in self._factors:
                total = total * self._local(factor, rows)
        return total

    def _check(self, level: int, ratio: np.ndarray, outer: np.ndarray, rows: slice) -> None:
        """ScaleRangeError: a number over its outer scale that lies a step or more beyond its element's last."""
        element = self.elements[level]
        low, high = element.beyond
        bad = (ratio >= high) | ((ratio <= low) & element.signed)
        if bad.any():
            at = tuple(map(int, np.unravel_index(int(np.argmax(bad)), bad.shape)))
            factor = float(np.broadcast_to(outer, bad.shape)[at])
            needed, end = float(ratio[at]) * factor, (element.max if ratio[at] > 0 else element.min) * factor
            raise ScaleRangeError(self.kind, level, element, (at[0] + rows.start, *at[1:]), needed, end)

    def scales(
        self, target: np.ndarray, limit: np.ndarray, rows: slice, strict: bool = False, round: str = "nearest-even"
    ) -> tuple[np.ndarray, np.ndarray]:
        """First-level codes for target scales (float64, may be negative), and the float32 scales, none above `limit` in magnitude.

        A zero target gets the smallest positive scale, as does one below it. Too large a one gets the largest, or if `strict` is an error.
        """
        outer, negative = self.outer(rows), target < 0
        if strict and not self._fitted:
            self._check(0, np.minimum(np.abs(target), limit) / outer, outer, rows)
        wished = np.abs(target) / outer
        if round == "down":  # a scale that equals the level above is one of it, though that was rounded to float32
            wished, round = wished * (1 + 2.0**-23), "zero"
        codes = self._nonzero(wished, negative, round)
        scale = self.product(codes, rows)
        too_large = ~(np.abs(scale) <= limit)
        if too_large.any():
            codes = np.where(too_large, self._nonzero(limit / outer, negative, "zero"), codes)
            scale = self.product(codes, rows)
        return codes, scale

    def _nonzero(self, magnitude: np.ndarray, negative: np.ndarray, round: str) -> np.ndarray:
        first = self.elements[0]
        held = np.clip(magnitude, first.smallest, first.max)
        codes: np.ndarray = encoded(first, np.where(negative, -held, held), round)
        return codes

    def offsets(self, target: np.ndarray, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """First-level codes for target offsets (float64, any sign), and the float32 offsets."""
        first, outer = self.elements[0], self.outer(rows)
        if not self._fitted:
            self._check(0, target / outer, outer, rows)
        codes = encoded(first, np.clip(target / outer, first.min, first.max) + 0.0)  # -0 and 0 are one offset
        return codes, self.product(codes, rows)
