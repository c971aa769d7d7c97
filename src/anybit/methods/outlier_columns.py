"""Outlier columns: the channels of largest activations are kept beside the quantized matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anybit.formats import Spec
from anybit.methods.step import STEPS, Added, Group, GroupStep, as_stored


def largest(absmax: np.ndarray, threshold: float | None, top: int | None) -> np.ndarray:
    """int64[c], ascending: channels of at least the threshold, or the `top` largest (ties: the lower channel).

    >>> largest(np.array([1.0, 7.0, 6.0, 2.0]), 6.0, None).tolist(), largest(np.array([1.0, 7.0, 6.0, 2.0]), None, 3).tolist()
    ([1, 2], [1, 2, 3])
    """
    found = np.argsort(-np.asarray(absmax, np.float64), kind="stable")
    if top is not None:
        found = found[:top]
    if threshold is not None:
        found = found[absmax[found] >= threshold]
    return np.sort(found).astype(np.int64)


@STEPS.register("outlier_columns")
@dataclass(frozen=True)
class OutlierColumns(GroupStep):
    """Multiplies channels whose calibrated magnitude reaches `threshold` apart, with their weights in `format`; `top`: at most so many.

    With `top` and `threshold: null` the largest `top` are taken. The quantized matrix holds zeros there and sees zeros, so that neither its
    scales nor its activations' are widened. Comes after steps that change the input.
    """

    source: ClassVar[str] = (
        "Dettmers et al., LLM.int8(), arXiv 2208.07339, section 3.2; Differs: channels are chosen in calibration, not for each input"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"absmax"})
    threshold: float | None = 6.0
    top: int | None = None
    format: str = "bf16"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is None and self.top is None:
            raise ValueError("give 'threshold' or 'top'")
        if (self.threshold is not None and not self.threshold > 0) or (self.top is not None and self.top < 1):
            raise ValueError(f"'threshold' is {self.threshold} and 'top' {self.top}; they must be positive")
        Spec.parse(self.format).check()

    def apply(self, group: Group) -> None:
        """See `GroupStep.apply`."""
        if group.stats.absmax is None or not group.stats.count:
            group.note("no token reached it: no column is kept apart")
            return
        index = largest(group.stats.absmax, self.threshold, self.top)
        if not index.size:
            return
        for target in group.targets:
            a = as_stored(target.weight[:, index], self.format, target.name)
            target.added.append(Added("columns", a, index=index, format=self.format, source="outlier_columns"))
        group.clear_input(index)
