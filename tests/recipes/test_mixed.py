"""Formats by layer: what a layer costs is what it costs alone, budgets hold in stored bits, and no uniform format that fits is better."""

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest

import anybit
from anybit.errors import DoesNotFitError
from anybit.measure.accuracy import row_stats_numpy
from anybit.recipes.mixed import Candidates, candidates, with_layers
from anybit.recipes.schema import parse_recipe

FORMATS = ["int2@64", "int3@64", "int4@64"]
TOKENS = 48


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 4096, (1, 64)).astype(np.int32)


@pytest.fixture(scope="module")
def found(ids: np.ndarray) -> Iterator[Candidates]:
    value = {"version": 1, "rules": [{"match": "layers", "format": "int4@64"}], "allocation": {"bits": 3.0, "formats": FORMATS}}
    yield candidates("pycoder-5m", parse_recipe(value, "mixed"), ids, tokens=TOKENS)


def kl(found: Candidates, model: anybit.Model, ids: np.ndarray) -> float:
    inputs, targets = ids[0, :TOKENS], ids[0, 1 : TOKENS + 1]
    rows = row_stats_numpy(found.model.logits(inputs), model.logits(inputs), targets)[1]
    assert rows is not None
    return float(rows.mean())


def test_costs_are_of_one_layer_alone(found: Candidates, ids: np.ndarray) -> None:
    name = "model.layers.2.mlp.down_proj.weight"
    for each in FORMATS:
        made = anybit.quantize(found.model.linears[name].weight.dequantize(), each)
        assert np.array_equal(found.layers[each][name].weight.dequantize(), made.dequantize())
        alone = kl(found, with_layers(found.model, {name: found.layers[each][name]}), ids)
        assert alone > 0 and found.costs[name][each] == pytest.approx(alone, rel=1e-4, abs=1e-8)  # the kernel's exp against NumPy's


@pytest.mark.parametrize("bits", [2.25, 2.5, 3.0, 4.25])
def test_budgets_hold_and_no_uniform_format_is_better(found: Candidates, ids: np.ndarray, bits: float) -> None:
    mixed = found.choose(bits)
    layers = {name: found.layers[str(spec)][name] for name, spec in mixed.formats.items()}
    made = with_layers(found.model, layers)
    assert made.quantized_bits_per_weight is not None and made.quantized_bits_per_weight <= Fraction(bits)
    fit = [each for each in FORMATS if anybit.Format(each).bits_per_weight <= bits]
    assert set(mixed.kl) == {"mixed", *fit} and mixed.kl[mixed.taken] == min(mixed.kl.values())
    least = min(kl(found, with_layers(found.model, dict(found.layers[each])), ids) for each in fit)
    assert kl(found, made, ids) <= least * (1 + 1e-4)
    if bits == 2.25:
        assert set(map(str, mixed.formats.values())) == {"int2@64"}


def test_a_budget_below_the_smallest_format(found: Candidates) -> None:
    with pytest.raises(DoesNotFitError, match=r"the smallest choice of every layer takes"):
        found.choose(2.2)
