"""Integer-only execution: equal to Python integers and exact fractions, for any input; and not one float or division on the way."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import SMALL, random_weights, samples

import anybit
from anybit.errors import FormatError, NonFiniteError, ShapeError, UsageError
from anybit.graphs import steps as steps_module
from anybit.graphs.correct import correct_bias
from anybit.graphs.floats import batches, execute
from anybit.graphs.fold import fold_batch_norm
from anybit.graphs.grid import ActGrid, dyadic
from anybit.graphs.lower import quantize
from anybit.graphs.network import IntegerNetwork
from anybit.graphs.proof import LIMIT, check_sums
from anybit.graphs.ranges import calibrate
from anybit.graphs.steps import Clip, Convolve, Multiply, Positive, Rescale, scaled
from anybit.models import Add, AveragePool, Conv2d, Dense, Flatten, Graph, MaxPool, Relu
from anybit.reference import integer as reference

# ReLUs with other users beside them, a value added to itself, sums of two layers, overlapping averages, and maxima at the end.
BRANCHES = Graph.of(
    (2, 7, 5),
    ("first", Relu()),
    ("a", Conv2d(4, (3, 2), padding=(1, 1))),
    ("a_relu", Relu()),
    ("a_sum", Add(), "a", "a_relu"),
    ("twice", Add(), "a_sum", "a_sum"),
    ("b", Conv2d(3, (2, 2), stride=(2, 1), bias=False), "twice"),
    ("c", Conv2d(3, (2, 2), stride=(2, 1)), "a_sum"),
    ("both", Add(), "b", "c"),
    ("both_relu", Relu()),
    ("mean", AveragePool((2, 2), stride=(1, 1), padding=(1, 1))),
    ("mean_relu", Relu()),
    ("top", MaxPool((2, 3), stride=(1, 2), padding=(1, 1))),
)  # fmt: skip
DENSE = Graph.of((9,), ("a", Dense(8)), ("b", Relu()), ("c", Dense(8)), ("d", Add(), "c", "b"), ("e", Relu()), ("f", Dense(3)))
IMAGE = Graph.of((2, 4, 4), ("a", MaxPool((2, 2))), ("b", Flatten()), ("c", Dense(3)))
GRAPHS = {"small": SMALL, "branches": BRANCHES, "dense": DENSE, "image": IMAGE}
CASES = [
    ("int8_sym", 8, "affine"), ("int4_sym", 4, "affine"), ("int8_sym", 8, "symmetric"), ("int4_sym", 4, "symmetric"),
    ("mixed", 0, "affine"),
]  # fmt: skip


def made(graph: Graph, element: str = "int8_sym", act: Any = 8, scheme: str = "affine", **more: Any) -> tuple[IntegerNetwork, Graph, Any]:
    graph, weights = fold_batch_norm(graph, random_weights(graph))
    weight: Any = f"{element}@channel:fp32"
    if element == "mixed":
        weight = {name: f"int{8 if i % 2 else 4}_sym@channel:fp32" for i, name in enumerate(graph.layers)}
        act = {name: 4 if i % 3 else 8 for i, name in enumerate(graph.layers)}
    return quantize(graph, weights, calibrate(graph, weights, samples(graph, 100)), weight, act, scheme, **more), graph, weights


def anything(network: IntegerNetwork, count: int, seed: int = 0) -> np.ndarray:
    """Random integers of the whole input grid, with its ends."""
    q = np.random.default_rng(seed).integers(network.input.low, network.input.high + 1, (count, *network.shape))
    q[0], q[1] = network.input.low, network.input.high
    return q.astype(network.input.dtype)


@pytest.mark.parametrize(("element", "act", "scheme"), CASES)
@pytest.mark.parametrize("name", GRAPHS)
def test_every_value_is_that_of_python_integers(name: str, element: str, act: int, scheme: str) -> None:
    network, _, _ = made(GRAPHS[name], element, act, scheme)
    q = anything(network, 4)
    (values,) = network.values(q)
    program = network.plain
    for i in range(len(q)):
        expected = reference.run(program, q[i].tolist())
        assert set(expected) == set(values)
        for key, value in values.items():
            assert value[i].tolist() == expected[key], key
    assert np.array_equal(network.run(q), values[network.steps[-1].name])


@pytest.mark.parametrize("change", ["zero", "shift", "bias", "low", "weight", "groups", "round"])
def test_the_reference_rejects_mutants(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, _, _ = made(SMALL)
    program, q = network.plain, anything(network, 3)[2:]
    step = next(step for step in program["steps"] if step["name"] == "left")
    if change == "zero":
        program["steps"][0]["zeros"] = [program["steps"][0]["zeros"][0] + 1]
    elif change == "shift":
        sums = next(step for step in program["steps"] if step["kind"] == "Sum")
        sums["c"][0][3] += 1
    elif change == "bias":
        step["bias"] = [bias + 5000 for bias in step["bias"]]
    elif change == "low":
        program["steps"][0]["out"]["low"] -= 40
        program["steps"][0]["out"]["zero"] -= 40
    elif change == "weight":
        step["weight"][1][0], step["weight"][2][0] = step["weight"][2][0], step["weight"][1][0]
    elif change == "groups":
        step["groups"] = 1
    else:
        monkeypatch.setattr(reference, "nearest", math.floor)
    assert reference.run(program, q[0].tolist())["head"] != network.run(q)[0].tolist()


class Watched(np.ndarray):
    """An array that notes every dtype that it takes on and every operation on it, and so does all that comes of it."""

    dtypes: set[str]
    operations: set[str]

    def __array_finalize__(self, obj: Any) -> None:
        Watched.dtypes.add(self.dtype.name)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        Watched.operations.add(ufunc.__name__)
        plain = [np.asarray(x) if isinstance(x, Watched) else x for x in inputs]
        result = getattr(ufunc, method)(*plain, **kwargs)
        Watched.dtypes |= {np.asarray(x).dtype.name for x in (*plain, result)}
        return np.asarray(result).view(Watched)


def watched(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.view(Watched)
    if isinstance(value, tuple):
        return tuple(watched(each) for each in value)
    if isinstance(value, Clip):
        return dataclasses.replace(value, **{field.name: watched(getattr(value, field.name)) for field in dataclasses.fields(value)})
    return value


def noticed(network: IntegerNetwork, q: np.ndarray) -> tuple[Any, set[str], set[str]]:
    Watched.dtypes, Watched.operations = set(), set()
    value = {"input": q.view(Watched)}
    for step in network.steps:
        changed = dataclasses.replace(step, **{field.name: watched(getattr(step, field.name)) for field in dataclasses.fields(step)})
        value[step.name] = changed.run(*(value[name] for name in step.inputs))
        assert isinstance(value[step.name], Watched)
    return value[network.steps[-1].name], Watched.dtypes, Watched.operations


@pytest.mark.parametrize("name", ["small", "branches"])
@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
def test_no_float_and_no_division_on_the_way(name: str, scheme: str) -> None:
    network, _, _ = made(GRAPHS[name], "mixed", 0, scheme)
    q = anything(network, 3)
    result, dtypes, operations = noticed(network, q)
    assert np.array_equal(result, network.run(q))
    assert dtypes <= {"int8", "uint8", "int16", "uint16", "int32", "int64"}
    assert {"matmul", "right_shift"} <= operations <= {
        "add", "subtract", "multiply", "matmul", "left_shift", "right_shift", "clip", "maximum", "minimum"
    }  # fmt: skip


def test_watching_notices_floats_and_divisions() -> None:
    network, _, _ = made(SMALL)

    class Wrong(Rescale):
        def run(self, *q: np.ndarray) -> np.ndarray:
            return (q[0] / 2 // 1).astype(np.uint8)

    wrong = dataclasses.replace(network, steps=(Wrong("w", ("input",), (0,), Clip(0, 0, 255)),))
    _, dtypes, operations = noticed(wrong, anything(network, 2))
    assert "float64" in dtypes
    assert {"divide", "floor_divide"} <= operations


def test_steps_are_written_without_floats_and_divisions() -> None:
    tree = ast.parse(inspect.getsource(steps_module))
    for node in ast.walk(tree):
        if isinstance(node, (ast.BinOp, ast.AugAssign)):
            assert not isinstance(node.op, (ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)), node.lineno
        if isinstance(node, ast.Constant):
            assert not isinstance(node.value, float), node.lineno
        if isinstance(node, (ast.Name, ast.Attribute)):
            assert "float" not in (node.id if isinstance(node, ast.Name) else node.attr), node.lineno


@pytest.mark.parametrize(("element", "act", "scheme"), CASES)
def test_types_of_values(element: str, act: int, scheme: str) -> None:
    network, _, _ = made(SMALL, element, act, scheme)
    q = anything(network, 2)
    (values,) = network.values(q)
    assert q.dtype == (np.uint8 if scheme == "affine" else np.int8)
    for step in network.steps:
        value = values[step.name]
        if isinstance(step, (Convolve, Multiply)):
            assert step.weight.dtype == np.int8
            assert step.bias.dtype == step.sums(values[step.inputs[0]]).dtype == np.int32
            if step.out is None:
                assert value.dtype == np.int32
                continue
        out = getattr(step, "out", None)
        if out is None:
            assert value.dtype == values[step.inputs[0]].dtype
        elif step.name == "head":
            assert value.dtype == (np.uint16 if scheme == "affine" else np.int16)
        else:  # behind a ReLU no number is negative
            assert value.dtype == (np.uint8 if out.low == 0 else np.int8)


def test_a_layer_of_fewer_bits_has_its_input_rescaled() -> None:
    """`left` and `right` take one value, `deep` one that is added as well: stored with 8 bits, with 4 bits for those that ask for fewer."""
    network, _, _ = made(SMALL, act={"stem": 8, "left": 4, "right": 8, "deep": 4, "head": 8})
    steps = {step.name: step for step in network.steps}
    assert {name: step.inputs for name, step in steps.items() if isinstance(step, Rescale)} == {
        "left.input": ("pool",), "deep.input": ("sum_relu",)
    }  # fmt: skip
    assert steps["left"].inputs == ("left.input",)
    assert steps["right"].inputs == ("pool",)
    assert steps["again"].inputs == ("deep", "sum_relu")
    (values,) = network.values(anything(network, 50))
    assert values["left.input"].max() == 15 < values["pool"].max()
    # the same range, so 17 steps of 8 bits are one of 4: within half a step
    wide = values["pool"].astype(int) - network.input.low
    assert np.abs(values["left.input"].astype(int) * 17 - wide).max() <= 9


def exact(network: IntegerNetwork, graph: Graph, weights: Any, q: np.ndarray) -> Any:
    """The first layer's results as exact fractions of the stored scales: real sum / output scale, before rounding."""
    step, grid = network.steps[0], network.output
    assert isinstance(step, Multiply)
    x = [[Fraction(network.input.scale) * (v - network.input.zero) for v in row] for row in q.tolist()]
    scales = [Fraction(s) / Fraction(network.input.scale) for s in network.layers["a"].scales.tolist()]
    w = [[s * v for v in row] for s, row in zip(scales, step.weight.tolist(), strict=True)]
    bias = weights["a.bias"].tolist()
    unit = Fraction(grid.scale)
    return [[(sum(a * b for a, b in zip(u, v, strict=True)) + Fraction(c)) / unit for u, c in zip(w, bias, strict=True)] for v in x]


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
def test_a_layer_is_the_real_one_rounded(scheme: str) -> None:
    """One dense layer: within half a step of the real sum of its quantized weights and inputs, but for what the bias's rounding (half a
    unit of the sums) and the dyadic number (2^-31 of the result, at most 2^15 steps) add."""
    graph = Graph.of((9,), ("a", Dense(8)))
    network, _, weights = made(graph, scheme=scheme)
    q = anything(network, 40)
    found, step = network.run(q), network.steps[0]
    assert isinstance(step, Multiply) and step.out is not None
    clipped = 0
    for row, expected in zip(found.tolist(), exact(network, graph, weights, q), strict=True):
        for channel, (value, real) in enumerate(zip(row, expected, strict=True)):
            slack = network.layers["a"].scales[channel] / network.output.scale / 2 + 2**-15
            if network.output.low < value < network.output.high:
                assert abs(value - network.output.zero - real) <= 0.5 + slack
            else:
                clipped += 1
    assert clipped < found.size / 2


