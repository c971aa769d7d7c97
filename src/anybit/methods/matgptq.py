"""MatGPTQ: one set of stored integers for several widths, chosen for all of them together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from anybit.errors import UsageError
from anybit.formats import Format, Spec
from anybit.methods.columns import Columns, plain
from anybit.methods.curvature import Curvature, check_options, curvature
from anybit.methods.feedback import BLOCK, Feedback
from anybit.methods.gptq import finish, start
from anybit.methods.rtn import dequantize_parts
from anybit.methods.statistics import Statistics
from anybit.methods.step import STEPS, Parts, Rounding, Target


@STEPS.register("matgptq")
@dataclass(frozen=True)
class Matgptq(Rounding):
    """Each code has the least sum over the widths r of weight_r (target - value_r)^2, value_r what the code opened at r bits means; the
    error that is fed forward is their mean by weight. For nested integers, as int8@128+nest=4.2: widths 8, 4 and 2.

    `weights`: one for each width from the stored one down, none given: all 1. Rows whose codes by rounding to nearest are better, on the
    weighted sum of the widths' objectives, keep them. Differs: the mean is weighted too (all weights are 1 in the paper's results).
    """

    source: ClassVar[str] = "MatGPTQ (IST Austria), the loop of its published code; slices of MatQuant, arXiv 2502.06786, eq. 4"
    needs: ClassVar[frozenset[str]] = frozenset({"xtx"})
    weights: tuple[float, ...] = ()
    damp: float = 0.01
    order: str = "activation"
    block: int = BLOCK

    def __post_init__(self) -> None:
        check_options(self.damp, self.order, self.block)
        object.__setattr__(self, "weights", tuple(self.weights))
        if any(weight < 0 for weight in self.weights) or (self.weights and not sum(self.weights) > 0):
            raise ValueError(f"weights are not negative and not all zero, not {list(self.weights)}")

    def round(self, target: Target, stats: Statistics) -> None:
        """See `Rounding.round`. UsageError: the format does not nest, or has another number of widths."""
        stored = plain(target.format)
        if not stored.nested:
            raise UsageError(f"matgptq rounds nested integers, such as int8@128+nest=4.2, not {target.format}; take gptq")
        widths = (stored.element.bits, *stored.nested)
        weights = self.weights or (1.0,) * len(widths)
        if len(weights) != len(widths):
            raise UsageError(f"{target.format} has the widths {', '.join(map(str, widths))}; give a weight for each, not {len(weights)}")
        found = curvature(stats, self.damp, self.order)
        parts, found = start(target, stats, found)
        if found is not None:
            spec, w = replace(target.spec, format=stored), target.weight
            columns = _Nested(parts, spec, w.shape, tuple(zip(widths, weights, strict=True)))
            codes = Feedback(columns, w, found.coupling(), found.order, use_native=False).run(self.block).stored_codes()
            before, after = (joint_loss(w, p, stored, columns.widths, found) for p in (parts, {**parts, "codes": codes}))
            worse = after > before
            if worse.any():
                target.notes.append(f"{int(worse.sum())} of {len(worse)} rows keep the codes they had, which are better")
            parts = {**parts, "codes": np.where(worse[:, None], parts["codes"], codes)}
        finish(target, parts)


def opened_values(fmt: Format, widths: tuple[int, ...]) -> np.ndarray:
    """float64[widths, 2**bits]: what each stored code means when it is opened, on the stored scale."""
    codes = np.arange(1 << fmt.element.bits).astype(fmt.element.code_dtype)
    found = []
    for width in widths:
        opened = fmt.open(width)
        found.append(fmt.element.values if opened.opened is None else opened.element.values[opened.cut(codes)])
    return np.array(found)


def joint_loss(w: np.ndarray, parts: Parts, fmt: Format, widths: tuple[tuple[int, float], ...], found: Curvature) -> np.ndarray:
    """float64[n]: sum over the widths of weight times e H e^T."""
    total = np.zeros(len(w))
    for width, weight in widths:
        opened = fmt.open(width)
        codes = parts["codes"] if opened.opened is None else opened.cut(parts["codes"])
        total += weight * found.losses(w - dequantize_parts({**parts, "codes": codes}, opened, w.shape))
    return total


class _Nested(Columns):
    """Grids on which a code is chosen for several widths at once.

    sum_r weight_r (x - v_r)^2 is x^2 times a constant, less 2 x b - c with b = sum weight_r v_r and c = sum weight_r v_r^2 of a code: the
    best code is the uppermost of the lines 2 x b - c, and which one that is changes at the corners of their envelope.
    """

    def __init__(self, parts: Parts, spec: Spec, shape: tuple[int, int], widths: tuple[tuple[int, float], ...]) -> None:
        super().__init__(parts, spec, shape)
        self.widths = widths
        values = opened_values(spec.format, tuple(width for width, _ in widths))
        weights = np.array([weight for _, weight in widths])[:, None]
        self.mean = ((weights * values).sum(axis=0) / weights.sum()).astype(np.float32)
        self.corners, self.best = envelope((weights * values).sum(axis=0), (weights * values**2).sum(axis=0))

    def choose(self, column: int | np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes [n], and float32[n, 1] the weighted mean of what they mean."""
        scale = self.at(self.scale, column)
        with np.errstate(over="ignore", under="ignore"):
            if self.offset is not None:
                x = x - self.at(self.offset, column)[:, None]
            ratio = x[:, 0] / np.where(scale == 0, np.float32(np.inf), scale)
            zero = np.float32(0) if self.zero is None else self.at(self.zero, column)
            codes = self.best[np.searchsorted(self.corners, ratio + zero, side="right")].astype(self.element.code_dtype)
            values = (self.mean[codes] - zero) * scale
        return codes, (values if self.offset is None else values + self.at(self.offset, column))[:, None]


def envelope(b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The uppermost of the lines 2 x b - c: ascending corners float64[m], and int64[m + 1] which line it is between them."""
    kept: list[int] = []
    corners: list[float] = []
    for i in np.lexsort((np.arange(len(b)), c, b)).tolist():
        if kept and b[i] == b[kept[-1]]:
            continue  # parallel and not above
        while kept:
            corner = (c[i] - c[kept[-1]]) / (2 * (b[i] - b[kept[-1]]))
            if corners and corner <= corners[-1]:
                kept.pop()
                corners.pop()
                continue
            corners.append(corner)
            break
        kept.append(i)
    return np.array(corners), np.array(kept)
