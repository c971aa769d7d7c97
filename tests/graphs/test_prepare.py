"""Folding and equalisation leave the function as it is; ranges are what NumPy finds on all values at once."""

from __future__ import annotations

import re

import numpy as np
import pytest
from nets import SMALL, random_weights, samples

from anybit.errors import ShapeError, UsageError
from anybit.graphs.equalization import equalize, pairs
from anybit.graphs.floats import batches, execute
from anybit.graphs.fold import fold_batch_norm
from anybit.graphs.lower import quantize
from anybit.graphs.ranges import calibrate
from anybit.models import Add, AveragePool, BatchNorm, Conv2d, Dense, Flatten, Graph, MaxPool, Relu

# A batch norm of the input, one behind a layer that another node takes too, one of features, and one as the output.
NORMS = Graph.of(
    (4, 6, 5),
    ("norm_first", BatchNorm(1e-3)),
    ("a", Conv2d(4, (3, 3), padding=(1, 1), groups=2)),
    ("norm_shared", BatchNorm()),
    ("sum", Add(), "norm_shared", "a"),
    ("flat", Flatten()),
    ("dense", Dense(7, bias=False)),
    ("norm_dense", BatchNorm()),
    ("relu", Relu()),
    ("head", Dense(3)),
    ("norm_head", BatchNorm()),
)
# Pairs through ReLU, maxima, averages and flattening; a depthwise and a grouped layer; `d` has two users.
CHAIN = Graph.of(
    (3, 8, 8),
    ("a", Conv2d(6, (3, 3), padding=(1, 1))),
    ("a_relu", Relu()),
    ("b", Conv2d(6, (3, 3), padding=(1, 1), groups=6, bias=False)),
    ("b_relu", Relu()),
    ("b_pool", MaxPool((2, 2))),
    ("c", Conv2d(8, (3, 3), padding=(1, 1), groups=2)),
    ("c_mean", AveragePool((2, 2))),
    ("c_flat", Flatten()),
    ("d", Dense(5)),
    ("d_relu", Relu()),
    ("e", Dense(5), "d_relu"),
    ("f", Add(), "e", "d_relu"),
)


@pytest.mark.parametrize("graph", [SMALL, NORMS])
def test_folding_changes_nothing(graph: Graph) -> None:
    """In float64 what is left is the one rounding of the folded weights to float32, 2^-24 each."""
    weights, x = random_weights(graph), samples(graph, 20)
    folded, new = fold_batch_norm(graph, weights)
    assert not any(isinstance(node.op, BatchNorm) for node in folded.nodes)
    assert all(w.dtype == np.float32 for w in new.values())
    expected = execute(graph, weights, x, np.float64)
    assert np.abs(execute(folded, new, x, np.float64) - expected).max() < 1e-6 * np.abs(expected).max()
    assert folded.layers == tuple(name for name in folded.layers if name in graph.layers or "norm" in name)


def test_what_folds_into_what() -> None:
    folded, _ = fold_batch_norm(NORMS, random_weights(NORMS))
    assert [node.name for node in folded.nodes] == ["norm_first", "a", "norm_shared", "sum", "flat", "dense", "relu", "head"]
    assert folded["norm_shared"].op == Conv2d(4, (1, 1), groups=4)
    assert folded["dense"].op == Dense(7)
    assert folded.output == "head"


def test_a_batch_norm_of_features_without_a_layer() -> None:
    graph = Graph.of((4,), ("norm", BatchNorm()), ("d", Dense(2)))
    with pytest.raises(UsageError, match=re.escape("node 'norm': a batch norm of features needs a Dense layer of its own before it")):
        fold_batch_norm(graph, random_weights(graph))


def test_pairs() -> None:
    assert pairs(CHAIN) == [("a", "b"), ("b", "c"), ("c", "d")]
    assert pairs(SMALL) == []


def test_equalisation_changes_weights_and_nothing_else() -> None:
    weights, x = random_weights(CHAIN), samples(CHAIN, 20)
    new = equalize(CHAIN, weights)
    expected = execute(CHAIN, weights, x, np.float64)
    assert np.abs(execute(CHAIN, new, x, np.float64) - expected).max() < 1e-5 * np.abs(expected).max()
    rows = {name: np.abs(new[f"{name}.weight"]).reshape(len(new[f"{name}.weight"]), -1).max(axis=1) for name in "abc"}
    columns = {
        "b": np.abs(new["b.weight"]).max(axis=(1, 2, 3)),
        "c": np.concatenate([np.abs(new["c.weight"][:4]).max(axis=(0, 2, 3)), np.abs(new["c.weight"][4:]).max(axis=(0, 2, 3))]),
        "d": np.abs(new["d.weight"]).reshape(5, 8, 4).max(axis=(0, 2)),
    }
    for first, second in pairs(CHAIN):
        # every s of the last step was within 1e-4 of 1, so that ranges differ by 2e-4 at most; the next pair then moved them as little
        assert np.abs(rows[first] / columns[second] - 1).max() < 1e-3, first


def test_equalisation_saves_one_scale_a_tensor() -> None:
    """Channels that differ a thousandfold, as depthwise networks have: with one scale a tensor most of them are lost before, none after."""
    weights, x = random_weights(CHAIN), samples(CHAIN, 200)
    skew = np.logspace(-1.5, 1.5, 6, dtype=np.float32)
    weights["a.weight"] *= skew[:, None, None, None]
    weights["a.bias"] *= skew
    weights["b.weight"] /= skew[:, None, None, None]
    expected = execute(CHAIN, weights, x)
    errors = []
    for each in (weights, equalize(CHAIN, weights)):
        network = quantize(CHAIN, each, calibrate(CHAIN, each, x), "int8_sym@tensor:fp32")
        errors.append(float(np.square(network(x) - expected).mean() / np.square(expected).mean()))
    assert errors[1] < errors[0] / 10, errors


def test_channels_of_zeros_stay() -> None:
    weights = random_weights(CHAIN)
    weights["a.weight"][2] = 0
    weights["b.weight"][4] = 0
    new = equalize(CHAIN, weights)
    assert all(np.isfinite(w).all() for w in new.values())
    assert np.array_equal(new["a.bias"][[2, 4]], weights["a.bias"][[2, 4]])


def test_ranges() -> None:
    weights, x = random_weights(SMALL), samples(SMALL, 300)
    (values,) = batches(SMALL, weights, x, size=1000)
    parts = list(batches(SMALL, weights, x))
    assert len(parts) == 2
    found, quantiles = calibrate(SMALL, weights, x), calibrate(SMALL, weights, x, "p99")
    assert set(found) == set(quantiles) == set(SMALL.shapes)
    for name, value in values.items():
        seen = np.concatenate([part[name] for part in parts])
        assert found[name] == (seen.min(), seen.max())
        assert np.allclose(seen, value, atol=1e-4)
        assert quantiles[name] == pytest.approx(tuple(np.quantile(seen, [0.01, 0.99])))
    assert calibrate(SMALL, weights, x, "p100") == found


@pytest.mark.parametrize("rule", ["max", "p", "p101", "p49", "pnan", ""])
def test_unknown_range_rules(rule: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"no range rule '{rule}'; use minmax, or pP with P from 50 to 100")):
        calibrate(SMALL, random_weights(SMALL), samples(SMALL), rule)


def test_weights_are_checked() -> None:
    for function in (fold_batch_norm, equalize):
        with pytest.raises(ShapeError, match=re.escape("tensor 'stem.weight' [6, 3, 3, 2] is missing")):
            function(SMALL, {})
