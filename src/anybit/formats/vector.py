"""Vector: an element whose codes stand for 2, 4 or 8 neighbouring weights: pairs, lattices, grids of vectors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from anybit.errors import FormatError, ShapeError
from anybit.formats.element import Element, as_real, raise_non_finite

SIZES = (2, 4, 8)
_ENTRIES = 1 << 21
"""Scores of groups against vectors that are held at a time: 16 MB."""
FAR = 2.0**40
"""Times the largest number of its vectors: numbers further out are taken for this."""


def cut_reason(element: Element, shape: tuple[int, ...]) -> str | None:
    """Why an array of this shape has no codes of this element: rows that its groups do not fill. None: it has."""
    k, dim = shape[-1], element.dim
    if k % dim == 0:
        return None
    return f"rows of {k} are no multiple of the {dim} weights that {element} codes together; pad them to {-(-k // dim) * dim}"


def codes_shape(element: Element, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an array's codes: one for `dim` weights of the last axis. ShapeError: the axis is no multiple of it."""
    reason = cut_reason(element, shape)
    if reason is not None:
        raise ShapeError(reason)
    return (*shape[:-1], shape[-1] // element.dim)


@dataclass(frozen=True)
class Vector(Element):
    """A code stands for `weights` neighbouring numbers of the last axis; `decode` appends an axis of that length.

    `finite`, `max`, `min`, `smallest` and `has_zero` are about the single numbers in these vectors. Encoding takes the vector with the
    least squared error, of equally near ones the smallest code; errors are compared as float64 sums of v * x - v * v / 2 in ascending
    order. There is no other rounding, nothing is out of range (`over=saturate`), and no number is special. A subclass defines `decode` and
    may override `_nearest` where it knows a shorter way.
    """

    weights: int

    @property
    def dim(self) -> int:
        return self.weights

    @property
    def fields(self) -> dict[str, Any]:
        return {"family": "listed", "bits": self.bits, "dim": self.dim, "values": self.values.tolist()}

    @cached_property
    def values(self) -> np.ndarray:
        """float64[2**bits, dim], index = code, read-only. FormatError: more than 16 bits, or vectors that are not finite."""
        if self.bits > 16:
            raise FormatError(f"{self.name} has 2**{self.bits} codes; values are listed up to 16 bits")
        values = np.asarray(self.decode(np.arange(1 << self.bits)), dtype=np.float64)
        if values.shape != (1 << self.bits, self.dim) or not np.isfinite(values).all():
            raise FormatError(f"{self.name} must decode to {self.dim} finite numbers a code")
        values.flags.writeable = False
        return values

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        finite = np.unique(self.values) + 0.0
        finite.flags.writeable = False
        return finite, np.empty(0, self.code_dtype)

    @cached_property
    def typical(self) -> float:
        """The root of the mean square of all numbers of all vectors."""
        return float(np.sqrt(np.square(self.values).mean()))

    @property
    def specials(self) -> dict[str, int]:
        return {}

    def encode(
        self, x: Any, round: str = "nearest-even", over: str = "saturate", nonfinite: str = "error", seed: int = 0
    ) -> np.ndarray:
        """Codes [..., k / dim] of x [..., k]: of each group of `dim` numbers the nearest vector. Arguments and errors as `Element.encode`.

        ShapeError too: k is no multiple of dim. nonfinite=saturate: NaN counts as 0, an infinity as very large.
        """
        array = as_real(x)
        if array.ndim == 0:
            raise ShapeError(f"{self.name} codes {self.dim} numbers together, not a single one")
        codes_shape(self, array.shape)
        self.check_policy(round, over, nonfinite)
        bad = ~np.isfinite(array)
        if bad.any():
            if nonfinite == "error":
                raise_non_finite(bad, array, "array")
            array = np.where(np.isnan(array), array.dtype.type(0), array)
        return self._codes(array, round, over)

    def check_policy(self, round: str, over: str, nonfinite: str) -> None:
        """Raises FormatError for an unknown policy, and for all but round=nearest-even, over=saturate, nonfinite=error or saturate."""
        super().check_policy(round, over, nonfinite)
        for what, name, only in (("round", round, "nearest-even"), ("over", over, "saturate")):
            if name != only:
                raise FormatError(f"{what}={name}: {self.name} takes the nearest vector of {self.dim} weights; leave {what}={only}")

    def _codes(self, x: np.ndarray, round: str, over: str) -> np.ndarray:
        groups = x.reshape(-1, self.dim)
        out = np.empty(len(groups), self.code_dtype)
        limit = FAR * max(self.max, -self.min)
        step = 1 << 15
        for start in range(0, len(groups), step):
            # Further out the direction decides alone, and infinities have none.
            part = np.clip(groups[start : start + step].astype(np.float64), -limit, limit)
            out[start : start + step] = self._nearest(part)
        return out.reshape(*x.shape[:-1], x.shape[-1] // self.dim)

    def _nearest(self, groups: np.ndarray) -> np.ndarray:
        """The codes of finite float64 [m, dim]."""
        return nearest(self.values, groups)


def half_norms(vectors: np.ndarray) -> np.ndarray:
    """float64[count]: v * v / 2, summed in ascending order."""
    total = np.zeros(vectors.shape[:-1])
    for i in range(vectors.shape[-1]):
        total += vectors[..., i] * vectors[..., i]
    return total / 2


def scores(vectors: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """float64: v * x - v * v / 2 of vectors and groups that broadcast, the larger the nearer; ascending sums, so the same everywhere."""
    total = np.zeros(np.broadcast_shapes(vectors.shape[:-1], groups.shape[:-1]))
    for i in range(vectors.shape[-1]):
        total += vectors[..., i] * groups[..., i]
    return total - half_norms(vectors)


def nearest(vectors: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """int64[m]: index of the vector (float64[count, dim]) nearest to each group (finite float64[m, dim]); the first of equally near ones.

    A matrix product finds the candidates within its own rounding error, whose order BLAS may choose; `scores` decides between them.
    Cost: 2 m count dim operations.
    """
    out = np.empty(len(groups), np.int64)
    half, dim = half_norms(vectors), vectors.shape[1]
    largest, step = float(np.abs(vectors).max()), max(1, _ENTRIES // len(vectors))
    for start in range(0, len(groups), step):
        part = groups[start : start + step]
        found = part @ vectors.T
        found -= half
        best = found.max(axis=1)
        # dim products and dim additions, each rounded by 2^-53 of at most this sum; twice that lies between two scores.
        slack = (np.abs(part).sum(axis=1) * largest + dim * largest * largest) * (4 * (dim + 2) * 2.0**-53)
        close = found >= (best - slack)[:, None]
        out[start : start + step] = close.argmax(axis=1)
        unsure = np.flatnonzero(np.count_nonzero(close, axis=1) > 1)
        if unsure.size:
            row, index = np.nonzero(close[unsure])
            exact = scores(vectors[index], part[unsure[row]])
            first = np.searchsorted(row, np.arange(len(unsure)))
            top = np.maximum.reduceat(exact, first)
            index = np.where(exact == top[row], index, len(vectors))
            out[start + unsure] = np.minimum.reduceat(index, first)
    return out
