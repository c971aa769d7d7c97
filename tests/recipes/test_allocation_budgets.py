"""Formats by layer on the bundled model: budgets of stored bits, time and bit operations hold; steps are part of every candidate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anybit
from anybit.errors import DoesNotFitError
from anybit.formats import Spec
from anybit.linear import Linear
from anybit.recipes import mixed as module
from anybit.recipes.mixed import bit_operations, choose_formats, latency_ms
from anybit.recipes.quantize import quantize_recipe
from anybit.recipes.schema import Recipe, parse_recipe

SMALL = {"version": 1, "name": "small", "calibration": {"sequences": 2, "length": 48}}
FORMATS = ["int2@64+scale=mse", "int4@64+scale=mse", "int8@64"]
RULES = [{"match": r"layers\.[01]\..*(q|v|o|up|down)_proj", "format": "int4@64", "act": "int8"}]


def recipe(**allocation: Any) -> Recipe:
    changed = {key: allocation.pop(key) for key in ("steps", "rules") if key in allocation}
    return parse_recipe({**SMALL, "rules": RULES, **changed, "allocation": {"formats": FORMATS, "cost": "hawq", **allocation}}, "small")


IDS = np.random.default_rng(0).integers(0, 4096, (2, 48)).astype(np.int32)


def test_stored_bits_by_both_costs() -> None:
    for cost in ("hawq", "kl"):
        found = choose_formats("pycoder-5m", recipe(bits=4.25, cost=cost), IDS, tokens=96)
        assert found.bits["mixed"] <= 4.25 and set(found.kl) == {"mixed", "int2@64+scale=mse", "int4@64+scale=mse"}
        assert found.kl[found.taken] == min(found.kl.values()) and len(found.formats) == 10
        for name, costs in found.costs.items():
            assert costs["int8@64"] < costs["int4@64+scale=mse"] < costs["int2@64+scale=mse"] or cost == "kl", name


def test_the_cost_hawq_is_the_error_of_the_outputs() -> None:
    """tr(dW H dW^T) of the first layer's q_proj, whose input no quantized layer changes, from the model's own weights."""
    from anybit.calibrate.forward import rms_norm

    model = anybit.load("pycoder-5m")
    found = choose_formats("pycoder-5m", recipe(bits=4.25), IDS, tokens=96)
    name, norm = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.input_layernorm.weight"
    held = model.weights[norm]
    assert isinstance(held, np.ndarray)
    table = model.linears["model.embed_tokens.weight"].weight.dequantize()
    x = rms_norm(table[IDS.reshape(-1)], held, model.spec.norm_eps).astype(np.float64)
    w = model.linears[name].weight.dequantize()
    e = (anybit.quantize(w, "int2@64+scale=mse").dequantize() - w).astype(np.float64)
    assert np.isclose(found.costs[name]["int2@64+scale=mse"], np.square(x @ e.T).sum() / len(x), rtol=1e-4)


def test_bit_operations() -> None:
    """Weights times multiplications: with int8 inputs 2, 4 and 8 bits count 16, 32 and 64; only mean 40 is allowed."""
    found = choose_formats("pycoder-5m", recipe(bit_operations=40), IDS, tokens=96)
    shapes = {t.name: t.shape for t in anybit.load("pycoder-5m").spec.tensors}
    weights = {name: shapes[name][0] * shapes[name][1] for name in found.formats}
    mean = sum(weights[n] * 8 * spec.format.element.bits for n, spec in found.formats.items()) / sum(weights.values())
    assert mean <= 40 and set(found.kl) == {"mixed", "int2@64+scale=mse", "int4@64+scale=mse"}
    model = anybit.load("pycoder-5m").quantize("int3@64")
    assert bit_operations(model.linears["model.layers.0.mlp.up_proj.weight"]) == 3 * 32
    with pytest.raises(DoesNotFitError, match=r"budget 'bit operations'"):
        choose_formats("pycoder-5m", recipe(bit_operations=10), IDS, tokens=96)


def test_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum of measured times is the budget: with times told apart by the format, the program's choice is the one that fits."""
    linear = anybit.load("pycoder-5m").quantize("int4@64").linears["model.layers.0.mlp.up_proj.weight"]
    assert 0 < latency_ms(linear, 3) < 1000

    def told(linear: Linear) -> float:
        return {2: 1.0, 4: 2.0, 8: 5.0}[linear.weight.format.element.bits]

    monkeypatch.setattr(module, "latency_ms", told)
    found = choose_formats("pycoder-5m", recipe(latency_ms=24.0, bits=8.0), IDS, tokens=96)
    spent = sum({2: 1.0, 4: 2.0, 8: 5.0}[spec.format.element.bits] for spec in found.formats.values())
    assert spent <= 24 and found.taken in found.kl and "int8@64" not in found.kl
    with pytest.raises(DoesNotFitError, match=r"budget 'latency': the smallest choice of every layer takes 10 ms"):
        choose_formats("pycoder-5m", recipe(latency_ms=9.0), IDS, tokens=96)


def test_steps_are_part_of_every_candidate(tmp_path: Path) -> None:
    """SmoothQuant folds scales into norms: the mixture is quantized as a whole, and is what is compared with the uniform formats."""
    rules = [{"match": "layers", "format": "int4@64", "act": "int8_sym@token"}]
    with_steps = recipe(bits=4.25, steps=["smoothquant"], rules=rules)
    result = quantize_recipe("pycoder-5m", tmp_path / "out", with_steps)
    assert result.mixed is not None and set(result.mixed.kl) == {"mixed", "int2@64+scale=mse", "int4@64+scale=mse"}
    made = anybit.load(tmp_path / "out")
    assert {n: Spec.parse(str(s)).format for n, s in result.mixed.formats.items()} == {
        n: linear.weight.format for n, linear in made.linears.items() if "layers" in n
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing stays beside it"
    norm = "model.layers.0.input_layernorm.weight"
    assert not np.array_equal(made.weights[norm], anybit.load("pycoder-5m").weights[norm]), "a norm was scaled"
