"""The product y = x w^T of the numerical contract, on logical (unpacked) weights.

Written from `docs/contract.md` alone; native kernels have to give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from anybit.errors import NonFiniteError, ShapeError
from anybit.reference.fma import F32, fma

I32 = npt.NDArray[np.int32]

LONGEST_ACT_BLOCK = 512
ACT_BLOCK = 128  # of weight blocks that are longer
LEAST_AMAX = np.float32(2.0**-120)


def weight_edges(k: int, block: int) -> list[int]:
    """Starts of the weight blocks along k, and k itself."""
    return [*range(0, k, block), k]


def act_edges(k: int, block: int) -> list[int]:
    """Starts of the activation blocks, and k: the weight's block if it is at most 512, else 128 counted from each weight block's start."""
    edges = weight_edges(k, block)
    if block <= LONGEST_ACT_BLOCK:
        return edges
    return [start for first, last in pairwise(edges) for start in range(first, last, ACT_BLOCK)] + [k]


def quantize_activations(x: F32, edges: Sequence[int], most: int = 127) -> tuple[npt.NDArray[np.int8], F32, I32]:
    """Dynamic int8 in blocks.

    Args: x float32[m, k]; edges: block starts and k; most: the largest code (7 for int4).
    Returns: q int8[m, k], s float32[m, blocks], sums of q int32[m, blocks].
    Raises NonFiniteError: x holds NaN or infinity.
    """
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise NonFiniteError(f"activation at row {row}, column {column} is {x[row, column]}")
    starts = np.asarray(edges[:-1])
    lengths = np.diff(np.asarray(edges))
    amax = np.maximum.reduceat(np.abs(x), starts, axis=1)
    small = amax < LEAST_AMAX
    safe = np.where(small, np.float32(1), amax)
    s = np.where(small, np.float32(0), amax * (np.float32(1) / np.float32(most)))
    r = np.where(small, np.float32(0), np.float32(most) / safe)
    with np.errstate(under="ignore"):
        q = np.rint(x * np.repeat(r, lengths, axis=1)).astype(np.int8)
    return q, s, np.add.reduceat(q.astype(np.int32), starts, axis=1, dtype=np.int32)


@dataclass(frozen=True)
class Operands:
    """Logical weights as the contract's formulas name them.

    t: int32[n, k], table integers, for act "int8"; None where the element has none.
    values: float32[n, k] for float activations: t itself where t is exact, else the element's value.
    sw, sw_float: float32[n, blocks], the folded scales for int8 and for float activations.
    block: length along k. zero: int32[n, blocks]. off, off_float: float32[n, blocks].
    levels, offsets, step, step_float: the factors before folding, for exact arithmetic.
    """

    t: I32 | None
    values: F32
    sw: F32
    sw_float: F32
    block: int
    zero: I32 | None = None
    off: F32 | None = None
    off_float: F32 | None = None
    levels: tuple[F32, ...] = ()
    offsets: tuple[F32, ...] = ()
    step: float = 1.0
    step_float: float = 1.0


def fold(factors: Sequence[F32]) -> F32:
    """fl(fl(f0 * f1) * f2) ..., first level first."""
    product = factors[0]
    for factor in factors[1:]:
        with np.errstate(under="ignore", over="ignore"):
            product = product * factor
    return product


def make_operands(
    t: I32 | None,
    values: F32,
    step: float,
    levels: Sequence[F32],
    block: int,
    *,
    exact: bool = True,
    zero: I32 | None = None,
    float_zero: F32 | None = None,
    offsets: Sequence[F32] = (),
) -> Operands:
    """Folds scales and offsets. `exact`: t * step are the values (kinds i8 and i16), so float activations use t and the step as well."""
    scale = fold(levels)
    stepped = scale * np.float32(step) if t is not None else scale
    exact = exact and t is not None
    plain = stepped if exact else scale
    off = off_float = fold(offsets) if offsets else None
    if float_zero is not None:
        if offsets or zero is not None:
            raise ShapeError("a float zero point takes the offset's place: give one of them")
        off, off_float = -(float_zero * stepped), -(float_zero * plain)
        offsets = (off,)
    for_float = t.astype(np.float32) if exact and t is not None else values
    factors = tuple(levels), tuple(offsets), float(step), float(step) if exact else 1.0
    return Operands(t, for_float, stepped, plain, block, zero, off, off_float, *factors)


def matmul_operands(x: F32, w: Operands, act: str | None = None, bias: F32 | None = None) -> F32:
    """y float32[m, n] for x float32[m, k] under the contract; act None (float activations) or "int8"."""
    y = _matmul_int8(x, w) if act == "int8" else _matmul_float(x, w)
    return y if bias is None else y + bias


def _matmul_int8(x: F32, w: Operands) -> F32:
    if w.t is None:
        raise ShapeError("int8 activations need an element with an integer table")
    k = x.shape[1]
    edges = act_edges(k, w.block)
    q, s, sums = quantize_activations(x, edges)
    q_wide, t_wide = q.astype(np.int64), w.t.astype(np.int64)
    acc = np.zeros((x.shape[0], w.t.shape[0]), np.float32)
    for a, (first, last) in enumerate(pairwise(edges)):
        b = first // w.block
        dot = q_wide[:, first:last] @ t_wide[:, first:last].T
        if w.zero is not None:
            dot = dot - w.zero[None, :, b].astype(np.int64) * sums[:, a, None]
        if np.abs(dot).max(initial=0) >= 2**31:
            raise OverflowError("a block's sum leaves int32: the contract forbids it")
        with np.errstate(under="ignore", over="ignore"):
            scale = s[:, a, None] * w.sw[None, :, b]
            acc = fma(dot.astype(np.float32), scale, acc)
            if w.off is not None:
                acc = fma(s[:, a, None] * sums[:, a, None].astype(np.float32), w.off[None, :, b], acc)
    return acc


Step = Callable[[F32, F32, F32], F32]
"""step(x, w, p): what the sum p of products becomes by one more product of x and w."""


def _matmul_float(x: F32, w: Operands, step: Step = fma) -> F32:
    (m, k), n, blocks = x.shape, w.values.shape[0], w.sw.shape[1]
    values = w.values
    if w.zero is not None:
        values = values - np.repeat(w.zero, w.block, axis=1)[:, :k].astype(np.float32)
    p = np.zeros((m, n, blocks), np.float32)
    sx = np.zeros((m, blocks), np.float32)
    for i in range(min(w.block, k)):
        columns = np.arange(i, k, w.block)  # the i-th column of every block that has one: all, or all but the last
        some = slice(0, len(columns))
        p[:, :, some] = step(x[:, None, columns], values[None, :, columns], p[:, :, some])
        sx[:, some] = sx[:, some] + x[:, columns]
    acc = np.zeros((m, n), np.float32)
    for b in range(blocks):
        acc = fma(p[:, :, b], w.sw_float[None, :, b], acc)
        if w.off_float is not None:
            acc = fma(sx[:, b, None], w.off_float[None, :, b], acc)
    return acc


def operands(parts: dict[str, Any], fmt: Any, shape: tuple[int, int]) -> Operands:
    """The operands of a quantized matrix from its logical parts (`codes`, `scale.0`, ..., `zero`, `offset.0`, ...)."""
    n, k = shape
    element = fmt.element
    if fmt.block is None or element.bits > 8:
        values = dequantize(parts, fmt, shape)
        return make_operands(None, values, 1.0, [np.ones((n, 1), np.float32)], k)
    table, codes = element.table, parts["codes"]
    levels, offsets, zero = scales(parts, fmt, shape)
    whole = zero is not None and _is_integer(fmt.zero)
    t = table.ints[codes].astype(np.int32) if table.ints is not None else None
    return make_operands(
        t,
        table.values[codes],
        table.step,
        levels,
        extent(fmt.block, shape)[1],
        exact=table.kind in ("i8", "i16"),
        zero=zero.astype(np.int32) if zero is not None and whole else None,
        float_zero=None if whole else zero,
        offsets=offsets,
    )


def scales(parts: dict[str, Any], fmt: Any, shape: tuple[int, int]) -> tuple[list[F32], list[F32], F32 | None]:
    """Scales of each level, offsets of each level, zero points: decoded, float32[n, first-level blocks along k]."""
    n, k = shape
    starts = np.asarray(weight_edges(k, extent(fmt.block, shape)[1])[:-1])

    def spread(part: str, element: Any, grid: Any) -> F32:
        height, width = extent(grid, shape)
        values = element.decode(parts[part]).astype(np.float32).reshape(-(-n // height), -(-k // width))
        return values[np.arange(n)[:, None] // height, starts[None, :] // width]

    grids = [fmt.block, *(level.block for level in fmt.levels[:-1])]
    levels = [spread(f"scale.{i}", level.element, grid) for i, (level, grid) in enumerate(zip(fmt.levels, grids, strict=True))]
    offsets = [spread(f"offset.{i}", fmt.offset_element(i), grid) for i, grid in enumerate(grids)] if fmt.offset else []
    return levels, offsets, spread("zero", fmt.zero, fmt.block) if fmt.zero is not None else None


def dequantize(parts: dict[str, Any], fmt: Any, shape: tuple[int, int]) -> F32:
    """float32[n, k]: fl(fl(v - z) * s) for whole z, then + m; a float zero point is m = -fl(z * s). s, m: folded levels."""
    values = fmt.element.decode(parts["codes"]).astype(np.float32)
    if fmt.block is None:
        return values

    def wide(per_block: F32) -> F32:
        return np.repeat(per_block, extent(fmt.block, shape)[1], axis=1)[:, : shape[1]]

    levels, offsets, zero = scales(parts, fmt, shape)
    scale = fold(levels)
    offset = fold(offsets) if offsets else None
    if zero is not None and _is_integer(fmt.zero):
        values = values - wide(zero)
    elif zero is not None:
        offset = -(zero * scale)
    with np.errstate(all="ignore"):
        values = values * wide(scale)
        return values if offset is None else values + wide(offset)


def _is_integer(element: Any) -> bool:
    """Whether zero points of this element are taken off the integer dot: whole numbers that fit a byte, signed or not."""
    if element.bits > 8 or not np.array_equal(element.values, np.rint(element.values)):
        return False
    low, high = element.values.min(), element.values.max()
    return bool((low >= -128 and high <= 127) or (low >= 0 and high <= 255))


def extent(block: Any, shape: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns that one entry of a block grid covers, in a matrix of this shape."""
    if block.kind == "tensor":
        return shape
    sizes = (1, 1, *block.sizes)[-2:]
    rows, columns = (axis if size is None else min(size, axis) for size, axis in zip(sizes, shape, strict=True))
    return rows, columns


def matmul(x: F32, parts: dict[str, Any], fmt: Any, shape: tuple[int, int], act: str | None = None, bias: F32 | None = None) -> F32:
    """x float32[m, k] times the quantized w[n, k] of these logical parts, transposed: float32[m, n]. act: None or "int8"."""
    return matmul_operands(x, operands(parts, fmt, shape), act, bias)
