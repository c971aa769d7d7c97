"""Floating-point execution of a graph in NumPy: what quantization is compared with, and calibrated by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from anybit.errors import NonFiniteError, ShapeError
from anybit.graphs.windows import convolve, windows
from anybit.models import INPUT, Add, AveragePool, BatchNorm, Conv2d, Dense, Flatten, Graph, MaxPool, Node, Relu

Weights = Mapping[str, np.ndarray]
BATCH = 256


def samples(graph: Graph, x: Any) -> np.ndarray:
    """x as an array of at least one sample of the graph's input. ShapeError: it is none. NonFiniteError: NaN or infinity in it."""
    x = np.asarray(x)
    if x.ndim != len(graph.input) + 1 or x.shape[1:] != graph.input or not len(x):
        raise ShapeError(f"samples are [n, {', '.join(map(str, graph.input))}] with n of at least 1, not {list(x.shape)}")
    if x.dtype.kind not in "fiu":
        raise ShapeError(f"samples are numbers, not {x.dtype}")
    if not np.isfinite(x).all():
        raise NonFiniteError(f"samples hold {int((~np.isfinite(x)).sum())} non-finite value(s); remove them")
    return x


def execute(graph: Graph, weights: Weights, x: Any, dtype: Any = np.float32) -> np.ndarray:
    """The output for samples x [n, *graph.input], in float32 (or float64), batch norms by their stored statistics.

    Sums are those of NumPy, whose order depends on the machine: a measure to compare with, no part of the numerical contract.

    Raises: ShapeError, NonFiniteError: see `Graph.check` and `samples`.
    """
    graph.check(weights)
    return np.concatenate([values[graph.output] for values in batches(graph, weights, samples(graph, x), dtype)])


def batches(graph: Graph, weights: Weights, x: np.ndarray, dtype: Any = np.float32, size: int = BATCH) -> Iterator[dict[str, np.ndarray]]:
    """Every value by its node's name ("input" too), batch by batch."""
    held = {name: np.asarray(weights[name], dtype) for name in graph.tensors}
    for start in range(0, len(x), size):
        values = {INPUT: np.asarray(x[start : start + size], dtype)}
        for node in graph.nodes:
            values[node.name] = apply(node, held, *(values[given] for given in node.inputs))
        yield values


def bn_factors(node: Node, weights: Weights, axes: int) -> tuple[np.ndarray, np.ndarray]:
    """A batch norm as x * factor + shift, both shaped for values of that many axes."""
    assert isinstance(node.op, BatchNorm)
    gamma, beta, mean, var = (weights[f"{node.name}.{name}"] for name in ("weight", "bias", "running_mean", "running_var"))
    factor = gamma / np.sqrt(var + var.dtype.type(node.op.eps))
    shape = (-1, *[1] * (axes - 2))
    return factor.reshape(shape), (beta - mean * factor).reshape(shape)


def apply(node: Node, weights: Weights, *given: np.ndarray) -> np.ndarray:
    """One operator on a batch, in the dtype of its input."""
    op, x = node.op, given[0]
    match op:
        case Conv2d():
            y = convolve(x, weights[f"{node.name}.weight"], op.stride, op.padding, op.groups)
            return y + weights[f"{node.name}.bias"][:, None, None] if op.bias else y
        case Dense():
            y = x @ weights[f"{node.name}.weight"].T
            return y + weights[f"{node.name}.bias"] if op.bias else y
        case BatchNorm():
            factor, shift = bn_factors(node, weights, x.ndim)
            return x * factor + shift
        case Relu():
            return np.maximum(x, 0)
        case MaxPool():
            return windows(x, op.kernel, op.step, op.padding, -np.inf).max(axis=(4, 5))
        case AveragePool():
            return windows(x, *op.window(x.shape[1:]), op.padding).mean(axis=(4, 5), dtype=x.dtype)
        case Add():
            return x + given[1]
        case Flatten():
            return x.reshape(len(x), -1)
    raise ShapeError(f"node '{node.name}': no execution of {type(op).__name__}")
