"""Descriptions against transformers' own models: the same tensors, the same shapes, the same windows; and every bad field is named."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from anybit.errors import FileFormatError
from anybit.models import describe
from anybit.models.spec import ModelSpec

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 20, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False, "hidden_act": "silu",
    "bos_token_id": 1, "eos_token_id": [2, 3],
}  # fmt: skip


def config(**changes: Any) -> dict[str, Any]:
    result = copy.deepcopy(LLAMA)
    for name, value in changes.items():
        result[name] = value
        if value is ...:
            del result[name]
    if "model_type" in changes and isinstance(changes["model_type"], str):
        result["architectures"] = [changes["model_type"].capitalize() + "ForCausalLM"]
    return result


FAMILIES = [
    config(),
    config(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    config(head_dim=None, num_key_value_heads=None),
    config(model_type="mistral", sliding_window=7),
    config(model_type="mistral", sliding_window=None),
    config(model_type="qwen2", head_dim=...),
    config(model_type="qwen2", head_dim=..., use_sliding_window=True, sliding_window=9, max_window_layers=1),
    config(model_type="qwen3", attention_bias=True),
    config(model_type="qwen3", use_sliding_window=True, sliding_window=5,
           layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
]  # fmt: skip


def names(cfg: dict[str, Any]) -> str:
    return f"{cfg['model_type']}-{len(cfg)}"


@pytest.mark.parametrize("cfg", FAMILIES, ids=names)
def test_tensors_are_those_of_transformers(cfg: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**copy.deepcopy(cfg)))
    spec = describe(cfg)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert {t.name: t.shape for t in spec.tensors} == shapes
    spec.check_tensors(shapes)
    windows = [getattr(model.config, "sliding_window", None)] * len(spec.layers)
    if cfg["model_type"].startswith("qwen"):
        windows = [layer.self_attn.sliding_window for layer in model.model.layers]
    assert [layer.mixer.window for layer in spec.layers] == windows
    for module in ("q_proj", "k_proj", "v_proj", "o_proj"):
        has = getattr(model.model.layers[0].self_attn, module).bias is not None
        assert any(t.name == f"model.layers.0.self_attn.{module}.bias" for t in spec.tensors) == has


SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 0.7, "mscale_all_dim": 1.2, "beta_fast": 16,
     "truncate": False},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.5},
    {"rope_type": "longrope", "short_factor": [1.0 + i / 7 for i in range(10)], "long_factor": [2.0 + i for i in range(10)],
     "original_max_position_embeddings": 32},
]  # fmt: skip


def scaled(cfg: dict[str, Any], scaling: dict[str, Any], modern: bool) -> dict[str, Any]:
    """The same scaling in either config style."""
    if modern:
        return {**{k: v for k, v in cfg.items() if k != "rope_theta"}, "rope_parameters": {**scaling, "rope_theta": cfg["rope_theta"]}}
    return {**cfg, "rope_scaling": scaling}


@pytest.mark.parametrize("modern", [False, True], ids=["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: f"{s.get('rope_type', s.get('type'))}-{len(s)}")
def test_frequencies_are_those_of_transformers(scaling: dict[str, Any], modern: bool) -> None:
    """Relative 1e-6: transformers computes in float32, with powers that are off by a few units in the last place."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    cfg = scaled(config(rope_theta=5000.0), scaling, modern)
    rotary = LlamaRotaryEmbedding(transformers.LlamaConfig(**copy.deepcopy(cfg)))
    rope = describe(cfg).layers[0].mixer.rope
    assert rope.frequencies == pytest.approx(rotary.inv_freq.tolist(), rel=1e-6)
    assert rope.scale == pytest.approx(float(rotary.attention_scaling), rel=1e-6)
    if rope.long:
        rotary(torch.zeros(1), torch.arange(rope.original + 1)[None])
        assert rope.long == pytest.approx(rotary.inv_freq.tolist(), rel=1e-6)


