"""Elements from a list of their values: how a checkpoint brings along what a user's own element means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anybit.errors import FormatError
from anybit.formats.element import Element
from anybit.formats.vector import SIZES, Vector

_NAME = re.compile(r"[a-z0-9._-]{1,200}")


@dataclass(frozen=True)
class Listed(Element):
    """A value for each code, as a file lists them; NaN, infinities and -0 among them as they are."""

    digest: bytes = field(repr=False)
    entries: np.ndarray = field(compare=False, repr=False)

    def decode(self, codes: Any) -> np.ndarray:
        return self.entries[self._checked(codes)]


@dataclass(frozen=True)
class ListedVector(Vector):
    """The same for codes of several weights: a vector for each code."""

    digest: bytes = field(repr=False)
    entries: np.ndarray = field(compare=False, repr=False)

    def decode(self, codes: Any) -> np.ndarray:
        return self.entries[self._checked(codes)]


def listed(name: str, values: Sequence[Any]) -> Element:
    """An element from float64[2**bits] values by code, or from [2**bits][dim] of codes that stand for several weights.

    FormatError: a name that no expression could have, another number of values, values beyond float32, fewer than two different ones.

    >>> listed("mine", [0.0, 1.0, 3.0, -5.0]).decode([3]).tolist()
    [-5.0]
    """
    if not _NAME.fullmatch(name):
        raise FormatError("an element's name consists of a-z 0-9 . _ -")
    entries = np.array(values, dtype=np.float64)
    count = len(entries)
    bits = (count - 1).bit_length()
    if not (2 <= count <= 1 << 16 and count == 1 << bits and entries.ndim <= 2 and (entries.ndim == 1 or entries.shape[1] in SIZES)):
        raise FormatError(f"'{name}' has 2 to 65536 values, a power of two, or as many vectors of 2, 4 or 8, not {list(entries.shape)}")
    finite = entries[np.isfinite(entries)]
    if finite.size and np.abs(finite).max() > np.finfo(np.float32).max:
        raise FormatError(f"'{name}' has values beyond float32's range")
    if len(np.unique(finite)) < 2:
        raise FormatError(f"'{name}' has fewer than two different finite values")
    if entries.ndim == 2 and finite.size < entries.size:
        raise FormatError(f"'{name}' has vectors that are not finite")
    entries.flags.writeable = False
    if entries.ndim == 1:
        return Listed(name, bits, entries.tobytes(), entries)
    return ListedVector(name, bits, entries.shape[1], entries.tobytes(), entries)


def brought_along(element: Element) -> bool:
    """Whether a checkpoint has to list the values: no reader has such an element built in."""
    return not element.learned and element.fields["family"] == "listed"
