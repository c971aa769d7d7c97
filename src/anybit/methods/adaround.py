"""AdaRound: up or down for each weight, learned on the layer's output error."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from anybit.methods.between import Between, between
from anybit.methods.curvature import curvature
from anybit.methods.nearest import Nearest
from anybit.methods.scales import SCALES
from anybit.methods.statistics import Statistics
from anybit.methods.step import STEPS, Parts, Rounding, Target

LEAST = 1e-6
"""Damping of statistics that float32's roundings alone have made singular; raised where that is not enough."""


def objective(target: Target, parts: Parts, h: np.ndarray) -> np.ndarray:
    """float64[n]: e H e^T of each row, e = Q(w) - w."""
    e = replace(target, parts=parts).rounded.astype(np.float64) - target.weight
    return np.einsum("nk,nk->n", e @ h, e)


def start_and_curvature(target: Target, stats: Statistics) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Importance for the scale search where the rule makes one, and H = X^T X over its mean diagonal, as little damped as it must be to
    have a least error; None where there is nothing to go by."""
    found = curvature(stats, LEAST, "natural")
    if found is None:
        return None, None
    target.hear(*found.notes)
    rule = None if target.format.block is None else SCALES[target.spec.scale_rule]
    searches = rule is not None and (rule.searches or rule.weighted)
    return stats.importance if searches else None, found.matrix.astype(np.float64)


def prepared(target: Target, stats: Statistics) -> tuple[Between, np.ndarray] | None:
    """The neighbours of each weight and H. None: no input was seen, or H has no factor; the target is rounded to nearest, with a note."""
    importance, h = start_and_curvature(target, stats)
    if h is None:
        target.hear(f"{stats.missing}: rounded to nearest")
        Nearest().round(target, stats)
        return None
    return between(target, importance), h


def keep_better(target: Target, start: Parts, made: Parts, h: np.ndarray) -> None:
    """Row by row what has the smaller error; ties stay nearest."""
    better = objective(target, made, h) < objective(target, start, h)
    codes = np.where(better[:, None], made["codes"], start["codes"])
    target.parts = {**start, "codes": codes}


@dataclass(frozen=True)
class UpOrDown(Rounding):
    """A rounding that learns for each weight which of the two values around it is better for the layer's output. Rows that nearest codes
    serve better keep them."""

    needs: ClassVar[frozenset[str]] = frozenset({"xtx"})

    def learn(self, gap: np.ndarray, x: np.ndarray, share: np.ndarray, h: np.ndarray) -> np.ndarray:
        """bool[n, k]: which weights go up. gap float32[n, k]: up - down; x float32[n, k]: the weight less down; share float64[n, k]: how
        much of the gap that is; h float32[k, k]."""
        raise NotImplementedError

    def round(self, target: Target, stats: Statistics) -> None:
        """See `Rounding.round`."""
        ready = prepared(target, stats)
        if ready is None:
            return
        found, h = ready
        gap, x = (found.up - found.down).astype(np.float32), target.weight - found.down.astype(np.float32)
        up = self.learn(gap, x, found.share, h.astype(np.float32))
        keep_better(target, found.start, found.parts(up), h)


@STEPS.register("adaround")
@dataclass(frozen=True)
class Adaround(UpOrDown):
    """h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1) of the way from the value below to the one above, by Adam on e H e^T (the layer's squared
    output error over all calibration tokens) + weight * sum 1 - |2 h - 1|^beta, beta from 20 to 2 after the first fifth.

    Works for any scalar element: the way is that weight's own gap (a minifloat's local unit: Aggarwal et al. 2023, arXiv 2311.12359).
    Differs: the quadratic form of all tokens stands for mini-batches of 32, so that far fewer steps do.
    """

    source: ClassVar[str] = "Nagel et al. 2020, AdaRound, arXiv 2004.10568, eq. 21 to 24"
    steps: int = 400
    rate: float = 0.02
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.rate > 0 or self.weight < 0:
            raise ValueError("'steps' must be at least 1, 'rate' more than 0, 'weight' at least 0")

    def learn(self, gap: np.ndarray, x: np.ndarray, share: np.ndarray, h: np.ndarray) -> np.ndarray:
        """See `UpOrDown.learn`."""
        v = _inverse(share).astype(np.float32)
        scale = np.float32(1 / max(float(np.mean(np.square(gap))), 1e-30))  # the error in units of a gap
        m, s = np.zeros_like(v), np.zeros_like(v)
        for step in range(1, self.steps + 1):
            sigmoid = 1 / (1 + np.exp(-v))
            way = np.clip(1.2 * sigmoid - 0.1, 0, 1)
            slope = np.where((way > 0) & (way < 1), 1.2 * sigmoid * (1 - sigmoid), 0)
            gradient = 2 * scale * ((way * gap - x) @ h) * gap
            if step > self.steps // 5:
                beta = 2 + 18 * (1 - (step - self.steps // 5) / (self.steps - self.steps // 5))
                two = 2 * way - 1
                gradient -= np.float32(self.weight * 2 * beta) * np.sign(two) * np.abs(two) ** np.float32(beta - 1)
            gradient *= slope
            m += 0.1 * (gradient - m)
            s += 0.001 * (np.square(gradient) - s)
            v -= np.float32(self.rate * 10) * (m / (1 - 0.9**step)) / (np.sqrt(s / (1 - 0.999**step)) + 1e-8)
        return v >= 0


def _inverse(share: np.ndarray) -> np.ndarray:
    """V with h(V) = share."""
    sigmoid = np.clip((share + 0.1) / 1.2, 1e-6, 1 - 1e-6)
    return np.log(sigmoid / (1 - sigmoid))
