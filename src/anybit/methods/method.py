"""The registry of methods: how codes are chosen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from anybit.formats import Spec
from anybit.registry import Registry

Parts = dict[str, np.ndarray]
Method = Callable[..., Parts]
"""method(w: float32 array, spec: Spec, name: str = ..., importance: array | None = None) -> logical parts; importance only where a method
weighs errors."""

METHODS: Registry[Method] = Registry("method", "anybit.methods")

__all__ = ["METHODS", "Method", "Parts", "Spec"]