@given(st.floats(2.0**-32, 2.0**31, exclude_max=True))
def test_dyadic_numbers(factor: float) -> None:
    b, c = dyadic(factor)
    assert (1 << 30) <= b < (1 << 31)
    assert 0 <= c <= 62
    assert abs(Fraction(b, 1 << c) / Fraction(factor) - 1) <= Fraction(1, 1 << 30 if c == 0 else 1 << 31)


@given(st.floats(0.0, 2.0**-32, exclude_min=True))
def test_small_dyadic_numbers(factor: float) -> None:
    b, c = dyadic(factor)
    assert c == 62
    assert abs(Fraction(b, 1 << 62) - Fraction(factor)) <= Fraction(1, 1 << 63)


@pytest.mark.parametrize("factor", [0.0, -1.0, 2.0**31, math.inf, math.nan])
def test_factors_without_a_dyadic_number(factor: float) -> None:
    with pytest.raises(UsageError, match="has no dyadic number; it must be positive and below 2\\^31"):
        dyadic(factor)


@given(st.integers(-LIMIT, LIMIT), st.integers(0, LIMIT), st.integers(0, 62))
def test_rounding_is_that_of_exact_fractions(a: int, b: int, c: int) -> None:
    found = scaled(np.array([[a]], np.int32), np.array([b], np.int64), np.array([c], np.int64))
    assert int(found[0, 0]) == math.floor(Fraction(a * b, 1 << c) + Fraction(1, 2))


