"""The quadratic objective of calibrated rounding, and its factors: what an error in one channel should be made up for in the others.

With E = W - Q the errors of a matrix, rows of it are independent and each costs e H e^T, H = X^T X. For A unit upper triangular, D diagonal
and H = A D A^T (a Cholesky factorization from the last channel to the first)

    e H e^T = sum_i D_i (e_i + sum_{j<i} e_j A_ji)^2

so that, channel by channel, the code of w_i + sum_{j<i} e_j A_ji that is nearest makes the next term as small as it can be. This is GPTQ's
loop (arXiv 2210.17323, algorithm 1), which has -U_ji / U_jj from the Cholesky factor U of H^-1 and errors of the moved weights in the place
of A_ji and of the original ones: QuIP (arXiv 2307.13304, theorem 6) shows that the two are one. No inverse is needed: a third of the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import isfinite

import numpy as np

from anybit.kernels.cpu import native
from anybit.kernels.rounding import largest_magnitude
from anybit.methods.panels import by_panels
from anybit.methods.statistics import Statistics

ORDERS = ("activation", "natural")
_TERMS, _FIRST, _EXACT = 512, 64, 64
"""Columns of a factor that are multiplied at once, to begin with where few may be enough, and squares that are added up in float32."""
_DOUBLE = 8192
"""Channels up to which factors are computed in float64; above, float64 matrices would take more than a gigabyte."""


@dataclass(frozen=True)
class Curvature:
    """H: `xtx` float32[k, k] (not copied) with its channels in the order `order` int64[k] in which they are rounded, its mean diagonal 1,
    and `damping` added to it; `backward` float[k, k]: in its lower triangle L, L L^T = H with channels from the last to the first (what is
    above is undefined); `notes`: what the user should hear."""

    xtx: np.ndarray
    order: np.ndarray
    damping: float
    backward: np.ndarray
    notes: tuple[str, ...] = ()

    @cached_property
    def factor(self) -> np.ndarray:
        """float[k, k], a view of `backward`: upper triangular R with R R^T = H, zero below its diagonal."""
        for i, row in enumerate(self.backward):
            row[i + 1 :] = 0
        return self.backward[::-1, ::-1]

    @cached_property
    def matrix(self) -> np.ndarray:
        """H itself, float[k, k]."""
        return _ordered(self.xtx, self.order, self.damping)

    @cached_property
    def unit(self) -> np.ndarray:
        """A: float32[k, k], upper triangular with a diagonal of ones."""
        a = np.zeros(self.backward.shape, np.float32)
        if self.backward.dtype == np.float64:
            native.unit(self.backward, self._diagonal, a)
            return a
        r, diagonal = self.factor, self._diagonal
        for at in range(0, len(r), _TERMS):
            np.divide(r[at : at + _TERMS, at:], diagonal[at:], out=a[at : at + _TERMS, at:], casting="same_kind")
        return a

    @cached_property
    def pivots(self) -> np.ndarray:
        """D: float64[k]."""
        return np.square(self._diagonal.astype(np.float64))

    @property
    def _diagonal(self) -> np.ndarray:
        """float[k]: R's."""
        return np.ascontiguousarray(self.backward.diagonal()[::-1])

    def coupling(self, dim: int = 1) -> np.ndarray:
        """float32[k, k]: A, what target i gets of error j; blocks of `dim` channels are coupled within themselves not at all."""
        if dim == 1:
            return self.unit
        r = self.factor
        k = len(r)
        solved = np.empty_like(r)
        for at in range(0, k, dim):
            own = slice(at, at + dim)
            solved[:, own] = r[:, own] @ np.linalg.inv(r[own, own])
        return solved.astype(np.float32)

    def losses(self, error: np.ndarray) -> np.ndarray:
        """float64[n]: e H e^T of each row of float32[n, k] errors, channels as they are stored."""
        total = np.zeros(len(error))
        e = error.take(self.order, axis=1)
        for at in range(0, len(self.order), _TERMS):
            total += self._terms(e[:, : at + _TERMS], at)
        return total

    def exceed(self, error: np.ndarray, bound: np.ndarray) -> np.ndarray:
        """bool[n]: whether e H e^T of a row is more than `bound` float64[n]; terms are added, the largest first, only until it is."""
        end = len(self.order)
        at = max(0, end - _FIRST)
        stored = np.empty((end, end - at), np.float32)  # the last columns of `unit` with their rows as channels are stored
        stored[self.order] = self.unit[:, at:]
        total = self._squares(error @ stored, slice(at, end))
        left, count = np.flatnonzero(total <= bound), 2 * _FIRST
        e = error[left].take(self.order, axis=1)
        while at > 0 and len(left):
            end, at, count = at, max(0, at - count), min(2 * count, _TERMS)
            total[left] += self._terms(e[:, :end], at)
            inside = total[left] <= bound[left]
            if not inside.all():
                left, e = left[inside], e[inside]
        return np.greater(total, bound)

    def _terms(self, e: np.ndarray, at: int) -> np.ndarray:
        """float64[n]: the part of e H e^T with i from `at` to the end of `e`."""
        end = e.shape[1]
        return self._squares(e @ self.unit[:end, at:end], slice(at, end))

    def _squares(self, part: np.ndarray, own: slice) -> np.ndarray:
        """float64[n]: the same terms of `part`, which is written to: e_i + sum_{j<i} e_j A_ji for the channels `own`."""
        at, end = own.start, own.stop
        part *= np.sqrt(self.pivots[own]).astype(np.float32)
        sums = [np.einsum("ij,ij->i", p, p) for p in np.split(part, range(_EXACT, end - at, _EXACT), axis=1)]
        return np.add.reduce(sums, axis=0, dtype=np.float64)


