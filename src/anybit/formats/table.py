"""Table: the numbers that kernels compute with for an element, derived from its values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from anybit.formats.element import Element


_FINE = 1000
"""How many half steps of a rounded table the largest magnitude of a block has at least: int8 activations have 254."""


@dataclass(frozen=True, eq=False)
class Table:
    """Values of all codes as small integers times a step, where that is possible.

    kind: "i8" every finite value is exactly `ints * step` with -128 <= ints <= 127; "i16" likewise with |ints| <= 32767; "i16r" rounded to
    16 bits, error at most half a step; "f32" float32 values only: elements that fit no exact kind and have more than 8 bits, or that reach
    so far beyond what scales bring a block to (posits) that half a step would be more than a thousandth of it.
    ints: int32[2**bits], 0 where the value is NaN or infinite; None for f32.
    step: a float32 value; 1.0 for f32.
    values: float32[2**bits], exact, NaN and infinities included; empty for elements of more than 16 bits; [2**bits, dim] for vectors.
    """

    kind: str
    ints: np.ndarray | None
    step: float
    values: np.ndarray


def _common_step(values: np.ndarray) -> tuple[int, int]:
    """(g, e): the greatest g * 2**e of which every value is a whole multiple. Exact: significands are taken apart as integers."""
    significand, exponent = np.frexp(values[values != 0])
    whole = np.ldexp(significand, 53).astype(np.int64)
    low = int(exponent.min()) - 53
    g = 0
    for number, shift in zip(whole.tolist(), exponent.tolist(), strict=True):
        g = math.gcd(g, number << (shift - 53 - low))
    return g, low


def derive(element: Element) -> Table:
    """The table of an element: the smallest exact integer kind, else i16r (up to 8 bits, where 16 bits are enough) or f32."""
    if element.bits > 16 or element.dim > 1:
        values = np.empty(0, np.float32) if element.bits > 16 else element.values.astype(np.float32)
        return Table("f32", None, 1.0, _frozen(values))
    values = element.values
    exact = _frozen(values.astype(np.float32))
    finite = np.isfinite(values)
    g, e = _common_step(values[finite])
    step = math.ldexp(g, e)
    largest, least = element.max / step, element.min / step
    kind = "i8" if least >= -128 and largest <= 127 else "i16" if max(-least, largest) <= 32767 else ""
    if not kind:
        kind, step = "i16r", float(np.float32(max(element.max, -element.min) / 32767))
        if element.bits > 8 or step / 2 > max(element.reach) / _FINE:
            return Table("f32", None, 1.0, exact)
    ints = np.zeros(values.shape, np.int32)
    ints[finite] = np.rint(values[finite] / step).astype(np.int32)
    return Table(kind, _frozen(ints), step, exact)


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
