"""The float model after a recipe's steps computes what it did, whatever the steps fold where; and what one layer costs in it."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from small import CONFIG, write_model

import anybit
from anybit.calibrate import calibrate
from anybit.linear import Linear
from anybit.measure.accuracy import row_stats_numpy
from anybit.recipes.mixed import Candidates, candidates, with_layers
from anybit.recipes.moved import moved, noting_biases
from anybit.recipes.plan import make_plan
from anybit.recipes.schema import Recipe, parse_recipe
from anybit.recipes.source import FloatSource

IDS = np.random.default_rng(0).integers(0, 64, (2, 24)).astype(np.int32)
SHAPES = {"untied, biases": {"attention_bias": True}, "tied": {"tie_word_embeddings": True}}
EXACT = [
    ["smoothquant"], ["equalize", {"hadamard": {"block": 4}}], [{"awq": {"grid": 4}}],
    ["rotate_residual", {"smoothquant": {"alpha": 0.8}}], [{"outlier_columns": {"top": 3, "format": "fp32"}}],
    [{"permute_outliers": {"order": "sort"}}, {"static_activations": {"per": "channel"}}],
]  # fmt: skip


def recipe(steps: list[Any], rules: list[dict[str, Any]] | None = None, **more: Any) -> Recipe:
    rules = rules or [{"match": "layers", "format": "int3@12", "corrections": ["bias_correction"], "act": "int8"}]
    return parse_recipe({"version": 1, "name": "r", "steps": steps, "rules": rules, **more}, "r")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", EXACT, ids=str)
def test_the_model_after_exact_steps_computes_what_it_did(steps: list[Any], shape: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m", {**CONFIG, **SHAPES[shape]})
    source, model = FloatSource(path), anybit.load(path)
    for rules in (None, [{"match": "q_proj|up_proj|lm_head", "format": "int3@12"}]):
        plan, biases = noting_biases(make_plan(recipe(steps, rules), source.spec))
        after = moved(model, calibrate(source, plan, IDS), biases)
        want = model.logits(IDS[0])
        assert np.abs(after.logits(IDS[0]) - want).max() < 2e-5 * np.abs(want).max()
        changed = [n for n, w in after.weights.items() if isinstance(w, Linear) and n in model.linears
                   and not np.array_equal(w.weight.dequantize(), model.linears[n].weight.dequantize())]  # fmt: skip
        assert changed or rules, "with a matrix of each group kept, a step of groups has nothing to do"


def kl(one: anybit.Model, other: anybit.Model, text: np.ndarray) -> float:
    rows = row_stats_numpy(one.logits(text[:-1]), other.logits(text[:-1]), text[1:])[1]
    assert rows is not None
    return float(rows.mean())


@pytest.mark.parametrize("steps", [["smoothquant"], [{"flap": {"fraction": 0.25}}]], ids=str)
def test_a_layers_cost_is_measured_alone_after_the_steps(steps: list[Any], tmp_path: Path) -> None:
    path = write_model(tmp_path / "m")
    wanted = recipe(steps, allocation={"bits": 6.0, "formats": ["int2@12", "int6@12"]})
    found: Candidates = candidates(path, wanted, IDS, tokens=20, whole=lambda formats: pytest.fail("no mixture is needed for costs"))
    source, model = FloatSource(path), anybit.load(path)
    text = IDS.reshape(-1)[:21]
    for each, spec in found.specs.items():
        plan, biases = noting_biases(make_plan(wanted, source.spec, override=dict.fromkeys(found.costs, spec)))
        after = moved(model, calibrate(source, plan, IDS), biases)
        for name, costs in found.costs.items():
            alone = kl(after, with_layers(after, {name: found.layers[each][name]}), text)
            assert alone > 0 and costs[each] == pytest.approx(alone, rel=1e-3, abs=1e-7), name
    assert all(costs["int6@12"] < costs["int2@12"] for costs in found.costs.values())


def test_an_allocation_by_kl_with_steps(tmp_path: Path) -> None:
    """The mixture holds its budget, is made with its steps as a whole, and no uniform format within the budget is better."""
    from anybit.recipes.quantize import quantize_recipe

    rules = [{"match": r"layers\.[01]\.", "format": "int4@64", "act": "int8_sym@token"}]
    formats = ["int2@64+scale=mse", "int4@64+scale=mse", "int8@64"]
    calibration = {"sequences": 2, "length": 48}
    wanted = recipe(["smoothquant"], rules, allocation={"bits": 4.25, "formats": formats}, calibration=calibration)
    result = quantize_recipe("pycoder-5m", tmp_path / "out", wanted)
    assert result.mixed is not None and result.mixed.kl[result.mixed.taken] == min(result.mixed.kl.values())
    assert set(result.mixed.kl) == {"mixed", *formats[:2]}
    made = anybit.load(tmp_path / "out")
    assert made.quantized_bits_per_weight is not None and made.quantized_bits_per_weight <= 4.25
    assert len({str(spec) for spec in result.mixed.formats.values()}) > 1 or result.mixed.taken != "mixed"
