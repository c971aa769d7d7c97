"""HQQ: offsets (or scales) for the least sum of |error|^p, without data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from anybit.formats import Spec
from anybit.methods.columns import Columns, plain, refused
from anybit.methods.first_level import first_levels
from anybit.methods.gptq import exact, finish
from anybit.methods.rtn import dequantize_parts, quantize_parts
from anybit.methods.statistics import Statistics
from anybit.methods.step import STEPS, Parts, Rounding, Target


@STEPS.register("hqq")
@dataclass(frozen=True)
class Hqq(Rounding):
    """Half-quadratic quantization: errors that a shrinkage operator explains as outliers are set aside, and the zero point of each block
    moves to the mean of the rest; in turns with rounding. Blocks keep the best they have seen, nearest included.

    Differs: a format with neither zero points nor offsets has its scales fitted instead; stored numbers are rounded to their elements in
    every turn, so that whole zero points seldom move; the best is kept block by block, where the paper stops early for a whole matrix.
    """

    source: ClassVar[str] = "Badri and Shaji 2023, Half-Quadratic Quantization of Large Machine Learning Models (Mobius Labs), eq. 3 to 6"
    p: float = 0.7
    beta: float = 10.0
    kappa: float = 1.01
    turns: int = 20

    def __post_init__(self) -> None:
        if not (0 < self.p <= 1 and self.beta > 0 and self.kappa >= 1 and self.turns >= 1):
            raise ValueError(f"p in (0, 1], beta above 0, kappa and turns from 1 on, not {self.p}, {self.beta}, {self.kappa}, {self.turns}")

    def round(self, target: Target, stats: Statistics) -> None:
        """See `Rounding.round`."""
        spec = replace(target.spec, format=plain(target.format))
        parts = quantize_parts(target.weight, spec, name=f"tensor '{target.name}'")
        reason = exact(target) or refused(spec) or ("it has no blocks to fit" if spec.format.block is None else None)
        reason = reason or (f"the values of {spec.format.element} were learned with its scales" if spec.format.element.learned else None)
        if reason is not None:
            target.notes.append(f"{reason}: rounded to nearest")
        else:
            parts = self._fitted(target.weight, spec, parts)
        finish(target, parts)

    def _fitted(self, w: np.ndarray, spec: Spec, parts: Parts) -> Parts:
        fmt, beta, now = spec.format, self.beta, parts
        best, least = dict(parts), self._cost(w, spec, parts)
        for _ in range(self.turns):
            columns, stored = Columns(now, spec, w.shape), first_levels(now, fmt, w.shape)
            error = w - dequantize_parts(now, fmt, w.shape)
            rest = w - shrunk(error, beta, self.p)
            units, scale = columns.units(now["codes"]), columns.scale[columns.row][:, columns.column]
            now = dict(now)
            if fmt.zero is not None:
                # (value - z) s is near the rest: z = mean(value - rest / s)
                held = np.where(scale == 0, 1, scale)
                values = units + columns.zero[columns.row][:, columns.column] if columns.zero is not None else units
                wish = blockwise(values - rest / held, columns) / blockwise(np.ones_like(w), columns)
                now["zero"] = fmt.zero.encode(np.clip(wish, fmt.zero.min, fmt.zero.max))
            elif fmt.offset is not None:
                wish = blockwise(rest - units * scale, columns) / blockwise(np.ones_like(w), columns)
                now["offset.0"] = stored["offset.0"].near(wish, slice(None), nonzero=False)[0]
            else:
                square = blockwise(units * units, columns)
                wish = np.where(square > 0, blockwise(rest * units, columns) / np.where(square > 0, square, 1), columns.scale)
                now["scale.0"] = stored["scale.0"].near(wish, slice(None), nonzero=True)[0]
            now["codes"] = Columns(now, spec, w.shape).nearest(w)
            cost = self._cost(w, spec, now)
            better = cost < least
            least = np.where(better, cost, least)
            wide = better[columns.row][:, columns.column[:: columns.dim]]
            for name in now:
                if name == "codes":
                    best[name] = np.where(wide, now[name], best[name])
                elif now[name].shape == better.shape and now[name] is not parts[name]:
                    best[name] = np.where(better, now[name], best[name])
            beta *= self.kappa
        return best

    def _cost(self, w: np.ndarray, spec: Spec, parts: Parts) -> np.ndarray:
        """float64, one a block: the sum of |error|^p."""
        error = np.abs(w - dequantize_parts(parts, spec.format, w.shape))
        return blockwise(error**self.p, Columns(parts, spec, w.shape))


def shrunk(x: np.ndarray, beta: float, p: float) -> np.ndarray:
    """The generalised soft threshold sign(x) max(|x| - |x|^(p - 1) / beta, 0); 0 at 0."""
    size = np.abs(x)
    with np.errstate(divide="ignore", over="ignore"):
        return np.sign(x) * np.maximum(size - np.where(size > 0, size, 1) ** (p - 1) / beta, 0).astype(np.float32)


def blockwise(x: np.ndarray, columns: Columns) -> np.ndarray:
    """float64, one a block: the sums of float[n, k] over blocks."""
    starts = [np.flatnonzero(np.r_[True, index[1:] != index[:-1]]) for index in (columns.row, columns.column)]
    return np.add.reduceat(np.add.reduceat(x.astype(np.float64), starts[0], axis=0), starts[1], axis=1)