def test_ties_go_up() -> None:
    a = np.array([[-3, -1, 1, 3, 5]], np.int32).T
    assert scaled(a, np.array([1]), np.array([1])).ravel().tolist() == [-1, 0, 1, 2, 3]


def test_grids() -> None:
    assert ActGrid.of(0.0, 25.5, 8) == ActGrid(0.1, 0, 0, 255)
    assert ActGrid.of(1.0, 15.0, 4) == ActGrid(1.0, 0, 0, 15)  # widened to hold 0
    assert ActGrid.of(-2.0, 1.0, 4) == ActGrid(0.2, 10, 0, 15)
    assert ActGrid.of(-12.7, 3.0, 8, "symmetric") == ActGrid(12.7 / 127, 0, -127, 127)
    assert ActGrid.of(0.0, 0.0, 8) == ActGrid(1.0, 0, 0, 255)
    grid = ActGrid.of(-2.0, 1.0, 4)
    assert grid.encode([-9, -2.0, -0.09, 0.11, 0.3, 9]).tolist() == [0, 0, 10, 11, 11, 15]  # 0.3 / 0.2 is just below 1.5
    assert grid.decode(np.array([0, 10, 15])).tolist() == [-2.0, 0.0, 1.0]
    for scheme in ("affine", "symmetric"):
        assert [ActGrid.of(-1, 1, bits, scheme).bits for bits in (2, 4, 8, 16)] == [2, 4, 8, 16]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0, 1), "activations of 1 bits; use 2 to 16"),
        ((0.0, 1.0, 17), "activations of 17 bits; use 2 to 16"),
        ((0.0, math.nan, 8), "a range from 0.0 to nan; give finite numbers, the lower first"),
        ((2.0, 1.0, 8), "a range from 2.0 to 1.0; give finite numbers, the lower first"),
        ((0.0, 1.0, 8, "signed"), "no scheme 'signed' of activations; use affine or symmetric"),
    ],
)
def test_grids_that_are_none(arguments: Any, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        ActGrid.of(*arguments)


@pytest.mark.parametrize("element", ["int8", "int4", "int2", "fp4_e2m1", "fp6_e2m3", "ternary", "int5_sym"])
def test_other_formats_of_weights(element: str) -> None:
    """Whatever is whole numbers times a step: integers and scales give the dequantized weights."""
    network, _, weights = made(DENSE, element)
    step = network.steps[0]
    assert isinstance(step, Multiply)
    held = anybit.quantize(weights["a.weight"], f"{element}@channel:fp32").dequantize().astype(np.float64)
    scales = network.layers["a"].scales / network.input.scale
    assert np.allclose(step.weight * scales[:, None], held, rtol=1e-6, atol=0)
    program, q = network.plain, anything(network, 3)
    assert reference.run(program, q[2].tolist())["f"] == network.run(q)[2].tolist()


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        ("nf4@channel:fp32", FormatError, "a.weight: the values of 'nf4' are no whole numbers times a step"),
        ("fp32", FormatError, "a.weight: the values of 'fp32' are no whole numbers times a step"),
        ("kmeans3@channel:fp32", FormatError, "no whole numbers times a step"),
        ("int8@4", FormatError, "has zero points, or more than one scale a channel; use int8@channel:fp32"),
        ("uint4@channel:fp32+zp=uint4", FormatError, "has zero points, or more than one scale a channel"),
        ({"a": "int8@channel"}, UsageError, "layer 'c' has no weight format; give all of a, c, f"),
        (dict.fromkeys("acfg", "int8@channel"), UsageError, "weight format: no layer named 'g'"),
    ],
)
def test_weight_formats_that_do_not_serve(weight: Any, error: type[Exception], message: str) -> None:
    weights = random_weights(DENSE)
    with pytest.raises(error, match=re.escape(message)):
        quantize(DENSE, weights, calibrate(DENSE, weights, samples(DENSE)), weight)


