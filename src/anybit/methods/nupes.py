"""NUPES: the exponent of a power grid chosen for each matrix, then codes that may go anywhere on that grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

import numpy as np

from anybit.errors import UsageError
from anybit.formats import Format, Spec
from anybit.methods.curvature import check_options, curvature
from anybit.methods.gptq import exact, feed_back, finish, start
from anybit.methods.statistics import Statistics
from anybit.methods.step import STEPS, Rounding, Target

LOW, HIGH, COARSE = 0.3, 1.0, 0.1
_GOLDEN = (5**0.5 - 1) / 2


@STEPS.register("nupes")
@dataclass(frozen=True)
class Nupes(Rounding):
    """The exponent a of `powN_aX` (any X) with the least squared error of the outputs, codes nearest: steps of 0.1 from 0.3 to 1, then
    `turns` golden sections around the best, to a thousandth. Then `codes` by GPTQ's feedback over the whole grid.

    `data` false: the least squared error of the weights, as PowerQuant (arXiv 2301.09858) searches it. A matrix that no token reached is
    searched like that too. Differs: a is one number, so a search stands for NUPES' gradient; codes are found by feedback instead of soft
    assignment.
    """

    source: ClassVar[str] = "Yvinec et al. 2023, NUPES, arXiv 2308.05600; exponent: PowerQuant, arXiv 2301.09858, eq. 4"
    needs: ClassVar[frozenset[str]] = frozenset({"xtx"})
    turns: int = 6
    data: bool = True
    codes: bool = True
    damp: float = 0.01

    def __post_init__(self) -> None:
        check_options(self.damp, "activation")
        if not 0 <= self.turns <= 12:
            raise ValueError(f"'turns' is {self.turns}; it must be from 0 to 12")

    def asks(self, spec: Spec) -> frozenset[str]:
        """X^T X, unless neither the search nor the codes look at it."""
        return self.needs if self.data or self.codes else frozenset()

    def round(self, target: Target, stats: Statistics) -> None:
        """See `Rounding.round`. Changes the target's format to that of the exponent found."""
        bits, given = _power(target.format)
        h = stats.xtx if self.data and stats.count else None
        found = curvature(stats, self.damp) if self.codes else None

        @cache
        def cost(a: float) -> float:
            made = replace(target, spec=_with(target.spec, bits, a), notes=[])
            parts = start(made, stats if self.data else Statistics(stats.width, frozenset()), None, h is not None)
            made.parts = parts
            e = made.rounded - target.weight
            return float(np.einsum("nk,nk->", e if h is None else e @ h, e, dtype=np.float64))

        target.spec = _with(target.spec, bits, exponent(cost, given, self.turns))
        if not self.codes:
            found = None
        before = len(target.notes)
        parts = start(target, stats, found, h is not None)
        if not self.codes:
            del target.notes[before:]  # no feedback was asked for, so none is missed
        if found is not None and exact(target) is None:
            parts = feed_back(target, found, parts)
        finish(target, parts)


def exponent(cost: Callable[[float], float], given: float, turns: int) -> float:
    """The exponent of least cost among the one given, steps of 0.1 from 0.3 to 1, and golden sections between the best one's neighbours."""
    tried = [given, *(round(LOW + COARSE * i, 3) for i in range(round((HIGH - LOW) / COARSE) + 1))]
    best = min(tried, key=cost)
    low, high = max(best - COARSE, LOW / 2), min(best + COARSE, HIGH)
    for _ in range(turns):
        left, right = round(high - _GOLDEN * (high - low), 3), round(low + _GOLDEN * (high - low), 3)
        tried += [left, right]
        if cost(left) <= cost(right):
            high = right
        else:
            low = left
    return min(tried, key=cost)


def _power(fmt: Format) -> tuple[int, float]:
    """Bits and exponent of a power grid. UsageError: it is none."""
    fields = fmt.element.fields
    if fields.get("family") != "power":
        raise UsageError(f"nupes chooses the exponent of a power grid, and {fmt} is none; write pow4_a0.5@128, for instance")
    return int(fields["bits"]), float(fields["exponent"])


def _with(spec: Spec, bits: int, a: float) -> Spec:
    old = str(spec)
    return Spec.parse(f"pow{bits}_a{a:g}" + old[len(str(spec.format.element)) :])
