"""Batch norms folded into the layers before them.

Source: Jacob et al., arXiv 1712.05877; Krishnamoorthi, arXiv 1806.08342.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from anybit.errors import UsageError
from anybit.graphs.floats import Weights, bn_factors
from anybit.models import BatchNorm, Conv2d, Graph, Node
from anybit.models.operators import WEIGHTED


def fold_batch_norm(graph: Graph, weights: Weights) -> tuple[Graph, dict[str, np.ndarray]]:
    """The same function without batch norms: weight * factor and (bias - mean) * factor + beta, factor = gamma / sqrt(var + eps).

    Computed in float64, rounded once to float32. A folded layer has a bias and keeps its name, which stands for the batch norm's too.
    A batch norm of images that follows no layer of its own becomes a depthwise 1 x 1 convolution of its name.

    Raises: ShapeError, NonFiniteError: see `Graph.check`; UsageError: a batch norm of features that follows no Dense layer of its own.
    """
    graph.check(weights)
    found = {name: np.asarray(weights[name], np.float32) for name in graph.tensors}
    changes: dict[str, Node | None] = {}
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        if not isinstance(node.op, BatchNorm):
            continue
        exact: dict[str, Any] = {name: np.asarray(weights[name], np.float64) for name in found if name.startswith(f"{node.name}.")}
        factor, shift = (part.reshape(-1) for part in bn_factors(node, exact, 2))
        before = graph[node.inputs[0]] if node.inputs[0] in graph.users else None
        for name in exact:
            del found[name]
        if before is not None and isinstance(before.op, WEIGHTED) and len(graph.users[before.name]) == 1 and before.name != graph.output:
            weight = np.asarray(weights[f"{before.name}.weight"], np.float64)
            bias = np.asarray(weights[f"{before.name}.bias"], np.float64) if before.op.bias else 0.0
            changes[before.name] = Node(before.name, replace(before.op, bias=True), before.inputs)
            changes[node.name], renamed[node.name] = None, before.name
            found[f"{before.name}.weight"] = (weight * factor.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32)
            found[f"{before.name}.bias"] = (bias * factor + shift).astype(np.float32)
        elif len(graph.shapes[node.name]) == 3:
            changes[node.name] = Node(node.name, Conv2d(len(factor), (1, 1), groups=len(factor)), node.inputs)
            found[f"{node.name}.weight"] = factor.astype(np.float32).reshape(-1, 1, 1, 1)
            found[f"{node.name}.bias"] = shift.astype(np.float32)
        else:
            raise UsageError(f"node '{node.name}': a batch norm of features needs a Dense layer of its own before it; there is none")
    folded = graph.replaced(changes, renamed)
    folded.check(found)
    return folded, {name: found[name] for name in folded.tensors}
