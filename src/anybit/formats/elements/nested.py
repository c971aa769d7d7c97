"""Nested integers: stored codes whose top bits are formats themselves (MatQuant, arXiv 2502.06786; MatGPTQ)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from anybit.errors import FormatError
from anybit.formats.element import Element
from anybit.formats.elements.integer import Integer
from anybit.formats.elements.integer import parse as parse_integer
from anybit.formats.family import FAMILIES, Family
from anybit.formats.table import Table

_FORM = re.compile(r"(u?int[0-9]{1,3})_open([0-9]{1,3})")


@dataclass(frozen=True)
class Opened(Element):
    """The top `bits` bits of an integer's codes as numbers on the integer's own scale.

    With c bits stored and u the code counted from the least value up, opening at r bits rounds half up on the next bit and stays in range:
    slice = min((u >> (c-r)) + ((u >> (c-r-1)) & 1), 2^r - 1), value = (slice << (c-r)) + least value. Codes of a signed integer are
    slices in two's complement, so that int8 opened at 4 bits reads like int4 with a step of 16.

    >>> element = Opened.of(Integer("int8", 8, True, False), 4)
    >>> element.cut(np.array([0, 7, 8, 127, 128], np.uint8)).tolist(), element.values[:3].tolist()
    ([0, 0, 1, 7, 8], [0.0, 16.0, 32.0])
    """

    master: Integer
    whole: bool = False

    @classmethod
    def of(cls, master: Integer, width: int, whole: bool = False) -> Opened:
        """`whole`: its table has step 1, so that whole zero points of the stored scale come off the integers."""
        if not 1 <= width < master.bits:
            raise FormatError(f"{master} is opened at 1 to {master.bits - 1} bits, not {width}")
        return cls(f"{master.name}_open{width}", width, master, whole)

    @property
    def fields(self) -> dict[str, Any]:
        return {"family": "opened", "bits": self.bits, "master": self.master.bits, "signed": self.master.negative}

    @property
    def reach(self) -> tuple[float, float]:
        return (self.max, self.max) if self.master.negative else (0.0, self.max)

    def decode(self, codes: Any) -> np.ndarray:
        c = self._checked(codes)
        if self.master.negative:
            c = c - ((c >> (self.bits - 1)) << self.bits)
        return np.ldexp(c.astype(np.float64), self.master.bits - self.bits)

    def cut(self, codes: np.ndarray) -> np.ndarray:
        """This element's codes of stored ones (unsigned, any shape)."""
        drop = self.master.bits - self.bits
        table = np.arange(1 << self.master.bits)
        if self.master.negative:
            table ^= 1 << (self.master.bits - 1)
        table = np.minimum((table >> drop) + (table >> (drop - 1) & 1), (1 << self.bits) - 1)
        if self.master.negative:
            table ^= 1 << (self.bits - 1)
        return table.astype(self.code_dtype)[codes]

    @property
    def table(self) -> Table:
        found = super().table
        if not self.whole or found.ints is None:
            return found
        ints = found.ints * int(found.step)
        ints.flags.writeable = False
        return replace(found, kind="i8" if ints.min() >= -128 and ints.max() <= 127 else "i16", ints=ints, step=1.0)


def open_element(element: Element, width: int, whole: bool) -> Opened:
    """An integer's codes opened at a width; `check_nested` has passed."""
    assert isinstance(element, Integer)
    return Opened.of(element, width, whole)


def check_nested(element: Element, nested: tuple[int, ...], opened: int | None, zero: Element | None) -> None:
    """FormatError: widths that do not nest, or an element whose codes have no such top bits."""
    if not nested:
        if opened is not None:
            raise FormatError(f"only nested integers can be opened; write +nest={opened}+open={opened}")
        return
    if not isinstance(element, Integer) or element.symmetric:
        why = ": the top bits of a symmetric integer reach the value that it leaves out" if isinstance(element, Integer) else ""
        raise FormatError(f"nesting needs integer codes such as int8 or uint8, not {element}{why}")
    if any(not 1 <= width < element.bits for width in nested):
        raise FormatError(f"nested widths of {element} are 1 to {element.bits - 1}, not {'.'.join(map(str, nested))}")
    if any(a <= b for a, b in pairwise(nested)):
        raise FormatError(f"nested widths fall, as in 4.2, unlike {'.'.join(map(str, nested))}")
    if zero is not None and element.bits > 8:
        raise FormatError(f"nested integers with zero points have at most 8 bits, and {element} has {element.bits}")
    if opened is not None and opened not in nested:
        allowed = ", ".join(map(str, nested))
        raise FormatError(f"{element} is nested at {allowed} and cannot be opened at {opened}")


def parse(text: str) -> Opened | None:
    found = _FORM.fullmatch(text)
    master = parse_integer(found[1]) if found else None
    return Opened.of(master, int(found[2])) if found and master else None


FAMILIES.add(
    "nested",
    Family(
        "nested",
        "the top bits of stored integers, on the integers' own scale: what int8@128+nest=4.2+open=4 reads",
        "intN_openR, uintN_openR with R below N",
        parse,
        {
            "int8_open4": "-128 to 112 in steps of 16",
            "int8_open2": "-128 to 64 in steps of 64",
            "uint8_open4": "0 to 240 in steps of 16",
        },
    ),
)
