"""GPTQ of one matrix by its statistics alone: the method `gptq` of `quantize` and `fake_quantize`."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from anybit.errors import NonFiniteError, ShapeError, UsageError
from anybit.formats import Spec
from anybit.formats.element import as_real
from anybit.methods.gptq import Gptq
from anybit.methods.method import METHODS, Parts
from anybit.methods.scales import SCALES, counted
from anybit.methods.statistics import Statistics
from anybit.methods.step import Target


@METHODS.register("gptq")
def gptq(w: Any, spec: Spec, name: str = "array", xtx: Any = None) -> Parts:
    """GPTQ (`methods/gptq.py`) with its defaults. w: float32[n, k]; xtx: float32[k, k], the sum of x x^T over the layer's inputs.

    Warns where damping was raised or nearest codes were kept. Raises: ShapeError: no matrix, or statistics that do not fit it;
    UsageError: no statistics; NonFiniteError: statistics that are not finite; else as `quantize_parts`.
    """
    check_xtx(w, xtx, name)
    h = np.ascontiguousarray(as_real(xtx), np.float32)
    if not np.isfinite(h).all():
        raise NonFiniteError(f"{name}: xtx holds NaN or infinities; calibrate again, on inputs that are finite")
    target = Target(name, np.ascontiguousarray(as_real(w), np.float32), spec)
    Gptq().round(target, Statistics(len(h), frozenset(), count=1, xtx=h))
    for note in target.notes:
        warnings.warn(f"{name}: {note}", RuntimeWarning, stacklevel=3)
    assert target.parts is not None
    return target.parts


def check_xtx(w: Any, xtx: Any, name: str) -> None:
    """ShapeError, UsageError: see `gptq`."""
    if len(w.shape) != 2:
        raise ShapeError(f"{name}: gptq rounds matrices [n, k], not an array of {list(w.shape)}")
    if xtx is None:
        raise UsageError(f"{name}: gptq needs xtx, X^T X of the inputs; for a whole model take a recipe: anybit quantize -r gptq-int4")
    if tuple(xtx.shape) != (w.shape[1], w.shape[1]):
        raise ShapeError(f"{name}: xtx is [{w.shape[1]}, {w.shape[1]}] for a matrix of {list(w.shape)}, not {list(xtx.shape)}")


def importance_of(diagonal: np.ndarray, spec: Spec) -> np.ndarray | None:
    """float64[k]: what errors weigh where scales are searched, from the diagonal of X^T X; None: the rule does not search."""
    if spec.format.block is None or not SCALES[spec.scale_rule].searches:
        return None
    return counted(diagonal)
