"""Residual channels: what rounding left of the largest activation channels is rounded once more and multiplied with the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anybit.formats import Spec
from anybit.methods.scales import SCALES
from anybit.methods.step import STEPS, Added, Group, GroupStep, as_stored


def channel_count(rows: np.ndarray, share: float, multiple: int) -> int:
    """How many channels: the share of numbers in float32[r, k] above `share` times their token's largest, of k, up to the next multiple."""
    magnitude = np.abs(rows)
    most = magnitude.max(axis=1, keepdims=True)
    k = rows.shape[1]
    wanted = k * float((magnitude > share * most).mean()) if rows.size else 0.0
    return min(int(np.ceil(wanted / multiple)) * multiple, k)


@STEPS.register("residual_channels")
@dataclass(frozen=True)
class ResidualChannels(GroupStep):
    """y = Q(x) W^T + Q(x - Q(x))[top] W[:, top]^T, W[:, top] in the matrix' own format.

    The channels of largest calibrated magnitude; as many as numbers pass `share` of their token's largest (1/8, the gap between FP8 and
    FP4), rounded up to `multiple`; or `channels` of them. For rounded activations only. Comes after steps that change the input.
    """

    source: ClassVar[str] = "ARCQuant, residual channels (authors' code, 2026); Differs: magnitudes are absolute, any block format"
    needs: ClassVar[frozenset[str]] = frozenset({"absmax", "rows"})
    share: float = 0.125
    multiple: int = 64
    channels: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share < 1 or self.multiple < 1 or (self.channels is not None and self.channels < 1):
            raise ValueError(f"'share' is {self.share}, 'multiple' {self.multiple}, 'channels' {self.channels}; share lies between 0 and 1,"
                             " the others are 1 or more")  # fmt: skip

    def apply(self, group: Group) -> None:
        """See `GroupStep.apply`."""
        if group.act is None:
            group.note("its activations are float: rounding leaves nothing of them")
            return
        rows, absmax = group.stats.rows, group.stats.absmax
        if absmax is None or rows is None or not len(rows):
            group.note("no token reached it: no residual channels")
            return
        count = min(self.channels, group.k) if self.channels is not None else channel_count(rows, self.share, self.multiple)
        if not count:
            return
        index = np.sort(np.argsort(-absmax, kind="stable")[:count]).astype(np.int64)
        for target in group.targets:
            expression = unweighted(target.spec)
            a = as_stored(target.weight[:, index], expression, target.name)
            target.added.append(Added("residual", a, index=index, format=expression, source="residual_channels"))


def unweighted(spec: Spec) -> str:
    """The expression of a spec, its scale rule left to the format where it weighs errors by importance."""
    rule = None if spec.format.block is None else SCALES[spec.scale_rule]
    return str(spec.format) if rule is not None and rule.weighted else str(spec)
