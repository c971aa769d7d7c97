"""Mixtures of experts: Mixtral (Jiang et al. 2024, arXiv 2401.04088) and Qwen3-MoE (arXiv 2505.09388)."""

from __future__ import annotations

from anybit.models.decoder import Shape, Sparse, decoder, layer_count, windows_by_type
from anybit.models.family import FAMILIES
from anybit.models.fields import Fields
from anybit.models.spec import ModelSpec

MOST, MOST_IN_ALL = 1024, 1 << 14
"""Experts of a layer, and of a model: a hostile config must not make a list of millions of tensors."""


def _counts(config: Fields, name: str, chosen: int) -> tuple[int, int]:
    """(experts, experts per token) of each layer; `chosen`: default of the latter."""
    count, layers = config.integer(name, high=MOST), layer_count(config)
    if count * layers > MOST_IN_ALL:
        raise config.fail(name, f"is {count}, with num_hidden_layers of {layers}; expected at most {MOST_IN_ALL} experts in all")
    taken = config.integer("num_experts_per_tok", chosen, high=MOST)
    if taken > count:
        raise config.fail("num_experts_per_tok", f"is {taken}; expected at most {name}, which is {count}")
    return count, taken


def _windows(config: Fields, window: int | None) -> tuple[int | None, ...]:
    """One window for all layers, or none."""
    windows = (window,) * layer_count(config)
    types = config.sequence("layer_types", None, length=len(windows))
    if types is not None and windows_by_type(config, types, window) != windows:
        raise config.fail("layer_types", "mixes kinds of attention, which models of this family do not")
    return windows


@FAMILIES.register("mixtral")
def mixtral(config: Fields) -> ModelSpec:
    """Mistral with experts in every layer, whose weights add up to 1."""
    count, chosen = _counts(config, "num_local_experts", 2)
    sparse = Sparse(count, chosen, config.integer("intermediate_size"), True, "block_sparse_moe", ("w1", "w3", "w2"))
    windows = _windows(config, config.integer("sliding_window", None, high=1 << 31))
    return decoder(config, Shape("mixtral", kv_heads=8, windows=windows, norm_eps=1e-5, theta=1e6, sparse=sparse))


@FAMILIES.register("qwen3_moe")
def qwen3_moe(config: Fields) -> ModelSpec:
    """Qwen3 with experts in every layer, or in every `decoder_sparse_step`-th but for `mlp_only_layers`. There is no shared expert."""
    layers, names = layer_count(config), [name for name in ("num_experts", "num_local_experts") if config.values.get(name) is not None]
    if len(names) == 2 and config.values[names[0]] != config.values[names[1]]:
        raise config.fail(names[1], f"is {config.values[names[1]]!r}, but num_experts is {config.values[names[0]]!r}; they must agree")
    count, chosen = _counts(config, (names or ["num_experts"])[0], 8)
    step = config.integer("decoder_sparse_step", 1)
    dense = {i for i in range(layers) if (i + 1) % step}
    for i, layer in enumerate(config.sequence("mlp_only_layers", [])):
        if not isinstance(layer, int) or isinstance(layer, bool) or not 0 <= layer < layers:
            raise config.fail(f"mlp_only_layers[{i}]", f"is {layer!r}; expected the number of a layer, below {layers}")
        dense.add(layer)
    width, renormalise = config.integer("moe_intermediate_size"), config.flag("norm_topk_prob", False)
    window = config.integer("sliding_window", None, high=1 << 31) if "sliding_window" in config.values else 4096
    if not config.flag("use_sliding_window", False):
        window = None
    bias = config.flag("attention_bias", False)
    shape = Shape(
        "qwen3_moe", kv_heads=4, qkv_bias=bias, o_bias=bias, qk_norm=True, windows=_windows(config, window),
        sparse=Sparse(count, chosen, width, renormalise, dense=frozenset(dense)),
    )  # fmt: skip
    return decoder(config, shape)
