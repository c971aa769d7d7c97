"""A tiny random llama on disk, as transformers would save it, and ways to damage a saved directory."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from anybit.io.manifest import contents_digest
from anybit.models import describe

CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 48, "intermediate_size": 72,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def arrays(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Weights by name, float32 values that bfloat16 holds."""
    rng = np.random.default_rng(seed)
    made = {}
    for tensor in describe(config).tensors:
        x = rng.standard_normal(tensor.shape, np.float32) * np.float32(0.2)
        made[tensor.name] = (1 + x if tensor.role == "norm" else x).astype(ml_dtypes.bfloat16).astype(np.float32)
    return made


def write_model(path: Path, config: dict[str, Any] | None = None, tensors: dict[str, np.ndarray] | None = None, **dtypes: Any) -> Path:
    """A model directory, bfloat16 unless `dtypes` says otherwise for a tensor name with underscores for dots."""
    config = config or CONFIG
    tensors = tensors if tensors is not None else arrays(config)
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    stored = {name: array.astype(dtypes.get(name.replace(".", "_"), ml_dtypes.bfloat16)) for name, array in tensors.items()}
    safetensors.numpy.save_file(stored, path / "model.safetensors")
    return path


def edit_quantization(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the quantization_config of a saved checkpoint."""
    config = json.loads((path / "config.json").read_text())
    change(config["quantization_config"])
    (path / "config.json").write_text(json.dumps(config))


def edit_tensors(path: Path, change: Callable[[dict[str, tuple[str, list[int], bytes]]], Any]) -> None:
    """Changes the tensors {name: (dtype, shape, data)} of a saved checkpoint, and makes index and manifest agree with the result."""
    file = path / "model.safetensors"
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    body = raw[8 + length :]
    tensors = {
        name: (entry["dtype"], entry["shape"], body[entry["data_offsets"][0] : entry["data_offsets"][1]])
        for name, entry in header.items()
        if not name.startswith("__")
    }
    change(tensors)
    head: dict[str, Any] = {}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(head).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))
    layers = json.loads((path / "config.json").read_text())["quantization_config"]["layers"]

    def follow(quantization: dict[str, Any]) -> None:
        for name, layer in layers.items():
            for part in layer["weight"]["parts"]:
                if f"{name}.{part}" in tensors:
                    dtype, shape, _ = tensors[f"{name}.{part}"]
                    quantization["layers"][name]["weight"]["parts"][part] = {"dtype": dtype, "shape": shape}

    edit_quantization(path, follow)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["model.safetensors"]["size"] = file.stat().st_size
    manifest["digest"] = contents_digest(manifest["files"])
    (path / "manifest.json").write_text(json.dumps(manifest))