def test_what_quantize_refuses() -> None:
    weights = random_weights(SMALL)
    with pytest.raises(UsageError, match=re.escape("node 'stem_norm' is a batch norm; fold it first (fold_batch_norm)")):
        quantize(SMALL, weights, {})
    folded, weights = fold_batch_norm(SMALL, weights)
    with pytest.raises(UsageError, match="no range of 'input'; calibrate this graph"):
        quantize(folded, weights, {})
    ranges = {**calibrate(folded, weights, samples(folded)), "left": (0.0, 1e-300), "sum_relu": (0.0, 1e-300)}
    with pytest.raises(UsageError, match=r"node 'sum': a factor of .* between two scales has no dyadic number"):
        quantize(folded, weights, ranges)
    with pytest.raises(UsageError, match="no scheme 'signed' of activations"):
        quantize(folded, weights, ranges, scheme="signed")
    with pytest.raises(UsageError, match="activations of 1 bits; use 2 to 16"):
        quantize(folded, weights, calibrate(folded, weights, samples(folded)), act=1)


@pytest.mark.parametrize(
    ("q", "message"),
    [
        (np.zeros((1, 9), np.float32), "inputs are uint8[n, 9], not float32[1, 9]; use encode"),
        (np.zeros((1, 9), np.int64), "inputs are uint8[n, 9], not int64[1, 9]; use encode"),
        (np.zeros((1, 8), np.uint8), "inputs are uint8[n, 9], not uint8[1, 8]; use encode"),
        (np.zeros((0, 9), np.uint8), "inputs are uint8[n, 9], not uint8[0, 9]; use encode"),
        (np.full((1, 9), 16, np.uint8), "inputs are from 0 to 15, not from 16 to 16; use encode"),
    ],
)
def test_inputs_are_integers_of_the_grid(q: np.ndarray, message: str) -> None:
    network, _, _ = made(DENSE, act=4)
    with pytest.raises(ShapeError, match=re.escape(message)):
        network.run(q)
    with pytest.raises(NonFiniteError, match="numbers to encode hold 9 non-finite"):
        network(np.full((1, 9), np.nan))


