"""Mixtures of experts in other tools' checkpoints: codes and names of every expert, routers as they are, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anybit
from anybit.errors import UsageError
from anybit.export import prepare, write
from anybit.models.spec import Experts
from anybit.sources import open_source

sys.path.insert(0, str(Path(__file__).parents[1]))
from mixtures import MIXTRAL, QWEN, unseen
from small import arrays, write_model

BIG = {"vocab_size": 96, "hidden_size": 128, "intermediate_size": 192, "head_dim": 32}
CONFIGS: dict[str, dict[str, Any]] = {"mixtral": MIXTRAL | BIG, "qwen": {**QWEN, **BIG, "moe_intermediate_size": 64}}
IDS = np.random.default_rng(3).integers(0, 96, 40)


@pytest.fixture(scope="module", params=CONFIGS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = CONFIGS[request.param]
    return write_model(tmp_path_factory.mktemp("experts") / "model", config, unseen(config))


@pytest.mark.parametrize(
    ("to", "fmt"),
    [("compressed-tensors", "int4@32:bf16"), ("compressed-tensors", "fp8_e4m3fn@channel:bf16"), ("gptq", "int4@32:fp16")],
)
def test_codes_of_all_experts_come_back(to: str, fmt: str, source: Path, tmp_path: Path) -> None:
    anybit.load(source).quantize(fmt).save(tmp_path / "quantized")
    export = prepare(tmp_path / "quantized", to)
    write(export, tmp_path / "out")
    ours, again = anybit.load(tmp_path / "quantized"), anybit.load(tmp_path / "out")
    assert again.quantized == ours.quantized and np.array_equal(again.logits(IDS), ours.logits(IDS))
    assert any("transformers" in note and "experts" in note for note in export.plan.notes)
    routers = [layer.mlp.router for layer in ours.spec.layers if isinstance(layer.mlp, Experts)]
    assert all(np.array_equal(again.weights[name], ours.weights[name]) for name in routers)
    if to != "gptq":
        ignored = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["ignore"]
        assert {name.removesuffix(".weight") for name in routers} <= set(ignored)


def test_experts_share_a_global_scale_as_vllm_runs_them(source: Path, tmp_path: Path) -> None:
    write(prepare(source, "compressed-tensors:nvfp4"), tmp_path / "out")
    tensors, spec = open_source(tmp_path / "out").tensors, anybit.load(source).spec
    scales = []
    for layer in spec.layers:
        for part in layer.mlp.parts:
            gate, up = (tensors[name].grids()["scale.1"] for name in (part.gate, part.up))
            assert np.array_equal(gate, up)
            scales.append(gate.tobytes())
    assert len(set(scales)) > len(scales) // 2, "each expert has its own"


@pytest.mark.parametrize("name", CONFIGS)
def test_dequantized_is_what_transformers_loads(name: str, tmp_path: Path) -> None:
    """Without experts that tie, of which it takes any."""
    source = write_model(tmp_path / "model", CONFIGS[name], arrays(CONFIGS[name]))
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    anybit.load(source).quantize("int4@32").save(tmp_path / "quantized")
    write(prepare(tmp_path / "quantized", "dequantized"), tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        want = theirs(torch.from_numpy(IDS)[None]).logits[0].numpy()
    got = anybit.load(tmp_path / "out").logits(IDS)
    assert np.ptp(want) > 1 and np.abs(got - want).max() <= 1e-4 * np.ptp(want)


def test_onnx_is_refused(source: Path) -> None:
    with pytest.raises(UsageError, match="has experts, and the graph that is written here has one MLP a layer; choose another target"):
        prepare(source, "onnx")
