"""Descriptions of mixtures of experts: names, roles and order of their tensors, and every bad field is named, before a list grows long."""

from __future__ import annotations

import re
from math import prod
from typing import Any

import pytest

from anybit.errors import FileFormatError
from anybit.models import PLAIN, Experts, Gated, describe

BASE: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 128, "head_dim": 12,
}  # fmt: skip


def mixtral(**changes: Any) -> dict[str, Any]:
    return {**BASE, "model_type": "mixtral", "num_key_value_heads": 2, "intermediate_size": 40, "num_local_experts": 5, **changes}


def qwen(**changes: Any) -> dict[str, Any]:
    return {**BASE, "model_type": "qwen3_moe", "moe_intermediate_size": 20, "num_experts": 9, "intermediate_size": 80, **changes}


def test_names_and_defaults() -> None:
    spec = describe(mixtral(architectures=["MixtralForCausalLM"]))
    mlp, at = spec.layers[3].mlp, "model.layers.3.block_sparse_moe."
    assert isinstance(mlp, Experts) and (mlp.chosen, mlp.renormalise, mlp.width) == (2, True, 40)
    assert mlp.router == f"{at}gate.weight"
    assert mlp.experts[4] == Gated(f"{at}experts.4.w1.weight", f"{at}experts.4.w3.weight", f"{at}experts.4.w2.weight", 40)
    assert spec.norm_eps == 1e-5 and spec.layers[0].mixer.rope.theta == 1e6 and spec.layers[0].mixer.window is None
    assert spec.tensor(mlp.router).role == "router" and spec.tensor(mlp.router).shape == (5, 48) and "router" in PLAIN
    assert spec.tensor(mlp.experts[1].down).shape == (48, 40) and spec.tensor(mlp.experts[1].up).role == "linear"

    spec = describe(qwen(architectures=["Qwen3MoeForCausalLM"], num_experts_per_tok=None))
    mlp, at = spec.layers[0].mlp, "model.layers.0.mlp."
    assert isinstance(mlp, Experts) and (mlp.chosen, mlp.renormalise, len(mlp.experts)) == (8, False, 9)
    three = (f"{at}experts.8.{name}_proj.weight" for name in ("gate", "up", "down"))
    assert mlp.router == f"{at}gate.weight" and mlp.experts[8] == Gated(*three, 20)
    assert spec.layers[0].mixer.kv_heads == 4 and spec.layers[0].mixer.q_norm is not None


@pytest.mark.parametrize(
    ("changes", "dense"),
    [({}, set()), ({"mlp_only_layers": [0, 3]}, {0, 3}), ({"decoder_sparse_step": 2}, {0, 2}), ({"decoder_sparse_step": 5}, {0, 1, 2, 3})],
)
def test_some_layers_are_dense(changes: dict[str, Any], dense: set[int]) -> None:
    spec = describe(qwen(**changes))
    assert {i for i, layer in enumerate(spec.layers) if isinstance(layer.mlp, Gated)} == dense
    for i in dense:
        assert spec.tensor(f"model.layers.{i}.mlp.up_proj.weight").shape == (80, 48)


def test_a_dense_width_is_needed_for_dense_layers_alone() -> None:
    describe(qwen(intermediate_size=None))
    with pytest.raises(FileFormatError, match="intermediate_size is null"):
        describe(qwen(intermediate_size=None, mlp_only_layers=[1]))


def test_either_name_of_the_count() -> None:
    spec = describe(qwen(num_experts=None, num_local_experts=9))
    assert spec == describe(qwen()) == describe(qwen(num_local_experts=9))


def test_a_window_of_all_layers() -> None:
    """As transformers has it: absent is 4096, null is none, and without use_sliding_window there is none."""
    given: list[dict[str, Any]] = [{}, {"sliding_window": None}, {"sliding_window": 7}]
    windows = [{layer.mixer.window for layer in describe(qwen(use_sliding_window=True, **each)).layers} for each in given]
    assert windows == [{4096}, {None}, {7}] and describe(qwen(sliding_window=7)).layers[0].mixer.window is None


PUBLISHED = {
    "Mixtral 8x7B": ({
        "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32768, "num_local_experts": 8,
        "num_experts_per_tok": 2, "rope_theta": 1e6, "rms_norm_eps": 1e-5, "sliding_window": None, "tie_word_embeddings": False,
    }, 46.7e9, 12.9e9),
    "Qwen3-30B-A3B": ({
        "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "max_position_embeddings": 40960, "num_experts": 128,
        "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "max_window_layers": 48, "use_sliding_window": False, "sliding_window": None, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
    }, 30.5e9, 3.3e9),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_published(name: str) -> None:
    """In all, and those of one token: arXiv 2401.04088 says 47 and 13 billion, arXiv 2505.09388 30.5 and 3.3."""
    config, whole, active = PUBLISHED[name]
    spec = describe(config)
    sizes = {tensor.name: prod(tensor.shape) for tensor in spec.tensors}
    assert sum(sizes.values()) == pytest.approx(whole, rel=2e-3)
    assert sum(size * spec.shares.get(each, 1.0) for each, size in sizes.items()) == pytest.approx(active, rel=2e-2)


BAD: list[tuple[dict[str, Any], str]] = [
    (mixtral(architectures=["Qwen3MoeForCausalLM"]), "names Qwen3MoeForCausalLM, but model_type is 'mixtral'"),
    (mixtral(architectures=["Qwen3_moeForCausalLM"]), "which is not supported"),
    (mixtral(num_local_experts=None), "num_local_experts is null; expected a whole number from 1 to 1024"),
    (mixtral(num_local_experts=1025), "num_local_experts is 1025; expected a whole number from 1 to 1024"),
    (mixtral(num_local_experts=1024, num_hidden_layers=4096), "is 1024, with num_hidden_layers of 4096; expected at most 16384 experts"),
    (mixtral(num_local_experts=0), "num_local_experts is 0"),
    (mixtral(num_local_experts=True), "num_local_experts is True"),
    (mixtral(num_experts_per_tok=6), "num_experts_per_tok is 6; expected at most num_local_experts, which is 5"),
    (mixtral(num_experts_per_tok=0), "num_experts_per_tok is 0"),
    (mixtral(num_experts_per_tok=2.0), "num_experts_per_tok is 2.0"),
    (mixtral(intermediate_size=None), "intermediate_size is null"),
    (mixtral(layer_types=["full_attention"] * 3 + ["sliding_attention"], sliding_window=7), "mixes kinds of attention"),
    (qwen(num_experts=8, num_local_experts=9), "num_local_experts is 9, but num_experts is 8; they must agree"),
    (qwen(num_experts=7, num_experts_per_tok=None), "num_experts_per_tok is 8; expected at most num_experts, which is 7"),
    (qwen(moe_intermediate_size=None), "moe_intermediate_size is null"),
    (qwen(norm_topk_prob=1), "norm_topk_prob is 1; expected true or false"),
    (qwen(decoder_sparse_step=0), "decoder_sparse_step is 0"),
    (qwen(mlp_only_layers=[1, 4]), "mlp_only_layers[1] is 4; expected the number of a layer, below 4"),
    (qwen(mlp_only_layers=[True]), "mlp_only_layers[0] is True"),
    (qwen(mlp_only_layers="all"), "mlp_only_layers is 'all'; expected a list"),
]  # fmt: skip


@pytest.mark.parametrize(("cfg", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_a_bad_field_is_named(cfg: dict[str, Any], message: str) -> None:
    with pytest.raises(FileFormatError, match=re.escape(message)):
        describe(cfg)
