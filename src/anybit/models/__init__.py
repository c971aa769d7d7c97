"""Model families as data: `describe(config)` gives the `ModelSpec` that the engine runs."""

from __future__ import annotations

from anybit.models.family import FAMILIES, describe
from anybit.models.spec import Attention, Gated, Layer, ModelSpec, Rope, TensorSpec

__all__ = ["FAMILIES", "Attention", "Gated", "Layer", "ModelSpec", "Rope", "TensorSpec", "describe"]
