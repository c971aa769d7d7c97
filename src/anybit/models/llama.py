"""Llama 1 to 3 (Touvron et al. 2023, arXiv 2302.13971; arXiv 2407.21783) and Mistral (Jiang et al. 2023, arXiv 2310.06825)."""

from __future__ import annotations

from anybit.models.decoder import Shape, decoder, layer_count, windows_by_type
from anybit.models.family import FAMILIES
from anybit.models.fields import Fields
from anybit.models.spec import ModelSpec


@FAMILIES.register("llama")
def llama(config: Fields) -> ModelSpec:
    """Biases are one flag for all four attention projections and one for the MLP."""
    bias = config.flag("attention_bias", False)
    return decoder(config, Shape("llama", qkv_bias=bias, o_bias=bias, mlp_bias=config.flag("mlp_bias", False)))


@FAMILIES.register("mistral")
def mistral(config: Fields) -> ModelSpec:
    """Llama without biases, and one sliding window for all layers unless `sliding_window` is null (absent means 4096)."""
    count = layer_count(config)
    window = config.integer("sliding_window", None, high=1 << 31) if "sliding_window" in config.values else 4096
    windows = (window,) * count
    types = config.sequence("layer_types", None, length=count)
    if types is not None and windows_by_type(config, types, window) != windows:
        raise config.fail("layer_types", "mixes kinds of attention, which Mistral models do not")
    return decoder(config, Shape("mistral", kv_heads=8, windows=windows))
