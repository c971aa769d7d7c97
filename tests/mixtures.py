"""Small mixtures of experts on disk, with the bundled model's tokenizer, in which one expert of each layer is never chosen."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from small import arrays, write_model

from anybit.models import Experts, describe
from anybit.stored import BUNDLED, resolve

MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "vocab_size": 4096, "hidden_size": 72, "intermediate_size": 56,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    "num_local_experts": 5, "num_experts_per_tok": 2,
}  # fmt: skip
QWEN: dict[str, Any] = {
    **{k: v for k, v in MIXTRAL.items() if k != "num_local_experts"}, "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"],
    "num_hidden_layers": 3, "moe_intermediate_size": 24, "num_experts": 6, "norm_topk_prob": True, "mlp_only_layers": [1],
}  # fmt: skip


def unseen(config: dict[str, Any], chosen: int = 2) -> dict[str, np.ndarray]:
    """Weights whose last expert ties with `chosen` others wherever it could be chosen, and comes after them."""
    made = arrays(config)
    for layer in describe(config).layers:
        if isinstance(layer.mlp, Experts):
            made[layer.mlp.router] = made[layer.mlp.router] * 4
            made[layer.mlp.router][-1] = made[layer.mlp.router][:chosen] = made[layer.mlp.router][0]
    return made


def write_mixture(path: Path, config: dict[str, Any], tensors: dict[str, np.ndarray] | None = None) -> Path:
    """A model directory in bfloat16, with a tokenizer."""
    write_model(path, config, unseen(config) if tensors is None else tensors)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (resolve(BUNDLED) / name).is_file():
            shutil.copy(resolve(BUNDLED) / name, path / name)
    return path
