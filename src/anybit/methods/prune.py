"""Pruning single weights: the least important of each row, or two of every four, become zero before anything is rounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anybit.errors import UsageError
from anybit.formats import Format
from anybit.methods.columns import Columns
from anybit.methods.step import STEPS, Group, GroupStep, Target


def saliency(w: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """float64[n, k]: |w| sqrt(E[x^2]) of each weight (Wanda), |w| without inputs."""
    size = np.abs(w).astype(np.float64)
    return size if importance is None else size * np.sqrt(importance)


def smallest(scores: np.ndarray, count: int) -> np.ndarray:
    """bool of scores' shape: the `count` smallest along the last axis, the first among equals."""
    order = np.argsort(scores, axis=-1, kind="stable")
    mask = np.zeros(scores.shape, bool)
    np.put_along_axis(mask, order[..., :count], True, axis=-1)
    return mask


def exact_zero(fmt: Format) -> bool:
    """Whether every block of a format can hold zero itself, each weight by itself."""
    free = fmt.offset is None and (fmt.zero is None or fmt.whole_zero)
    return free and fmt.element.has_zero and fmt.element.dim == 1 and fmt.opened is None


def zeros_again(target: Target) -> int:
    """Gives pruned weights the code of zero where a rounding or a correction took it from them. Returns how many."""
    if target.pruned is None or target.parts is None:
        return 0
    filled = target.pruned & (target.rounded != 0)
    if filled.any():
        parts = target.parts
        columns = Columns(parts, target.spec, target.weight.shape)
        codes = np.array(parts["codes"])
        for i in np.flatnonzero(filled.any(axis=0)):
            zero = columns.choose(int(i), np.zeros((len(codes), 1), np.float32))[0]
            codes[:, i] = np.where(filled[:, i], zero, codes[:, i])
        target.parts = {**parts, "codes": codes}
    return int(filled.sum())


def prune(group: Group, fraction: float, block: int | None, weighted: bool) -> None:
    """Zeroes that fraction of every row, or of every `block` weights of a row."""
    importance = group.stats.importance if weighted else None
    for target in group.targets:
        if not exact_zero(target.format):
            raise UsageError(f"{target.name}: {target.format} has no zero: pruned weights would come back; take a format that has one")
        w = np.array(target.weight)
        if weighted and importance is None:
            target.notes.append("no token reached it: pruned by magnitude alone")
        scores = saliency(w, importance)
        if block is None:
            mask = smallest(scores, round(fraction * w.shape[1]))
        else:
            whole = w.shape[1] // block * block
            parts = smallest(scores[:, :whole].reshape(len(w), -1, block), round(fraction * block))
            mask = np.zeros(w.shape, bool)
            mask[:, :whole] = parts.reshape(len(w), whole)
        w[mask] = 0
        target.weight, target.pruned = w, mask if target.pruned is None else mask | target.pruned


@STEPS.register("magnitude")
@dataclass(frozen=True)
class Magnitude(GroupStep):
    """The `fraction` of each row with the least |w|, or with `weighted` the least |w| sqrt(E[x^2]), becomes zero.

    It stays zero: gptq and descent move errors onto the other weights only, after other roundings and corrections zeros are set again.
    """

    source: ClassVar[str] = "Han et al. 2015, arXiv 1506.02626; weighted: Sun et al. 2023, Wanda, arXiv 2306.11695"
    needs: ClassVar[frozenset[str]] = frozenset({"mean", "variance"})
    fraction: float = 0.5
    weighted: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise ValueError(f"'fraction' is {self.fraction}; it must be at least 0 and less than 1")

    def apply(self, group: Group) -> None:
        """See `GroupStep.apply`."""
        prune(group, self.fraction, None, self.weighted)


@STEPS.register("two_four")
@dataclass(frozen=True)
class TwoFour(GroupStep):
    """Two of every four neighbours in a row become zero: those with the least |w| sqrt(E[x^2])."""

    source: ClassVar[str] = "Mishra et al. 2021, arXiv 2104.08378 (2:4); saliency: Sun et al. 2023, Wanda, arXiv 2306.11695"
    needs: ClassVar[frozenset[str]] = frozenset({"mean", "variance"})
    weighted: bool = True

    def apply(self, group: Group) -> None:
        """See `GroupStep.apply`."""
        prune(group, 0.5, 4, self.weighted)
