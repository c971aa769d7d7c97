"""How much a layer's quantization costs, for allocation (`recipes.allocate`): HAWQ-V3's second-order sensitivity, and what budgets count.

The loss is the mean softmax cross-entropy over samples. Its Hessian by one layer's weights is J^T A J, J the derivative of the output by
these weights and A = diag(p) - p p^T, without another term and whatever the labels: of a graph of these operators the output is piecewise
linear in the weights of one layer. So the trace (that of the Gauss-Newton matrix too) needs no labels and no second derivatives.

Source: HAWQ-V3, arXiv 2011.10680; Hutchinson, Communications in Statistics 18 (1989), 1059-1076.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from anybit.errors import ShapeError, UsageError
from anybit.formats import Spec
from anybit.formats.stochastic import words
from anybit.graphs.floats import Weights, batches, samples
from anybit.graphs.gradient import gradients
from anybit.methods import dequantize_parts, quantize_parts
from anybit.models import Graph

Choice = TypeVar("Choice", bound=Hashable)


@dataclass(frozen=True)
class Trace:
    """An estimated trace of a Hessian: the mean over probes, and its standard error."""

    value: float
    error: float


def hessian_traces(graph: Graph, weights: Weights, x: Any, probes: int = 32, seed: int = 0) -> dict[str, Trace]:
    """The trace of the Hessian of the loss by each layer's weight, by Hutchinson's estimator.

    A = L L^T with L = diag(sqrt(p)) - p sqrt(p)^T; a probe is a random sign v for every sample and class, and |J^T L v|^2 / n has the trace
    as its mean: one pass back serves all layers. Signs are Philox words of (seed, place), so that the result does not depend on batches but
    by rounding. Passes in float32, sums in float64.

    Args: x: samples [n, *graph.input], n of a few hundred; probes: at least 2.
    Raises: ShapeError, NonFiniteError: see `Graph.check` and `samples`, or an output that is no vector of classes; UsageError: too few
        probes.
    """
    graph.check(weights)
    x = samples(graph, x)
    shape = graph.shapes[graph.output]
    if len(shape) != 1:
        raise ShapeError(f"the output is {list(shape)}; the loss needs [classes]")
    if probes < 2:
        raise UsageError(f"{probes} probes; a standard error needs at least 2")
    found = {name: np.zeros(probes) for name in graph.layers}
    start = 0
    for values in batches(graph, weights, x):
        logits = values[graph.output].astype(np.float64)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        root = np.sqrt(p)
        for probe in range(probes):
            drawn = words(seed, (probe * len(x) + start) * shape[0], p.size).reshape(p.shape)
            signed = root * np.where(drawn & 1, 1.0, -1.0)
            back = gradients(graph, weights, values, (signed - p * (root * signed).sum(axis=1, keepdims=True)).astype(np.float32))
            for name in found:
                found[name][probe] += np.square(back[f"{name}.weight"], dtype=np.float64).sum() / len(x)
        start += len(logits)
    return {name: Trace(float(each.mean()), float(each.std(ddof=1) / np.sqrt(probes))) for name, each in found.items()}


def omega(graph: Graph, weights: Weights, traces: Mapping[str, Trace], formats: Mapping[Choice, str]) -> dict[str, dict[Choice, float]]:
    """HAWQ-V3's sensitivity of every layer to every format: trace / number of weights * sum (Q(w) - w)^2.

    formats: {choice: format of the weight}, as {4: "int4_sym@channel:fp32", 8: "int8_sym@channel:fp32"}; rows are output channels.
    """
    graph.check(weights)
    found: dict[str, dict[Choice, float]] = {}
    for name in graph.layers:
        w = np.asarray(weights[f"{name}.weight"], np.float32)
        rows = w.reshape(len(w), -1)
        found[name] = {}
        for choice, text in formats.items():
            spec = Spec.parse(text)
            values = dequantize_parts(quantize_parts(rows, spec, name), spec.format, rows.shape)
            error = np.square(values.astype(np.float64) - rows).sum()
            found[name][choice] = traces[name].value / w.size * float(error)
    return found


def weight_bits(graph: Graph, formats: Mapping[Choice, str]) -> dict[str, dict[Choice, int]]:
    """Bits of the codes of every layer's weight in every format; what else a layer stores (bias, dyadic numbers) is the same in each."""
    sizes = {name: int(np.prod(graph.tensors[f"{name}.weight"])) for name in graph.layers}
    bits = {choice: Spec.parse(text).format.element.bits for choice, text in formats.items()}
    return {name: {choice: size * bits[choice] for choice in formats} for name, size in sizes.items()}


def bit_operations(graph: Graph, formats: Mapping[Choice, str], acts: Mapping[Choice, int]) -> dict[str, dict[Choice, int]]:
    """Bits of the weight times bits of the input times multiplications, of one sample, for every layer and choice (HAWQ-V3's BOPS)."""
    bits = {choice: Spec.parse(text).format.element.bits for choice, text in formats.items()}
    return {name: {choice: bits[choice] * acts[choice] * macs for choice in formats} for name, macs in graph.macs.items()}
