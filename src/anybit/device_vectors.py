"""The nearest vectors on a device, for elements of several weights a code: the codes that `Vector.encode` gives on the host.

A search in the device's own arithmetic finds each group's vector and by how much it leads; where the lead is within rounding errors (ties
above all) the sums that decide on the host decide, of every vector, operation by operation. Outlier-victim pairs are few switch points.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from anybit.device_arrays import LIBRARIES, Arrays
from anybit.formats import Element
from anybit.formats.elements.lattice import SignedGrid
from anybit.formats.elements.outlier_victim import OutlierVictim, places
from anybit.formats.vector import FAR, Vector, half_norms

_SCORES = 1 << 23
"""Scores of groups against vectors that are held at a time: 64 MB."""
_NONE = 1 << 32
"""Above every code."""


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
    shape = (*x.shape[:-1], x.shape[-1] // element.dim)
    if isinstance(element, OutlierVictim):
        return _pairs(ops, groups, element).reshape(shape)
    count = len(element.grid) if isinstance(element, SignedGrid) else 1 << element.bits
    step, pieces = max(1, _SCORES // count), []
    for start in range(0, groups.shape[0], step):
        part = groups[start : start + step]
        codes, unsure = _signed_grid(ops, part, element) if isinstance(element, SignedGrid) else _listed(ops, part, element)
        if bool(unsure.any()):
            rows, back = ops.distinct(part[unsure])  # zeros above all
            codes = ops.replaced(codes, (unsure,), _decided(ops, rows, element)[back])
        pieces.append(codes)
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


def _decided(ops: Arrays, groups: Any, element: Vector) -> Any:
    """Codes: the smallest of those with the largest score, as `formats.vector.nearest`."""
    listed, half = vectors(ops.library, element, ops.place(groups)), ops.table(half_norms(element.values), ops.place(groups))
    codes, step = ops.places(len(half), groups), max(1, _SCORES >> element.bits)
    return ops.joined([_best(ops, listed, half, codes, groups[i : i + step]) for i in range(0, groups.shape[0], step)])


def _best(ops: Arrays, listed: Any, half: Any, codes: Any, groups: Any) -> Any:
    """The least code of the vectors nearest to each group [m, dim], by `formats.vector.scores`: sums in ascending order, each product and
    sum rounded by itself. listed [..., n, dim], half [..., n] and codes [..., n] are for all groups or one row for each."""
    score = listed[..., 0] * groups[:, None, 0]
    for i in range(1, listed.shape[-1]):
        score = score + listed[..., i] * groups[:, None, i]
    score = score - half
    _, top = ops.extremes(score, (1,))
    return ops.extremes(ops.where(score == top[:, None], codes, _NONE), (1,))[0]


def _pairs(ops: Arrays, groups: Any, element: OutlierVictim) -> Any:
    """Codes: `OutlierVictim._nearest`, the nearest of three for all groups."""
    (normal, outlier), place, width = element.halves, ops.place(groups), element.bits // 2
    identifier, held = 1 << (width - 1), np.flatnonzero(outlier)

    def placed(values: np.ndarray, codes: np.ndarray) -> Any:
        points, order = places(values)
        return ops.table(codes[order].astype(np.int64), place)[ops.search(ops.table(points, place), groups, True)]

    near, far = placed(normal, np.arange(1 << width)), placed(outlier[held], held)
    plain = near[:, 0] | near[:, 1] << width
    codes = ops.stack([plain, far[:, 0] | identifier << width, far[:, 1] << width | identifier])
    half = ops.table(half_norms(element.values), place)
    best = _best(ops, vectors(ops.library, element, place)[codes], half[codes], codes, groups)
    return ops.where((abs(groups) >= element.edge).any(1), best, plain)


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
