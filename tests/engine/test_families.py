"""Logits against transformers' float32 logits, to 1e-4 of their range, for every family and every part that a config can switch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied, biases": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama one key head": ("llama", {"num_key_value_heads": 1, "head_dim": 12}),
    "llama all key heads": ("llama", {"num_key_value_heads": 4, "head_dim": 16, "num_attention_heads": 4}),
    "llama wide heads": ("llama", {"head_dim": 34, "num_attention_heads": 6, "num_key_value_heads": 3}),
    "llama derived head width": ("llama", {"head_dim": None}),
    "llama odd widths": ("llama", {"hidden_size": 44, "intermediate_size": 77, "vocab_size": 101}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral window": ("mistral", {"sliding_window": 7}),
    "mistral window of a tile and more": ("mistral", {"sliding_window": 70}),
    "mistral window of one": ("mistral", {"sliding_window": 1}),
    "qwen2": ("qwen2", {"head_dim": None}),
    "qwen2 window from layer 1": ("qwen2", {"head_dim": None, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen2 tied": ("qwen2", {"head_dim": None, "tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen3": ("qwen3", {}),
    "qwen3 biases": ("qwen3", {"attention_bias": True, "head_dim": 26}),
    "qwen3 layer types": (
        "qwen3", {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
    ),
    "rope theta": ("llama", {"rope_theta": 1e6}),
    "rope linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "rope dynamic": ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
    "rope llama3": ("llama", {"rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    }}),
    "rope yarn": ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}),
    "rope longrope, short": ("llama", {"rope_scaling": {
        "rope_type": "longrope", "short_factor": [1.0 + i / 7 for i in range(10)], "long_factor": [2.0 + i for i in range(10)],
        "original_max_position_embeddings": 256,
    }}),
    "rope longrope, long": ("llama", {"rope_scaling": {
        "rope_type": "longrope", "short_factor": [1.0 + i / 7 for i in range(10)], "long_factor": [2.0 + i for i in range(10)],
        "original_max_position_embeddings": 100,
    }}),
    "rope_parameters": ("mistral", {"rope_theta": None, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(
    name: str, make: Callable[..., Any], oracle: Callable[..., Any], engine_of: Callable[..., Any]
) -> None:
    """1e-4 of the logit range is the promise; float32 in another order of additions gives about 1e-6."""
    import torch

    family, changes = CASES[name]
    config, arrays = make(family, seed=len(name), **changes)
    config = {key: value for key, value in config.items() if value is not None or key == "sliding_window"}
    ids = np.random.default_rng(1).integers(0, config["vocab_size"], 150)
    with torch.no_grad():
        want = oracle(config, arrays)(torch.from_numpy(ids)[None]).logits[0].numpy()
    got = engine_of(config, arrays).forward(ids)
    assert got.shape == want.shape and got.dtype == np.float32
    spread = want.max() - want.min()
    assert spread > 3, "the model must not be trivial"
    assert np.abs(got - want).max() <= 1e-4 * spread


def test_a_wrong_part_is_noticed(make: Callable[..., Any], oracle: Callable[..., Any], engine_of: Callable[..., Any]) -> None:
    """The comparison above rejects mutants: each of these changes less than a bug would."""
    import torch

    config, arrays = make("qwen3", attention_bias=True)
    ids = np.random.default_rng(1).integers(0, 96, 150)
    with torch.no_grad():
        want = oracle(config, arrays)(torch.from_numpy(ids)[None]).logits[0].numpy()
    spread = want.max() - want.min()
    zeroed = ("k_norm.weight", "v_proj.bias", "o_proj.bias", "input_layernorm.weight", "up_proj.weight", "norm.weight")
    mutants: list[tuple[dict[str, Any], dict[str, np.ndarray]]] = [
        (config, {**arrays, name: np.zeros_like(array)}) for name, array in arrays.items() if name.endswith(zeroed) and ".1." in name
    ]
    window = {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 140}
    mutants += [({**config, **change}, arrays) for change in ({"rope_theta": 9000.0}, {"rms_norm_eps": 0.02}, window)]
    assert len(mutants) >= 8
    for mutant_config, mutant_arrays in mutants:
        assert np.abs(engine_of(mutant_config, mutant_arrays).forward(ids) - want).max() > 1e-3 * spread
