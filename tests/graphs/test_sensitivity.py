"""Traces against the Hessian by finite differences, and by autograd; sensitivities and budgets by hand."""

from __future__ import annotations

import re

import numpy as np
import pytest
from nets import SMALL, by_torch, random_weights, samples

from anybit.errors import ShapeError, UsageError
from anybit.graphs.floats import execute
from anybit.graphs.sensitivity import Trace, bit_operations, hessian_traces, omega, weight_bits
from anybit.models import Conv2d, Dense, Flatten, Graph, Relu

TINY = Graph.of((2, 4, 3), ("a", Conv2d(3, (2, 2))), ("b", Relu()), ("c", Flatten()), ("d", Dense(4)))
FORMATS = {4: "int4_sym@channel:fp32", 8: "int8_sym@channel:fp32"}


def test_traces_are_those_of_finite_differences() -> None:
    """The trace of the cross-entropy's Hessian, second differences in float64, of labels that the model itself would not give."""
    weights, x = random_weights(TINY), samples(TINY, 40)
    labels = np.random.default_rng(3).integers(0, 4, len(x))

    def loss(changed: dict[str, np.ndarray]) -> float:
        logits = execute(TINY, changed, x, np.float64)
        return float((np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(x)), labels]).mean())

    found = hessian_traces(TINY, weights, x, probes=400)
    for name in TINY.layers:
        total, step = 0.0, 1e-4
        exact = {key: w.astype(np.float64) for key, w in weights.items()}
        w = exact[f"{name}.weight"].reshape(-1)
        for i in range(w.size):
            middle = loss(exact)
            w[i] += step
            up = loss(exact)
            w[i] -= 2 * step
            total += (up + loss(exact) - 2 * middle) / step**2
            w[i] += step
        # the standard error is that of the probes; second differences of losses of about 1 are off by 1e-16 / 1e-8 each
        assert abs(found[name].value - total) < 4 * found[name].error + 1e-6, name
        assert found[name].error < 0.1 * total


def test_traces_are_those_of_autograd() -> None:
    """With a residual, groups, pooling and batch norms: sum over classes of |J^T L e|^2, one backward pass a sample and class."""
    torch = pytest.importorskip("torch")
    weights, x = random_weights(SMALL), samples(SMALL, 6)
    held = {k: torch.tensor(w).double().requires_grad_(not k.endswith(("mean", "var"))) for k, w in weights.items()}
    totals = dict.fromkeys(SMALL.layers, 0.0)
    for one in x:
        logits = by_torch(SMALL, held, torch.tensor(one[None]).double())[0]
        p = torch.softmax(logits, 0).detach()
        root = torch.diag(p.sqrt()) - torch.outer(p, p.sqrt())
        for column in root.T:
            grads = torch.autograd.grad((logits * column).sum(), [held[f"{n}.weight"] for n in SMALL.layers], retain_graph=True)
            for name, grad in zip(SMALL.layers, grads, strict=True):
                totals[name] += float((grad**2).sum()) / len(x)
    for name, trace in hessian_traces(SMALL, weights, x, probes=600).items():
        assert abs(trace.value - totals[name]) < 4 * trace.error, name
        assert trace.error < 0.1 * totals[name]


def test_the_same_seed_gives_the_same_traces_and_another_one_others() -> None:
    weights, x = random_weights(TINY), samples(TINY, 300)
    first, again, other = (hessian_traces(TINY, weights, x, 4, seed) for seed in (1, 1, 2))
    assert first == again != other


def test_omega_and_budgets_by_hand() -> None:
    weights = {name: np.zeros(shape, np.float32) for name, shape in TINY.tensors.items()}
    weights["a.weight"][0].reshape(-1)[:2] = 7.0, 1.5  # scale 1: 1.5 becomes 2 (ties to even); 8 bits: scale 7/127, 27.2 becomes 27
    found = omega(TINY, weights, {"a": Trace(48.0, 0), "d": Trace(1.0, 0)}, FORMATS)
    assert found["a"][4] == 48 / 24 * 0.25
    assert found["a"][8] == pytest.approx(2 * (27 * 7 / 127 - 1.5) ** 2, rel=1e-5)  # the scale is a float32
    assert found["d"] == {4: 0.0, 8: 0.0}
    assert weight_bits(TINY, FORMATS) == {"a": {4: 96, 8: 192}, "d": {4: 4 * 72, 8: 8 * 72}}
    assert bit_operations(TINY, FORMATS, {4: 4, 8: 8}) == {"a": {4: 16 * 144, 8: 64 * 144}, "d": {4: 16 * 72, 8: 64 * 72}}


def test_input_is_checked() -> None:
    images = Graph.of((2, 4, 3), ("a", Conv2d(3, (2, 2))))
    with pytest.raises(ShapeError, match=re.escape("the output is [3, 3, 2]; the loss needs [classes]")):
        hessian_traces(images, random_weights(images), samples(images))
    with pytest.raises(UsageError, match="1 probes; a standard error needs at least 2"):
        hessian_traces(TINY, random_weights(TINY), samples(TINY), probes=1)
