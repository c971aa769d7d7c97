"""Models as data: `describe(config)` gives the `ModelSpec` that the engine runs; a `Graph` is any other network, operator by operator."""

from __future__ import annotations

from anybit.models.family import FAMILIES, describe
from anybit.models.graph import INPUT, Graph, Node
from anybit.models.operators import Add, AveragePool, BatchNorm, Conv2d, Dense, Flatten, MaxPool, Operator, Relu
from anybit.models.spec import PLAIN, Attention, Experts, Gated, Layer, ModelSpec, Rope, TensorSpec

__all__ = [
    "FAMILIES", "INPUT", "PLAIN", "Add", "Attention", "AveragePool", "BatchNorm", "Conv2d", "Dense", "Experts", "Flatten", "Gated", "Graph",
    "Layer", "MaxPool", "ModelSpec", "Node", "Operator", "Relu", "Rope", "TensorSpec", "describe",
]  # fmt: skip