def test_sums_up_to_the_end_of_int32_and_not_beyond() -> None:
    """127 * 255 * k with k = 66,311 is 2,147,481,735, the last below 2^31; with every weight and input at its end the sum is there."""
    for k, fits in ((66_311, True), (66_312, False)):
        graph = Graph.of((k,), ("a", Dense(1, bias=False)))
        weights = {"a.weight": np.ones((1, k), np.float32)}
        ranges = {"input": (0.0, 1.0), "a": (0.0, float(k))}
        if not fits:
            with pytest.raises(UsageError, match=re.escape("step 'a': its sums can reach 2147514120, beyond int32; use fewer bits")):
                quantize(graph, weights, ranges)
            continue
        network = quantize(graph, weights, ranges)
        step = network.steps[0]
        assert isinstance(step, Multiply)
        q = np.full((1, k), 255, np.uint8)
        assert check_sums(network.steps, network.input) == {"a": 127 * 255 * k}
        assert step.sums(q).tolist() == [[127 * 255 * k]]
        assert network.run(q).tolist() == [[65535]]


def test_the_proof_bounds_what_is_seen() -> None:
    """And it is no wider than it must be: an input that reaches it exists for a first layer."""
    network, _, _ = made(DENSE)
    bounds = check_sums(network.steps, network.input)
    (values,) = network.values(anything(network, 200))
    for step in network.steps:
        if isinstance(step, Multiply):
            assert np.abs(step.sums(values[step.inputs[0]])).max() <= bounds[step.name]
    first = network.steps[0]
    assert isinstance(first, Multiply)
    grid = network.input
    worst = int(np.abs(first.weight.astype(int)).sum(axis=1).argmax())
    sign = first.weight[worst] > 0 if grid.high - grid.zero > grid.zero else first.weight[worst] < 0
    q = np.where(sign, grid.high, grid.low).astype(grid.dtype)[None]
    assert np.abs(first.sums(q)).max() > 0.5 * bounds[first.name]


