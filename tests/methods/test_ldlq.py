"""LDLQ of groups against its definition in float64."""

import numpy as np
import pytest
from calibrated import damped, gathered, layer, loss, rounded

from anybit.formats import Format
from anybit.methods.ldlq import Ldlq
from anybit.methods.nearest import Nearest
from anybit.methods.rtn import quantize_parts, stored_grids


@pytest.mark.parametrize(("expression", "dim"), [("d4@32", 4), ("ovp4_int@32", 2)])
def test_equals_the_paper(expression: str, dim: int) -> None:
    w, x, _ = layer(n=9, k=64)
    h, fmt = damped(x), Format(expression)
    target = rounded(Ldlq(importance=False), w, expression, gathered(x))
    scale = stored_grids(quantize_parts(w, fmt), fmt, w.shape).scale.astype(np.float64)
    # H = A D A^T from the last group to the first, by elimination
    a, left = np.eye(64), h.copy()
    for at in range(64 - dim, -1, -dim):
        own = slice(at, at + dim)
        a[:at, own] = left[:at, own] @ np.linalg.inv(left[own, own])
        left[:at, :at] -= a[:at, own] @ left[own, :at]
    error, values = np.zeros(w.shape), fmt.element.values
    for at in range(0, 64, dim):
        own = slice(at, at + dim)
        goal = w[:, own] + error[:, :at] @ a[:at, own]
        near = np.square(goal[:, None] / scale[:, at // 32, None, None] - values).sum(axis=2).argmin(axis=1)
        error[:, own] = w[:, own] - values[near] * scale[:, at // 32, None]
    kept = rounded(Nearest(), w, expression, gathered(x)).rounded
    expected = sum(min(loss(w[r], w[r] - error[r], h), loss(w[r], kept[r], h)) for r in range(9))
    assert abs(loss(w, target.rounded, h) / expected - 1) < 1e-6
    assert loss(w, target.rounded, h) < loss(w, kept, h)
