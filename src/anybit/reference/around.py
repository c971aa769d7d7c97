"""What runs around a product: transforms, int8 codes with a given scale, branches. Written from `docs/contract.md`, one operation a line.

Rounding an input to a format is `anybit.reference.blocks.quantize` of each token by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from anybit.reference.fma import F32, fma
from anybit.reference.linear import Operands, act_edges, matmul_operands, quantize_activations
from anybit.reference.philox import philox

Index = npt.NDArray[np.int64]


def scale(x: F32, data: F32) -> F32:
    """fl(x * data)."""
    return x * data


def shift(x: F32, data: F32) -> F32:
    """fl(x + data)."""
    return x + data


def permute(x: F32, data: Index) -> F32:
    """x[..., data]."""
    return np.ascontiguousarray(x[..., data])


def signs(seed: int, k: int) -> F32:
    """-1 where the top bit of word i mod 4 of Philox counter i // 4 is set, else 1."""
    counters = [[i & 0xFFFFFFFF, i >> 32, 0, 0] for i in range(-(-k // 4))]
    top = philox(counters, [seed & 0xFFFFFFFF, seed >> 32]).reshape(-1)[:k] >> np.uint32(31)
    return np.where(top == 1, np.float32(-1), np.float32(1))


def hadamard(x: F32, block: int) -> F32:
    """Stages h = 1, 2, 4 ... below block: numbers i and i + h of each run of 2 h become fl(a + b), fl(a - b). Last, times
    fl(1 / fl(sqrt(block)))."""
    out = x.reshape(-1, block).copy()
    h = 1
    while h < block:
        for i in range(block):
            if i & h == 0:
                a, b = out[:, i].copy(), out[:, i + h].copy()
                out[:, i], out[:, i + h] = a + b, a - b
        h *= 2
    return (out * (np.float32(1) / np.sqrt(np.float32(block)))).reshape(x.shape)


def rotate(x: F32, data: F32) -> F32:
    """Each block's y[j] = sum over i ascending of fma(x[i], data[i, j], y[j]) from +0; data [b, b], or [blocks, b, b]."""
    block = data.shape[-1]
    rows = x.reshape(*x.shape[:-1], -1, block)
    matrices = np.broadcast_to(data, (rows.shape[-2], block, block))
    out = np.zeros(rows.shape, np.float32)
    for i in range(block):
        out = fma(rows[..., i, None], matrices[:, i, :], out)
    return (out + np.float32(0)).reshape(x.shape)


def quantize_fixed(x: F32, edges: Sequence[int], given: float) -> tuple[npt.NDArray[np.int8], F32, npt.NDArray[np.int32]]:
    """Codes rne(min(127, max(-127, fl(x * fl(1 / given))))) of x [m, k]; as `quantize_activations` otherwise."""
    r = np.float32(1) / np.float32(given)
    with np.errstate(over="ignore"):
        q = np.rint(np.clip(x * r, np.float32(-127), np.float32(127))).astype(np.int8)
    starts = np.asarray(edges[:-1])
    return q, np.full((len(x), len(starts)), given, np.float32), np.add.reduceat(q.astype(np.int32), starts, axis=1, dtype=np.int32)


def matmul_fixed(x: F32, w: Operands, given: float) -> F32:
    """The product of int8 activations with one scale that was given: that of dynamic ones but for codes and scales."""
    assert w.t is not None
    edges = act_edges(x.shape[1], w.block)
    q, s, sums = quantize_fixed(x, edges, given)
    acc = np.zeros((len(x), w.t.shape[0]), np.float32)
    for a, (first, last) in enumerate(pairwise(edges)):
        b = first // w.block
        dot = q[:, first:last].astype(np.int64) @ w.t[:, first:last].astype(np.int64).T
        if w.zero is not None:
            dot = dot - w.zero[None, :, b].astype(np.int64) * sums[:, a, None]
        acc = fma(dot.astype(np.float32), s[:, a, None] * w.sw[None, :, b], acc)
        if w.off is not None:
            acc = fma(s[:, a, None] * sums[:, a, None].astype(np.float32), w.off[None, :, b], acc)
    return acc


Rounded = Callable[[F32], F32]
"""float32[m, k] to the values of a format, each row by itself."""


def left_over(x: F32, index: Index, w: Operands, act: str | Rounded, given: float | None) -> F32:
    """fl(x - Q(x)) of some columns; Q(x) of int8 codes is fl(s * q)."""
    if callable(act):
        return (x - act(x))[:, index]
    edges = act_edges(x.shape[1], w.block)
    q, s, _ = quantize_activations(x, edges) if given is None else quantize_fixed(x, edges, given)
    values = np.repeat(s, np.diff(np.asarray(edges)), axis=1) * q.astype(np.float32)
    return (x - values)[:, index]


def linear(
    x: F32, w: Operands, act: str | Rounded | None = None, given: float | None = None, branches: Sequence[dict[str, Any]] = (),
    bias: F32 | None = None,
) -> F32:  # fmt: skip
    """y float32[m, n] of transformed x float32[m, k].

    Args: act, None, "int8", or a rounding; given, the one scale of int8 activations; branches, each with a `kind`, the operands `a` (and
        `b`), and `index`.
    """
    seen = x.copy()
    for branch in branches:
        if branch["kind"] == "columns":
            seen[:, branch["index"]] = 0
    if callable(act):
        y = matmul_operands(act(seen), w)
    else:
        y = matmul_operands(seen, w, act) if given is None else matmul_fixed(seen, w, given)
    for branch in branches:
        kind, a = branch["kind"], branch["a"]
        if kind == "low_rank":
            added = matmul_operands(matmul_operands(x, a), branch["b"])
        elif kind == "columns":
            added = matmul_operands(np.ascontiguousarray(x[:, branch["index"]]), a)
        else:
            assert act is not None
            left = np.ascontiguousarray(left_over(seen, branch["index"], w, act, given))
            added = matmul_operands(act(left), a) if callable(act) else matmul_operands(left, a, act)
        y = y + added
    return y if bias is None else y + bias
