"""Graphs: shapes by hand, any order of nodes, and one clear error for each way to be wrong."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from anybit.errors import NonFiniteError, ShapeError, UsageError
from anybit.models import Add, AveragePool, BatchNorm, Conv2d, Dense, Flatten, Graph, MaxPool, Node, Relu

GRAPH = Graph.of(
    (3, 32, 31),
    ("a", Conv2d(8, (3, 5), stride=(2, 1), padding=(1, 0))),
    ("b", MaxPool((3, 3), stride=(2, 2), padding=(1, 1))),
    ("c", Conv2d(8, (1, 1), groups=4, bias=False)),
    ("d", Add(), "c", "b"),
    ("e", AveragePool((2, 3))),
    ("f", AveragePool()),
    ("g", Flatten()),
    ("h", Dense(10)),
)


def test_shapes() -> None:
    # a: (32 + 2 - 3) // 2 + 1 = 16, 31 - 5 + 1 = 27; b: (16 + 2 - 3) // 2 + 1 = 8, (27 + 2 - 3) // 2 + 1 = 14; e: 8 // 2, 14 // 3
    expected = {"input": (3, 32, 31), "a": (8, 16, 27), "b": (8, 8, 14), "c": (8, 8, 14), "d": (8, 8, 14), "e": (8, 4, 4)}
    assert GRAPH.shapes == {**expected, "f": (8, 1, 1), "g": (8,), "h": (10,)}
    tensors = {"a.weight": (8, 3, 3, 5), "a.bias": (8,), "c.weight": (8, 2, 1, 1), "h.weight": (10, 8), "h.bias": (10,)}
    assert GRAPH.tensors == tensors
    assert GRAPH.layers == ("a", "c", "h")
    assert GRAPH.macs == {"a": 8 * 3 * 15 * 16 * 27, "c": 8 * 2 * 8 * 14, "h": 80}
    assert GRAPH.users["b"] == ("c", "d")


def test_any_order_of_nodes() -> None:
    assert Graph(GRAPH.input, GRAPH.nodes[::-1], "h").nodes == GRAPH.nodes


def node(name: str, *inputs: str, op: Any = None) -> Node:
    return Node(name, op or (Relu() if len(inputs) == 1 else Add()), inputs)


@pytest.mark.parametrize(
    ("nodes", "error", "message"),
    [
        ([node("a", "c", "input"), node("b", "a"), node("c", "b")], UsageError,
         "nodes need each other: a -> b -> c -> a; a graph has no cycles"),
        ([node("c", "c")], UsageError, "nodes need each other: c -> c; a graph has no cycles"),
        ([node("conv", "input"), node("c", "convv")], UsageError, "node 'c': no node named 'convv'; did you mean conv?"),
        ([node("a", "input"), node("c", "input")], UsageError, "node 'a' leads nowhere; remove it, or make it the output"),
        ([node("c", "input"), node("c", "input")], UsageError, "two nodes named 'c'"),
        ([node("input", "input"), node("c", "input")], UsageError, "a node cannot be named 'input'"),
        ([node("c", "input", op="relu")], UsageError, "node 'c': 'relu' is no operator; use those of anybit.models.operators"),
        ([node("c", "input", op=Add())], UsageError, "node 'c': Add takes 2 input(s), not 1"),
        ([node("d", "input")], UsageError, "the output: no node named 'c'"),
        ([node("p", "input", op=MaxPool((2, 2))), node("c", "p", "input")], ShapeError,
         "node 'c' (Add): it adds equal shapes, not (2, 2, 3) and (2, 4, 6)"),
        ([node("c", "input", op=Dense(3))], ShapeError, "node 'c' (Dense): it needs (features,), not (2, 4, 6); put a Flatten before it"),
        ([node("c", "input", op=Conv2d(4, (5, 5)))], ShapeError, "a kernel of (5, 5) does not fit into (4, 6) with padding (0, 0)"),
        ([node("c", "input", op=Conv2d(4, (3, 3), groups=4))], ShapeError, "4 groups do not divide 2 channels in and 4 out"),
        ([node("c", "input", op=Conv2d(4, (3, 3), stride=(0, 1)))], ShapeError, "the stride is 0; it must be a whole number of at least 1"),
        ([node("c", "input", op=Conv2d(4, 3))], ShapeError, "the kernel is 3; it must be (vertical, horizontal)"),
        ([node("c", "input", op=MaxPool((2, 2), padding=(2, 2)))], ShapeError, "padding (2, 2) is more than half of the kernel (2, 2)"),
        ([node("c", "input", op=AveragePool(padding=(1, 1)))], ShapeError, "stride and padding need a kernel"),
        ([node("f", "input", op=Flatten()), node("c", "f", op=MaxPool((1, 1)))], ShapeError,
         "it needs (channels, height, width), not (48,)"),
        ([node("c", "input", op=BatchNorm(0.0))], ShapeError, "eps is 0.0; it must be positive"),
    ],
)  # fmt: skip
def test_errors(nodes: list[Node], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        Graph((2, 4, 6), tuple(nodes), "c")


def test_an_input_without_a_shape() -> None:
    with pytest.raises(ShapeError, match=re.escape("the input's shape is (0,)")):
        Graph((0,), (node("c", "input"),), "c")


def test_tensors_are_checked() -> None:
    weights = {name: np.zeros(shape, np.float32) for name, shape in GRAPH.tensors.items()}
    GRAPH.check({**weights, "a.num_batches_tracked": np.zeros(())})
    for name, array, error, message in (
        ("a.bias", None, ShapeError, "tensor 'a.bias' [8] is missing"),
        ("a.bias", np.zeros(7), ShapeError, "tensor 'a.bias' is [8], not [7]"),
        ("x.bias", np.zeros(7), ShapeError, "tensor 'x.bias' belongs to no node; did you mean"),
        ("a.bias", np.full(8, np.nan), NonFiniteError, "tensor 'a.bias' holds 8 non-finite value(s)"),
    ):
        changed = {key: value for key, value in {**weights, name: array}.items() if value is not None}
        with pytest.raises(error, match=re.escape(message)):
            GRAPH.check(changed)
