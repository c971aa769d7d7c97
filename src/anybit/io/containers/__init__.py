"""Quantized Hugging Face checkpoints of other tools: one file each, found by `quant_method`."""

from __future__ import annotations

from anybit.io.containers.checkpoint import CONTAINERS, Checkpoint, open_quantized

__all__ = ["CONTAINERS", "Checkpoint", "open_quantized"]
