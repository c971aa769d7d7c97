import json
from pathlib import Path

import numpy as np
import pytest

import anybit
from anybit.calibrate import Event
from anybit.errors import GateError, OutputError, UsageError
from anybit.io.manifest import MANIFEST
from anybit.recipes.plan import make_plan
from anybit.recipes.quantize import quantize_recipe
from anybit.recipes.schema import Recipe, parse_recipe
from anybit.recipes.source import FloatSource

WEIGHED = {
    "version": 1, "name": "weighed", "calibration": {"sequences": 3, "length": 50},
    "rules": [
        {"match": "down_proj", "format": "int6@64+scale=wmse", "act": "int8"},
        {"match": "layers.1.*[qk]_proj", "keep": True},
        {"match": "layers", "format": "int4@32+scale=mse", "rounding": {"nearest": {"importance": True}}},
        {"match": "embed", "format": "int8@channel"},
    ],
    "kv_cache": {"k": "int8@32"},
}  # fmt: skip


def recipe(**changes: object) -> Recipe:
    return parse_recipe(WEIGHED | changes, "test")


def test_a_recipe_becomes_a_checkpoint_that_runs(tmp_path: Path) -> None:
    seen: list[Event] = []
    result = quantize_recipe("pycoder-5m", tmp_path / "out", recipe(), progress=seen.append)
    assert [layer.index for layer in result.layers] == [0, 1, 2, 3, 4, -1]
    assert seen[-1].done == seen[-1].total == 5 and seen[-1].loss is not None
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "no temporary folder stays"
    made, original = anybit.load(tmp_path / "out"), anybit.load("pycoder-5m")
    formats = {name: str(linear.weight.format) for name, linear in made.linears.items()}
    assert formats["model.layers.2.mlp.down_proj.weight"] == "int6@64" and formats["model.layers.1.self_attn.q_proj.weight"] == "bf16"
    assert formats["model.layers.1.self_attn.v_proj.weight"] == "int4@32" and formats["model.embed_tokens.weight"] == "int8@channel"
    assert made.linears["model.layers.2.mlp.down_proj.weight"].act_name == "int8"
    assert made.linears["model.layers.2.mlp.up_proj.weight"].act_name is None
    assert made.cache is not None and made.cache.text == "k=int8@32:bf16,v=float"
    ids = original.tokenize("def mean(values):\n    return sum(values) / len(values)\n")
    a, b = made.logits(ids), original.logits(ids)
    assert 0.05 < np.abs(a - b).max() < 0.2 * np.abs(b).max()
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["recipe_digest"] == recipe().digest and config["provenance"][0]["recipe"] == "weighed"
    assert config["provenance"][0]["calibration"]["length"] == 50
    # importance was really used
    plain = original.quantize("int4@32+scale=mse").linears["model.layers.0.self_attn.q_proj.weight"].weight.dequantize()
    assert not np.array_equal(made.linears["model.layers.0.self_attn.q_proj.weight"].weight.dequantize(), plain)


def test_a_killed_run_resumes_to_the_same_digest(tmp_path: Path) -> None:
    quantize_recipe("pycoder-5m", tmp_path / "whole", recipe())

    class Killed(Exception):
        pass

    def kill(event: Event) -> None:
        if event.done == 3:
            raise Killed

    with pytest.raises(Killed):
        quantize_recipe("pycoder-5m", tmp_path / "out", recipe(), work=tmp_path / "work", progress=kill)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match=r"another run's state"):
        quantize_recipe("pycoder-5m", tmp_path / "out", recipe(name="other"), work=tmp_path / "work", resume=True)
    quantize_recipe("pycoder-5m", tmp_path / "out", recipe(), work=tmp_path / "work", resume=True)
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "out").iterdir())
    for name in files:
        assert name == MANIFEST or (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_gate_that_fails_keeps_the_result_aside(tmp_path: Path) -> None:
    text = tmp_path / "text.py"
    text.write_text("import os\n\n\ndef join(parts):\n    return os.sep.join(str(part) for part in parts)\n" * 40)
    strict = recipe(gates={"max_kl": 1e-6, "min_top1": 1.0})
    with pytest.raises(GateError, match=r"KL .* is above max_kl 1e-06 and same top-1 .* lies aside in .*out.rejected") as error:
        quantize_recipe("pycoder-5m", tmp_path / "out", strict, evaluation=[text])
    assert error.value.exit_code == 5
    assert not (tmp_path / "out").exists() and anybit.load(tmp_path / "out.rejected").quantized
    with pytest.raises(OutputError, match=r"out.rejected exists already"):
        quantize_recipe("pycoder-5m", tmp_path / "out", strict)
    loose = recipe(gates={"max_kl": 1.0})
    result = quantize_recipe("pycoder-5m", tmp_path / "fine", loose, evaluation=[text])
    assert result.accuracy is not None and result.accuracy.kl_mean is not None and result.accuracy.kl_mean.mean < 1
    assert (tmp_path / "fine").exists() and not (tmp_path / "fine.rejected").exists()


def test_plans_are_refused_before_work(tmp_path: Path) -> None:
    spec = FloatSource("pycoder-5m").spec
    with pytest.raises(UsageError, match=r"no rule quantizes a matrix of this model; its tensors are named like model.embed_tokens.weight"):
        make_plan(recipe(rules=[{"match": "blocks", "format": "int4@32"}]), spec)
    with pytest.raises(UsageError, match=r"gives the embedding nearest, which looks at inputs, and an embedding has none"):
        make_plan(recipe(rules=[{"match": "", "format": "int4@32+scale=wmse"}]), spec)
    quantized = tmp_path / "q"
    quantize_recipe("pycoder-5m", quantized, recipe(rules=[{"match": "layers", "format": "int4@32"}]))
    with pytest.raises(UsageError, match=r"is quantized already; give the original model"):
        quantize_recipe(quantized, tmp_path / "r", recipe())
