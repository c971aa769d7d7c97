"""Small models with random weights, as transformers builds them and as the engine runs them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from anybit.engine import Engine
from anybit.kernels import cpu
from anybit.linear import ActSpec, Linear
from anybit.models import PLAIN, describe
from anybit.tensor import QTensor, quantize

Arrays = dict[str, np.ndarray]

BASE: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 20, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def random_arrays(config: dict[str, Any], seed: int = 0) -> Arrays:
    """Weights that make every part of the model matter: norms around 1, logits that spread over several units."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for tensor in describe(config).tensors:
        x = rng.standard_normal(tensor.shape, np.float32)
        if tensor.role == "norm":
            x = 1 + x / 4
        elif tensor.role != "embedding":
            x = x * (1.5 / np.sqrt(tensor.shape[-1])) if x.ndim == 2 else x / 2
        arrays[tensor.name] = x.astype(np.float32)
    return arrays


def build(config: dict[str, Any], arrays: Arrays, fmt: str = "fp32", act: str | None = None, chunk: int | None = None) -> Engine:
    """An engine on these weights; `fmt` other than fp32 quantizes the linear layers."""
    weights: dict[str, Linear | np.ndarray] = {}
    spec = describe(config)
    for tensor in spec.tensors:
        array = arrays[tensor.name]
        if tensor.role == "bias":
            continue
        if tensor.role in PLAIN:
            weights[tensor.name] = array
            continue
        coded = fmt != "fp32" and tensor.role == "linear"
        weight = quantize(array, fmt) if coded else QTensor.dense(array)
        weights[tensor.name] = Linear(weight, arrays.get(f"{tensor.module}.bias"), act=ActSpec.named(act) if coded else None)
    return Engine(spec, weights, chunk)


@pytest.fixture(scope="session")
def make() -> Callable[..., tuple[dict[str, Any], Arrays]]:
    """make(model_type, **changes) gives a config and random weights for it."""

    def make_one(family: str = "llama", seed: int = 0, **changes: Any) -> tuple[dict[str, Any], Arrays]:
        config = {**copy.deepcopy(BASE), "model_type": family, **changes}
        return config, random_arrays(config, seed)

    return make_one


@pytest.fixture(scope="session")
def engine_of() -> Callable[..., Engine]:
    return build


@pytest.fixture(scope="session")
def oracle() -> Callable[[dict[str, Any], Arrays], Any]:
    """transformers' model with the same weights, float32, eager attention."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def load(config: dict[str, Any], arrays: Arrays) -> Any:
        hf = transformers.AutoConfig.for_model(**copy.deepcopy(config), attn_implementation="eager")
        model = transformers.AutoModelForCausalLM.from_config(hf, dtype=torch.float32).eval()
        state = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        if config["tie_word_embeddings"]:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        model.load_state_dict(state)
        return model

    return load


@pytest.fixture
def machine() -> Iterator[Any]:
    """The native module's settings, put back afterwards."""
    threads, isa = cpu.native.threads(), cpu.isa()
    yield cpu
    cpu.set_threads(threads)
    cpu.use_isa(isa)
