"""AWQ: channels that matter are scaled up before rounding, by a power of their activations that a search finds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anybit.formats import Spec
from anybit.methods.round_trip import round_trip
from anybit.methods.rtn import dequantize_parts, quantize_parts
from anybit.methods.scales import SCALES
from anybit.methods.step import STEPS, Group, GroupStep, Target

LEAST = 1e-4
CLIPS = 10  # AWQ's grid: from 1 down to 0.5 of a block's largest value


def output_error(delta: np.ndarray, xtx: np.ndarray) -> float:
    """tr(D X^T X D^T) of float32[n, k]: the squared error of the outputs over the tokens."""
    return float(np.einsum("nk,nk->", delta @ xtx, delta, dtype=np.float64))


def rounded(w: np.ndarray, spec: Spec, importance: np.ndarray | None) -> np.ndarray:
    """float32[n, k] after rounding to nearest; `importance` where the scale rule weighs errors."""
    rule = None if spec.format.block is None else SCALES[spec.scale_rule]
    weigh = importance if rule is not None and rule.weighted else None
    out = np.empty(w.shape, np.float32)
    if weigh is None and round_trip(np.ascontiguousarray(w, np.float32), spec, out):
        return out
    return dequantize_parts(quantize_parts(w, spec, importance=weigh), spec.format, w.shape)


@STEPS.register("awq")
@dataclass(frozen=True)
class AWQ(GroupStep):
    """Multiplies each weight column by s = x^r (`duo`: x^r / w^(1 - r)), over sqrt(max s * min s), and divides the input: r of `grid` steps
    from 0 to 1 with the least squared error of the outputs. x: root mean square of the channel; w: mean |w| over its block's largest.

    `clip`: afterwards each block's values are clipped to the share (1 to 0.5) whose outputs err least, q_proj and k_proj excepted. Scaling
    does not change the float model; clipping does, by design.
    """

    source: ClassVar[str] = (
        "Lin et al., AWQ, arXiv 2306.00978, eq. 4 and 5;"
        " Differs: the error of each linear layer by X^T X, not of a whole block; root mean square for mean |x|"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"xtx"})
    grid: int = 20
    duo: bool = False
    clip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.grid <= 1000:
            raise ValueError(f"'grid' is {self.grid}; it must lie from 1 to 1000")

    def apply(self, group: Group) -> None:
        """See `GroupStep.apply`."""
        xtx = group.stats.xtx
        if xtx is None or not group.stats.count:
            group.note("no token reached it: it is not scaled")
            return
        best, scale = np.inf, np.ones(group.k, np.float32)
        for s in self.candidates(group):
            error = self.error(group, s, xtx)
            if error < best:
                best, scale = error, s
        if np.any(scale != 1):
            group.scale_input(scale)
        if self.clip and group.stats.xtx is not None:
            for target in group.targets:
                if group.kind != "qkv" or target is group.targets[-1]:
                    target.weight = clipped(target, group.stats.xtx)

    def candidates(self, group: Group) -> Iterator[np.ndarray]:
        """float32[k] scales, ones first."""
        importance = group.stats.importance
        assert importance is not None
        x = np.sqrt(importance)
        w = np.mean([relative(t.weight, t.spec).mean(axis=0, dtype=np.float64) for t in group.targets], axis=0)
        yield np.ones(group.k, np.float32)
        for i in range(self.grid + 1):
            r = i / self.grid
            s = np.maximum(np.maximum(x, LEAST) ** r / (np.maximum(w, LEAST) ** (1 - r) if self.duo else 1), LEAST)
            if i or self.duo:
                yield group.tied(s / np.sqrt(s.max() * s.min()))

    def error(self, group: Group, s: np.ndarray, xtx: np.ndarray) -> float:
        """Squared error of all outputs of the group with the scale s float32[k]: || X (Q(W s) / s - W)^T ||^2."""
        importance = group.stats.importance
        assert importance is not None
        inner = importance / np.asarray(s, np.float64) ** 2
        return sum(output_error(rounded(t.weight * s, t.spec, inner) / s - t.weight, xtx) for t in group.targets)


def relative(w: np.ndarray, spec: Spec) -> np.ndarray:
    """float32[n, k]: |w| over the largest of its block along the row (of the row, where blocks are of another shape)."""
    k = w.shape[1]
    size = block_length(spec, k)
    magnitude = np.abs(w)
    starts = np.arange(0, k, size)
    largest = np.repeat(np.maximum.reduceat(magnitude, starts, axis=1), np.diff([*starts, k]), axis=1)
    return np.asarray(magnitude / np.maximum(largest, np.finfo(np.float32).tiny))


def block_length(spec: Spec, k: int) -> int:
    """Columns that share a row's scale."""
    block = spec.format.block
    return min(block.size or k, k) if block is not None and block.per_row else k


def clipped(target: Target, xtx: np.ndarray) -> np.ndarray:
    """float32[n, k]: each row's block clipped to the share of its largest value for which x_b (Q(clip w_b) - w_b) is least."""
    w = target.weight
    n, k = w.shape
    size = block_length(target.spec, k)
    starts = np.arange(0, k, size)
    lengths = np.diff([*starts, k])
    largest = np.repeat(np.maximum.reduceat(np.abs(w), starts, axis=1), lengths, axis=1)
    best, out = np.full((n, len(starts)), np.inf), w.copy()
    importance = xtx.diagonal().astype(np.float64)
    for i in range(CLIPS + 1):
        limit = largest * np.float32(1 - 0.5 * i / CLIPS)
        tried = np.clip(w, -limit, limit)
        delta = rounded(tried, target.spec, importance) - w
        error = np.stack([np.einsum("nk,nk->n", delta[:, a : a + m] @ xtx[a : a + m, a : a + m], delta[:, a : a + m])
                          for a, m in zip(starts, lengths, strict=True)], axis=1)  # fmt: skip
        better = error < best
        best = np.where(better, error, best)
        out = np.where(np.repeat(better, lengths, axis=1), tried, out)
    return out
