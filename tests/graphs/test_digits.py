"""A trained CNN in integers alone: its accuracy, its bits, and its mixed precision."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from digits import Digits, trained

from anybit.graphs.correct import correct_bias
from anybit.graphs.equalization import equalize
from anybit.graphs.floats import execute
from anybit.graphs.fold import fold_batch_norm
from anybit.graphs.lower import quantize
from anybit.graphs.ranges import calibrate
from anybit.graphs.sensitivity import bit_operations, hessian_traces, omega, weight_bits
from anybit.recipes.allocate import Budget, allocate
from anybit.reference import integer as reference

BITS = (4, 5, 6, 8)
FORMATS = {bits: f"int{bits}_sym@channel:fp32" for bits in BITS}


@pytest.fixture(scope="module")
def digits() -> Digits:
    return trained()


def test_it_was_trained_and_folded(digits: Digits) -> None:
    logits = execute(digits.graph, digits.weights, digits.test)
    assert digits.accuracy(logits) > 0.96
    graph, weights = fold_batch_norm(digits.graph, digits.weights)
    assert np.abs(execute(graph, weights, digits.test) - logits).max() < 1e-4 * np.abs(logits).max()


@pytest.mark.parametrize(("scheme", "rule"), [("affine", "minmax"), ("affine", "p99.9"), ("symmetric", "minmax")])
def test_int8_is_within_two_percent_of_float(digits: Digits, scheme: str, rule: str) -> None:
    """Per-channel int8 weights with folded batch norms (the whitepaper's scheme), in integers, on images that calibration did not see."""
    graph, weights = fold_batch_norm(digits.graph, digits.weights)
    network = quantize(graph, weights, calibrate(graph, weights, digits.train, rule), "int8_sym@channel:fp32", 8, scheme)
    expected = execute(graph, weights, digits.test)
    found = network(digits.test)
    assert digits.accuracy(found) >= digits.accuracy(expected) - 0.02
    if rule == "minmax":
        assert np.square(found - expected).mean() < 1e-3 * np.square(expected).mean()


def test_int4_with_corrected_biases_is_within_two_percent_too(digits: Digits) -> None:
    graph, weights = fold_batch_norm(digits.graph, digits.weights)
    weights = equalize(graph, weights)
    plain = quantize(graph, weights, calibrate(graph, weights, digits.train, "p99.9"), FORMATS[4], 4)
    network = correct_bias(plain, graph, weights, digits.train)
    assert digits.accuracy(network(digits.test)) >= digits.accuracy(execute(graph, weights, digits.test)) - 0.02


@pytest.mark.parametrize("bits", [8, 4, "mixed"])
@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
def test_bits_are_those_of_the_reference(digits: Digits, bits: int | str, scheme: str) -> None:
    graph, weights = fold_batch_norm(digits.graph, digits.weights)
    chosen = {name: (8, 4)[i % 2] if bits == "mixed" else int(bits) for i, name in enumerate(graph.layers)}
    ranges = calibrate(graph, weights, digits.train[:256])
    network = quantize(graph, weights, ranges, {name: FORMATS[b] for name, b in chosen.items()}, chosen, scheme)
    q = network.input.encode(digits.test[:4])
    (values,) = network.values(q)
    for i in range(len(q)):
        for name, expected in reference.run(network.plain, q[i].tolist()).items():
            assert values[name][i].tolist() == expected, name


def test_mixed_precision_is_as_good_as_every_uniform_at_its_size(digits: Digits) -> None:
    graph, weights = fold_batch_norm(digits.graph, digits.weights)
    x = digits.train[:256]
    costs = omega(graph, weights, hessian_traces(graph, weights, x, probes=16), FORMATS)
    sizes, operations = weight_bits(graph, FORMATS), bit_operations(graph, FORMATS, {bits: bits for bits in BITS})
    latency = {name: {bits: graph.macs[name] * (0.5 if bits == 4 else 1.0) for bits in BITS} for name in graph.layers}
    ranges = calibrate(graph, weights, digits.train)
    for bits in BITS:
        budgets = [Budget(*each) for each in (("size", sizes, 0.0), ("operations", operations, 0.0), ("latency", latency, 0.0))]
        budgets = [Budget(b.name, b.use, sum(b.use[name][bits] for name in graph.layers)) for b in budgets]
        uniform = sum(costs[name][bits] for name in graph.layers)
        for some in (budgets[:1], budgets):
            found = allocate(costs, *some)
            assert found.cost <= uniform * (1 + 1e-12)
            assert all(found.used[budget.name] <= budget.limit for budget in some)
        alone = allocate(costs, budgets[0])
        if bits in (5, 6):
            assert alone.cost < 0.9 * uniform
        network = quantize(graph, weights, ranges, {n: FORMATS[b] for n, b in alone.choices.items()}, alone.choices)
        held = sum(network.layers[n].size_bits - 32 * graph.tensors[f"{n}.bias"][0] for n in graph.layers)
        assert held == alone.used["size"]
        if bits > 4:
            assert digits.accuracy(network(digits.test)) >= digits.accuracy(execute(graph, weights, digits.test)) - 0.02


def test_four_and_eight_bits_between_the_uniform_ones(digits: Digits) -> None:
    """HAWQ-V3's own choices: at three quarters of the 8-bit size and half of its bit operations, against trying all 32 allocations."""
    graph, weights = fold_batch_norm(digits.graph, digits.weights)
    formats = {bits: FORMATS[bits] for bits in (4, 8)}
    costs = omega(graph, weights, hessian_traces(graph, weights, digits.train[:256], probes=16), formats)
    sizes, operations = weight_bits(graph, formats), bit_operations(graph, formats, {4: 4, 8: 8})
    budgets = [
        Budget("size", sizes, 0.75 * sum(each[8] for each in sizes.values())),
        Budget("operations", operations, 0.5 * sum(each[8] for each in operations.values())),
    ]
    found = allocate(costs, *budgets)
    possible = [
        sum(costs[name][bits] for name, bits in zip(graph.layers, choice, strict=True))
        for choice in itertools.product((4, 8), repeat=len(graph.layers))
        if all(sum(b.use[name][bits] for name, bits in zip(graph.layers, choice, strict=True)) <= b.limit for b in budgets)
    ]
    assert found.cost == pytest.approx(min(possible), rel=1e-12)
    assert set(found.choices.values()) == {4, 8}
    four = sum(each[4] for each in costs.values())
    assert found.cost < four
    ranges = calibrate(graph, weights, digits.train)
    network = quantize(graph, weights, ranges, {name: formats[b] for name, b in found.choices.items()}, found.choices)
    network = correct_bias(network, graph, weights, digits.train)
    assert digits.accuracy(network(digits.test)) >= digits.accuracy(execute(graph, weights, digits.test)) - 0.02
