"""Scales and offsets fitted again to codes that are there, on the objective of calibrated rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anybit.formats import Spec
from anybit.formats.learned import bound
from anybit.methods.columns import Columns
from anybit.methods.curvature import Curvature, check_options, curvature
from anybit.methods.first_level import first_levels
from anybit.methods.rtn import dequantize_parts
from anybit.methods.statistics import Statistics
from anybit.methods.step import STEPS, Correction, Parts, Target


@STEPS.register("refit")
@dataclass(frozen=True)
class Refit(Correction):
    """Each block's scale (and offset) moves to the least of e H e^T, all else as it is, and is stored again; block after block.

    The cost is a parabola in each, so the nearest stored value to its bottom is the best that can be stored, and no step makes it worse.
    Levels above the first stay. Codes stay. Learned values (kmeans) are fitted too, all of a table at once.
    """

    source: ClassVar[str] = "weighted least squares: s = (w H t) / (t H t) for w near s t, w less what the other blocks give"
    needs: ClassVar[frozenset[str]] = frozenset({"xtx"})
    sweeps: int = 2
    damp: float = 0.01

    def __post_init__(self) -> None:
        check_options(self.damp, "natural")

    def correct(self, target: Target, stats: Statistics) -> None:
        """See `Correction.correct`."""
        assert target.parts is not None
        found = curvature(stats, self.damp, "natural")
        if target.format.block is None or target.format.opened is not None:
            return  # opened integers keep the scales that they are stored with
        if found is None:
            target.hear(f"{stats.missing}: its scales stay")
            return
        target.hear(*found.notes)
        parts = dict(target.parts)
        for _ in range(self.sweeps):
            parts = table_refitted(target.weight, refitted(target.weight, parts, target.spec, found), target.spec, found)
        target.parts = parts


def refitted(w: np.ndarray, parts: Parts, spec: Spec, found: Curvature) -> Parts:
    """One sweep over the blocks of float32[n, k]; `found` in natural order. Rows that rounding errors would make worse stay."""
    fmt, (n, k) = bound(spec.format, parts), w.shape
    columns = Columns(parts, spec, (n, k))
    row, wide = columns.row, fmt.blocks[0].on((n, k))[1]
    kept, now = first_levels(parts, fmt, (n, k)), {"scale.0": columns.scale.astype(np.float64)}
    if columns.offset is not None:
        now["offset.0"] = columns.offset.astype(np.float64)
    units = columns.units(parts["codes"])
    h, error = found.matrix.astype(np.float32), w - dequantize_parts(parts, fmt, (n, k))
    before, starts = found.losses(error), np.flatnonzero(np.r_[True, row[1:] != row[:-1]])
    for block in range(len(columns.scale[0])):
        own = slice(block * wide, min((block + 1) * wide, k))
        pull, inside = error @ h[:, own], h[own, own]
        for part, stored in kept.items():
            basis = units[:, own] if part == "scale.0" else np.ones_like(units[:, own])
            across = basis @ inside
            slope = np.add.reduceat((pull * basis).sum(axis=1, dtype=np.float64), starts)
            bend = np.add.reduceat((across * basis).sum(axis=1, dtype=np.float64), starts)
            old = now[part][:, block]
            codes, number = stored.near(old + slope / np.where(bend > 0, bend, np.inf), block, part == "scale.0")
            step = number - old
            gain = step * (2 * slope - step * bend)
            taken = np.isfinite(gain) & (gain > 0)
            stored.codes[:, block] = np.where(taken, codes, stored.codes[:, block])
            step = np.where(taken, step, 0.0)
            now[part][:, block] = old + step
            moved = step.astype(np.float32)[row][:, None]
            error[:, own] -= moved * basis
            pull -= moved * across
    changed = {**parts, **{part: stored.codes for part, stored in kept.items()}}
    after = found.losses(w - dequantize_parts(changed, fmt, (n, k)))
    worse = np.add.reduceat(after, starts) > np.add.reduceat(before, starts)
    for part in kept:
        changed[part][worse] = parts[part][worse]
    return changed


def table_refitted(w: np.ndarray, parts: Parts, spec: Spec, found: Curvature) -> Parts:
    """The learned values of one number each that are least squares for the codes; the parts as they are where there are none, or no better.

    The values' equations are solved by conjugate gradients: one product with H for each of at most 2 * 16 steps, not k^2 numbers a value.
    """
    if not spec.format.element.learned or spec.format.element.dim > 1:
        return parts
    columns, codes, h = Columns(parts, spec, w.shape), parts["codes"].astype(np.int64), found.matrix.astype(np.float32)
    scale = columns.scale[columns.row][:, columns.column]
    error = w - dequantize_parts(parts, spec.format, w.shape)

    def fall(e: np.ndarray) -> np.ndarray:
        """float64[values]: what e H gives along each value."""
        return np.bincount(codes.reshape(-1), ((e @ h) * scale).reshape(-1), len(parts["table"]))

    rest = fall(error)
    step, way, size = np.zeros_like(rest), rest.copy(), float(rest @ rest)
    first = size
    for _ in range(min(len(rest), 16) * 2):
        if size <= 1e-10 * first:
            break
        bent = fall(way.astype(np.float32)[codes] * scale)
        curve = float(way @ bent)
        if not curve > 0:
            break
        step += size / curve * way
        rest -= size / curve * bent
        before, size = size, float(rest @ rest)
        way = rest + size / before * way
    table = (parts["table"] + step).astype(np.float32)
    changed = {**parts, "table": table}
    if not np.isfinite(table).all() or (table == table[0]).all():
        return parts
    after = found.losses(w - dequantize_parts(changed, spec.format, w.shape)).sum()
    return changed if after < found.losses(error).sum() else parts
