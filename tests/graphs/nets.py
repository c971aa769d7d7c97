"""Graphs for tests, small and with awkward sizes, and the same as PyTorch modules run them."""

from __future__ import annotations

from typing import Any

import numpy as np

from anybit.models import INPUT, Add, AveragePool, BatchNorm, Conv2d, Dense, Flatten, Graph, MaxPool, Relu

SMALL = Graph.of(
    (3, 9, 7),
    ("stem", Conv2d(6, (3, 2), stride=(1, 2), padding=(1, 1), bias=False)),
    ("stem_norm", BatchNorm()),
    ("stem_relu", Relu()),
    ("pool", MaxPool((3, 3), stride=(2, 1), padding=(1, 1))),
    ("left", Conv2d(8, (3, 3), padding=(1, 1), groups=2), "pool"),
    ("left_norm", BatchNorm(1e-3)),
    ("right", Conv2d(8, (1, 1)), "pool"),
    ("sum", Add(), "left_norm", "right"),
    ("sum_relu", Relu()),
    ("deep", Conv2d(8, (3, 3), padding=(1, 1), groups=8), "sum_relu"),
    ("again", Add(), "deep", "sum_relu"),
    ("mean", AveragePool((2, 2), stride=(2, 1), padding=(1, 0))),
    ("all", AveragePool()),
    ("flat", Flatten()),
    ("head", Dense(5)),
)  # fmt: skip


def random_weights(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    """float32 weights of the size that keeps values near one; variances positive."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in graph.tensors.items():
        x = rng.standard_normal(shape, np.float32)
        made[name] = np.abs(x) + np.float32(0.5) if name.endswith("running_var") else x / np.float32(np.sqrt(max(1, np.prod(shape[1:]))))
        if "norm.weight" in name:
            made[name] = 1 + x / 4
    return made


def samples(graph: Graph, count: int = 5, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *graph.input), np.float32)


def by_torch(graph: Graph, weights: dict[str, Any], x: Any, training: bool = False) -> Any:
    """The output as torch.nn.functional computes it, from tensors; `training` normalises by the batch and moves the stored statistics."""
    from torch.nn import functional

    values = {INPUT: x}
    for node in graph.nodes:
        op, given = node.op, [values[name] for name in node.inputs]
        own = {name.rpartition(".")[2]: weights[name] for name in weights if name.rpartition(".")[0] == node.name}
        match op:
            case Conv2d():
                y = functional.conv2d(given[0], own["weight"], own.get("bias"), op.stride, op.padding, 1, op.groups)
            case Dense():
                y = functional.linear(given[0], own["weight"], own.get("bias"))
            case BatchNorm():
                mean, var = own["running_mean"], own["running_var"]
                y = functional.batch_norm(given[0], mean, var, own["weight"], own["bias"], training, 0.1, op.eps)
            case Relu():
                y = functional.relu(given[0])
            case MaxPool():
                y = functional.max_pool2d(given[0], op.kernel, op.stride, op.padding)
            case AveragePool(kernel=None):
                y = functional.adaptive_avg_pool2d(given[0], 1)
            case AveragePool():
                y = functional.avg_pool2d(given[0], op.kernel, op.stride, op.padding)
            case Add():
                y = given[0] + given[1]
            case _:
                y = given[0].flatten(1)
        values[node.name] = y
    return values[graph.output]
