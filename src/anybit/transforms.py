"""Transform: what is done to a linear layer's input (or output) around its weight, and how it is folded into the weight beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from anybit.errors import NonFiniteError, ShapeError
from anybit.formats.stochastic import SEEDS, words
from anybit.kernels.cpu import native
from anybit.kernels.weights import float_weight

KINDS = ("scale", "shift", "permute", "hadamard", "rotate")


@dataclass(frozen=True, eq=False)
class Transform:
    """One step on the input's last axis, of length k (docs/contract.md has the order of its arithmetic). kind:

    scale     x * data, float32[k]
    shift     x + data, float32[k]
    permute   x[data], int64[k], a permutation
    hadamard  blocks of `block` (a power of two that divides k) times the Hadamard matrix over sqrt(block), after signs: data, float32[k] of
              1 and -1, or drawn from `seed`, or none
    rotate    blocks of `block` times an orthogonal matrix: data, float32[block, block], or float32[k / block, block, block], one each

    Equal transforms (by what they do) are equal, and layers with equal ones share their transformed input.
    """

    kind: str
    block: int | None = None
    data: np.ndarray | None = None
    seed: int | None = None

    @cached_property
    def key(self) -> tuple[object, ...]:
        """What makes it equal to another."""
        data = self.data
        held = None if data is None else (data.dtype.str, data.shape, sha256(np.ascontiguousarray(data).tobytes()).hexdigest())
        return self.kind, self.block, self.seed, held

    def __eq__(self, other: object) -> bool:
        return self.key == other.key if isinstance(other, Transform) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.key)

    def check(self, k: int) -> None:
        """ShapeError: it is no transform of k numbers."""
        reason = self._wrong(k)
        if reason is not None:
            raise ShapeError(f"transform '{self.kind}' of {k} numbers: {reason}")

    def _wrong(self, k: int) -> str | None:
        block, data = self.block, self.data
        if self.kind not in KINDS:
            return f"it is none of {', '.join(KINDS)}"
        if (block is not None) != (self.kind in ("hadamard", "rotate")):
            return "hadamard and rotate need a block, and nothing else has one"
        if block is not None and (not isinstance(block, int) or block < 1 or k % block):
            return f"block={block} does not divide it"
        if self.kind == "hadamard":
            assert block is not None
            if block & (block - 1):
                return f"block={block} is no power of two; use rotate with a matrix of that size"
            if data is not None and self.seed is not None:
                return "signs are given or drawn from a seed, not both"
            if self.seed is not None and not 0 <= self.seed < SEEDS:
                return f"seed={self.seed} is not from 0 to 2^64 - 1"
            if data is None:
                return None
        elif self.seed is not None:
            return "a seed is for hadamard's signs"
        if data is None:
            return "it needs data"
        if self.kind == "permute":
            good = data.dtype == np.int64 and data.shape == (k,)
            return None if good and np.array_equal(np.sort(data), np.arange(k)) else f"data must be a permutation, int64[{k}]"
        shapes: tuple[tuple[int, ...], ...] = ((k,),)
        if self.kind == "rotate":
            assert block is not None
            shapes = ((block, block), (k // block, block, block))
        if data.dtype != np.float32 or data.shape not in shapes:
            return f"data must be float32 of shape {' or '.join(str(list(s)) for s in shapes)}, not {data.dtype}{list(data.shape)}"
        if self.kind == "hadamard" and not np.array_equal(np.abs(data), np.ones(k)):
            return "signs must be 1 and -1"
        return None if np.isfinite(data).all() else "data must be finite"

    def signs(self, k: int) -> np.ndarray | None:
        """float32[k] of hadamard's signs: -1 where the top bit of a place's Philox word is set. None: it has none."""
        if self.seed is None:
            return self.data
        return np.where(words(self.seed, 0, k) >> np.uint32(31), np.float32(-1), np.float32(1))

    def step(self, k: int) -> tuple[str, Any, int]:
        """What the native module takes. ShapeError: see `check`."""
        self.check(k)
        if self.kind == "rotate":
            assert self.data is not None and self.block is not None
            matrices = self.data.reshape(-1, self.block, self.block)
            return self.kind, [float_weight(np.ascontiguousarray(matrix.T)) for matrix in matrices], self.block
        data = self.signs(k) if self.kind == "hadamard" else self.data
        return self.kind, None if data is None else np.ascontiguousarray(data), self.block or 0

    def fold(self, w: np.ndarray) -> np.ndarray:
        """float64[n, k] that gives on the transformed input what w [n, k] gave on the input; of a shift: w itself (see `fold`)."""
        w = np.asarray(w, np.float64)
        n, k = w.shape
        self.check(k)
        if self.kind == "scale":
            assert self.data is not None
            if not self.data.all():
                raise ShapeError("transform 'scale': a factor is 0, which no weight can undo")
            return w / self.data
        if self.kind == "permute":
            assert self.data is not None
            return np.ascontiguousarray(w[:, self.data])
        if self.kind == "hadamard":
            assert self.block is not None
            signs = self.signs(k)
            return _hadamard(w if signs is None else w * signs, self.block)
        if self.kind == "rotate":
            assert self.data is not None and self.block is not None
            matrices = np.broadcast_to(self.data.astype(np.float64), (k // self.block, self.block, self.block))
            return np.einsum("nbi,bij->nbj", w.reshape(n, -1, self.block), matrices).reshape(n, k)
        return w


def _hadamard(w: np.ndarray, block: int) -> np.ndarray:
    x = w.reshape(-1, block)
    h = 1
    while h < block:
        pairs = x.reshape(-1, block // (2 * h), 2, h)
        x = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2).reshape(-1, block)
        h *= 2
    return (x / np.sqrt(block)).reshape(w.shape)


_STEPS: WeakValueDictionary[tuple[object, ...], Any] = WeakValueDictionary()


def native_steps(transforms: Sequence[Transform], k: int) -> Any:
    """The native steps of some transforms of k numbers, one object for equal ones; None: there are none."""
    if not transforms:
        return None
    key = (tuple(transforms), k)
    found = _STEPS.get(key)
    if found is None:
        found = _STEPS[key] = native.Steps(k, [transform.step(k) for transform in transforms])
    return found


def apply(transforms: Sequence[Transform], x: Any) -> np.ndarray:
    """float32[..., k] through some transforms, with the bits that a layer gives them.

    Raises: ShapeError: they do not fit k. NonFiniteError: a number is not finite where a rotation begins.

    >>> apply([Transform("hadamard", block=2)], np.float32([[3, 1]])).round(3).tolist()
    [[2.828000068664551, 1.4140000343322754]]
    """
    array = np.asarray(x, np.float32)
    rows = np.ascontiguousarray(array).reshape(-1, array.shape[-1])
    steps = native_steps(transforms, rows.shape[1])
    out = rows.copy() if steps is None else steps.apply(rows)
    if out is None:
        raise NonFiniteError("a number is not finite where a rotation begins")
    return np.asarray(out).reshape(array.shape)


def fold(transforms: Sequence[Transform], w: Any, bias: Any = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Weight and bias for the transformed input: float32[n, k] and float32[n] (None if there was none and no shift makes one).

    transforms(x) w'^T + bias' is x w^T + bias but for rounding. Computed in float64. ShapeError: one that does not fit, a zero scale.
    """
    held = np.asarray(w, np.float64)
    added = None if bias is None else np.asarray(bias, np.float64)
    for transform in transforms:
        held = transform.fold(held)
        if transform.kind == "shift":
            added = (0 if added is None else added) - held @ np.asarray(transform.data, np.float64)
    return held.astype(np.float32), None if added is None else np.asarray(added).astype(np.float32)
