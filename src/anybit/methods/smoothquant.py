"""SmoothQuant: the difficulty of activations moved into the weights, channel by channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anybit.methods.step import STEPS, Group, GroupStep

LEAST = 1e-5


def smoothing(absmax: np.ndarray, weights: np.ndarray, alpha: float) -> np.ndarray:
    """float64[k]: s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), of float[k] each; 1 where either is 0. The input is divided by s."""
    x, w = np.asarray(absmax, np.float64), np.asarray(weights, np.float64)
    dead = (x <= 0) | (w <= 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.maximum(x, LEAST) ** alpha / np.maximum(w, LEAST) ** (1 - alpha)
    return np.where(dead, 1.0, np.maximum(found, LEAST))


@STEPS.register("smoothquant")
@dataclass(frozen=True)
class SmoothQuant(GroupStep):
    """Divides each input channel by s = max|X|^alpha / max|W|^(1 - alpha), W over all matrices of the group, and multiplies the weights.

    Folded into the norm before (or up_proj, v_proj; heads that share a channel of v_proj share the geometric mean of their factors). What
    no token reached stays as it is.
    """

    source: ClassVar[str] = "Xiao et al., SmoothQuant, arXiv 2211.10438, eq. 4; Differs: o and down too, through v_proj and up_proj"
    needs: ClassVar[frozenset[str]] = frozenset({"absmax"})
    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"'alpha' is {self.alpha}; it must lie from 0 to 1")

    def apply(self, group: Group) -> None:
        """See `GroupStep.apply`."""
        if group.stats.absmax is None or not group.stats.count:
            group.note("no token reached it: it is not smoothed")
            return
        weights = np.max([np.abs(target.weight).max(axis=0) for target in group.targets], axis=0)
        group.scale_input(group.tied(smoothing(group.stats.absmax, weights, self.alpha)))
