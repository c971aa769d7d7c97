"""Codes chosen column by column, each target moved by the errors made so far: the loop of GPTQ and its kin.

    target_i = w_i + sum_j e_j coupling_ji  (+ sum_{j<i} target_j second_ji),    code_i = nearest to target_i,    e_i = w_i - value_i

`coupling` is upper triangular in GPTQ; a full matrix, and errors to begin with, make it a sweep of coordinate descent. Arithmetic is
float32, each sum ascending within a block of columns and BLAS's before it. The native loop and the NumPy loop give the same bits.
"""

from __future__ import annotations

from copy import copy

import numpy as np

from anybit.kernels.cpu import native
from anybit.methods.columns import Columns

BLOCK, WIDE = 128, 4
"""Columns of a native call; and how many of those get the sum over all columns before them at once, in one larger product."""
NEAR = np.float32(2.0**-20)
"""Of |target| + |weight| (and what else is added, `Columns.size`): how near to a switch of codes a target is doubtful (kNear in
native/gptq.h). Over 4,096 columns float32 was off by 4 units in the last place of that sum at most; this is 16."""


class Feedback:
    """One run over a matrix. Arrays lie column by column in the order of rounding: `weight`, `error`, float32[k, n].

    columns: the grids; order int64[k]: which stored column each is. coupling float32[k, k]: row j is what error j does to others.
    second: what target j does to later ones (GPTAQ), or None; then errors are those of the targets instead of the weights', and the
    targets, `moved` float32[k, n], are kept. cost: float64[k], or None; then `losses` float64[n] are of each row the sum over columns of
    cost_i (target_i - value_i)^2, which is e H e^T after one run with H's own coupling, cost its D.
    doubt: `doubtful` then lists int64 rows and columns of the targets that lie so near a switch of codes that float32 may have taken the
    wrong one.
    pruned bool[n, k]: weights that stay zero, whatever is moved onto them (in the NumPy loop alone); the caller sets their codes.
    """

    def __init__(
        self, columns: Columns, weight: np.ndarray, coupling: np.ndarray, order: np.ndarray, second: np.ndarray | None = None,
        error: np.ndarray | None = None, cost: np.ndarray | None = None, use_native: bool = True, pruned: np.ndarray | None = None,
        doubt: bool = False,
    ) -> None:  # fmt: skip
        columns.check()
        self.columns, self.order = columns, order
        self.weight = _columnwise(weight, order)
        self.coupling, self.second, self.cost = coupling, second, cost
        self.full = error is not None
        self.error = np.empty_like(self.weight) if error is None else _columnwise(error, order)
        self.moved = None if second is None else np.zeros_like(self.weight)
        self.losses = np.zeros(weight.shape[0])
        self.codes = np.empty((len(order) // columns.dim, weight.shape[0]), columns.element.code_dtype)
        self.doubt, self.doubtful = doubt, list[tuple[np.ndarray, np.ndarray]]()
        self.pruned = None if pruned is None else np.ascontiguousarray(pruned[:, order].T)
        self._plan = columns.native_plan() if use_native and pruned is None else None
        if self._plan is not None:
            self._grids = columns.by_block()

    def run(self, block: int = BLOCK) -> Feedback:
        """All columns once, `block` at a time."""
        k, dim = self.weight.shape[0], self.columns.dim
        block = max(dim, block // dim * dim)
        for left in range(0, k, WIDE * block):
            right = min(left + WIDE * block, k)
            base = self.weight[left:right].copy()  # the targets, without what happens inside the block
            self._add(base, slice(left, right), slice(0, left), slice(right, k))
            for start in range(left, right, block):
                end = min(start + block, right)
                own = base[start - left : end - left]
                self._add(own, slice(start, end), slice(left, start), slice(end, right))
                self._block(start, end, own)
        return self

    def again(self, after: np.ndarray, block: int = BLOCK) -> None:
        """Chooses anew, in each row, all codes after its column `after` int64[n]; what is before stays."""
        for start in range(int(after.min()) // block * block, len(self.order), block):
            end = min(start + block, len(self.order))
            self._rest(np.flatnonzero(after < start), start, end)
            for row in np.flatnonzero((after >= start) & (after < end)):
                self._rest(np.array([row]), int(after[row]) + 1, end)

    def _rest(self, rows: np.ndarray, start: int, end: int) -> None:
        if not len(rows) or start == end:
            return
        part = self if len(rows) == len(self.losses) else self.of(rows)
        base = part.weight[start:end].copy()
        part._add(base, slice(start, end), slice(0, start), slice(end, end))
        part._block(start, end, base)
        if part is not self:
            self.put(rows, part)

    def of(self, rows: np.ndarray) -> Feedback:
        """The same of some rows int64[m], without their doubts and losses; what is done to it comes back by `put`."""
        part = copy(self)
        part.columns, part.cost, part.losses, part.doubtful = self.columns.rows(rows), None, np.zeros(len(rows)), []
        part.weight, part.error, part.codes = (a.take(rows, axis=1) for a in (self.weight, self.error, self.codes))
        if self._plan is not None:
            part._grids = part.columns.by_block()
        return part

    def put(self, rows: np.ndarray, part: Feedback) -> None:
        """Takes codes, errors and doubts of some rows from `part`."""
        self.codes[:, rows], self.error[:, rows] = part.codes, part.error
        self.doubtful.extend((rows[row], column) for row, column in part.doubtful)

    def _add(self, base: np.ndarray, own: slice, before: slice, after: slice) -> None:
        """Adds to float32[own, n] what other columns do to them."""
        if before.stop > before.start:
            base += self.coupling[before, own].T @ self.error[before]
            if self.second is not None and self.moved is not None:
                base += self.second[before, own].T @ self.moved[before]
        if self.full and after.stop > after.start:
            base += self.coupling[after, own].T @ self.error[after]

    def _block(self, start: int, end: int, base: np.ndarray) -> None:
        own = slice(start, end)
        moved = None if self.moved is None else self.moved[own]
        cost = None if self.cost is None else self.cost[own].astype(np.float32)
        if self._plan is not None:
            self._choose_native(own, base, moved, cost)
            return
        moved = np.zeros_like(base) if moved is None else moved
        self._choose(start, end, base, moved)
        if cost is not None:
            self.losses += cost @ np.square(moved - self.weight[own] + self.error[own])

    def _choose_native(self, own: slice, base: np.ndarray, moved: np.ndarray | None, cost: np.ndarray | None) -> None:
        c = self.columns
        inside = np.ascontiguousarray(self.coupling[own, own])
        second = None if self.second is None else np.ascontiguousarray(self.second[own, own])
        blocks = np.ascontiguousarray(c.column[self.order[own]])
        loss = None if cost is None else np.empty(len(self.losses), np.float32)
        near = np.empty((len(base), -(-base.shape[1] // 64)), np.uint64) if self.doubt else None
        assert self._plan is not None
        native.feedback(
            self._plan._native, base, self.weight[own], self.error[own], moved, inside, second, *self._grids, blocks, self.codes[own],
            cost, loss, near, self.full, c.format.whole_zero, -1.0 if c.symmetric is None else c.symmetric,
        )  # fmt: skip
        if loss is not None:
            self.losses += loss
        if near is not None and near.any():
            column, word = np.nonzero(near)
            bits = np.unpackbits(near[column, word].astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
            which, bit = np.nonzero(bits)
            self.doubtful.append((word[which] * 64 + bit, own.start + column[which]))

    def _choose(self, start: int, end: int, base: np.ndarray, moved: np.ndarray) -> None:
        own, dim = slice(start, end), self.columns.dim
        inside, second = self.coupling[own, own], None if self.second is None else self.second[own, own]
        error, weight = self.error[own], self.weight[own]
        for i in range(0, end - start, dim):
            x = base[i : i + dim].copy()
            for j in range(end - start if self.full else i):
                if not i <= j < i + dim:
                    x += error[j] * inside[j, i : i + dim, None]
                    if second is not None:
                        x += moved[j] * second[j, i : i + dim, None]
            codes, values = self.columns.choose(int(self.order[start + i]), x.T)
            if self.pruned is not None:
                values = np.where(self.pruned[start + i][:, None], np.float32(0), values)
            self.codes[(start + i) // dim] = codes
            if self.doubt:
                by = NEAR * self.columns.size(int(self.order[start + i]), np.abs(x[0]) + np.abs(weight[i]))
                beyond = x[0] + np.where(x[0] - values[:, 0] < 0, -by, by)
                rows = np.flatnonzero(self.columns.choose(int(self.order[start + i]), beyond[:, None])[0] != codes)
                self.doubtful.append((rows, np.full(len(rows), start + i)))
            moved[i : i + dim] = x
            error[i : i + dim] = (x if second is not None else weight[i : i + dim]) - values.T

    def stored_codes(self) -> np.ndarray:
        """Codes [n, k / dim] with columns as they are stored."""
        dim = self.columns.dim
        where = np.empty(len(self.codes), np.int64)
        where[self.order[::dim] // dim] = np.arange(len(self.codes))
        return _rowwise(self.codes, where)

    def stored_error(self) -> np.ndarray:
        """Errors float32[n, k] with columns as they are stored; of the targets where there is a `second`."""
        where = np.empty(len(self.order), np.int64)
        where[self.order] = np.arange(len(self.order))
        return _rowwise(self.error, where)


def _columnwise(a: np.ndarray, order: np.ndarray) -> np.ndarray:
    """a[:, order].T of float32[n, k], float32[k, n]."""
    out = np.empty((len(order), len(a)), np.float32)
    native.columnwise(np.ascontiguousarray(a, np.float32), np.ascontiguousarray(order, np.int64), out)
    return out


def _rowwise(a: np.ndarray, order: np.ndarray) -> np.ndarray:
    """a[order].T, some rows at a time, so that they are in the cache when they are turned."""
    out = np.empty((a.shape[1], len(order)), a.dtype)
    for at in range(0, len(order), BLOCK):
        out[:, at : at + BLOCK] = a.take(order[at : at + BLOCK], axis=0).T
    return out
