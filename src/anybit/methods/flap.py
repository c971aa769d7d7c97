"""FLAP: structured pruning by how much channels fluctuate, with the bias taking over their means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anybit.methods.step import STEPS, Group, GroupStep


@STEPS.register("flap")
@dataclass(frozen=True)
class Flap(GroupStep):
    """The `fraction` of the input channels of o_proj (whole heads) and down_proj with the least score is removed, layer by layer.

    score = variance of the channel * ||W[:, channel]||^2 (WIFV), a head's the mean of its channels'; the bias grows by W m over what is
    removed, m their means. Columns become zero and are kept in place: shapes and the tensors of q, k, v, gate and up stay as they are, so
    no byte is saved until a layout drops zero columns; what is measured is what the pruning costs. The variance is over all tokens.

    Differs: one fraction for every layer, where the paper thresholds standardised scores over the model.
    """

    source: ClassVar[str] = "An et al. 2023, FLAP, arXiv 2312.11983, eq. 4 to 6"
    needs: ClassVar[frozenset[str]] = frozenset({"mean", "variance"})
    fraction: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise ValueError(f"'fraction' is {self.fraction}; it must be at least 0 and less than 1")

    def apply(self, group: Group) -> None:
        """See `GroupStep.apply`."""
        if group.kind not in ("o", "down"):
            return
        stats, (target,) = group.stats, group.targets
        if stats.variance is None or stats.mean is None:
            target.notes.append("no token reached it: nothing is pruned")
            return
        w = np.array(target.weight)
        scores = stats.variance * np.square(w, dtype=np.float64).sum(axis=0)
        unit = group.head_dim if group.kind == "o" else 1
        units = scores.reshape(-1, unit).mean(axis=1)
        gone = np.argsort(units, kind="stable")[: int(self.fraction * len(units))]
        channels = (gone[:, None] * unit + np.arange(unit)).reshape(-1)
        added = w[:, channels].astype(np.float64) @ stats.mean[channels]
        target.bias = (added if target.bias is None else target.bias + added).astype(np.float32)
        w[:, channels] = 0
        target.weight = w
