"""Recipes of transforms on the bundled model: they run natively, do something, and calibration computed what the engine computes."""

from pathlib import Path

import numpy as np
import pytest

import anybit
from anybit.calibrate.block import Block, RoundedBlock
from anybit.calibrate.finished import load_finished
from anybit.calibrate.forward import members, run_block
from anybit.recipes.quantize import quantize_recipe
from anybit.recipes.schema import Recipe, load_recipe, named, parse_recipe
from anybit.recipes.source import FloatSource
from anybit.recipes.strict_yaml import read

RUNS_AS = {
    "smoothquant": [], "awq": [], "equalize": [], "quarot": ["hadamard"], "hadamard-mxfp4": ["hadamard"], "arcquant": ["residual"],
    "llm-int8": ["columns"], "comet": ["permute"], "k-sort": ["permute"], "static-int8": [],
}  # fmt: skip


def shortened(name: str, **changes: object) -> Recipe:
    value = read(named()[name]) | {"name": name, "calibration": {"sequences": 2, "length": 64}}
    if name == "awq":
        value["steps"] = [{"awq": {"grid": 4, "clip": True}}]
    return parse_recipe(value | changes, name)


def check_layers(work: Path, model: anybit.Model, made: anybit.Model, ids: np.ndarray) -> None:
    """Every linear layer as calibration ran it, against the stored one, on the inputs that came to it."""
    spec, ends = model.spec, load_finished(work / "ends.safetensors")
    changed = ends.arrays.get(spec.embedding)  # kept there only where a step changed it
    x = FloatSource("pycoder-5m").rows(spec.embedding, ids) if changed is None else changed[ids]
    for index, layer in enumerate(spec.layers):
        done = load_finished(work / f"block-{index}.safetensors")
        runs = RoundedBlock(Block(layer, index, done.arrays, done.groups))
        inputs: dict[str, np.ndarray] = {}
        x = run_block(layer, runs, x, spec.norm_eps, inputs.__setitem__)
        for role, names in members(layer).items():
            ready = runs.prepare(role, inputs[role])
            for name in names:
                want, got = runs.linear(role, name, ready), made.linears[name](inputs[role])
                assert np.abs(got - want).max() < 2e-5 * np.abs(want).max(), name


@pytest.mark.parametrize("name", RUNS_AS)
def test_a_named_recipe(name: str, tmp_path: Path) -> None:
    assert load_recipe(name).source and load_recipe(name).about
    recipe, original = shortened(name), anybit.load("pycoder-5m")
    quantize_recipe("pycoder-5m", tmp_path / "out", recipe, work=tmp_path / "work")
    made = anybit.load(tmp_path / "out")
    kinds = {kind for linear in made.linears.values() for kind in linear.around}
    assert kinds >= set(RUNS_AS[name])
    static = name in ("smoothquant", "static-int8")
    assert all((linear.act is not None and linear.act.scale is not None) == static for n, linear in made.linears.items() if "layers" in n)
    ids = np.asarray(original.tokenize("class Stack:\n    def push(self, item):\n        self.items.append(item)\n")[:40])
    check_layers(tmp_path / "work", original, made, ids)
    before = original.logits(ids)
    quantization = np.square(made.logits(ids) - before).mean()
    assert quantization < 0.25 * np.square(before).mean()
    plain = shortened(name, steps=[])
    quantize_recipe("pycoder-5m", tmp_path / "plain", plain) if not static else None
    if not static:
        other = anybit.load(tmp_path / "plain").linears
        codes = [(a.weight.logical()["codes"], other[n].weight.logical()["codes"]) for n, a in made.linears.items() if n in other]
        same = [np.array_equal(a, b) for a, b in codes]
        assert not all(same) or name in ("arcquant", "llm-int8"), "its codes differ from nearest's"


def test_static_float_activations_run(tmp_path: Path) -> None:
    """A scale for the whole tensor is refused unless a step gives it."""
    rules = [{"match": "layers", "format": "fp8_e4m3fn@channel", "act": "fp8_e4m3fn@tensor"}]
    with pytest.raises(anybit.errors.NoKernelError, match=r"give a scale"):
        quantize_recipe("pycoder-5m", tmp_path / "a", shortened("static-int8", steps=[], rules=rules))
    quantize_recipe("pycoder-5m", tmp_path / "b", shortened("static-int8", rules=rules), work=tmp_path / "work")
    made, original = anybit.load(tmp_path / "b"), anybit.load("pycoder-5m")
    check_layers(tmp_path / "work", original, made, np.arange(5, 30))
