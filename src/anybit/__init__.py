"""anybit: any number format, from a one-line definition to a neural network that runs fast in it.

>>> import anybit
>>> anybit.Format("int4@128").bits_per_weight
Fraction(33, 8)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "AnybitError": "anybit.errors",
    "Element": "anybit.formats",
    "Format": "anybit.formats",
    "Policy": "anybit.formats",
    "Spec": "anybit.formats",
    "QTensor": "anybit.tensor",
    "quantize": "anybit.tensor",
    "fake_quantize": "anybit.tensor",
    "round": "anybit.elementwise",
    "encode": "anybit.elementwise",
    "decode": "anybit.elementwise",
    "Linear": "anybit.linear",
    "Model": "anybit.model",
    "load": "anybit.model",
}

__all__ = [
    "AnybitError", "Element", "Format", "Linear", "Model", "Policy", "QTensor", "Spec", "decode", "encode", "fake_quantize", "load",
    "quantize", "round",
]  # fmt: skip

if TYPE_CHECKING:
    from anybit.elementwise import decode, encode, round
    from anybit.errors import AnybitError
    from anybit.formats import Element, Format, Policy, Spec
    from anybit.linear import Linear
    from anybit.model import Model, load
    from anybit.tensor import QTensor, fake_quantize, quantize


def __getattr__(name: str) -> Any:
    """Loads a public name on first use, so that `import anybit` stays fast."""
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'anybit' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
