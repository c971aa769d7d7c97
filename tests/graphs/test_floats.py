"""Execution and gradients of graphs against PyTorch's operators and autograd, and against a loop over every place."""

from __future__ import annotations

import re

import numpy as np
import pytest
from nets import SMALL, by_torch, random_weights, samples

from anybit.errors import NonFiniteError, ShapeError
from anybit.graphs.floats import BATCH, batches, execute
from anybit.graphs.gradient import gradients
from anybit.graphs.windows import convolve
from anybit.models import Conv2d, Graph


def test_convolution_by_a_loop() -> None:
    """Small whole numbers, so equal and not close."""
    rng = np.random.default_rng(0)
    x, w = rng.integers(-9, 9, (2, 6, 7, 5)), rng.integers(-9, 9, (9, 2, 3, 2))
    stride, padding, groups = (2, 1), (1, 2), 3
    wide = np.pad(x, ((0, 0), (0, 0), (1, 1), (2, 2)))
    shape = Graph.of((6, 7, 5), ("c", Conv2d(9, (3, 2), stride, padding, groups))).shapes["c"]
    expected = np.zeros((2, *shape), int)
    for n, o, i, j in np.ndindex(*expected.shape):
        channels = slice(o // 3 * 2, o // 3 * 2 + 2)
        expected[n, o, i, j] = (wide[n, channels, 2 * i : 2 * i + 3, j : j + 2] * w[o]).sum()
    assert np.array_equal(convolve(x, w, stride, padding, groups), expected)


def test_output_is_that_of_torch() -> None:
    """float64: what is left is the order of sums, some hundred terms of about one, 1e-13."""
    torch = pytest.importorskip("torch")
    weights, x = random_weights(SMALL), samples(SMALL)
    expected = by_torch(SMALL, {k: torch.tensor(w).double() for k, w in weights.items()}, torch.tensor(x).double()).numpy()
    assert np.abs(execute(SMALL, weights, x, np.float64) - expected).max() < 1e-12
    assert execute(SMALL, weights, x).dtype == np.float32
    assert np.abs(execute(SMALL, weights, x) - expected).max() < 1e-4


def test_batches_are_put_together() -> None:
    weights, x = random_weights(SMALL), samples(SMALL, 3 * BATCH // 2)
    parts = np.concatenate([execute(SMALL, weights, x[i : i + BATCH]) for i in range(0, len(x), BATCH)])
    assert np.array_equal(execute(SMALL, weights, x), parts)


def test_gradients_are_those_of_autograd() -> None:
    torch = pytest.importorskip("torch")
    weights, x = random_weights(SMALL), samples(SMALL)
    cotangent = np.random.default_rng(2).standard_normal((len(x), 5))
    held = {k: torch.tensor(w).double().requires_grad_(not k.endswith(("mean", "var"))) for k, w in weights.items()}
    image = torch.tensor(x).double().requires_grad_()
    (by_torch(SMALL, held, image) * torch.tensor(cotangent)).sum().backward()
    found = gradients(SMALL, weights, next(batches(SMALL, weights, x, np.float64)), cotangent)
    assert set(found) == {k for k in weights if not k.endswith(("mean", "var"))} | {"input"}
    for name, gradient in found.items():
        expected = (image if name == "input" else held[name]).grad.numpy()
        assert np.abs(gradient - expected).max() <= 1e-12 * max(1, np.abs(expected).max()), name


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((3, 9, 7)), ShapeError, "samples are [n, 3, 9, 7] with n of at least 1, not [3, 9, 7]"),
        (np.zeros((0, 3, 9, 7)), ShapeError, "samples are [n, 3, 9, 7] with n of at least 1, not [0, 3, 9, 7]"),
        (np.full((1, 3, 9, 7), "a"), ShapeError, "samples are numbers, not <U1"),
        (np.full((1, 3, 9, 7), np.nan), NonFiniteError, "samples hold 189 non-finite value(s); remove them"),
    ],
)
def test_samples_are_checked(x: np.ndarray, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        execute(SMALL, random_weights(SMALL), x)
