"""NUPES: the exponent of a power grid chosen for each matrix, then codes that may go anywhere on that grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

import numpy as np

from anybit.errors import UsageError
from anybit.formats import Format, Spec
from anybit.methods.columns import Columns
from anybit.methods.curvature import check_options, curvature
from anybit.methods.gptq import feed_back, finish, start
from anybit.methods.statistics import Statistics
from anybit.methods.step import STEPS, Parts, Rounding, Target

LOW, HIGH, COARSE, CHECKED = 0.3, 1.0, 0.1, 5
RATES, PULL = (0.02, 0.0005), 5.0
"""Of Adam, for codes (in steps of the grid) and for the exponent; and how strongly codes are drawn to whole numbers."""
_GOLDEN = (5**0.5 - 1) / 2


@STEPS.register("nupes")
@dataclass(frozen=True)
class Nupes(Rounding):
    """The exponent a of `powN_aX` (any X) with the least squared error of the outputs, codes nearest: steps of 0.1 from 0.3 to 1, then
    `turns` golden sections around the best, to a thousandth. Then `codes` by GPTQ's feedback over the whole grid.

    `data` false: the least squared error of the weights, as PowerQuant (arXiv 2301.09858) searches it. A matrix that no token reached is
    searched like that too. Differs: a is one number, so a search stands for NUPES' gradient; codes are found by feedback instead of soft
    assignment. With `steps` (300, say) both are learned from there as NUPES does, by Adam on e H e^T: codes go anywhere on the grid, at
    first between its numbers, then drawn to them as AdaRound's are, and a follows the gradients of all; what was searched stays if better.
    """

    source: ClassVar[str] = "Yvinec et al. 2023, NUPES, arXiv 2308.05600; exponent: PowerQuant, arXiv 2301.09858, eq. 4"
    needs: ClassVar[frozenset[str]] = frozenset({"xtx"})
    turns: int = 6
    data: bool = True
    codes: bool = True
    damp: float = 0.01
    steps: int = 0

    def __post_init__(self) -> None:
        check_options(self.damp, "activation")
        if not 0 <= self.turns <= 12:
            raise ValueError(f"'turns' is {self.turns}; it must be from 0 to 12")
        if not 0 <= self.steps <= 10000:
            raise ValueError(f"'steps' is {self.steps}; it must be from 0 to 10000")

    def asks(self, spec: Spec) -> frozenset[str]:
        """X^T X, unless neither the search nor the codes look at it."""
        return self.needs if self.data or self.codes or self.steps else frozenset()

    def round(self, target: Target, stats: Statistics) -> None:
        """See `Rounding.round`. Changes the target's format to that of the exponent found."""
        bits, given = _power(target.format)
        h, found = None, curvature(stats, self.damp) if self.data or self.codes or self.steps else None
        if self.data and stats.xtx is not None and found is not None:
            h = stats.xtx
            if found.damping > self.damp:  # as they are, an error could have any sign
                h = h + np.float32(found.damping * h.diagonal().mean()) * np.eye(len(h), dtype=np.float32)
        found = found if self.codes or self.steps else None

        @cache
        def cost(a: float) -> float:
            made = replace(target, spec=_with(target.spec, bits, a), notes=[])
            parts, _ = start(made, stats if self.data else Statistics(stats.width, frozenset()), None, h is not None)
            made.parts = parts
            e = made.rounded - target.weight
            return float(np.einsum("nk,nk->", e if h is None else e @ h, e, dtype=np.float64))

        target.spec = _with(target.spec, bits, exponent(cost, given, self.turns))
        before = len(target.notes)
        parts, found = start(target, stats, found, h is not None)
        if not self.codes and not self.steps:
            del target.notes[before:]  # no feedback was asked for, so none is missed
        if found is not None:
            if self.steps:
                target.spec, parts = learned(target, parts, found.matrix, found.order, self.steps)
            else:
                parts = feed_back(target, found, parts)
        finish(target, parts)


