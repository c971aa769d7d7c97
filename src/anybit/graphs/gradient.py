"""Reverse mode through a graph, by hand: what a change of the weights does to the output, transposed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from anybit.errors import ShapeError
from anybit.graphs.floats import Weights, bn_factors
from anybit.graphs.windows import matrix, scatter, windows
from anybit.models import INPUT, Add, AveragePool, BatchNorm, Conv2d, Dense, Flatten, Graph, MaxPool, Node, Relu
from anybit.models.operators import Pair


def gradients(graph: Graph, weights: Weights, values: Mapping[str, np.ndarray], cotangent: np.ndarray) -> dict[str, np.ndarray]:
    """Gradients of sum(cotangent * output) by all weights and biases, and by "input".

    Args: values: every value of one batch, as `batches` gives them; cotangent: of the output's shape. Statistics of batch norms are
        constants. At a maximum that is reached twice the first place gets all, at relu(0) nothing.
    """
    held = {name: np.asarray(weights[name], cotangent.dtype) for name in graph.tensors}
    back: dict[str, np.ndarray] = {graph.output: cotangent}
    found: dict[str, np.ndarray] = {}
    for node in reversed(graph.nodes):
        dy = back.pop(node.name)
        found.update(_of_tensors(node, held, values, dy))
        for given, dx in zip(node.inputs, _of_inputs(node, held, values, dy), strict=True):
            back[given] = back[given] + dx if given in back else dx
    return {**found, INPUT: back[INPUT]} if INPUT in back else found


def _of_tensors(node: Node, weights: Weights, values: Mapping[str, np.ndarray], dy: np.ndarray) -> dict[str, np.ndarray]:
    op, x, name = node.op, values[node.inputs[0]], node.name
    if isinstance(op, Conv2d):
        high, wide = op.kernel
        columns = matrix(windows(x, (high, wide), op.stride, op.padding), op.groups)
        rows = dy.reshape(len(dy), op.groups, op.channels // op.groups, -1)
        found = {f"{name}.weight": (rows @ columns.swapaxes(2, 3)).sum(axis=0).reshape(weights[f"{name}.weight"].shape)}
        return {**found, f"{name}.bias": dy.sum(axis=(0, 2, 3))} if op.bias else found
    if isinstance(op, Dense):
        found = {f"{name}.weight": dy.T @ x}
        return {**found, f"{name}.bias": dy.sum(axis=0)} if op.bias else found
    if isinstance(op, BatchNorm):
        axes = (0, *range(2, x.ndim))
        shape = (-1, *[1] * (x.ndim - 2))
        mean, var = (weights[f"{name}.{part}"].reshape(shape) for part in ("running_mean", "running_var"))
        plain = (x - mean) / np.sqrt(var + var.dtype.type(op.eps))
        return {f"{name}.weight": (dy * plain).sum(axis=axes), f"{name}.bias": dy.sum(axis=axes)}
    return {}


def _of_inputs(node: Node, weights: Weights, values: Mapping[str, np.ndarray], dy: np.ndarray) -> tuple[np.ndarray, ...]:
    op, x = node.op, values[node.inputs[0]]
    match op:
        case Conv2d():
            return (_of_image(op, x, weights[f"{node.name}.weight"], dy),)
        case Dense():
            return (dy @ weights[f"{node.name}.weight"],)
        case BatchNorm():
            return (dy * bn_factors(node, weights, x.ndim)[0],)
        case Relu():
            return (dy * (x > 0),)
        case MaxPool():
            found = windows(x, op.kernel, op.step, op.padding, -np.inf)
            first = found.reshape(*found.shape[:4], -1).argmax(axis=4)
            at = (np.arange(op.kernel[0] * op.kernel[1]) == first[..., None]).reshape(found.shape)
            return (scatter(at * dy[..., None, None], _size(x), op.step, op.padding),)
        case AveragePool():
            kernel, stride = op.window(x.shape[1:])
            share = dy / dy.dtype.type(kernel[0] * kernel[1])
            return (scatter(np.broadcast_to(share[..., None, None], (*dy.shape, *kernel)), _size(x), stride, op.padding),)
        case Add():
            return dy, dy
        case Flatten():
            return (dy.reshape(x.shape),)
    raise ShapeError(f"node '{node.name}': no gradient of {type(op).__name__}")


def _of_image(op: Conv2d, x: np.ndarray, weight: np.ndarray, dy: np.ndarray) -> np.ndarray:
    n, _, rows, columns = dy.shape
    turned = weight.reshape(op.groups, op.channels // op.groups, -1).swapaxes(1, 2)
    found = turned @ dy.reshape(n, op.groups, op.channels // op.groups, -1)
    found = found.reshape(n, x.shape[1], *op.kernel, rows, columns).transpose(0, 1, 4, 5, 2, 3)
    return scatter(found, _size(x), op.stride, op.padding)


def _size(x: np.ndarray) -> Pair:
    return x.shape[2], x.shape[3]
