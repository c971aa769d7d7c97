"""Cross-layer equalisation: two matrices in a row share their ranges, channel by channel, without looking at data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anybit.methods.step import STEPS, Group, GroupStep


def equalizing(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """float64[k]: s = sqrt(r1 r2) / r2, ranges r1 of the first matrix' rows and r2 of the second's columns; 1 where either is 0.

    The first's rows are divided by s, the second's columns multiplied: both ranges become sqrt(r1 r2).
    """
    r1, r2 = np.asarray(first, np.float64), np.asarray(second, np.float64)
    dead = (r1 <= 0) | (r2 <= 0)
    return np.where(dead, 1.0, np.sqrt(np.where(dead, 1.0, r1) / np.where(dead, 1.0, r2)))


@STEPS.register("equalize")
@dataclass(frozen=True)
class Equalize(GroupStep):
    """Equalises v_proj with o_proj and up_proj with down_proj; `norms`: also a norm's weights with the matrices that read it.

    Pairs do not touch each other's channels, so that once is enough. Of v_proj's channels that several heads read, the largest range of
    their columns counts.
    """

    source: ClassVar[str] = "Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, arXiv 1906.04721, eq. 11"
    norms: bool = False

    def apply(self, group: Group) -> None:
        """See `GroupStep.apply`."""
        producer = group.producer
        if producer is None or (producer.weight.ndim == 1 and not self.norms):
            return
        if not group.folds:
            group.note("a transform runs before it: nothing to equalise with")
            return
        columns = np.max([np.abs(target.weight).max(axis=0) for target in group.targets], axis=0)
        rows = np.abs(producer.weight.reshape(producer.count, -1)).max(axis=1)
        group.scale_input(equalizing(rows, producer.worst(columns)).astype(np.float32)[producer.channels])
