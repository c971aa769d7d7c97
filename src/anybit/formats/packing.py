"""Packings: other ways to store codes than `bits` bits each, asked for as `+pack=NAME`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from anybit.formats.element import Element
from anybit.registry import Registry


@dataclass(frozen=True)
class Packing:
    """What a format knows of a packing; the layout of the same name, whose file registers both, does the rest.

    bits: of a weight's code, at most. refuses: None, or why codes of an element cannot be packed so.
    """

    bits: Callable[[Element], Fraction]
    refuses: Callable[[Element], str | None]


PACKINGS: Registry[Packing] = Registry("packing", folder="anybit.layouts")
