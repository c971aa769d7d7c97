"""GPTQ where weight and statistics lie: torch tensors, any element of one weight a code, any blocks.

The same steps as `methods/gptq.py`: scales by the rule and fixed, columns in order of their inputs' squares, each column's error made up
for by later ones; rows that nearest codes serve better keep them. Within a block of columns sums have the order of the host's loop. The
Cholesky factor and the products between blocks are the library's own: their sums have another order there than in the host's BLAS (and
another on every GPU), so a target that lies between two codes to float32's last bits may go to the other one, and what follows in its row
with it. Products are float32's where the library is left at that (torch's `allow_tf32` and its like make them coarser).
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from anybit.device import finite_codes, numbers_of, values_on_device
from anybit.device_arrays import Arrays, arrays_of
from anybit.device_blocks import quantize_on_device
from anybit.errors import FormatError
from anybit.formats import Spec
from anybit.methods.columns import Columns, plain
from anybit.methods.gptq_array import check_xtx, importance_of
from anybit.methods.method import Parts

_LARGEST = float(np.finfo(np.float32).max)
_BLOCK, _DAMP = 128, 0.01
_DOUBLE = 8192
"""Channels up to which the factor is computed in float64, as on the host."""


def gptq_on_device(w: Any, spec: Spec, xtx: Any, name: str = "array") -> Parts:
    """The logical parts (NumPy arrays; codes of nested integers are opened) of a matrix [n, k] on a device; xtx [k, k] of any kind.

    Warns where damping had to be raised, or nearest codes were all that the statistics allow. Raises: as `methods.gptq_array.gptq`;
    FormatError: an element that codes several weights together, or whatever `device_blocks.quantize_on_device` refuses.
    """
    ops, own = arrays_of(w), Spec(plain(spec.format), spec.policy)
    check_xtx(w, xtx, name)
    if ops.library != "torch":  # which compiles each of the loop's many shapes
        raise FormatError(f"gptq takes torch tensors and NumPy arrays, not arrays on {ops.place(w)} of {ops.library}; move them to the CPU")
    if own.format.element.dim > 1:
        raise FormatError(f"on {ops.place(w)} gptq of {own.format.element}, which codes several weights together, is not there;"
                          " move the array to the CPU")  # fmt: skip
    with ops.scope():
        h = ops.moved(xtx, w)
        diagonal = ops.host(ops.cast(h.diagonal(), "float64"))
        parts = quantize_on_device(w, own, name, importance_of(diagonal, own))
        columns = Columns(parts, own, (w.shape[0], w.shape[1]))
        columns.check()
        weight = ops.cast(numbers_of(ops, w), "float32")
        found = _factor(ops, h, diagonal, name) if bool(ops.isfinite(weight).all()) else None
        if found is not None:
            parts["codes"] = _fed_back(ops, weight, columns, parts["codes"], *found)
    return parts if spec.format.opened is None else {**parts, "codes": spec.format.cut(parts["codes"])}


def _factor(ops: Arrays, xtx: Any, diagonal: np.ndarray, name: str) -> tuple[Any, np.ndarray] | None:
    """R, upper triangular with R R^T = H, and the order int64[k] of its channels: `methods.curvature.curvature` on a device."""
    mean = float(diagonal.mean())
    if not np.isfinite(mean) or mean <= 0 or not bool(ops.isfinite(xtx).all()):
        warnings.warn(f"{name}: its statistics are zero or not finite: rounded to nearest", RuntimeWarning, stacklevel=4)
        return None
    dead = diagonal <= 0
    order = np.argsort(-np.where(dead, 0, diagonal), kind="stable")
    back = ops.table(order[::-1].astype(np.int64), ops.place(xtx))
    h = ops.cast(xtx[back][:, back], "float64" if len(order) <= _DOUBLE else "float32") / mean
    none = ops.table(dead[order[::-1]].astype(np.float64), ops.place(xtx))
    if dead.any():
        h = h * (1 - none)[:, None] * (1 - none)[None, :] + ops.xp.diag(none)
    damp = _DAMP
    while damp <= 10:
        lower = ops.cholesky(h + ops.xp.diag(none * 0 + damp))
        if lower is not None:
            if damp > _DAMP:
                note = f"{name}: damping was raised from {_DAMP:g} to {damp:g}: its statistics are singular"
                warnings.warn(note, RuntimeWarning, stacklevel=4)
            return ops.xp.flip(lower, (0, 1)), order
        damp *= 10
    warnings.warn(f"{name}: its statistics have no factor at any damping: rounded to nearest", RuntimeWarning, stacklevel=4)
    return None


class _Grid:
    """Codes and values of columns over stored grids: `methods.columns.Columns.choose` on a device."""

    def __init__(self, ops: Arrays, columns: Columns, place: str) -> None:
        self.ops, self.columns, self.element = ops, columns, columns.element

        def spread(grid: np.ndarray | None) -> Any:
            """[blocks along a row, n]."""
            return None if grid is None else ops.table(np.ascontiguousarray(grid[columns.row].T), place)

        self.scale, self.zero, self.offset = spread(columns.scale), spread(columns.zero), spread(columns.offset)
        self.divisor = ops.where(self.scale == 0, float("inf"), self.scale)
        whole = columns.format.whole_zero
        if self.zero is not None and not whole:
            self.moved = self.zero * self.scale
        self.whole = whole

    def codes(self, block: Any, x: Any) -> Any:
        """int64 codes of targets float32 in one column ([n], `block` its number) or several ([c, n], [c])."""
        ops = self.ops
        if self.offset is not None:
            x = x - self.offset[block]
        ratio = x / self.divisor[block]
        if self.columns.symmetric is not None:
            ratio = ratio.clip(-self.columns.symmetric, self.columns.symmetric)
        if self.zero is not None:
            ratio = (ops.xp.round(ratio) if self.whole else ratio) + self.zero[block]
        return finite_codes(ops, ratio.clip(-_LARGEST, _LARGEST), self.element, self.columns.spec.policy.round, "saturate")

    def values(self, block: Any, codes: Any) -> Any:
        """float32: what codes mean there."""
        value = self.ops.cast(values_on_device(self.ops, codes, self.element), "float32")
        if self.zero is not None and self.whole:
            return (value - self.zero[block]) * self.scale[block]
        value = value * self.scale[block]
        if self.zero is not None:
            return value - self.moved[block]
        return value if self.offset is None else value + self.offset[block]


def _fed_back(ops: Arrays, weight: Any, columns: Columns, nearest: np.ndarray, factor: Any, order: np.ndarray) -> np.ndarray:
    """Codes [n, k] by the loop, in rows that lose more by them the nearest ones. Arrays lie column by column in the order of rounding."""
    place, k = ops.place(weight), len(order)
    grid, index = _Grid(ops, columns, place), ops.table(order.astype(np.int64), place)
    w = weight.T[index]
    held = ops.table(np.ascontiguousarray(nearest[:, order].T), place)
    diagonal = factor.diagonal()
    coupling = ops.cast(factor / diagonal, "float32")
    cost, narrow = ops.cast(diagonal * diagonal, "float32"), ops.cast(factor, "float32")
    error, plain_error = w * 0, w * 0
    lost = ops.cast(w[0] * 0, "float64")
    chosen = []
    for start in range(0, k, _BLOCK):
        own = slice(start, min(start + _BLOCK, k))
        base = w[own] + coupling[:start, own].T @ error[:start] if start else w[own] + 0.0
        inside, moved, errors = coupling[own, own], [], []
        for i in range(own.stop - own.start):
            block = int(columns.column[order[start + i]])
            x = base[i]
            codes = grid.codes(block, x)
            e = w[start + i] - grid.values(block, codes)
            chosen.append(ops.cast(codes, "int32"))
            moved.append(x)
            errors.append(e)
            later = (slice(i + 1, None),)
            base = ops.replaced(base, later, base[later] + e * inside[i, i + 1 :, None])
        made = ops.stack(errors).T
        error = ops.replaced(error, (own,), made)
        miss = ops.stack(moved).T - w[own] + made
        lost = lost + ops.cast((cost[own, None] * (miss * miss)).sum(0), "float64")
        blocks = ops.table(columns.column[order[own]].astype(np.int64), place)
        plain_error = ops.replaced(plain_error, (own,), w[own] - grid.values(blocks, ops.cast(held[own], "int64")))
    terms = narrow.T @ plain_error
    better = ops.cast(terms * terms, "float64").sum(0) > lost
    found = ops.where(better[None, :], ops.stack(chosen).T, ops.cast(held, "int32"))
    out = np.empty_like(nearest)
    out[:, order] = ops.host(found).T
    return out
