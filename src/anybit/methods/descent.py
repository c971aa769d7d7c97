"""Codes and scales improved in turns after any rounding: cyclic coordinate descent on the objective of calibrated rounding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from anybit.formats import Spec
from anybit.methods.columns import Columns
from anybit.methods.curvature import Curvature, check_options, curvature
from anybit.methods.feedback import Feedback
from anybit.methods.gptq import better, exact
from anybit.methods.panels import by_panels
from anybit.methods.refit import refitted, table_refitted
from anybit.methods.rtn import dequantize_parts
from anybit.methods.statistics import Statistics
from anybit.methods.step import STEPS, Correction, Parts, Target


@STEPS.register("descent")
@dataclass(frozen=True)
class Descent(Correction):
    """Each code in turn becomes the best, all others as they are: the nearest to w_i + sum_{j != i} e_j H_ji / H_ii; `sweeps` times.

    `refit`: scales and offsets are fitted to the codes before each sweep and after the last. A row keeps what it had where that was better.
    """

    source: ClassVar[str] = "Behdin et al. 2023, QuantEase, arXiv 2309.01885, eq. 7; Nair and Suggala 2024, CDQuant, arXiv 2406.17542"
    needs: ClassVar[frozenset[str]] = frozenset({"xtx"})
    sweeps: int = 4
    refit: bool = True
    damp: float = 0.01

    def __post_init__(self) -> None:
        check_options(self.damp, "natural")

    def correct(self, target: Target, stats: Statistics) -> None:
        """See `Correction.correct`."""
        assert target.parts is not None
        found = curvature(stats, self.damp, "natural", target.format.element.dim)
        if exact(target) is not None or target.format.opened is not None:
            return
        if found is None:
            target.hear(f"{stats.missing}: its codes stay")
            return
        target.hear(*found.notes)
        target.parts = descended(target, dict(target.parts), found, self.sweeps, self.refit)


def descended(target: Target, parts: Parts, found: Curvature, sweeps: int, refit: bool) -> Parts:
    """The parts after that many turns; `found` in natural order."""
    spec, coupling = target.spec, joint_coupling(found.matrix, target.format.element.dim)
    fits = refit and spec.format.block is not None
    for _ in range(sweeps):
        if fits:
            parts = fitted(target.weight, parts, spec, found)
        parts = swept(target, parts, found, coupling, spec)
    return fitted(target.weight, parts, spec, found) if fits else parts


def fitted(w: np.ndarray, parts: Parts, spec: Spec, found: Curvature) -> Parts:
    """Scales, offsets and learned values, once."""
    return table_refitted(w, refitted(w, parts, spec, found), spec, found)


def swept(target: Target, parts: Parts, found: Curvature, coupling: np.ndarray, spec: Spec) -> Parts:
    """Every code once."""
    w, pruned = target.weight, target.pruned
    error = w - dequantize_parts(parts, spec.format, w.shape)
    columns, codes, after = Columns(parts, spec, w.shape), np.empty_like(parts["codes"]), np.empty(len(w))

    def chosen(rows: slice) -> None:
        zeros = None if pruned is None else pruned[rows]
        run = Feedback(columns.rows(rows), w[rows], coupling, found.order, error=error[rows], pruned=zeros).run()
        codes[rows] = run.stored_codes()
        if zeros is not None:
            codes[rows] = np.where(zeros, parts["codes"][rows], codes[rows])
        after[rows] = found.losses(run.stored_error())

    by_panels(len(w), chosen)
    return better(replace(target, notes=[]), spec, found, parts, codes, after)


def joint_coupling(h: np.ndarray, dim: int) -> np.ndarray:
    """float32[k, k]: what the error of j does to target i while all others stay, H_ji / H_ii; for groups of `dim`, H_jg (H_gg)^-1."""
    if dim == 1:
        return (h / h.diagonal()).astype(np.float32)
    solved = np.empty_like(h)
    for at in range(0, len(h), dim):
        own = slice(at, at + dim)
        solved[:, own] = h[:, own] @ np.linalg.inv(h[own, own])
    return solved.astype(np.float32)
