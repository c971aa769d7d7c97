"""GPTAQ: GPTQ that also makes up for what the quantized layers before have done to the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anybit.formats import Spec
from anybit.methods.columns import Columns, plain
from anybit.methods.curvature import Curvature, curvature
from anybit.methods.feedback import Feedback
from anybit.methods.gptq import ErrorFeedback, finish, start
from anybit.methods.rtn import dequantize_parts
from anybit.methods.statistics import Statistics
from anybit.methods.step import STEPS, Target


@STEPS.register("gptaq")
@dataclass(frozen=True)
class Gptaq(ErrorFeedback):
    """Rows of Q are near w X0 on inputs X, X0 those of the original model: |q X - w X0|^2. `alpha` takes that share of the difference.

    `form`: "paper", where each column, once it is rounded, hands the later ones its part of w (X0 - X) X^T; "joint", GPTQ of the weights
    w (1 + alpha (X0 - X) X^T H^-1), which solve the whole at once before rounding. Rows that nearest codes serve better, on the true
    objective (alpha 1), keep them.
    """

    source: ClassVar[str] = "Li et al. 2025, arXiv 2504.02692, algorithm 1: P = alpha ((X0 - X) X^T L * upper) L^T; alpha as in its code"
    needs: ClassVar[frozenset[str]] = frozenset({"xtx", "cross"})
    alpha: float = 0.25
    form: str = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in ("paper", "joint"):
            raise ValueError(f"form is '{self.form}'; there is paper and joint")

    def round(self, target: Target, stats: Statistics) -> None:
        """See `Rounding.round`."""
        found = curvature(stats, self.damp, self.order, target.format.element.dim)
        parts, found = start(target, stats, found, self.importance)
        if found is not None:
            spec, w = Spec(plain(target.format), target.spec.policy), target.weight
            columns, drift = Columns(parts, spec, w.shape), difference(stats, found)
            if self.form == "joint":
                aim, coupling, second = toward(w, found, drift, self.alpha), found.coupling(columns.dim), None
            else:
                aim, coupling, second = w, *handed_on(found, drift, self.alpha, columns.dim)
            codes = Feedback(columns, aim, coupling, found.order, second).run(self.block).stored_codes()
            other = {**parts, "codes": codes}
            before, after = (asymmetric(w, dequantize_parts(p, spec.format, w.shape), found, drift) for p in (parts, other))
            worse = after > before
            if worse.any():
                target.notes.append(f"{int(worse.sum())} of {len(worse)} rows keep the codes they had, which are better")
            parts = {**parts, "codes": np.where(worse[:, None], parts["codes"], codes)}
        finish(target, parts)


def difference(stats: Statistics, found: Curvature) -> np.ndarray:
    """float64[k, k]: (X0 - X) X^T in the order and unit of `found`."""
    assert stats.cross is not None and stats.xtx is not None
    drift = stats.cross.astype(np.float64) - stats.xtx
    return drift[np.ix_(found.order, found.order)] / stats.xtx.diagonal().astype(np.float64).mean()


def handed_on(found: Curvature, drift: np.ndarray, alpha: float, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """float32[k, k] twice: what later targets get of an error of a target, and of the target itself."""
    u = np.triu(np.linalg.inv(found.factor))  # H^-1 = U^T U
    p = alpha * np.triu(drift @ u.T, 1) @ u
    if dim == 1:
        return (-u / u.diagonal()[:, None]).astype(np.float32), p.astype(np.float32)
    first = np.empty_like(u)
    for at in range(0, len(u), dim):
        own = slice(at, at + dim)
        first[own] = -np.linalg.inv(u[own, own]) @ u[own]
    return first.astype(np.float32), p.astype(np.float32)


def toward(w: np.ndarray, found: Curvature, drift: np.ndarray, alpha: float) -> np.ndarray:
    """float32[n, k]: the weights that give w X0 on X as nearly as weights can, by the share alpha of the way."""
    ordered = w[:, found.order].astype(np.float64)
    moved = ordered + alpha * np.linalg.solve(found.matrix, (ordered @ drift).T).T
    out = np.empty_like(w)
    out[:, found.order] = moved
    return out


def asymmetric(w: np.ndarray, q: np.ndarray, found: Curvature, drift: np.ndarray) -> np.ndarray:
    """float64[n]: |q X - w X0|^2 of each row but for a part that no q changes: e H e^T + 2 e (w (X0 - X) X^T)^T, e = w - q."""
    ordered, e = w[:, found.order].astype(np.float64), (w - q)[:, found.order].astype(np.float64)
    return found.losses(w - q) + 2 * ((ordered @ drift) * e).sum(axis=1)
