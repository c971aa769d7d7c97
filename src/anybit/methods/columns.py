"""The fixed grids of a matrix, column by column: scales, zero points and offsets are chosen, codes are not."""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np

from anybit.errors import FormatError
from anybit.formats import Format, Spec, bound
from anybit.formats.rounding import stochastic_bits
from anybit.kernels.rounding import rounding
from anybit.methods.grids import codes_of
from anybit.methods.method import Parts
from anybit.methods.rtn import stored_grids
from anybit.methods.scales import SCALES
from anybit.methods.values import values_of


def refused(spec: Spec) -> str | None:
    """Why codes cannot be chosen one after the other under this policy; None: they can."""
    if stochastic_bits(spec.policy.round) is not None:
        return f"round={spec.policy.round} draws codes by chance"
    if spec.policy.over != "saturate":
        return f"over={spec.policy.over} has no nearest value beyond the ends"
    return None


class Columns:
    """Codes and values of columns of float32[n, k] over stored grids.

    `scale` float32[rows of blocks, blocks]; `zero`, `offset` likewise or None; `row` int32[n], `column` int32[k]: the block of each.
    """

    def __init__(self, parts: Parts, spec: Spec, shape: tuple[int, int]) -> None:
        self.spec, self.format, self.shape = spec, bound(spec.format, parts), shape
        self.element = self.format.element
        fmt, (n, k) = self.format, shape
        self.symmetric: float | None = None
        if fmt.block is None:
            self.scale = np.ones((1, 1), np.float32)
            self.row, self.column = np.zeros(n, np.int32), np.zeros(k, np.int32)
            self.zero = self.offset = None
            return
        self.scale = stored_grids(parts, fmt, shape).scale
        self.offset = stored_grids(parts, fmt, shape).offset if fmt.offset is not None else None
        self.zero = None if fmt.zero is None else fmt.zero.decode(parts["zero"]).astype(np.float32)
        tall, wide = fmt.blocks[0].on(shape)
        self.row, self.column = np.arange(n, dtype=np.int32) // np.int32(tall), np.arange(k, dtype=np.int32) // np.int32(wide)
        if SCALES[spec.scale_rule].symmetric and self.element.reach[0] == self.element.reach[1] and self.zero is None:
            self.symmetric = self.element.max

    def rows(self, rows: slice | np.ndarray) -> Columns:
        """The same of some rows (a slice, or their numbers)."""
        found = copy(self)
        found.row = self.row[rows]
        found.shape = len(found.row), self.shape[1]
        return found

    def by_block(self) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Scales, zero points and offsets as float32[blocks, n], one for each block and row."""
        scale, zero, offset = (None if g is None else np.ascontiguousarray(g[self.row].T) for g in (self.scale, self.zero, self.offset))
        assert scale is not None
        return scale, zero, offset

    def check(self) -> None:
        """FormatError: a policy under which codes cannot be chosen one after the other."""
        reason = refused(self.spec)
        if reason is not None:
            raise FormatError(f"{reason}: take the method nearest, or leave the policy's defaults")

    @property
    def dim(self) -> int:
        """Columns that a code stands for."""
        return self.element.dim

    def at(self, grid: np.ndarray, column: int | np.ndarray) -> np.ndarray:
        """float32[n]: one number a block, for each row of a column, or of a column for each row."""
        return grid[self.row, self.column[column]]

    def choose(self, column: int | np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes [n] and values float32[n, dim] of targets float[n, dim] for the columns column ... column + dim - 1; float64 is not
        narrowed before its code is chosen."""
        scale = self.at(self.scale, column)[:, None]
        with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
            if self.offset is not None:
                x = x - self.at(self.offset, column)[:, None]
            ratio = x / np.where(scale == 0, np.float32(np.inf), scale)
            if self.symmetric is not None:
                ratio = np.clip(ratio, np.float32(-self.symmetric), np.float32(self.symmetric))
            if self.zero is not None:
                ratio = (np.rint(ratio) if self.format.whole_zero else ratio) + self.at(self.zero, column)[:, None]
        codes = codes_of(self.element, np.ascontiguousarray(ratio), self.spec.policy, None)
        return codes[:, 0], self.values(column, codes)

    def size(self, column: int, of: np.ndarray) -> np.ndarray:
        """float32[n]: `of` and the magnitudes of what a target is added to before it is rounded."""
        if self.offset is not None:
            of = of + np.abs(self.at(self.offset, column))
        if self.zero is not None and not self.format.whole_zero:
            of = of + np.abs(self.at(self.zero, column) * self.at(self.scale, column))
        return of

    def values(self, column: int | np.ndarray, codes: np.ndarray) -> np.ndarray:
        """float32[n, dim]: what codes [n, 1] mean there."""
        scale, value = self.at(self.scale, column)[:, None], values_of(self.element, codes)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            if self.zero is not None and self.format.whole_zero:
                return (value - self.at(self.zero, column)[:, None]) * scale
            value = value * scale
            if self.zero is not None:
                return value - self.at(self.zero, column)[:, None] * scale
            return value if self.offset is None else value + self.at(self.offset, column)[:, None]

    def units(self, codes: np.ndarray) -> np.ndarray:
        """float32[n, k]: what codes [n, k / dim] mean over their scales: values less zero points, before offsets."""
        value = values_of(self.element, codes)
        return value if self.zero is None else value - self.zero[self.row][:, self.column]

    def nearest(self, w: np.ndarray) -> np.ndarray:
        """Codes [n, k / dim] of float32[n, k], each the nearest on its grid."""
        found = np.empty((w.shape[0], w.shape[1] // self.dim), self.element.code_dtype)
        for column in range(0, w.shape[1], self.dim):
            found[:, column // self.dim] = self.choose(column, w[:, column : column + self.dim])[0]
        return found

    def native_plan(self) -> Any:
        """The native rounding of the element; None: there is none, or codes stand for several weights."""
        policy = self.spec.policy
        return None if self.dim > 1 else rounding(self.element, policy.round, policy.over, "saturate")


def plain(fmt: Format) -> Format:
    """The format in which codes are chosen: nested integers as they are stored."""
    return fmt.stored if fmt.opened is not None else fmt