def learned(target: Target, parts: Parts, h: np.ndarray, order: np.ndarray, steps: int) -> tuple[Spec, Parts]:
    """The spec, with its exponent, and parts, with their scales, after that many steps on e H e^T; `h` float[k, k] with channel order[i]
    at i. UsageError: a grid with zero points or offsets."""
    bits, a = _power(target.format)
    columns = Columns(parts, target.spec, target.weight.shape)
    if columns.zero is not None or columns.offset is not None:
        raise UsageError(f"nupes learns codes of grids that have a scale alone, and {target.format} has more; leave steps at 0")
    w, scale = target.weight[:, order], columns.scale[columns.row][:, columns.column[order]]
    hessian, top, first = h.astype(np.float32), np.float32(2 ** (bits - 1) - 1), a
    nearest = parts["codes"][:, order].astype(np.int32)
    nearest = np.where(nearest > top, nearest - (1 << bits), nearest).astype(np.float32)
    x = np.divide(w, scale, out=np.zeros_like(w), where=scale != 0)
    u = np.sign(x) * np.minimum(np.abs(x), 1) ** np.float32(a) * top
    u = nearest + np.clip(u - nearest, np.float32(-0.49), np.float32(0.49))
    moments = [(np.zeros_like(u), np.zeros_like(u)), (0.0, 0.0)]

    def values(codes: np.ndarray, a: float) -> np.ndarray:
        return np.asarray(scale * np.sign(codes) * (np.abs(codes) / top) ** np.float32(1 / a))

    def loss(codes: np.ndarray, a: float) -> float:
        e = values(codes, a) - w
        return float(np.einsum("nk,nk->", e @ hessian, e, dtype=np.float64))

    best, kept = loss(nearest, round(a, 3)), (round(a, 3), nearest)
    slope = scale * np.maximum(np.abs(u), np.float32(0.5)) ** np.float32(1 / a - 1) / top ** np.float32(1 / a) / np.float32(a)
    unit = 2 / max(float(np.mean(np.square(slope, dtype=np.float64))), 1e-30)  # of a step of the grid
    for step in range(1, steps + 1):
        size = np.maximum(np.abs(u), np.float32(1e-3))
        q = values(u, a)
        g = np.float32(unit) * ((q - w) @ hessian)
        near = np.maximum(size, np.float32(0.5))
        slope = scale * near ** np.float32(1 / a - 1) / top ** np.float32(1 / a) / np.float32(a)
        slopes = g * slope, -float((g * q * np.log(size / top)).sum(dtype=np.float64)) / a**2
        if step > steps // 5:  # after which codes are drawn to whole numbers, at first only those that are close
            beta = np.float32(2 + 18 * (1 - (step - steps // 5) / (steps - steps // 5)))
            two = 2 * (u - np.floor(u)) - 1
            slopes = slopes[0] - np.float32(PULL) * 2 * beta * np.sign(two) * np.abs(two) ** (beta - 1), slopes[1]
        moves = []
        for i, gradient in enumerate(slopes):  # Adam
            m, s = (old + by * (new - old) for old, by, new in zip(moments[i], (0.1, 0.001), (gradient, gradient * gradient), strict=True))
            moments[i] = m, s
            moves.append(RATES[i] * (m / (1 - 0.9**step)) / (np.sqrt(s / (1 - 0.999**step)) + 1e-30))
        u = np.clip(u - moves[0].astype(np.float32), -top, top)
        a = float(np.clip(a - moves[1], LOW / 2, HIGH))
        if step % CHECKED == 0 or step == steps:
            codes = np.rint(u)
            now = loss(codes, round(a, 3))
            if now < best:
                best, kept = now, (round(a, 3), codes)
    a, codes = kept
    spec = target.spec if a == round(first, 3) else _with(target.spec, bits, a)
    stored = np.empty(codes.shape, parts["codes"].dtype)
    stored[:, order] = codes.astype(np.int64) & ((1 << bits) - 1)
    return spec, {**parts, "codes": stored}


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
