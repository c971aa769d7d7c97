"""A model's configuration as the fields of a GGUF file: the inverse of `model.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from anybit.errors import UsageError
from anybit.io.gguf.experts import EXPERTS
from anybit.io.gguf.model import ARCHITECTURES
from anybit.io.gguf.writer import Value
from anybit.models import ModelSpec
from anybit.models.spec import Attention, Experts

FAMILIES = {"llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3moe"}
"""Architectures of GGUF by our families."""


def architecture_of(spec: ModelSpec) -> str:
    """`general.architecture` of a model. UsageError: GGUF has none that computes what it does."""
    if spec.family not in FAMILIES:
        raise UsageError(f"no GGUF architecture is known for {spec.family} models; known: {', '.join(FAMILIES)}")
    for layer in spec.layers:
        window = layer.mixer.window
        if window is not None and window < spec.context:
            raise UsageError(f"layers see {window} of {spec.context} tokens, which GGUF's {FAMILIES[spec.family]} does not express")
        if layer.residual != 1.0:
            raise UsageError(f"a residual factor of {layer.residual} is nothing that GGUF's {FAMILIES[spec.family]} expresses")
        if spec.family in EXPERTS and not isinstance(layer.mlp, Experts):
            raise UsageError(f"some layers have no experts, which GGUF's {FAMILIES[spec.family]} does not express")
        if isinstance(layer.mlp, Experts) and not layer.mlp.renormalise:
            what = "routing weights that do not add up to 1 (norm_topk_prob is false)"
            raise UsageError(f"{what} are nothing that GGUF's {FAMILIES[spec.family]} expresses")
    return FAMILIES[spec.family]


def rope_factors(spec: ModelSpec) -> np.ndarray | None:
    """float32[dim / 2]: what each plain frequency is divided by, for the tensor `rope_freqs.weight`; None: fields say it, or nothing does.

    UsageError: an embedding that GGUF does not express.
    """
    rope = spec.layers[0].mixer.rope
    if rope.kind == "longrope" and rope.long and rope.long != rope.frequencies:
        raise UsageError("longrope with other factors for long sequences is nothing that GGUF's architectures here express")
    if rope.kind not in ("llama3", "longrope"):
        return None
    if rope.scale != 1.0:
        raise UsageError(f"{rope.kind} with an attention factor of {rope.scale} is nothing that GGUF's architectures here express")
    plain = rope.theta ** (-2.0 * np.arange(rope.dim // 2) / rope.dim)
    return (plain / np.array(rope.frequencies)).astype(np.float32)


def _rope_fields(spec: ModelSpec, config: Mapping[str, Any]) -> dict[str, Value]:
    rope = spec.layers[0].mixer.rope
    section = config.get("rope_parameters") or config.get("rope_scaling") or {}
    found = {"rope.freq_base": Value("f32", rope.theta)}
    if rope.kind == "linear":
        return found | {"rope.scaling.type": Value("str", "linear"), "rope.scaling.factor": Value("f32", section["factor"])}
    if rope.kind == "yarn":
        plain = {"rope_type", "type", "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "rope_theta"}
        extra = {key for key, value in section.items() if key not in plain and value not in (None, True)}
        if extra:
            raise UsageError(f"yarn with {', '.join(sorted(extra))} is nothing that GGUF's architectures here express")
        original = config.get("original_max_position_embeddings") or section.get("original_max_position_embeddings") or spec.context
        found |= {
            "rope.scaling.type": Value("str", "yarn"), "rope.scaling.original_context_length": Value("u32", original),
            "rope.scaling.factor": Value("f32", section.get("factor") or spec.context / original),
        }  # fmt: skip
        for key in ("beta_fast", "beta_slow"):
            if section.get(key) is not None:
                found[f"rope.scaling.yarn_{key}"] = Value("f32", section[key])
    return found


def model_fields(spec: ModelSpec, config: Mapping[str, Any], name: str) -> dict[str, Value]:
    """The fields of a model under its architecture's prefix. UsageError: something that GGUF does not express."""
    arch = architecture_of(spec)
    attention, mlp = spec.layers[0].mixer, spec.layers[0].mlp
    assert isinstance(attention, Attention)
    own: dict[str, Value] = {
        "context_length": Value("u32", spec.context), "embedding_length": Value("u32", spec.width),
        "block_count": Value("u32", len(spec.layers)), "feed_forward_length": Value("u32", mlp.width),
        "attention.head_count": Value("u32", attention.heads), "attention.head_count_kv": Value("u32", attention.kv_heads),
        "attention.key_length": Value("u32", attention.head_dim), "attention.value_length": Value("u32", attention.head_dim),
        "attention.layer_norm_rms_epsilon": Value("f32", spec.norm_eps), "rope.dimension_count": Value("u32", attention.head_dim),
        "vocab_size": Value("u32", spec.vocab), **_rope_fields(spec, config),
    }  # fmt: skip
    if isinstance(mlp, Experts):
        own |= {"expert_count": Value("u32", len(mlp.experts)), "expert_used_count": Value("u32", mlp.chosen)}
    if arch == "qwen3moe":  # of a dense layer, which there is not: what the configuration says all the same
        width = config.get("intermediate_size") or mlp.width
        own |= {"feed_forward_length": Value("u32", width), "expert_feed_forward_length": Value("u32", mlp.width)}
    general = {"general.architecture": Value("str", arch), "general.name": Value("str", name), "general.type": Value("str", "model")}
    return general | {"general.quantization_version": Value("u32", 2)} | {f"{arch}.{key}": value for key, value in own.items()}


def interleaved(spec: ModelSpec) -> bool:
    """Whether rows of q and k change places."""
    return ARCHITECTURES[FAMILIES[spec.family]].interleaved
