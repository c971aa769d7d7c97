"""Encoding as a step function of the ordered line of float32: where each step lies, found by halving with exact comparisons.

Values and decisions are those of `reference.grid`; `reference.rational` judges each step and its neighbours (`disagreements`). All 2^32
patterns can then be judged quickly, since a step function is known everywhere when its steps are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from anybit.reference.grid import Grid
from anybit.reference.rational import Rational

HALF = 1 << 31
LEAST, LARGEST = HALF - 1 - 0x7F7FFFFF, HALF + 0x7F7FFFFF  # keys of the finite ends
LEAST_NAN = 0x7F800001  # the first NaN among patterns


def patterns(keys: np.ndarray) -> np.ndarray:
    """uint32 patterns of float32 from int64 keys 0 .. 2^32 - 1, which ascend as the numbers do: HALF is +0, HALF - 1 is -0."""
    return np.where(keys >= HALF, keys - HALF, (1 << 32) - 1 - keys).astype(np.uint32)


def numbers(keys: np.ndarray) -> np.ndarray:
    """float64 values of keys."""
    return patterns(keys).view(np.float32).astype(np.float64)


class Steps:
    """One element under one rounding and one overflow policy: `keys[i]` is the first finite float32 that gets `codes[i]`.

    Codes change from each key to the next; the first key is the least finite number. Codes are -1 where over="error" refuses. For policies
    that keep order, so that encoding is a step function (not for wrapping).
    """

    def __init__(self, definition: Mapping[str, Any], mode: str, over: str) -> None:
        self.mode, self.over = mode, over
        self.grid = grid = Grid(definition)
        self._ranks = np.full(len(grid.values), -1)
        self._ranks[grid.codes] = np.arange(1, len(grid.codes) + 1)
        if grid.minus_zero.size:
            self._ranks[grid.minus_zero] = self._ranks[grid.zero[0]]
        keys = self._halve()
        ends = self._ends()
        codes = np.concatenate([[ends[0]], grid.codes, [ends[1]]])
        keys = np.concatenate([[LEAST], keys])
        inside = keys <= LARGEST
        keys, codes = keys[inside], codes[inside]
        if grid.minus_zero.size and (codes == grid.zero[0]).any():  # the sign of what rounds to zero is kept
            at = int(np.argmax(codes == grid.zero[0]))
            if keys[at] < HALF:
                codes = np.concatenate([codes[:at], [grid.minus_zero[0]], codes[at:]])
                keys = np.concatenate([keys[: at + 1], [HALF], keys[at + 1 :]])
        # A grid finer than float32 has values that no float32 gets: of steps that coincide the last one counts.
        last = np.concatenate([keys[1:] != keys[:-1], [True]])
        self.keys, self.codes = keys[last], codes[last]

    def _halve(self) -> np.ndarray:
        """int64: the first key whose number gets a rank above i, for all ranks at once."""
        count = len(self.grid.codes) + 1
        low, high = np.full(count, LEAST, np.int64), np.full(count, LARGEST + 1, np.int64)
        while (unsure := low < high).any():
            middle = (low + high) // 2
            above = self._rank(numbers(np.minimum(middle, LARGEST))) > np.arange(count)
            high = np.where(unsure & above, middle, high)
            low = np.where(unsure & ~above, middle + 1, low)
        return low

    def _rank(self, x: np.ndarray) -> np.ndarray:
        """Where on the grid numbers go: 0 below it, 1 the least value, one more than there are values above it."""
        grid = self.grid
        code = grid.encode(x, self.mode, "error")
        outside = np.where(x < grid.points[0], 0, len(grid.codes) + 1)
        return np.where(code < 0, outside, self._ranks[np.maximum(code, 0)])

    def _ends(self) -> tuple[int, int]:
        """What becomes of a number below and above the grid."""
        grid = self.grid
        least, most = int(grid.codes[0]), int(grid.codes[-1])
        if self.over == "inf":
            return int(grid.minus_inf[0]) if grid.minus_inf.size else least, int(grid.inf[0])
        if self.over == "nan":
            return int(grid.nan[0]), int(grid.nan[0])
        return (-1, -1) if self.over == "error" else (least, most)

    def encode(self, x: np.ndarray) -> np.ndarray:
        """int64 codes of finite float32 numbers."""
        pattern = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32).astype(np.int64)
        keys = np.where(pattern < HALF, pattern + HALF, (1 << 32) - 1 - pattern)
        return np.asarray(self.codes[np.searchsorted(self.keys, keys, side="right") - 1])

    def runs(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """(start, stop, code) of the runs of equal code among `count` finite patterns of one sign, relative to the first."""
        negative = first >= HALF
        # Ascending patterns of one sign are ascending keys, or descending ones.
        low = (1 << 32) - 1 - (first + count - 1) if negative else first + HALF
        begin = int(np.searchsorted(self.keys, low, side="right")) - 1
        end = int(np.searchsorted(self.keys, low + count, side="left"))
        edges = np.clip(np.append(self.keys[begin:end], low + count), low, low + count) - low
        spans = list(zip(edges[:-1].tolist(), edges[1:].tolist(), self.codes[begin:end].tolist(), strict=True))
        yield from ((count - b, count - a, code) for a, b, code in reversed(spans)) if negative else spans

    def disagreements(self, exact: Rational, among: np.ndarray | None = None) -> Iterator[tuple[float, int, int | None]]:
        """(number, code here, code by exact fractions) where the two differ: at every step (or those whose indices are given), one
        float32 before it and one after it."""
        keys = self.keys if among is None else self.keys[among]
        around = np.unique(np.clip(np.concatenate([keys - 1, keys, keys + 1]), LEAST, LARGEST))
        x = patterns(around).view(np.float32)
        for number, code in zip(x, self.encode(x).tolist(), strict=True):
            want = exact.encode(float(number), self.mode, self.over)
            if code != (-1 if want is None else want):
                yield float(number), code, want
