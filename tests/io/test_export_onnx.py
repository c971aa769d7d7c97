"""ONNX graphs that we write: the logits are our engine's, in a reader of the tests' own and in onnxruntime where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anybit
from anybit.errors import MissingDependencyError, UnknownNameError, UsageError
from anybit.export import prepare, write
from anybit.verification import Traced, verify
from tests.io.exported import WIDE, export, model, quantized
from tests.io.onnx_reader import Runs

# Sums of 512 products in another order: 512 * 2^-24 of the terms' magnitudes, a few layers of them; the largest logit is of their size.
WITHIN = 1e-4
IDS = np.random.default_rng(0).integers(0, 64, (2, 20))
Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def by_onnxruntime(path: Path) -> Run:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))


def logits(run: Run, ids: np.ndarray, config: Mapping[str, Any], cuts: tuple[int, ...] = ()) -> np.ndarray:
    """Logits of sequences that come in pieces, over the cache."""
    size = (len(ids), config["num_key_value_heads"], 0, config["head_dim"])
    cache = {f"past_key_values.{i}.{w}": np.zeros(size, np.float32) for i in range(config["num_hidden_layers"]) for w in ("key", "value")}
    found = []
    for start, stop in zip((0, *cuts), (*cuts, ids.shape[1]), strict=True):
        out = run({"input_ids": ids[:, start:stop].astype(np.int64), **cache})
        cache = {name.replace("present", "past_key_values"): array for name, array in out.items() if name != "logits"}
        found.append(out["logits"])
    return np.concatenate(found, axis=1)


FORMATS = {
    "bf16": "bf16", "fp16": "fp16", "int4@32": "MatMulNBits int4@32:fp32", "int3@128": "MatMulNBits int4@128:fp32",
    "int8@64": "MatMulNBits int8@64:fp32", "uint4@64+zp": "MatMulNBits uint4@64:fp32+zp", "uint8@32+zp": "MatMulNBits uint8@32:fp32+zp",
    "ternary@256": "MatMulNBits int4@256:fp32", "int8@channel": "DequantizeLinear int8@channel",
    "int4@tensor": "DequantizeLinear int4@channel",
    "uint4@channel+zp": "DequantizeLinear uint4@channel+zp", "fp8_e4m3fn@channel": "DequantizeLinear fp8_e4m3fn@channel",
    "fp8_e4m3fn@tensor": "DequantizeLinear fp8_e4m3fn@tensor",
}  # fmt: skip


@pytest.mark.parametrize("reader", [Runs, by_onnxruntime])
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("kind", ["onnx", "onnx:qdq"])
def test_logits(tmp_path: Path, fmt: str, kind: str, reader: Callable[[Path], Run]) -> None:
    config = {**WIDE, "num_hidden_layers": 2}
    source = quantized(tmp_path, fmt, config=config)
    made = export(source, tmp_path / "out", kind)
    stored = {step.stored for step in made.plan.steps if "proj" in step.name}
    assert stored == {FORMATS[fmt] if kind == "onnx" else FORMATS[fmt].replace("MatMulNBits", "DequantizeLinear")}
    run = reader(tmp_path / "out" / "model.onnx")
    ours = anybit.load(source)
    want = np.stack([ours.logits(ids) for ids in IDS])
    for cuts in ((), (7, 8)):
        got = logits(run, IDS, config, cuts)
        assert np.abs(got - want).max() <= WITHIN * np.abs(want).max()


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "qwen3"},
        {"model_type": "qwen2"},
        {"model_type": "mistral", "sliding_window": 5},
        {"tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}},
        {"attention_bias": True},
    ],
)
def test_families(tmp_path: Path, change: dict[str, Any]) -> None:
    config = {**WIDE, "architectures": None, **change}
    source = model(tmp_path / "model", config)
    export(source, tmp_path / "out", "onnx")
    want = np.stack([anybit.load(source).logits(ids) for ids in IDS])
    got = logits(Runs(tmp_path / "out" / "model.onnx"), IDS, config, (11,))
    assert np.abs(got - want).max() <= WITHIN * np.abs(want).max()


def test_the_reader_sees_swapped_nibbles(tmp_path: Path) -> None:
    """The test's own reader is no rubber stamp."""
    source = quantized(tmp_path, "int4@32")
    export(source, tmp_path / "out", "onnx")
    run = Runs(tmp_path / "out" / "model.onnx")
    name = "model.layers.0.mlp.up_proj.weight.codes"
    run.weights[name] = run.weights[name] << 4 | run.weights[name] >> 4
    want = np.stack([anybit.load(source).logits(ids) for ids in IDS])
    assert np.abs(logits(run, IDS, WIDE) - want).max() > 100 * WITHIN * np.abs(want).max()


@pytest.mark.parametrize(
    ("fmt", "match"), [("mxfp4", "0.5 is missing"), ("nvfp4", "one scale a block"), ("int4@16x16", "one scale a block")]
)
def test_what_onnx_does_not_hold(tmp_path: Path, fmt: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        write(prepare(quantized(tmp_path, fmt), "onnx"), tmp_path / "out")


def test_kinds(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="no kind 'int4' of onnx"):
        prepare(model(tmp_path / "model"), "onnx:int4")


def test_verify(tmp_path: Path) -> None:
    source = quantized(tmp_path, "int4@32", act="int8")
    made = export(source, tmp_path / "out", "onnx")
    try:
        import onnxruntime
    except ImportError:
        with pytest.raises(MissingDependencyError, match="pip install onnxruntime"):
            verify(made, tmp_path / "out", Traced(frozenset()))
        return
    (reader,) = verify(made, tmp_path / "out", Traced(frozenset())).readers
    assert reader.startswith(f"onnxruntime {onnxruntime.__version__}")
