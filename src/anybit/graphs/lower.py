"""A folded graph to an integer-only network: weights to integers per channel, activations to uniform grids, scales to dyadic numbers.

A ReLU that alone takes a layer, an addition or an average is the lower end of its clip. A layer that an addition alone takes hands on its
int32 sums. Maxima and flattening keep the grid of their input. A value is stored with the most bits that one of its users asks for
(additions and averages: 8); a layer of fewer bits rescales its input first.

Source: HAWQ-V3, arXiv 2011.10680; per-channel weights: Krishnamoorthi, arXiv 1806.08342.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from anybit.errors import FormatError, UsageError, near_misses
from anybit.formats import Spec
from anybit.graphs.floats import Weights
from anybit.graphs.grid import ActGrid, dyadic
from anybit.graphs.network import IntegerNetwork, LayerNumbers
from anybit.graphs.ranges import Ranges
from anybit.graphs.steps import Average, Clip, Convolve, IntegerStep, Maximum, Multiply, Positive, Requantize, Rescale, Reshape, Sum
from anybit.methods import quantize_parts
from anybit.models import INPUT, Add, AveragePool, BatchNorm, Conv2d, Flatten, Graph, MaxPool, Node, Relu
from anybit.models.operators import WEIGHTED

T = TypeVar("T", str, int)
OTHERS = 8
"""Bits of a value that is added or averaged."""


def quantize(
    graph: Graph,
    weights: Weights,
    ranges: Ranges,
    weight: str | Mapping[str, str] = "int8_sym@channel:fp32",
    act: int | Mapping[str, int] = 8,
    scheme: str = "affine",
    output: int = 16,
) -> IntegerNetwork:
    """The integer-only network of a graph without batch norms (`fold_batch_norm`).

    Args: weights: float32 by tensor name; ranges: of every value (`calibrate`); weight: the format of all layers' weights, or of each: an
        element that is whole numbers times a step (integers, small floats), one scale a channel or a tensor; act: bits (2 to 16) of the
        input of all layers, or of each; scheme: affine (unsigned, zero point) or symmetric (signed, zero point 0); output: bits of the
        output, more than 8 so that the largest stays the largest.
    Raises: ShapeError, NonFiniteError: see `Graph.check`; FormatError: a weight format that is no such; UsageError: a batch norm, a layer
        that is missing in a mapping or unknown, no range, or what `IntegerNetwork` refuses.
    """
    graph.check(weights)
    for node in graph.nodes:
        if isinstance(node.op, BatchNorm):
            raise UsageError(f"node '{node.name}' is a batch norm; fold it first (fold_batch_norm)")
    for name in graph.shapes:
        if name not in ranges:
            raise UsageError(f"no range of '{name}'; calibrate this graph")
    formats, bits = _each(graph, weight, "weight format"), _each(graph, act, "number of bits")
    return _Lowering(graph, weights, ranges, formats, bits, scheme, output).network()


def _each(graph: Graph, given: T | Mapping[str, T], what: str) -> dict[str, T]:
    """One for each layer. UsageError: a layer is missing or unknown."""
    if not isinstance(given, Mapping):
        return dict.fromkeys(graph.layers, given)
    for name in graph.layers:
        if name not in given:
            raise UsageError(f"layer '{name}' has no {what}; give all of {', '.join(graph.layers)}")
    for name in given:
        if name not in graph.layers:
            raise UsageError(f"{what}: no layer named '{name}'{near_misses(name, graph.layers)}")
    return dict(given)


def weight_codes(w: np.ndarray, text: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(integers int32 of w's shape, float64 scales [rows]) with w next to integers * scales, rows being w's first axis.

    Raises: FormatError: an element without exact integers, zero points or offsets, or scales that differ within a row.
    """
    spec = Spec.parse(text)
    fmt, rows = spec.format, w.reshape(len(w), -1)
    table = fmt.element.table
    if fmt.element.learned or table.ints is None or table.kind not in ("i8", "i16"):
        raise FormatError(f"{name}: the values of '{fmt.element}' are no whole numbers times a step; an integer-only network needs such")
    grids = fmt.grids(rows.shape)
    if fmt.zero is not None or fmt.offset is not None or any(grid[0] not in (1, len(rows)) or grid[1] != 1 for grid in grids):
        raise FormatError(f"{name}: '{fmt}' has zero points, or more than one scale a channel; use {fmt.element}@channel:fp32")
    parts = quantize_parts(rows, spec, name)
    scales = np.full((len(rows), 1), table.step, np.float64)
    for i, level in enumerate(fmt.levels):
        scales = scales * level.element.decode(parts[f"scale.{i}"]).astype(np.float64)
    return table.ints[parts["codes"]].reshape(w.shape), scales.reshape(-1)


@dataclass
class _Value:
    """A value while the program is written: its zero point and the scales of its numbers. grid: None for sums."""

    name: str
    zero: int
    scales: np.ndarray
    grid: ActGrid | None = None


