"""For methods that decide up or down: the two values of a format between which each weight lies, scales being chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anybit.errors import FormatError
from anybit.formats import Spec
from anybit.methods.columns import Columns
from anybit.methods.rtn import quantize_parts
from anybit.methods.step import Parts, Target


@dataclass(frozen=True)
class Between:
    """`down` and `up` float64[n, k], the values around `x`, equal where x lies beyond the ends; `share` in [0, 1], how far x is from down;
    `start`, the parts that nearest gives, whose scales all of this uses."""

    start: Parts
    grid: Columns
    down: np.ndarray
    up: np.ndarray
    share: np.ndarray
    spec: Spec

    def parts(self, up: np.ndarray) -> Parts:
        """Parts whose codes mean `up` where that is true, else `down`."""
        x = np.where(up, self.up, self.down).astype(np.float32)
        codes = np.empty(x.shape, self.start["codes"].dtype)
        for column in range(x.shape[1]):
            codes[:, column] = self.grid.choose(column, x[:, column : column + 1])[0]
        return {**self.start, "codes": codes}


def between(target: Target, importance: np.ndarray | None = None) -> Between:
    """The neighbours of each weight. FormatError: codes that stand for several weights, or whose values are learned or opened."""
    spec, w = target.spec, target.weight
    element = spec.format.element
    if element.dim > 1 or element.learned or spec.format.opened is not None:
        raise FormatError(f"{target.name}: up or down is no choice in {spec.format}; take a format whose codes stand for one weight each")
    start = quantize_parts(w, spec, name=f"tensor '{target.name}'", importance=importance)
    grid = Columns(start, spec, (int(w.shape[0]), int(w.shape[1])))
    values = np.unique(element.values[np.isfinite(element.values)])
    if grid.symmetric is not None:
        values = values[np.abs(values) <= grid.symmetric]
    scale = grid.scale[grid.row][:, grid.column].astype(np.float64)
    offset = 0.0 if grid.offset is None else grid.offset[grid.row][:, grid.column].astype(np.float64)
    zero = 0.0 if grid.zero is None else grid.zero[grid.row][:, grid.column].astype(np.float64)
    ratio = (w - offset) / np.where(scale == 0, np.inf, scale) + zero
    at = np.clip(np.searchsorted(values, ratio, side="right"), 1, len(values) - 1)
    low, high = values[at - 1], values[at]
    ends = (ratio <= values[0]) | (ratio >= values[-1])
    end = np.clip(ratio, values[0], values[-1])
    share = np.where(ends, 0.0, (ratio - low) / (high - low))
    down, up = ((np.where(ends, end, v) - zero) * scale + offset for v in (low, high))
    # negative scales (signed-max rules) turn the order round: down is only the first of the two
    return Between(start, grid, down, up, share, spec)
