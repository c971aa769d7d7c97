"""A layer's input as its weight will see it: transformed, some columns cleared, rounded to the activations' format."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anybit.activations import ActSpec
from anybit.errors import NonFiniteError
from anybit.formats import Format
from anybit.kernels.cpu import native
from anybit.methods.step import Added, Group, Pre
from anybit.transforms import apply

LONGEST, BLOCK, LEAST = 512, 128, np.float32(2.0**-120)  # int8 activations, docs/contract.md


def transformed(pre: Sequence[Pre], x: np.ndarray) -> np.ndarray:
    """float32[..., k] after the transforms that run on a group's input, in order."""
    return apply([step.transform for step in pre], x) if pre else x


def cleared(group: Group) -> np.ndarray:
    """int64: channels of a group's input that its main weights see as +0, because a branch has them."""
    found = [added.index for added in group.targets[0].added if added.kind == "columns" and added.index is not None]
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)


def clear(x: np.ndarray, index: np.ndarray) -> np.ndarray:
    """x with +0 in some channels; x itself where there are none."""
    if not index.size:
        return x
    x = x.copy()
    x[..., index] = 0
    return x


def round_activations(x: np.ndarray, act: str | None, fmt: Format, scale: float | None = None) -> np.ndarray:
    """float32[t, k] in the activations' format and back, each token by itself, as the layer of a weight in `fmt` does. None: x."""
    spec = ActSpec.named(act, scale)
    if spec is None:
        return x
    if spec.kernel_name is None:
        found = native.round_tokens(spec.rounding(), np.ascontiguousarray(x, np.float32))
        if isinstance(found, int):
            raise NonFiniteError(f"an activation of token {found} is not finite, or does not fit {act}")
        return np.asarray(found)
    most = np.float32(127 if spec.kernel_name == "int8" else 7)
    if scale is not None:
        return np.rint(np.clip(x * (np.float32(1) / np.float32(scale)), -most, most)) * np.float32(scale)
    k = x.shape[-1]
    size = fmt.block.size if fmt.block is not None else None
    outer = min(size or k, k)
    edges = [i for start in range(0, k, outer) for i in range(start, min(start + outer, k), outer if outer <= LONGEST else BLOCK)]
    lengths = np.diff([*edges, k])
    amax = np.maximum.reduceat(np.abs(x), edges, axis=1)
    step = np.where(amax < LEAST, 0, amax * (1 / most))
    codes = np.rint(x * np.repeat(np.where(amax < LEAST, 0, most / np.maximum(amax, LEAST)), lengths, axis=1))
    return np.asarray(codes * np.repeat(step, lengths, axis=1), np.float32)


def branch(added: Added, whole: np.ndarray, ready: np.ndarray, group: Group, fmt: Format) -> np.ndarray:
    """What a branch adds to a weight in `fmt`: `whole` is the input before it was rounded, `ready` what the matrix read."""
    if added.kind == "low_rank":
        assert added.b is not None
        return whole @ added.a.T @ added.b.T
    assert added.index is not None
    if added.kind == "columns":
        return whole[..., added.index] @ added.a.T
    left = np.ascontiguousarray((whole - ready)[..., added.index])  # residual
    return round_activations(left, group.act, Format(added.format.split("+")[0])) @ added.a.T
