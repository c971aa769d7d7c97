"""A small CNN trained on scikit-learn's digits: convolutions, batch norms, maxima, a residual addition, a global average."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from nets import by_torch

from anybit.models import Add, AveragePool, BatchNorm, Conv2d, Dense, Flatten, Graph, MaxPool, Relu

CNN = Graph.of(
    (1, 8, 8),
    ("stem", Conv2d(12, (3, 3), padding=(1, 1), bias=False)),
    ("stem_norm", BatchNorm()),
    ("stem_relu", Relu()),
    ("pool", MaxPool((2, 2))),
    ("main1", Conv2d(12, (3, 3), padding=(1, 1), bias=False)),
    ("main1_norm", BatchNorm()),
    ("main1_relu", Relu()),
    ("main2", Conv2d(12, (3, 3), padding=(1, 1), bias=False)),
    ("main2_norm", BatchNorm()),
    ("sum", Add(), "main2_norm", "pool"),
    ("sum_relu", Relu()),
    ("wide", Conv2d(24, (3, 3), padding=(1, 1), bias=False)),
    ("wide_norm", BatchNorm()),
    ("wide_relu", Relu()),
    ("mean", AveragePool()),
    ("flat", Flatten()),
    ("head", Dense(10)),
)  # fmt: skip


@dataclass(frozen=True)
class Digits:
    graph: Graph
    weights: dict[str, np.ndarray]
    train: np.ndarray
    test: np.ndarray
    labels: np.ndarray

    def accuracy(self, logits: np.ndarray) -> float:
        return float((logits.argmax(axis=1) == self.labels).mean())


def trained() -> Digits:
    """Adam, 10 passes over 1,297 images; 500 others to test."""
    torch = pytest.importorskip("torch")
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    images, labels = (data.images[order, None] / 16 - 0.5).astype(np.float32), data.target[order]
    x, y = torch.tensor(images[:-500]), torch.tensor(labels[:-500])
    draws = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in CNN.tensors.items():
        fan = float(np.prod(shape[1:]))
        start = torch.full(shape, float("norm.weight" in name))
        if len(shape) > 1:
            start = torch.randn(shape, generator=draws) * (2 / fan) ** 0.5
        weights[name] = torch.ones(shape) if name.endswith("var") else start.requires_grad_(not name.endswith("mean"))
    optimizer = torch.optim.Adam([w for w in weights.values() if w.requires_grad], lr=1e-2)
    for epoch in range(10):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - epoch / 10)
        for batch in torch.randperm(len(x), generator=draws).split(64):
            loss = torch.nn.functional.cross_entropy(by_torch(CNN, weights, x[batch], training=True), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Digits(CNN, {name: w.detach().numpy() for name, w in weights.items()}, images[:-500], images[-500:], labels[-500:])
