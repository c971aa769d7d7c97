"""The nearest vectors on a device, for elements of several weights a code: the codes that `Vector.encode` gives on the host.

A search in the device's own arithmetic finds each group's vector and by how much it leads; groups whose lead is within rounding errors
(ties above all) go to the host, each kind once.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from anybit.device_arrays import LIBRARIES, Arrays
from anybit.formats import Element
from anybit.formats.elements.lattice import SignedGrid
from anybit.formats.vector import FAR, Vector, half_norms

_SCORES = 1 << 23
"""Scores of groups against vectors that are held at a time: 64 MB."""


@lru_cache(maxsize=16)
def vectors(library: str, element: Element, place: str) -> Any:
    """float64[2**bits, dim] on a device."""
    return LIBRARIES[library]().table(element.values, place)


def nearest_vectors(ops: Arrays, x: Any, element: Element) -> Any:
    """int64[..., k / dim]: of each group of finite numbers of the last axis the nearest vector, of equally near ones the smallest code.

    Cost: 2 m 2**bits dim operations for m groups, or as many as there are magnitudes instead of codes where signs are free.
    """
    assert isinstance(element, Vector)
    limit = FAR * max(element.max, -element.min)
    groups = ops.cast(x, "float64").clip(-limit, limit).reshape(-1, element.dim)
    count = len(element.grid) if isinstance(element, SignedGrid) else 1 << element.bits
    step, pieces = max(1, _SCORES // count), []
    for start in range(0, groups.shape[0], step):
        part = groups[start : start + step]
        codes, unsure = _signed_grid(ops, part, element) if isinstance(element, SignedGrid) else _listed(ops, part, element)
        if bool(unsure.any()):
            rows, back = np.unique(ops.host(part[unsure]), axis=0, return_inverse=True)
            decided = element._nearest(rows)[back.reshape(-1)].astype(np.int64)
            codes = ops.replaced(codes, (unsure,), ops.table(decided, ops.place(x)))
        pieces.append(codes)
    shape = (*x.shape[:-1], x.shape[-1] // element.dim)
    return ops.joined(pieces).reshape(shape) if pieces else ops.full(shape, 0, "int64", x)


def _first_two(ops: Arrays, score: Any) -> tuple[Any, Any, Any]:
    """Of each row where the largest is (the first of equal ones), itself, and by how much it exceeds all others."""
    index = score.argmax(1)
    _, top = ops.extremes(score, (1,))
    chosen = ops.places(score.shape[1], score)[None, :] == index[:, None]
    _, second = ops.extremes(ops.where(chosen, float("-inf"), score), (1,))
    return index, top, top - second


def _listed(ops: Arrays, groups: Any, element: Vector) -> tuple[Any, Any]:
    """Codes, and where they are not sure, by the scores of all vectors."""
    half, largest, dim = half_norms(element.values), float(np.abs(element.values).max()), element.dim
    score = groups @ vectors(ops.library, element, ops.place(groups)).T - ops.table(half, ops.place(groups))
    codes, _, lead = _first_two(ops, score)
    # As in formats/vector.py: dim products and dim additions, each rounded by 2^-53 of at most this sum.
    slack = (_sum(abs(groups)) * largest + dim * largest * largest) * (4 * (dim + 2) * 2.0**-53)
    return codes, lead <= slack


def _sum(x: Any) -> Any:
    """Over the last axis, in ascending order."""
    total = x[:, 0]
    for i in range(1, x.shape[1]):
        total = total + x[:, i]
    return total


def _signed_grid(ops: Arrays, groups: Any, element: SignedGrid) -> tuple[Any, Any]:
    """Codes, and where they are not sure: `SignedGrid._nearest`, over all magnitudes."""
    slack = (_sum(abs(groups)) + element.dim) * (element.max * 4 * (element.dim + 4) * 2.0**-53) * (1 + element.max)
    if not element.shift:
        codes, _, margin = _by_magnitude(ops, groups, element)
        return codes, margin <= slack
    (low, below, margin), (high, above, other) = (_by_magnitude(ops, groups + t, element) for t in (element.shift, -element.shift))
    lead = above + 2 * element.shift * _sum(groups) - below
    up = lead > 0
    margin = ops.minimum(ops.where(up, other, margin), abs(lead))
    return ops.where(up, high * 2 + 1, low * 2), margin <= slack


def _by_magnitude(ops: Arrays, y: Any, element: SignedGrid) -> tuple[Any, Any, Any]:
    """Codes without the shift bit, scores and leads: `SignedGrid._searched`. With signs of the wrong parity, the least |y| * magnitude is
    lost twice."""
    place = ops.place(y)
    grid, odd, half = (ops.table(a, place) for a in element._grid)
    size, negative = abs(y), y < 0
    wrong = ops.cast(negative, "int64").sum(1) % 2 == 1
    least = size[:, 0, None] * grid[:, 0]
    for i in range(1, element.dim):
        least = ops.minimum(least, size[:, i, None] * grid[:, i])
    turned = wrong[:, None] ^ odd[None, :]
    index, top, lead = _first_two(ops, size @ grid.T - half - ops.where(turned, 2 * least, 0.0))
    cheapest, gain, apart = _first_two(ops, -(size * grid[index]))
    least, second = -gain, apart - gain
    turned = wrong ^ odd[index]
    lead = ops.minimum(lead, 2 * ops.where(turned, second - least, second + least))
    flipped = (ops.places(element.dim, y)[None, :] == cheapest[:, None]) & turned[:, None]
    bits = ops.cast(negative ^ flipped, "int64")[:, 1:] * ops.table(1 << np.arange(element.dim - 2, -1, -1), place)
    return index * (1 << (element.dim - 1)) + bits.sum(1), top, lead
