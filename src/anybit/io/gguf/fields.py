"""Where a block's codes and numbers lie, as data: what native code moves straight into the tile layout, without codes a byte each between.

A conversion (kind.py) says the same in NumPy; tests hold the two to each other, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anybit.io.coded import Numbers

Term = tuple[str, int, int, int, int]
Finish = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Plane:
    """Fields of `width` bits that fill one field of the block, from byte `skip` of it on: `group` bytes hold their lowest fields' codes one
    after the other, then those of the fields above, then come the next bytes. They are bits [up, up + width) of a code.
    """

    name: str
    width: int
    group: int
    up: int = 0
    skip: int = 0

    def term(self, i: int) -> Term:
        """(field, byte, shift, bits, up) of the i-th code."""
        group, inside = divmod(i, self.group * (8 // self.width))
        which, byte = divmod(inside, self.group)
        return self.name, self.skip + group * self.group + byte, which * self.width, self.width, self.up


@dataclass(frozen=True)
class Values:
    """Numbers of a block: `terms[i]` are the pieces of the i-th, `flip` is xored to each; `item` bytes each."""

    terms: tuple[tuple[Term, ...], ...]
    flip: int = 0
    item: int = 1


def planar(planes: tuple[Plane, ...], start: int, stop: int, flip: int = 0) -> Values:
    """Numbers [start, stop) of those that planes hold."""
    return Values(tuple(tuple(plane.term(i) for plane in planes) for i in range(start, stop)), flip)


def word(name: str, flip: int = 0) -> Values:
    """A little-endian 16-bit field."""
    return Values((((name, 0, 0, 8, 0), (name, 1, 0, 8, 8)),), flip, 2)


@dataclass(frozen=True)
class Fields:
    """A block's codes and the parts beside them. `finish` checks and completes the parts, zeros of padding rows among them (ValueError)."""

    planes: tuple[Plane, ...]
    values: Mapping[str, Values]
    flip: int = 0
    finish: Finish = field(default=lambda parts: parts)

    def plane_table(self, dtype: np.dtype[Any]) -> np.ndarray:
        """int64[planes, 4]: offset in the block, width, group, up."""
        return np.array([[_at(dtype, p.name) + p.skip, p.width, p.group, p.up] for p in self.planes], np.int64)

    def numbers(self, dtype: np.dtype[Any]) -> dict[str, Numbers]:
        """The parts' terms, with bytes counted from the block's first."""
        found = {}
        for name, values in self.values.items():
            terms = [[(_at(dtype, where) + byte, *rest) for where, byte, *rest in terms] for terms in values.terms]
            found[name] = Numbers(np.array(terms, np.int64), values.flip, values.item)
        return found


def _at(dtype: np.dtype[Any], name: str) -> int:
    assert dtype.fields is not None
    return int(dtype.fields[name][1])
