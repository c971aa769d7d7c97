"""Bias correction: what quantization shifts on average is taken back.

Source: Nagel et al., arXiv 1906.04721 (bias correction), from samples instead of batch norm statistics.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from anybit.graphs.floats import Weights, batches, samples
from anybit.graphs.network import IntegerNetwork
from anybit.graphs.proof import LIMIT
from anybit.graphs.steps import Convolve, IntegerStep, Multiply
from anybit.models import INPUT, Graph


def correct_bias(network: IntegerNetwork, graph: Graph, weights: Weights, x: Any) -> IntegerNetwork:
    """The network with biases for which every channel of every layer has, over samples x, the mean that it has in floating point.

    Layer by layer in order, each with the corrected layers before it: bias -= rne(mean of its sums - mean of the float layer / scale),
    means over samples and places, before a ReLU. graph, weights: those that the network was made of. Keeps all values in memory.

    Raises: ShapeError, NonFiniteError: see `samples`; UsageError: a sum could then leave int32.
    """
    q = network.input.encode(samples(graph, x))
    means: dict[str, Any] = dict.fromkeys(graph.layers, 0.0)
    for values in batches(graph, weights, np.asarray(x)):
        for name in means:
            axes = (0, *range(2, values[name].ndim))
            means[name] = means[name] + values[name].sum(axis=axes, dtype=np.float64)
    held, steps = {INPUT: q}, []
    names = iter(graph.layers)
    for step in network.steps:
        given = [held[name] for name in step.inputs]
        new: IntegerStep = step
        if isinstance(step, (Convolve, Multiply)):
            name = next(names)
            sums = step.sums(given[0])
            wanted = means[name] / (len(q) * sums[0, 0].size) / network.layers[name].scales
            bias = step.bias - np.rint(sums.mean(axis=(0, *range(2, sums.ndim)), dtype=np.float64) - wanted)
            new = replace(step, bias=np.clip(bias, -LIMIT, LIMIT).astype(np.int32))
        steps.append(new)
        held[step.name] = new.run(*given)
    return replace(network, steps=tuple(steps))
