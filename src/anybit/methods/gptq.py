"""GPTQ: each column's rounding error is made up for by the columns that come after it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite
from typing import ClassVar

import numpy as np

from anybit.formats import Spec
from anybit.kernels.rounding import largest_magnitude
from anybit.methods.columns import Columns, plain
from anybit.methods.curvature import Curvature, check_options, curvature
from anybit.methods.feedback import BLOCK, Feedback
from anybit.methods.panels import by_panels
from anybit.methods.rtn import dequantize_parts, quantize_parts
from anybit.methods.scales import SCALES, counted
from anybit.methods.settle import can_settle, settle
from anybit.methods.statistics import Statistics
from anybit.methods.step import STEPS, Parts, Rounding, Target


@dataclass(frozen=True)
class ErrorFeedback(Rounding):
    """Roundings that feed errors forward, and their options. `damp`: added to the diagonal, times its mean; raised tenfold where that does
    not make the matrix definite. `order`: "activation" or "natural". `importance`: rules that search scales weigh errors by the diagonal.
    `block`: channels between two updates of all that come after them."""

    needs: ClassVar[frozenset[str]] = frozenset({"xtx"})
    damp: float = 0.01
    order: str = "activation"
    importance: bool = True
    block: int = BLOCK

    def __post_init__(self) -> None:
        check_options(self.damp, self.order, self.block)


@STEPS.register("gptq")
@dataclass(frozen=True)
class Gptq(ErrorFeedback):
    """GPTQ with static activation order: scales are chosen before the loop and stay with their blocks, so nothing is permuted at run time.

    Any element (codebooks, posits, learned values, several weights a code), any blocks, zero points, offsets, scales of scales. Up to 8,192
    channels codes are those of the formula in float64, whatever the BLAS (`settle`; elements of one weight a code, rounded to nearest).
    Rows that nearest codes serve better (on this objective, same scales) keep them. After a block Hadamard transform, with scale=lp2.4
    (NVFP4) or floor0.75 (MXFP4), it is MR-GPTQ (arXiv 2509.23202).
    """

    source: ClassVar[str] = "Frantar et al. 2022, arXiv 2210.17323, algorithm 1; loop in the form of QuIP, arXiv 2307.13304, theorem 6"

    def round(self, target: Target, stats: Statistics) -> None:
        """See `Rounding.round`."""
        found = curvature(stats, self.damp, self.order, target.format.element.dim)
        parts, found = start(target, stats, found, self.importance)
        if found is not None:
            parts = feed_back(target, found, parts, self.block)
        finish(target, parts)


def start(
    target: Target, stats: Statistics, found: Curvature | None, importance: bool = True
) -> tuple[Parts, Curvature | None]:  # fmt: skip
    """Parts by rounding to nearest (nested integers as they are stored), whose scales stay; and what errors are to be fed forward by,
    None: they are not. Notes why."""
    spec = replace(target.spec, format=plain(target.format))
    rule = None if spec.format.block is None else SCALES[spec.scale_rule]
    weighs = spec.format.element.learned or (rule is not None and rule.searches)
    weight = stats.importance if weighs and (importance or (rule is not None and rule.weighted)) else None
    if weight is not None:
        weight = counted(weight)
    elif rule is not None and rule.weighted:
        weight = np.ones(target.weight.shape[1])
    if found is None:
        why = "no token reached it" if not stats.count else "its statistics have no factor at any damping"
        target.notes.append(f"{why}: rounded to nearest")
    else:
        target.notes.extend(found.notes)
    reason = exact(target)
    if reason is not None and found is not None:
        target.notes.append(f"{reason}: rounded to nearest")
    parts = quantize_parts(target.weight, spec, name=f"tensor '{target.name}'", importance=weight)
    return parts, found if reason is None else None


def exact(target: Target) -> str | None:
    """Why nearest codes are kept whatever the statistics say; None: they are not."""
    if target.format.element.bits > 16 and target.format.element.dim == 1:
        return f"{target.format.element} is as fine as the weights"
    if not isfinite(largest_magnitude(np.ascontiguousarray(target.weight, np.float32).reshape(-1))):
        return "it holds NaN or infinities"
    return None


def feed_back(target: Target, found: Curvature, parts: Parts, block: int = BLOCK) -> Parts:
    """The parts with codes by the loop, row by row where those are better than the ones that are there."""
    spec, w, pruned = Spec(plain(target.format), target.spec.policy), target.weight, target.pruned
    columns, codes, after = Columns(parts, spec, w.shape), np.empty_like(parts["codes"]), np.empty(len(w))
    coupling = found.coupling(columns.dim)
    alone = columns.dim == 1 and pruned is None
    cost, sure = found.pivots if alone else None, alone and can_settle(found, spec.policy.round)

    def chosen(rows: slice) -> None:
        zeros = None if pruned is None else pruned[rows]
        run = Feedback(columns.rows(rows), w[rows], coupling, found.order, cost=cost, pruned=zeros, doubt=sure).run(block)
        if sure:
            settle(run, found, block)
        codes[rows] = run.stored_codes()
        if zeros is not None:  # to begin with they have the code of zero
            codes[rows] = np.where(zeros, parts["codes"][rows], codes[rows])
        after[rows] = run.losses if cost is not None else found.losses(run.stored_error())

    by_panels(len(w), chosen)
    return better(target, spec, found, parts, codes, after)


def better(target: Target, spec: Spec, found: Curvature, parts: Parts, codes: np.ndarray, after: np.ndarray) -> Parts:
    """In each row, of the codes that are there and others (written to; their losses are given) those of less loss; a note counts what was
    kept."""
    w, old, fmt = target.weight, parts["codes"], spec.format
    apart = all(a.shape[:1] in ((1,), (len(w),)) for name, a in parts.items() if name != "table")
    values = None if apart else dequantize_parts(parts, fmt, w.shape)

    def exceeds(rows: slice) -> np.ndarray:
        if values is not None:
            return found.exceed(w[rows] - values[rows], after[rows])
        some = {name: a if name == "table" or len(a) == 1 else a[rows] for name, a in parts.items()}
        error = dequantize_parts(some, fmt, w[rows].shape)
        return found.exceed(np.subtract(w[rows], error, out=error), after[rows])

    taken = np.concatenate(by_panels(len(w), exceeds))
    if not taken.all():
        kept = int((old[~taken] != codes[~taken]).any(axis=1).sum())
        if kept:
            target.notes.append(f"{kept} of {len(taken)} rows keep the codes they had, which are better")
        codes[~taken] = old[~taken]
    return {**parts, "codes": codes}


def finish(target: Target, parts: Parts) -> None:
    """Sets the target's parts; nested integers are opened."""
    fmt = target.format
    target.parts = parts if fmt.opened is None else {**parts, "codes": fmt.cut(parts["codes"])}
