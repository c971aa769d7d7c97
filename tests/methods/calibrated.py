"""A small layer with correlated inputs, and what the tests of calibrated methods measure."""

import numpy as np

from anybit.formats import Spec
from anybit.methods.rtn import quantize_parts
from anybit.methods.statistics import Statistics
from anybit.methods.step import Rounding, Target


def layer(n: int = 33, k: int = 96, tokens: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float32: weight [n, k], inputs [tokens, k] of a few strong directions and channels, the same inputs a little off."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((k, k)) * np.exp(rng.standard_normal(k))[:, None] / np.sqrt(k)
    x = rng.standard_normal((tokens, k)) @ mix @ np.diag(np.exp(rng.standard_normal(k) / 2)) + rng.standard_normal((tokens, k)) * 0.1
    w = rng.standard_t(5, (n, k)) * np.exp(rng.standard_normal((n, 1)) / 3) * 0.05
    off = x + 0.1 * rng.standard_normal((tokens, k)) @ mix
    return w.astype(np.float32), x.astype(np.float32), off.astype(np.float32)


def gathered(x: np.ndarray, original: np.ndarray | None = None) -> Statistics:
    needs = {"xtx", "mean", "variance"} | ({"cross"} if original is not None else set())
    stats = Statistics(x.shape[1], frozenset(needs))
    stats.add(x, "layer", original)
    return stats


def rounded(step: Rounding, w: np.ndarray, expression: str, stats: Statistics) -> Target:
    target = Target("w", w, Spec.parse(expression))
    step.round(target, stats)
    assert target.parts is not None
    return target


def loss(w: np.ndarray, q: np.ndarray, h: np.ndarray) -> float:
    """tr((w - q) h (w - q)^T) in float64."""
    e = w.astype(np.float64) - q
    return float(((e @ h) * e).sum())


def damped(x: np.ndarray, damp: float = 0.01) -> np.ndarray:
    """float64: X^T X as the methods take it."""
    h = x.astype(np.float64).T @ x.astype(np.float64)
    return h + damp * h.diagonal().mean() * np.eye(len(h))


def nearest_values(w: np.ndarray, expression: str) -> np.ndarray:
    from anybit.methods.rtn import dequantize_parts

    spec = Spec.parse(expression)
    return dequantize_parts(quantize_parts(w, spec), spec.format, w.shape)
