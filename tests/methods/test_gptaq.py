"""GPTAQ against its published loop in float64, and what its two forms are for."""

import numpy as np
import pytest
from calibrated import damped, gathered, layer, loss, rounded

from anybit.errors import UsageError
from anybit.formats import Spec
from anybit.methods.gptaq import Gptaq
from anybit.methods.gptq import Gptq
from anybit.methods.nearest import Nearest
from anybit.methods.rtn import dequantize_parts, quantize_parts, stored_grids
from anybit.methods.step import STEPS


def true_loss(w: np.ndarray, q: np.ndarray, x: np.ndarray, original: np.ndarray) -> float:
    """|q X - w X0|^2 in float64, with the damping of the methods."""
    direct = np.square(q.astype(np.float64) @ x.T.astype(np.float64) - w.astype(np.float64) @ original.T.astype(np.float64)).sum()
    extra = 0.01 * np.square(x.astype(np.float64)).sum(axis=0).mean()
    return float(direct + extra * np.square(w - q, dtype=np.float64).sum())


def by_the_paper(w: np.ndarray, x: np.ndarray, original: np.ndarray, alpha: float, scale: np.ndarray) -> np.ndarray:
    """Column by column in float64, int3 with one scale for 32 weights, in the order of the activations."""
    x, original = x.astype(np.float64), original.astype(np.float64)
    order = np.argsort(-np.square(x).sum(axis=0), kind="stable")
    h = damped(x)[np.ix_(order, order)]
    drift = ((original - x).T @ x)[np.ix_(order, order)]
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    p = alpha * np.triu(drift @ u.T, 1) @ u
    left, q = w.astype(np.float64)[:, order], np.zeros(w.shape)
    for i in range(w.shape[1]):
        s = scale[:, order[i] // 32].astype(np.float64)
        now = left[:, i].copy()
        q[:, i] = np.clip(np.rint(now / s), -4, 3) * s
        left[:, i:] += -np.outer((now - q[:, i]) / u[i, i], u[i, i:]) + np.outer(now, p[i, i:])
    back = np.empty_like(q)
    back[:, order] = q
    return back


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_equals_the_paper(alpha: float) -> None:
    w, x, original = layer()
    stats = gathered(x, original)
    target = rounded(Gptaq(alpha=alpha, importance=False), w, "int3@32", stats)
    parts = quantize_parts(w, "int3@32")
    expected = by_the_paper(w, x, original, alpha, stored_grids(parts, Spec.parse("int3@32").format, w.shape).scale)
    nearest = dequantize_parts(parts, Spec.parse("int3@32").format, w.shape)
    for row in range(len(w)):
        if true_loss(w[row], nearest[row], x, original) < true_loss(w[row], expected[row], x, original):
            expected[row] = nearest[row]
    assert abs(true_loss(w, target.rounded, x, original) / true_loss(w, expected, x, original) - 1) < 1e-6


@pytest.mark.parametrize("expression", ["int3@32", "nf4@32", "int2@32+off", "d4@32"])
@pytest.mark.parametrize("form", ["paper", "joint"])
def test_serves_the_original_outputs(expression: str, form: str) -> None:
    w, x, original = layer()
    stats = gathered(x, original)
    found = [true_loss(w, rounded(step, w, expression, stats).rounded, x, original)
             for step in (Nearest(), Gptq(importance=False), Gptaq(alpha=1, form=form, importance=False))]  # fmt: skip
    assert max(found[1:]) < found[0]
    # At two bits the paper's alpha of 1 loses to GPTQ on this layer; the joint form solves for all at once and does not.
    assert found[2] < found[1] or (form, expression) == ("paper", "int2@32+off")


def test_without_a_difference_it_is_gptq() -> None:
    w, x, _ = layer()
    codes = [rounded(step, w, "int3@32", gathered(x, x)).parts or {} for step in (Gptq(), Gptaq(form="joint"))]
    assert np.array_equal(codes[0]["codes"], codes[1]["codes"])
    paper = rounded(Gptaq(), w, "int3@32", gathered(x, x))
    assert abs(loss(w, paper.rounded, damped(x)) / loss(w, rounded(Gptq(), w, "int3@32", gathered(x)).rounded, damped(x)) - 1) < 1e-6


def test_options() -> None:
    with pytest.raises(UsageError, match=r"gptaq: form is 'both'; there is paper and joint"):
        STEPS["gptaq"].made({"form": "both"}, "gptaq")
