"""Codes chosen column by column, each target moved by the errors made so far: the loop of GPTQ and its kin.

    target_i = w_i + sum_j e_j coupling_ji  (+ sum_{j<i} target_j second_ji),    code_i = nearest to target_i,    e_i = w_i - value_i

`coupling` is upper triangular in GPTQ; a full matrix, and errors to begin with, make it a sweep of coordinate descent. Arithmetic is
float32, each sum ascending within a block of columns and BLAS's before it. The native loop and the NumPy loop give the same bits.
"""

from __future__ import annotations

import numpy as np

from anybit.kernels.cpu import native
from anybit.methods.columns import Columns

BLOCK = 128


class Feedback:
    """One run over a matrix. Arrays lie column by column in the order of rounding: `weight`, `error`, the targets `moved`, float32[k, n].

    columns: the grids; order int64[k]: which stored column each is. coupling float32[k, k]: row j is what error j does to others.
    second: what target j does to later ones (GPTAQ), or None; then errors are those of the targets instead of the weights'.
    pruned bool[n, k]: weights that stay zero, whatever is moved onto them (in the NumPy loop alone); the caller sets their codes.
    """

    def __init__(
        self, columns: Columns, weight: np.ndarray, coupling: np.ndarray, order: np.ndarray,
        second: np.ndarray | None = None, error: np.ndarray | None = None, use_native: bool = True,
        pruned: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        columns.check()
        self.columns, self.order = columns, order
        self.weight = np.ascontiguousarray(weight[:, order].T, np.float32)
        self.coupling, self.second = coupling, second
        self.full = error is not None
        self.error = np.zeros_like(self.weight) if error is None else np.ascontiguousarray(error[:, order].T, np.float32)
        self.moved = np.zeros_like(self.weight)
        self.codes = np.zeros((len(order) // columns.dim, weight.shape[0]), columns.element.code_dtype)
        self.pruned = None if pruned is None else np.ascontiguousarray(pruned[:, order].T)
        self._plan = columns.native_plan() if use_native and pruned is None else None

    def run(self, block: int = BLOCK) -> Feedback:
        """All columns once, `block` at a time."""
        k, dim = self.weight.shape[0], self.columns.dim
        block = max(dim, block // dim * dim)
        for start in range(0, k, block):
            end = min(start + block, k)
            self._block(start, end, self._base(start, end))
        return self

    def _base(self, start: int, end: int) -> np.ndarray:
        """The targets float32[end - start, n] without what happens inside the block."""
        own, before, after = slice(start, end), slice(0, start), slice(end, None)
        base = self.weight[own].copy()
        if start:
            base += self.coupling[before, own].T @ self.error[before]
            if self.second is not None:
                base += self.second[before, own].T @ self.moved[before]
        if self.full and end < len(self.weight):
            base += self.coupling[after, own].T @ self.error[after]
        return base

    def _block(self, start: int, end: int, base: np.ndarray) -> None:
        own, c = slice(start, end), self.columns
        inside = np.ascontiguousarray(self.coupling[own, own])
        second = None if self.second is None else np.ascontiguousarray(self.second[own, own])
        if self._plan is not None:
            blocks = np.ascontiguousarray(c.column[self.order[own]])
            native.feedback(
                self._plan._native, base, self.weight[own], self.error[own], self.moved[own], inside, second, c.scale, c.zero, c.offset,
                c.row, blocks, self.codes[own], self.full, c.format.whole_zero, -1.0 if c.symmetric is None else c.symmetric,
            )  # fmt: skip
            return
        error, moved, weight, dim = self.error[own], self.moved[own], self.weight[own], c.dim
        for i in range(0, end - start, dim):
            x = base[i : i + dim].copy()
            for j in range(end - start if self.full else i):
                if not i <= j < i + dim:
                    x += error[j] * inside[j, i : i + dim, None]
                    if second is not None:
                        x += moved[j] * second[j, i : i + dim, None]
            codes, values = c.choose(int(self.order[start + i]), x.T)
            if self.pruned is not None:
                values = np.where(self.pruned[start + i][:, None], np.float32(0), values)
            self.codes[(start + i) // dim] = codes
            moved[i : i + dim] = x
            error[i : i + dim] = (x if second is not None else weight[i : i + dim]) - values.T

    def losses(self, factor: np.ndarray) -> np.ndarray:
        """float64[n]: e H e^T of each row after one run with H's own coupling: the sum of D_i (target_i - value_i)^2; `factor` A D^1/2."""
        gap = self.moved - self.weight + self.error
        return np.square(factor.diagonal()) @ np.square(gap, dtype=np.float64)

    def stored(self) -> tuple[np.ndarray, np.ndarray]:
        """(codes [n, k / dim], errors float32[n, k]) with columns as they are stored. Errors of `second` are of the targets."""
        dim = self.columns.dim
        codes = np.empty(self.codes.shape[::-1], self.codes.dtype)
        codes[:, self.order[::dim] // dim] = self.codes.T
        error = np.empty(self.weight.shape[::-1], np.float32)
        error[:, self.order] = self.error.T
        return codes, error
