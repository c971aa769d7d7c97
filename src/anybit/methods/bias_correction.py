"""Bias correction: the mean of what rounding changed in the output is taken back by the bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anybit.methods.statistics import Statistics
from anybit.methods.step import STEPS, Correction, Target


@STEPS.register("bias_correction")
@dataclass(frozen=True)
class BiasCorrection(Correction):
    """b + (W - Q(W)) E[x], with the mean of the inputs that calibration saw. A layer without a bias gets one."""

    source: ClassVar[str] = "Nagel et al. 2019, Data-Free Quantization, arXiv 1906.04721, section 4.2 (empirical form)"
    needs: ClassVar[frozenset[str]] = frozenset({"mean"})

    def correct(self, target: Target, stats: Statistics) -> None:
        """See `Correction.correct`."""
        if stats.mean is None or not stats.count:
            target.notes.append("no token reached it: its bias is not corrected")
            return
        change = (target.weight.astype(np.float64) - target.rounded) @ stats.mean
        target.bias = (change if target.bias is None else target.bias + change).astype(np.float32)
