"""Nearest: every code by itself, scales by the format's rule; the step that all others are measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anybit.formats import Spec
from anybit.methods.rtn import quantize_parts
from anybit.methods.scales import SCALES
from anybit.methods.statistics import Statistics
from anybit.methods.step import STEPS, Rounding, Target


@STEPS.register("nearest")
@dataclass(frozen=True)
class Nearest(Rounding):
    """Rounds to nearest. `importance`: weigh errors in the search for scales by the mean of x^2 of each channel, where the scale rule
    searches (llama.cpp's importance matrix does the same), and the search for learned values (SqueezeLLM's k-means)."""

    source: ClassVar[str] = "docs/expressions.md, scale rules"
    needs: ClassVar[frozenset[str]] = frozenset({"mean", "variance"})
    importance: bool = False

    def asks(self, spec: Spec) -> frozenset[str]:
        """Mean and variance, for rules that weigh errors."""
        return self.needs if self._weighs(spec) else frozenset()

    def _weighs(self, spec: Spec) -> bool:
        rule = None if spec.format.block is None else SCALES[spec.scale_rule]
        if self.importance and spec.format.element.learned:
            return True
        return rule is not None and (rule.weighted or (self.importance and rule.searches))

    def round(self, target: Target, stats: Statistics) -> None:
        """See `Rounding.round`."""
        found = stats.importance if self._weighs(target.spec) else None
        if found is None and self._weighs(target.spec):
            target.notes.append("no token reached it: every channel counts alike")
            found = np.ones(target.weight.shape[1])
        target.parts = quantize_parts(target.weight, target.spec, name=f"tensor '{target.name}'", importance=found)
