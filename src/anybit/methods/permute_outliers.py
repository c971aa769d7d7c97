"""Channel permutation: outlier channels share few blocks, or all blocks become homogeneous."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anybit.formats import Spec
from anybit.methods.step import STEPS, Group, GroupStep


def clustered(score: np.ndarray, over: float) -> np.ndarray:
    """int64[k]: channels whose score passes `over` times the median first, largest first; the others in their order.

    >>> clustered(np.array([1.0, 9.0, 2.0, 1.0, 20.0]), 4).tolist()
    [4, 1, 0, 2, 3]
    """
    score = np.asarray(score, np.float64)
    return np.argsort(-np.where(score > over * np.median(score), score, 0), kind="stable")


def sorted_by(score: np.ndarray) -> np.ndarray:
    """int64[k]: all channels by falling score, equal ones in their order."""
    return np.argsort(-np.asarray(score, np.float64), kind="stable")


@STEPS.register("permute_outliers")
@dataclass(frozen=True)
class PermuteOutliers(GroupStep):
    """Reorders a layer's input channels, and its weights' columns with them.

    `order`: "cluster", outliers first and everything else in its place (COMET); "sort", all by falling size (K-sort). `by`: the size of a
    channel is its largest "input" (calibrated), or the norm of its column of "weights" (no data). `over`: an outlier passes so many times
    the median. Folded into the rows of gate_proj and up_proj, and of v_proj within each head, where `online` is not set; before q, k, v,
    gate and up everything reads the residual stream, so that it runs there as a permutation.
    """

    source: ClassVar[str] = (
        "Liu et al., COMET, arXiv 2410.12168, FMPQ;"
        " Trukhanov and Soloveychik, Accurate Block Quantization in LLMs with Outliers, arXiv 2403.20137"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"absmax"})
    order: str = "cluster"
    by: str = "input"
    over: float = 4.0
    online: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, allowed in (("order", self.order, ("cluster", "sort")), ("by", self.by, ("input", "weights"))):
            if value not in allowed:
                raise ValueError(f"'{name}' is '{value}'; there is {' and '.join(allowed)}")
        if not self.over >= 1:
            raise ValueError(f"'over' is {self.over}; it must be 1 or more")

    def asks(self, spec: Spec) -> frozenset[str]:
        """See `Step.asks`: weights' norms need no data."""
        return self.needs if self.by == "input" else frozenset()

    def apply(self, group: Group) -> None:
        """See `GroupStep.apply`."""
        score = self.score(group)
        if score is None:
            group.note("no token reached it: its channels stay in their order")
            return
        producer = group.producer if group.folds and not self.online else None
        if producer is not None and producer.run:
            runs = producer.worst(score).reshape(-1, producer.run)
            order = np.concatenate([start * producer.run + self.ordered(run) for start, run in enumerate(runs)])
            if not np.array_equal(order, np.arange(len(order))):
                group.permute_input(producer.permute(order), folded=True)
            return
        order = self.ordered(score)
        if not np.array_equal(order, np.arange(group.k)):
            group.permute_input(order)

    def ordered(self, score: np.ndarray) -> np.ndarray:
        """The order of some channels."""
        return clustered(score, self.over) if self.order == "cluster" else sorted_by(score)

    def score(self, group: Group) -> np.ndarray | None:
        """float64[k]: the size of each channel; None: unknown."""
        if self.by == "input":
            return group.stats.absmax if group.stats.count else None
        squares = [np.square(target.weight, dtype=np.float64).sum(axis=0) for target in group.targets]
        return np.asarray(np.sqrt(np.sum(squares, axis=0)))