BAD: list[tuple[dict[str, Any], str]] = [
    (config(model_type="gpt2"), "is 'gpt2', which is not supported; supported: llama, mistral, mixtral, qwen2, qwen3, qwen3_moe"),
    (config(model_type="lama"), "did you mean llama"),
    (config(model_type=...), "model_type is missing"),
    (config(architectures=["LlamaForSequenceClassification"]), "LlamaForSequenceClassification"),
    (config(architectures=["MistralForCausalLM"]), "must agree"),
    (config(hidden_size=...), "hidden_size is missing; expected a whole number from 1"),
    (config(hidden_size="48"), "hidden_size is '48'"),
    (config(hidden_size=True), "hidden_size is True"),
    (config(hidden_size=0), "hidden_size is 0"),
    (config(hidden_size=None), "hidden_size is null; expected a whole number from 1"),
    (config(intermediate_size=4.0), "intermediate_size is 4.0"),
    (config(num_attention_heads=2**40), "num_attention_heads is 1099511627776; expected a whole number from 1 to 65536"),
    (config(vocab_size="9" * 99), f"vocab_size is '{'9' * 55}...; expected"),
    (config(model_type="mistral", sliding_window=-1), "sliding_window is -1"),
    (config(architectures="Llama"), "architectures is 'Llama'; expected a list"),
    (config(hidden_size=50, head_dim=None), "no multiple of num_attention_heads"),
    (config(num_hidden_layers=10**12), "num_hidden_layers is 1000000000000"),
    (config(num_key_value_heads=3), "expected a divisor of num_attention_heads, which is 4"),
    (config(head_dim=21), "needs an even one"),
    (config(rms_norm_eps=-1.0), "rms_norm_eps is -1.0"),
    (config(rms_norm_eps=float("nan")), "rms_norm_eps is nan"),
    (config(hidden_act="gelu"), "hidden_act is 'gelu'; supported: silu"),
    (config(tie_word_embeddings=1), "tie_word_embeddings is 1; expected true or false"),
    (config(eos_token_id=96), "eos_token_id is 96"),
    (config(rope_scaling=7), "rope_scaling is 7; expected an object"),
    (config(rope_scaling={"rope_type": "yarm"}), "did you mean yarn?"),
    (config(rope_scaling={"rope_type": "linear"}), "rope_scaling.factor is missing"),
    (config(rope_scaling={"rope_type": "longrope", "short_factor": [1.0]}), "short_factor has 1 entries; expected a list of 10"),
    (config(rope_scaling={"rope_type": "longrope", "short_factor": [1.0] * 9 + [0], "long_factor": [1.0] * 10}), "short_factor[9] is 0"),
    (config(rope_parameters={"full_attention": {"rope_type": "default"}}), "differs by layer type"),
    (config(partial_rotary_factor=0.5), "partial_rotary_factor is not 1"),
    (config(model_type="qwen3", layer_types=["full_attention"]), "layer_types has 1 entries; expected a list of 3 entries"),
    (config(model_type="qwen3", layer_types=["full_attention"] * 2 + ["linear"]), "layer_types[2] is 'linear'"),
    (config(model_type="qwen2", layer_types=["sliding_attention"] * 3), "no sliding_window is in use"),
    (config(model_type="mistral", layer_types=["sliding_attention"] * 2 + ["full_attention"]), "mixes kinds of attention"),
]  # fmt: skip


@pytest.mark.parametrize(("cfg", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_a_bad_field_is_named(cfg: dict[str, Any], message: str) -> None:
    with pytest.raises(FileFormatError, match=re.escape(message)) as caught:
        describe(cfg, "some/config.json")
    assert str(caught.value).startswith("some/config.json: ")


def shapes_of(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    return {t.name: t.shape for t in spec.tensors}


def test_wrong_tensors_are_named() -> None:
    spec = describe(config())
    shapes = shapes_of(spec)
    spec.check_tensors({**shapes, "model.layers.0.self_attn.rotary_emb.inv_freq": (10,)})
    missing = {k: v for k, v in shapes.items() if k != "model.layers.1.mlp.up_proj.weight"}
    with pytest.raises(FileFormatError, match=r"'model.layers.1.mlp.up_proj.weight' \[80, 48\] is missing"):
        spec.check_tensors(missing)
    with pytest.raises(FileFormatError, match=r"'model.norm.weight' has shape \[47\], but the config asks for \[48\]"):
        spec.check_tensors({**shapes, "model.norm.weight": (47,)})
    with pytest.raises(FileFormatError, match=r"q_proj\.bias' is not part of a llama model"):
        spec.check_tensors({**shapes, "model.layers.0.self_attn.q_proj.bias": (80,)})


def test_a_tied_model_may_carry_its_head_twice() -> None:
    spec = describe(config(tie_word_embeddings=True))
    spec.check_tensors({**shapes_of(spec), "lm_head.weight": (96, 48)})
    assert spec.head == spec.embedding
    assert spec.eos == (2, 3)
