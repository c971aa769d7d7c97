"""Ranges of activations, seen on sample data."""

from __future__ import annotations

from typing import Any

import numpy as np

from anybit.errors import UsageError
from anybit.graphs.floats import Weights, batches, samples
from anybit.models import Graph

Ranges = dict[str, tuple[float, float]]


def calibrate(graph: Graph, weights: Weights, x: Any, rule: str = "minmax") -> Ranges:
    """The (lowest, highest) number of every value of the graph, "input" too, over samples x [n, *graph.input].

    rule: "minmax", or "pP" with P from 50 to 100: the quantiles 1 - P / 100 and P / 100 of all numbers, so that p99.9 leaves out a
    thousandth at either end ("p100" is minmax). Quantiles keep all values of the graph in memory at once; minmax one batch.

    Raises: UsageError: no such rule; ShapeError, NonFiniteError: see `Graph.check` and `samples`.
    """
    graph.check(weights)
    tail = 1 - _percent(rule) / 100
    lows: dict[str, list[Any]] = {name: [] for name in graph.shapes}
    highs: dict[str, list[Any]] = {name: [] for name in graph.shapes}
    for values in batches(graph, weights, samples(graph, x)):
        for name, value in values.items():
            lows[name].append(value.reshape(-1) if tail else value.min())
            highs[name].append(value.max())
    if not tail:
        return {name: (float(min(lows[name])), float(max(highs[name]))) for name in lows}
    found = {}
    for name, parts in lows.items():
        low, high = np.quantile(np.concatenate(parts), [tail, 1 - tail])
        found[name] = float(low), float(high)
    return found


def _percent(rule: str) -> float:
    try:
        percent = 100.0 if rule == "minmax" else float(rule.removeprefix("p")) if rule.startswith("p") else -1.0
    except ValueError:
        percent = -1.0
    if not 50 <= percent <= 100:
        raise UsageError(f"no range rule '{rule}'; use minmax, or pP with P from 50 to 100, as p99.9")
    return percent