def test_a_channel_of_tiny_weights_keeps_its_bias() -> None:
    """As folding makes of a channel whose batch norm has next to no variance: in units of its weights the bias would not fit int32."""
    weights = random_weights(DENSE)
    weights["a.weight"][3], weights["a.bias"][3] = 1e-14, 0.75
    weights["a.weight"][5], weights["a.bias"][5] = 0, 0.25
    ranges = calibrate(DENSE, weights, samples(DENSE, 50))
    network = quantize(DENSE, weights, ranges)
    (values,) = network.values(anything(network, 3))
    step = ranges["b"][1] / 255
    assert np.abs(values["b"][:, 3] * step - 0.75).max() <= step
    assert np.abs(values["b"][:, 5] * step - 0.25).max() <= step


def test_bias_correction_brings_means_back() -> None:
    network, graph, weights = made(SMALL, "int4_sym", 4)
    x = samples(graph, 100)  # those of the ranges: what is cut off would move means as well
    expected = execute(graph, weights, x)
    fixed = correct_bias(network, graph, weights, x)
    before, after = (np.abs((each(x) - expected).mean(axis=0)).max() for each in (network, fixed))
    assert after < before / 20
    assert np.square(fixed(x) - expected).mean() < np.square(network(x) - expected).mean()
    means = {name: value.mean(axis=(0, *range(2, value.ndim))) for name, value in next(batches(graph, weights, x, size=300)).items()}
    held = {"input": fixed.input.encode(x)}
    for step in fixed.steps:
        given = [held[name] for name in step.inputs]
        held[step.name] = step.run(*given)
        if isinstance(step, (Convolve, Multiply)):
            name = step.name if step.name in graph.layers else next(n for n in graph.layers if graph.users[n] == (step.name,))
            sums = step.sums(given[0])
            found = sums.mean(axis=(0, *range(2, sums.ndim)))
            # half a unit of the sums, and the float32 of the float layer
            assert np.abs(found - means[name] / fixed.layers[name].scales).max() < 0.51 + 1e-5 * np.abs(found).max(), name


def test_size() -> None:
    """4-bit weights, int32 biases, and 38 bits for each dyadic number: one a channel, but `c`, whose sums are added: 8 and 1 there."""
    network, _, weights = made(DENSE, "int4_sym")
    count = sum(w.size for name, w in weights.items() if name.endswith("weight"))
    assert network.size_bits == 4 * count + 32 * (8 + 8 + 3) + 38 * (8 + 8 + 1 + 3)
    assert any(isinstance(step, Positive) for step in made(BRANCHES)[0].steps)
