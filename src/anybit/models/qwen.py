"""Qwen2 (arXiv 2407.10671) and Qwen3 (arXiv 2505.09388), dense models."""

from __future__ import annotations

from anybit.models.decoder import Shape, decoder, layer_count, windows_by_type
from anybit.models.family import FAMILIES
from anybit.models.fields import Fields
from anybit.models.spec import ModelSpec


def _windows(config: Fields) -> tuple[int | None, ...]:
    """With use_sliding_window, layers from max_window_layers on have the window, unless layer_types says otherwise."""
    count = layer_count(config)
    window = config.integer("sliding_window", None, high=1 << 31) if "sliding_window" in config.values else 4096
    if not config.flag("use_sliding_window", False):
        window = None
    first = config.integer("max_window_layers", 28, low=0)
    types = config.sequence("layer_types", None, length=count)
    if types is None:
        types = ["sliding_attention" if window is not None and i >= first else "full_attention" for i in range(count)]
    return windows_by_type(config, types, window)


@FAMILIES.register("qwen2")
def qwen2(config: Fields) -> ModelSpec:
    """Llama with biases on q, k and v."""
    return decoder(config, Shape("qwen2", kv_heads=32, qkv_bias=True, windows=_windows(config)))


@FAMILIES.register("qwen3")
def qwen3(config: Fields) -> ModelSpec:
    """Llama with an RMSNorm on every head of q and k, and a head width of its own."""
    bias = config.flag("attention_bias", False)
    shape = Shape("qwen3", kv_heads=32, head_dim=128, qkv_bias=bias, o_bias=bias, qk_norm=True, windows=_windows(config))
    return decoder(config, shape)
