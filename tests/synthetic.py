"""Models of any size made in no time: a few rows of random weights, quantized once and repeated."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from anybit.formats import Format
from anybit.io.checkpoint import QuantizedEntry, save_checkpoint
from anybit.io.safetensors_writer import write_safetensors
from anybit.layouts import default_layout
from anybit.models import describe
from anybit.stored import describe_layer
from anybit.tensor import quantize

# 1.1e9 weights
BILLION: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ROWS = 64


def _repeated(fmt: str, shape: tuple[int, ...], seed: int) -> QuantizedEntry:
    """A matrix whose rows repeat every 64; `fmt` must share no scale between rows."""
    n, k = shape
    values = np.random.default_rng(seed).standard_normal((ROWS, k), np.float32) * np.float32(k**-0.5)
    few = quantize(values, fmt)
    exact = Format(fmt)
    stored = describe_layer(exact, shape, default_layout(exact, shape), None)

    def produce() -> Mapping[str, np.ndarray]:
        return {name: np.resize(few.parts[name], part.shape) for name, part in stored.parts.items()}

    assert n % ROWS == 0
    return QuantizedEntry(stored, produce)


def quantized_checkpoint(path: Path, config: dict[str, Any], fmt: str, kept: str = "bf16") -> int:
    """Writes a quantized checkpoint: linear layers in `fmt`, embedding and head in `kept`. Gives its safetensors bytes."""
    entries, plain = [], []
    for seed, tensor in enumerate(describe(config).tensors):
        if tensor.role == "norm":
            plain.append((tensor.name, "F32", np.ones(tensor.shape, np.float32)))
        else:
            entries.append((tensor.name, _repeated(fmt if tensor.role == "linear" else kept, tensor.shape, seed % 7)))
    return save_checkpoint(path, config, entries, plain)


def dense_model(path: Path, config: dict[str, Any]) -> int:
    """Writes a bf16 model directory as transformers does. Gives its safetensors bytes."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    tensors = describe(config).tensors
    row = (np.random.default_rng(0).standard_normal(1 << 20, np.float32).view(np.uint32) >> 16).astype(np.uint16)

    def data() -> Iterator[tuple[str, np.ndarray]]:
        for tensor in tensors:
            yield tensor.name, np.full(tensor.shape, 0x3F80, np.uint16) if tensor.role == "norm" else np.resize(row, tensor.shape)

    return write_safetensors(path / "model.safetensors", [(tensor.name, "BF16", tensor.shape) for tensor in tensors], data()).size
