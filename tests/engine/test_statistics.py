"""Row statistics for evaluation against float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from anybit.kernels.cpu import native


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 100, 4096])
@pytest.mark.parametrize("scale", [0.1, 5.0, 80.0])
def test_against_float64(n: int, scale: float) -> None:
    """Exponentials are float32, 1 ulp: relative 1.2e-7 a term, so that logarithms of sums are within 2e-7 and divergences within
    2e-7 times their largest term.
    """
    rng = np.random.default_rng(n)
    reference = (rng.standard_normal((33, n)) * scale).astype(np.float32)
    logits = (reference + rng.standard_normal((33, n)) * 0.3).astype(np.float32)
    targets = rng.integers(0, n, 33).astype(np.int32)
    reference_nll, nll, kl, reference_top, top = native.row_stats(reference, logits, targets)
    p, q = log_softmax(reference), log_softmax(logits)
    rows = np.arange(33)
    assert np.allclose(reference_nll, -p[rows, targets], rtol=1e-12, atol=2.5e-7)
    assert np.allclose(nll, -q[rows, targets], rtol=1e-12, atol=2.5e-7)
    terms = np.abs(p - q).max(axis=1)
    assert np.all(np.abs(kl - (np.exp(p) * (p - q)).sum(axis=1)) <= 2.5e-7 * (1 + terms))
    assert np.array_equal(reference_top, reference.argmax(axis=1)) and np.array_equal(top, logits.argmax(axis=1))
    alone = native.row_nll(logits, targets)
    assert np.array_equal(alone[0], nll) and np.array_equal(alone[1], top)


def test_equal_logits_do_not_diverge() -> None:
    x = np.random.default_rng(0).standard_normal((4, 999)).astype(np.float32)
    assert native.row_stats(x, x, np.zeros(4, np.int32))[2].tolist() == [0.0] * 4


def test_extreme_logits() -> None:
    x = np.array([[3e38, -3e38, 0.0]], np.float32)
    assert native.row_nll(x, np.array([0], np.int32))[0].tolist() == [0.0]
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="row 1 holds a value that is not finite"):
            native.row_nll(np.array([[0, 1], [bad, 0]], np.float32), np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="a target is outside the vocabulary"):
        native.row_nll(x, np.array([3], np.int32))
