"""Cross-layer equalisation: channels of neighbouring layers brought to one range, so that one scale serves a whole tensor.

Source: Nagel et al., arXiv 1906.04721 (cross-layer range equalization).
"""

from __future__ import annotations

import numpy as np

from anybit.graphs.floats import Weights
from anybit.models import Conv2d, Graph
from anybit.models.operators import WEIGHTED, Operator


def pairs(graph: Graph) -> list[tuple[str, str]]:
    """Layers (a, b) with nothing between but operators for which f(s x) = s f(x), s > 0, and no other user of what lies between."""
    found = []
    for first in graph.layers:
        users = graph.users[first]
        while len(users) == 1 and graph[users[0]].op.homogeneous:
            users = graph.users[users[0]]
        if len(users) == 1 and isinstance(graph[users[0]].op, WEIGHTED):
            found.append((first, users[0]))
    return found


def equalize(graph: Graph, weights: Weights, steps: int = 20, tolerance: float = 1e-4) -> dict[str, np.ndarray]:
    """Weights of the same function in which both layers of a pair have equal ranges, channel by channel.

    With r1, r2 the largest magnitudes of channel i of a's output rows and of b's input columns: s = sqrt(r1 r2) / r2; a's row and bias
    are divided by s, b's columns multiplied. All pairs in turn, until no s is further than `tolerance` from 1, at most `steps` times.
    Channels of zeros stay. Batch norms end a pair: fold them before. In float64, rounded once to float32.

    Raises: ShapeError, NonFiniteError: see `Graph.check`.
    """
    graph.check(weights)
    found = {name: np.asarray(weights[name], np.float64).copy() for name in graph.tensors}
    for _ in range(steps):
        change = 0.0
        for first, second in pairs(graph):
            rows = found[f"{first}.weight"]
            columns = _by_input(graph[second].op, found[f"{second}.weight"], len(rows))
            r1, r2 = np.abs(rows).reshape(len(rows), -1).max(axis=1), np.abs(columns).max(axis=(1, 3)).reshape(-1)
            ready = (r1 > 0) & (r2 > 0)
            s = np.where(ready, np.sqrt(r1 * r2) / np.where(ready, r2, 1), 1.0)
            rows /= s.reshape(-1, *[1] * (rows.ndim - 1))
            if f"{first}.bias" in found:
                found[f"{first}.bias"] /= s
            columns *= s.reshape(columns.shape[0], 1, -1, 1)
            change = max(change, float(np.abs(s - 1).max()))
        if change <= tolerance:
            break
    return {name: array.astype(np.float32) for name, array in found.items()}


def _by_input(op: Operator, weight: np.ndarray, channels: int) -> np.ndarray:
    """A view [groups, rows of a group, channels of a group, rest]; a channel that was flattened has all its places as rest."""
    groups = op.groups if isinstance(op, Conv2d) else 1
    return weight.reshape(groups, len(weight) // groups, channels // groups, -1)
