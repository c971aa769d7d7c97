"""Tables by which native code finds where a number lies among an element's switch points."""

from __future__ import annotations

from typing import Any

import numpy as np

from anybit.formats import Element
from anybit.formats.element import switches
from anybit.formats.rounding import stochastic_bits

_MOST_BUCKETS = 1 << 18


def search_tree(element: Element, points: np.ndarray) -> dict[str, Any]:
    """At most 15 float32 switch points in the order of a search: the 8th; the 4th and 12th; and so on; 16 values and codes by rank."""
    inner = np.full(15, np.inf, np.float32)
    inner[: len(points)] = points
    tree = np.zeros((4, 16), np.float32)
    for level in range(4):
        step = 8 >> level
        tree[level, : 1 << level] = inner[step - 1 :: 2 * step]
    rank = np.minimum(np.arange(16), len(element.finite) - 1)
    values, codes = element.finite[rank].astype(np.float32), element.finite_codes[rank].astype(np.int32)
    return {"tree": tree.reshape(-1), "values": values, "search_codes": codes}


def drawn_search(element: Element, bits: int) -> dict[str, Any] | None:
    """The same for stochastic rounding: a tree of the values, lower neighbours (infinity for the last), gaps, what is too close to tell.

    "exact": where no gap has zero inside, and every float32's distance from the neighbour on zero's side is exact, neighbours are those,
    and gaps lead away from zero.
    None: values so small or large that products of gaps and words leave float32's range.
    """
    values = element.finite
    most = float(np.abs(values).max()) + float(np.diff(values).max(initial=0.0))
    if not 2.0**-60 < most < 2.0**90:
        return None
    near, gaps = np.full(16, np.inf, np.float32), np.zeros(16, np.float32)
    lower, upper, gap = values[:-1], values[1:], np.diff(values)
    exact = bits <= 24 and _distances_are_exact(values)
    if exact:
        below = upper <= 0
        near[: len(gap)], near[len(gap) :] = np.where(below, upper, lower) + 0.0, values[-1]
        gaps[: len(gap)] = np.where(below, -gap, gap) * 2.0**-bits
    else:
        near[: len(gap)], gaps[: len(gap)] = lower, -gap * 2.0**-24
    points = switches(element, "down", "saturate").points32[1:-1]
    return search_tree(element, points) | {
        "near": near, "gaps": gaps, "chain": np.r_[values, element.beyond[1]], "unsure": most * 2.0**-21,
        "exact": exact,
    }  # fmt: skip


def _distances_are_exact(values: np.ndarray) -> bool:
    """Whether gaps between float32 values, and distances within them from the neighbour nearer to zero, are multiples of that neighbour's
    last place and at most 2^24 of them; and whether products of these and 24 bits stay within float32's normal numbers."""
    lower, upper, gap = values[:-1], values[1:], np.diff(values)
    near = np.minimum(np.abs(lower), np.abs(upper))
    most = np.where(near == 0, np.inf, np.exp2(np.floor(np.log2(np.where(near == 0, 1.0, near))) + 1))
    small = np.abs(values[values != 0])
    held = np.array_equal(values.astype(np.float32), values) and np.array_equal(gap.astype(np.float32), gap)
    return bool(held and np.all(lower * upper >= 0) and np.all(gap <= most) and np.all(small >= 2.0**-60))


def by_rank(element: Element, path: str, round: str, over: str) -> dict[str, Any] | None:
    """Values, codes and chain by rank, and the points; for "buckets" also where each bucket's point lies (None: too many buckets)."""
    found = switches(element, "down" if stochastic_bits(round) is not None else round, "saturate" if over == "error" else over)
    codes = np.append(found.codes, found.codes[-1]).astype(np.int32)
    negative = codes if found.minus_zero is None else np.where(codes == found.plus_zero, found.minus_zero, codes).astype(np.int32)
    values = element.values.astype(np.float32)
    below, above = element.beyond
    tables = {
        "points": found.points32, "chain": np.tile(np.r_[below, element.finite, above, above], 2),
        "rank_codes": np.r_[codes, negative], "rank_values": np.r_[values[codes], values[negative]],
    }  # fmt: skip
    if path == "bisect":
        return tables
    buckets = _buckets(found.points32)
    return None if buckets is None else tables | buckets


def _buckets(points: np.ndarray) -> dict[str, np.ndarray] | None:
    """For each sign and exponent of a float32 as many buckets of its fraction as leave one switch point in each.

    A bucket has the rank of its least number, and the point from which on the next rank holds (infinity: none).
    """
    if np.any(points[1:] == points[:-1]):
        return None  # float32 merges two switch points: there the next rank is two further on
    bases, shifts = np.zeros(512, np.uint32), np.full(512, 23, np.uint32)
    thresholds: list[np.ndarray] = []
    ranks: list[np.ndarray] = []
    count = 0
    cut: tuple[np.ndarray, np.ndarray] | None
    for top in range(512):
        for shift in range(23, -1, -1):
            if count + (1 << (23 - shift)) > _MOST_BUCKETS:
                return None
            if top & 255 == 255:  # infinities (a ratio may be one): beyond all points, where the last rank is repeated
                cut = np.full(1, np.inf, np.float32), np.full(1, 0 if top >> 8 else len(points))
            else:
                cut = _cut(points, top, shift)
            if cut is not None:
                break
        else:
            return None
        bases[top], shifts[top] = count, shift
        threshold, first = cut
        thresholds.append(threshold)
        ranks.append(first + (len(points) + 2) * (top >> 8))
        count += len(threshold)
    return {
        "bases": bases, "shifts": shifts, "thresholds": np.concatenate(thresholds).astype(np.float32),
        "ranks": np.concatenate(ranks).astype(np.uint32),
    }  # fmt: skip


def _cut(points: np.ndarray, top: int, shift: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Threshold, and how many points are not above the least number, of the buckets of one sign and exponent; None: too wide."""
    start = np.uint32(top << 23) + (np.arange(1 << (23 - shift), dtype=np.uint32) << np.uint32(shift))
    near, far = start.view(np.float32), (start + np.uint32((1 << shift) - 1)).view(np.float32)
    low, high = (far, near) if top >= 256 else (near, far)
    before, after = np.searchsorted(points, low, side="right"), np.searchsorted(points, high, side="right")
    if np.any(after - before > 1):
        return None
    return np.where(after > before, np.append(points, np.float32(np.inf))[before], np.float32(np.inf)), before