@dataclass
class _Lowering:
    graph: Graph
    weights: Weights
    ranges: Ranges
    formats: dict[str, str]
    bits: dict[str, int]
    scheme: str
    output: int
    steps: list[IntegerStep] = field(default_factory=list)
    layers: dict[str, LayerNumbers] = field(default_factory=dict)

    def network(self) -> IntegerNetwork:
        graph = self.graph
        first = self._grid(INPUT)
        values = {INPUT: _stored(INPUT, first)}
        for node in graph.nodes:
            if node.name in values:  # a ReLU that is part of the step before
                continue
            given = [values[name] for name in node.inputs]
            after = self._relu_after(node)
            try:
                values[node.name] = values[after or node.name] = self._lower(node, given, after)
            except UsageError as error:
                raise UsageError(f"node '{node.name}': {error}") from None
        last = values[graph.output].grid
        assert last is not None
        return IntegerNetwork(graph.input, first, last, tuple(self.steps), self.layers)

    def _relu_after(self, node: Node) -> str | None:
        users = self.graph.users[node.name]
        fused = isinstance(node.op, (*WEIGHTED, Add, AveragePool)) and len(users) == 1 and isinstance(self.graph[users[0]].op, Relu)
        return users[0] if fused else None

    def _wanted(self, name: str) -> int:
        """Bits of a stored value: the most that a user asks for, looking through what keeps the grid."""
        graph = self.graph
        wanted = [self.output] if name == graph.output else []
        for user in [node.name for node in graph.nodes if name in node.inputs]:
            op = graph[user].op
            if isinstance(op, WEIGHTED):
                wanted.append(self.bits[user])
            else:
                wanted.append(OTHERS if isinstance(op, (Add, AveragePool)) else self._wanted(user))
        return max(wanted)

    def _grid(self, name: str) -> ActGrid:
        return ActGrid.of(*self.ranges[name], self._wanted(name), self.scheme)

    def _lower(self, node: Node, given: list[_Value], relu: str | None) -> _Value:
        """Appends the steps of a node; its result is named after the ReLU that is part of it, if there is one."""
        op, name = node.op, relu or node.name
        if isinstance(op, WEIGHTED):
            return self._layer(node, given[0], relu)
        source = given[0]
        inputs, zeros = tuple(value.name for value in given), tuple(value.zero for value in given)
        if isinstance(op, (MaxPool, Relu, Flatten)):
            step: IntegerStep = (
                Maximum(name, inputs, zeros, op.kernel, op.step, op.padding) if isinstance(op, MaxPool)
                else Positive(name, inputs, zeros) if isinstance(op, Relu) else Reshape(name, inputs, zeros)
            )  # fmt: skip
            self.steps.append(step)
            return replace(source, name=name)
        grid = self._grid(name)
        if isinstance(op, AveragePool):
            kernel, stride = op.window(self.graph.shapes[node.inputs[0]])
            count = kernel[0] * kernel[1]
            out = _requantize(source.scales / (grid.scale * count), grid, relu)
            self.steps.append(Average(name, inputs, zeros, kernel, stride, op.padding, out))
        else:
            (b0, c0), (b1, c1) = (_dyadics(value.scales / grid.scale) for value in given)
            low = grid.low if relu is None else grid.zero
            self.steps.append(Sum(name, inputs, zeros, (b0, b1), (c0, c1), Clip(grid.zero, low, grid.high)))
        return _stored(name, grid)

    def _layer(self, node: Node, source: _Value, relu: str | None) -> _Value:
        name, graph = node.name, self.graph
        assert source.grid is not None and isinstance(node.op, WEIGHTED)
        if source.grid.bits > self.bits[name]:
            source = self._rescaled(node, source)
        ints, scales = weight_codes(np.asarray(self.weights[f"{name}.weight"], np.float32), self.formats[name], f"{name}.weight")
        exact = np.asarray(self.weights[f"{name}.bias"], np.float64) if node.op.bias else np.zeros(len(ints))
        ints, scales = _room_for(exact / source.scales, ints, scales)
        sums = scales * source.scales
        bias = np.rint(exact / sums).astype(np.int64)
        users = graph.users[name]
        raw = len(users) == 1 and isinstance(graph[users[0]].op, Add)
        grid = None if raw else self._grid(relu or name)
        out = None if grid is None else _requantize(sums / grid.scale, grid, relu)
        element = Spec.parse(self.formats[name]).format.element
        held = ints.astype(np.int8 if np.abs(ints).max(initial=0) < 128 else np.int16), bias.astype(np.int32)
        common = relu or name, (source.name,), (source.zero,), *held
        if isinstance(node.op, Conv2d):
            self.steps.append(Convolve(*common, node.op.stride, node.op.padding, node.op.groups, out))
        else:
            self.steps.append(Multiply(*common, out))
        size = element.bits * ints.size + 32 * len(bias)
        self.layers[name] = LayerNumbers(self.formats[name], self.bits[name], sums, size)
        return _Value(name, 0, sums) if grid is None else _stored(relu or name, grid)

    def _rescaled(self, node: Node, source: _Value) -> _Value:
        """The layer's input on a grid of its own bits, of the same range."""
        old = source.grid
        assert old is not None
        ends = (old.low - old.zero) * old.scale, (old.high - old.zero) * old.scale
        grid, name = ActGrid.of(*ends, self.bits[node.name], self.scheme), f"{node.name}.input"
        self.steps.append(Rescale(name, (source.name,), (source.zero,), _requantize(np.array([old.scale / grid.scale]), grid, None)))
        return _stored(name, grid)


def _stored(name: str, grid: ActGrid) -> _Value:
    return _Value(name, grid.zero, np.array([grid.scale]), grid)


def _dyadics(factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.array([dyadic(factor) for factor in factors.tolist()], np.int64)
    return numbers[:, 0].copy(), numbers[:, 1].copy()


def _requantize(factors: np.ndarray, grid: ActGrid, relu: str | None) -> Requantize:
    return Requantize(grid.zero, grid.low if relu is None else grid.zero, grid.high, *_dyadics(factors))


def _room_for(bias: np.ndarray, ints: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales of channels whose weights are so small beside their bias that it would not fit int32 are widened until it fits 29 bits."""
    needed = np.abs(bias) / (1 << 29)
    tight = scales < needed
    if not tight.any():
        return ints, scales
    wide = np.where(tight, needed, scales)
    shape = (-1, *[1] * (ints.ndim - 1))
    return np.rint(ints * (scales / wide).reshape(shape)).astype(np.int32), wide
