"""From a `config.json` to a `ModelSpec`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from anybit.errors import near_misses
from anybit.models.fields import At, Fields
from anybit.models.spec import ModelSpec
from anybit.registry import Registry

FAMILIES: Registry[Callable[[Fields], ModelSpec]] = Registry("model family", "anybit.models")


def architecture(family: str) -> str:
    """What a configuration calls a model of a family in `architectures`.

    >>> architecture("qwen3_moe")
    'Qwen3MoeForCausalLM'
    """
    return "".join(word.capitalize() for word in family.split("_")) + "ForCausalLM"


def describe(config: Mapping[str, Any], file: str = "config.json", at: At | None = None) -> ModelSpec:
    """What the engine runs, from a Hugging Face configuration.

    Raises FileFormatError: an unsupported architecture (named, with the supported ones), or any field that is missing, of the
    wrong type or contradicts another. `file` is what messages name; `at` tells where in it the field that some keys lead to lies.
    """
    fields = Fields(config, file) if at is None else Fields(config, file, at=at)
    family = fields.text("model_type")
    supported = sorted(FAMILIES)
    if family not in FAMILIES:
        hint = near_misses(family, supported)
        raise fields.fail("model_type", f"is '{family}', which is not supported{hint}; supported: {', '.join(supported)}")
    # A sequence classifier or a reward model has the same model_type and other weights.
    architectures = {architecture(name): name for name in supported}
    for given in fields.sequence("architectures", []):
        if given not in architectures:
            raise fields.fail("architectures", f"names {given!r}, which is not supported; supported: {', '.join(architectures)}")
        if architectures[given] != family:
            raise fields.fail("architectures", f"names {given}, but model_type is '{family}'; they must agree")
    return FAMILIES[family](fields)