def check_options(damp: float, order: str, block: int = 128) -> None:
    """ValueError: no such order, damping that is not above 0, or columns at a time beyond 8 to 256."""
    if order not in ORDERS:
        raise ValueError(f"order is '{order}'; there is {' and '.join(ORDERS)}")
    if not 0 < damp <= 10:
        raise ValueError(f"damp is {damp}; it lies above 0, mostly at 0.01, and not above 10")
    if not 8 <= block <= 256:
        raise ValueError(f"block is {block}; it is the number of columns that are handled together, 8 to 256")


def curvature(stats: Statistics, damp: float = 0.01, order: str = "activation", dim: int = 1) -> Curvature | None:
    """Damped statistics and their factor; None where there is nothing to go by: no token, or no factor at any damping.

    `damp`: what is added to the diagonal, times its mean; raised tenfold, up to 10, where the matrix has no factor. `order`: "activation"
    takes the channels (groups of `dim`) of largest x^2 first (static: scales stay with their blocks), "natural" as they are stored.
    The last answer stays with the statistics.
    """
    check_options(damp, order)
    if stats.xtx is None or not stats.count:
        return None
    asked = damp, order, dim
    if stats.factored is not None and stats.factored[0] == asked:
        found: Curvature | None = stats.factored[1]
        return found
    stats.factored = None  # two would be held together otherwise
    stats.factored = asked, _factored(stats.xtx, damp, order, dim)
    return stats.factored[1]


def _factored(xtx: np.ndarray, damp: float, order: str, dim: int) -> Curvature | None:
    diagonal = xtx.diagonal().astype(np.float64)
    mean = float(diagonal.mean())
    if not isfinite(largest_magnitude(xtx.reshape(-1))) or mean <= 0:
        return None
    dead = diagonal <= 0
    notes = [f"{int(dead.sum())} of {len(xtx)} input channels are always zero"] if dead.any() else []
    by = np.where(dead, 0, diagonal).reshape(-1, dim).sum(axis=1)
    first = np.argsort(-by, kind="stable") if order == "activation" else np.arange(len(by))
    index = (first[:, None] * dim + np.arange(dim)).reshape(-1)
    step = damp
    while step <= 10:
        backward = _ordered(xtx, index[::-1], step, lower=True)
        if _factored_in_place(backward):
            if step > damp:
                notes.append(f"damping was raised from {damp:g} to {step:g}: its statistics are singular")
            return Curvature(xtx, index, step, backward, tuple(notes))
        step *= 10
    return None


def _ordered(xtx: np.ndarray, index: np.ndarray, damping: float, lower: bool = False) -> np.ndarray:
    """H with channel index[i] at i, float64 or float32[k, k]; `lower`: what is above the diagonal is undefined. A channel without input
    costs nothing: it is rounded to nearest, and nothing makes up for it."""
    k, diagonal = len(xtx), xtx.diagonal().astype(np.float64)
    mean, none = float(diagonal.mean()), diagonal[index] <= 0
    h = np.empty((k, k), np.float64 if k <= _DOUBLE else np.float32)

    def fill(rows: slice) -> None:
        np.divide(xtx[index[rows]].take(index, axis=1), mean, out=h[rows], dtype=h.dtype)

    if lower and h.dtype == np.float64:
        native.ordered(np.ascontiguousarray(xtx, np.float32), np.ascontiguousarray(index, np.int64), mean, h)
    else:
        by_panels(k, fill)
    if none.any():
        h[none] = 0
        h[:, none] = 0
    h[np.diag_indices_from(h)] += none + damping
    return h


def _factored_in_place(lower: np.ndarray) -> bool:
    """Replaces the lower triangle of H by that of L with L L^T = H. False: it is not positive definite."""
    from scipy.linalg import lapack  # in place, and twice as fast as NumPy's

    # LAPACK sees the transposed matrix: its upper triangle is this one's lower.
    _, info = (lapack.dpotrf if lower.dtype == np.float64 else lapack.spotrf)(lower.T, lower=0, clean=0, overwrite_a=1)
    diagonal = lower.diagonal()
    return not info and bool(np.isfinite(diagonal).all() and diagonal.min() > 0)
