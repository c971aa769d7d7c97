"""A network as a list of named operators, each with its inputs by name: what is no stack of transformer blocks (CNNs)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from anybit.errors import NonFiniteError, ShapeError, UsageError, near_misses
from anybit.models.operators import WEIGHTED, Operator, Shape

INPUT = "input"
"""The name of the network's one input."""


@dataclass(frozen=True)
class Node:
    """An operator with its name and the names of its inputs: nodes, or "input"."""

    name: str
    op: Operator
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """One input (its shape without the batch), nodes, and the name of the node that is the output.

    Nodes may be given in any order; they are kept in one in which each comes after its inputs. Everything is checked when it is made:
    UsageError for a name that is taken or unknown, a wrong number of inputs, a cycle, a node that leads nowhere; ShapeError, with the node,
    for shapes that do not fit.
    """

    input: Shape
    nodes: tuple[Node, ...]
    output: str

    @classmethod
    def of(cls, input: Shape, *rows: tuple[Any, ...]) -> Graph:
        """From rows (name, operator, inputs ...); no inputs: the row before. The last row is the output.

        >>> from anybit.models import Add, Conv2d, Relu
        >>> graph = Graph.of((3, 8, 8), ("a", Conv2d(3, (3, 3), padding=(1, 1))), ("b", Relu()), ("c", Add(), "b", "input"))
        >>> graph.shapes["c"], graph.tensors["a.weight"], graph.macs
        ((3, 8, 8), (3, 3, 3, 3), {'a': 5184})
        """
        nodes, before = [], INPUT
        for name, op, *inputs in rows:
            nodes.append(Node(name, op, tuple(inputs) or (before,)))
            before = name
        return cls(input, tuple(nodes), before)

    def __post_init__(self) -> None:
        if not self.input or not all(isinstance(n, int) and n > 0 for n in self.input):
            raise ShapeError(f"the input's shape is {self.input}; it must be positive whole numbers, without the batch")
        names = [node.name for node in self.nodes]
        for name in names:
            if not name or name == INPUT or names.count(name) > 1:
                raise UsageError(f"two nodes named '{name}'" if names.count(name) > 1 else f"a node cannot be named '{name}'")
        known = {*names, INPUT}
        for node in self.nodes:
            for given in node.inputs:
                if given not in known:
                    raise UsageError(f"node '{node.name}': no node named '{given}'{near_misses(given, known)}")
            if not isinstance(node.op, Operator):
                raise UsageError(f"node '{node.name}': {node.op!r} is no operator; use those of anybit.models.operators")
            if len(node.inputs) != node.op.arity:
                raise UsageError(f"node '{node.name}': {type(node.op).__name__} takes {node.op.arity} input(s), not {len(node.inputs)}")
        if self.output not in names:
            raise UsageError(f"the output: no node named '{self.output}'{near_misses(self.output, names)}")
        object.__setattr__(self, "nodes", self._sorted())
        for name, users in self.users.items():
            if not users and name != self.output:
                raise UsageError(f"node '{name}' leads nowhere; remove it, or make it the output")
        assert self.shapes

    def _sorted(self) -> tuple[Node, ...]:
        """Each node after its inputs, otherwise as given. UsageError: a cycle."""
        rest, done, order = list(self.nodes), {INPUT}, []
        while rest:
            ready = next((node for node in rest if done.issuperset(node.inputs)), None)
            if ready is None:
                inputs = {node.name: next(given for given in node.inputs if given not in done) for node in rest}
                path = [rest[0].name]
                while path[-1] not in path[:-1]:
                    path.append(inputs[path[-1]])
                cycle = path[path.index(path[-1]) :][::-1]
                raise UsageError(f"nodes need each other: {' -> '.join(cycle)}; a graph has no cycles")
            rest.remove(ready)
            done.add(ready.name)
            order.append(ready)
        return tuple(order)

    def __getitem__(self, name: str) -> Node:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def users(self) -> dict[str, tuple[str, ...]]:
        """Of each node: which nodes take it, in order; twice if they take it twice."""
        found: dict[str, list[str]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for given in node.inputs:
                if given != INPUT:
                    found[given].append(node.name)
        return {name: tuple(users) for name, users in found.items()}

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """The shape of every value, the input's too, without the batch."""
        found = {INPUT: self.input}
        for node in self.nodes:
            try:
                found[node.name] = node.op.shape(*(found[given] for given in node.inputs))
            except ShapeError as error:
                raise ShapeError(f"node '{node.name}' ({type(node.op).__name__}): {error}") from None
        return found

    @cached_property
    def tensors(self) -> dict[str, Shape]:
        """Name and shape of every tensor that a checkpoint must hold, in the order of execution."""
        found = {}
        for node in self.nodes:
            for name, shape in node.op.tensors(*(self.shapes[given] for given in node.inputs)).items():
                found[f"{node.name}.{name}"] = shape
        return found

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """The nodes with a weight matrix, in order: those that are quantized."""
        return tuple(node.name for node in self.nodes if isinstance(node.op, WEIGHTED))

    @cached_property
    def macs(self) -> dict[str, int]:
        """Multiplications of each layer for one sample."""
        return {name: self[name].op.macs(*(self.shapes[given] for given in self[name].inputs)) for name in self.layers}

    def check(self, weights: Mapping[str, np.ndarray]) -> None:
        """Raises ShapeError for a tensor that is missing, of another shape, or of no node, NonFiniteError for NaN or infinity.

        PyTorch's `num_batches_tracked` is passed over.
        """
        for name, shape in self.tensors.items():
            if name not in weights:
                raise ShapeError(f"tensor '{name}' {list(shape)} is missing{near_misses(name, weights)}")
            array = np.asarray(weights[name])
            if array.shape != shape:
                raise ShapeError(f"tensor '{name}' is {list(shape)}, not {list(array.shape)}")
            if not np.isfinite(array).all():
                raise NonFiniteError(f"tensor '{name}' holds {int((~np.isfinite(array)).sum())} non-finite value(s); repair it")
        unknown = sorted(name for name in set(weights) - set(self.tensors) if not name.endswith(".num_batches_tracked"))
        if unknown:
            raise ShapeError(f"tensor '{unknown[0]}' belongs to no node{near_misses(unknown[0], self.tensors)}; remove it")

    def replaced(self, changes: Mapping[str, Node | None], renamed: Mapping[str, str]) -> Graph:
        """With some nodes replaced or, where None, left out, and inputs (and the output) renamed."""
        nodes: Iterable[Node | None] = (changes.get(node.name, node) for node in self.nodes)
        kept = tuple(Node(n.name, n.op, tuple(renamed.get(i, i) for i in n.inputs)) for n in nodes if n is not None)
        return Graph(self.input, kept, renamed.get(self.output, self.output))
