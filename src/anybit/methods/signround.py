"""SignRound: shifts of at most half a step, learned by the sign of the gradient (AutoRound)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anybit.methods.adaround import UpOrDown
from anybit.methods.step import STEPS


@STEPS.register("signround")
@dataclass(frozen=True)
class Signround(UpOrDown):
    """round(w / s + v), v in [-1/2, 1/2]: v -= rate sign(dL/dv), the rate falling linearly from 1 / steps to 0, L = e H e^T, the gradient
    passed straight through the rounding; the best v is kept, row by row.

    Differs: the layer's own output error stands for the block's, and scales are the rule's (`refit` fits them afterwards) instead of
    learned factors of the range.
    """

    source: ClassVar[str] = "Cheng et al. 2023, SignRound, arXiv 2309.05516, eq. 3 to 6"
    steps: int = 200

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"'steps' is {self.steps}; it must be at least 1")

    def learn(self, gap: np.ndarray, x: np.ndarray, share: np.ndarray, h: np.ndarray) -> np.ndarray:
        """See `UpOrDown.learn`."""
        share, turned = share.astype(np.float32), np.sign(gap)
        v, best = np.zeros_like(share), np.full(len(share), np.inf)
        chosen = share >= 0.5
        for step in range(self.steps):
            up = share + v >= 0.5
            e = np.where(up, gap, 0) - x
            moved = e @ h
            loss = np.einsum("nk,nk->n", moved, e)
            better = loss < best
            best, chosen = np.where(better, loss, best), np.where(better[:, None], up, chosen)
            v = np.clip(v - np.float32((1 - step / self.steps) / self.steps) * np.sign(moved) * turned, -0.5, 0.5)
        return chosen
