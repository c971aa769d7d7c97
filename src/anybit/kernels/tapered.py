"""Elements whose magnitudes are the upper bits of a float32, and tables of how many bits each exponent keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from anybit.formats import Element
from anybit.formats.element import switches


@dataclass(frozen=True)
class Sides:
    """An element with zero whose codes are its magnitudes' ranks, with a sign bit or as two's complement. `longer`: all magnitudes."""

    longer: np.ndarray
    count: tuple[int, int]
    fields: dict[str, Any]


def sides(element: Element) -> Sides | None:
    """The magnitudes and the form of the codes; None if the codes are others, or one sign's values are not the first of the other's."""
    values, codes = element.finite, element.finite_codes.astype(np.int64)
    positive, negative = values >= 0, values <= 0
    up, down = values[positive], -values[negative][::-1]
    side = up if len(up) >= len(down) else down
    if not element.has_zero or len(side) < 2 or not np.array_equal(side[: min(len(up), len(down))], (up if side is down else down)):
        return None
    if not np.array_equal(codes[positive], np.arange(len(up))):
        return None
    below = codes[negative][::-1][1:]
    ranks, half = np.arange(1, len(down)), 1 << (element.bits - 1)
    two_complement = len(down) > 1 and np.array_equal(below, 2 * half - ranks)
    if len(down) > 1 and not two_complement and not np.array_equal(below, half | ranks):
        return None
    if element.specials.get("-0", half) != half:
        return None
    return Sides(
        side, (len(up), len(down)),
        {
            "top": np.array([len(up) - 1, len(down) - 1], np.int32), "largest": np.array([up[-1], down[-1]], np.float32),
            "symmetric": len(up) == len(down), "two_complement": bool(two_complement),
            "sign_bit": element.bits - 1 if len(down) > 1 else -1,
        },
    )  # fmt: skip


def exact_gaps(found: Sides) -> bool:
    """Whether float32 holds each gap between neighbours, times 2^-24 too, and the distance of each float32 from the neighbour below."""
    side = found.longer
    gaps = np.diff(side)
    if np.any(gaps.astype(np.float32) != gaps) or gaps.min() < 2.0**-100:
        return False
    least = np.array([_last_bit(value) for value in side[1:-1].tolist()])
    return bool(np.all(least * 2.0**23 >= side[2:]))  # so all are multiples of the last place of any float32 below the next neighbour


def _last_bit(value: float) -> float:
    """The power of two of a value's lowest bit."""
    numerator, denominator = value.as_integer_ratio()
    return (numerator & -numerator) / denominator


def taper(element: Element, found: Sides, round: str) -> dict[str, Any] | None:
    """For each exponent how many of the lowest bits are rounded off, and what the rest and the rank differ by; None: no such element.

    All of it on the pattern of a float32, whose exponent is the upper part: two values may be several binades apart. `origin`, added to the
    pattern, makes ranks and what is left of patterns even and odd together, as nearest-even and odd need it.
    """
    if not found.fields["symmetric"]:
        return None
    side = found.longer[1:]
    pattern = side.astype(np.float32).view(np.int32).astype(np.int64)
    if np.any(side.astype(np.float32) != side) or pattern[0] < 1 << 23 or len(side) < 2:
        return None
    drops = _drops(pattern)
    middle = (pattern[:-1] + pattern[1:]) // 2
    ties = np.array([float(tie) for tie in element.ties[len(found.longer) + 1 : -1]])
    if drops is None or not np.array_equal(middle.astype(np.int32).view(np.float32).astype(np.float64), ties):
        return None
    exponents = np.arange(pattern[0] >> 23, (pattern[-1] >> 23) + 1)
    rank = np.searchsorted(pattern, exponents << 23, side="right")  # of the last value that is not above the binade's first number
    first = np.maximum(rank, 1)
    for origin in range(64):
        moved = pattern[first - 1] + (origin << 23)
        offset = first - (moved >> drops)
        if not np.any(moved & ((1 << drops) - 1)) and not np.any(offset[:-1] & 1) and pattern[-1] + (origin << 23) < 0x70000000:
            break
    else:
        return None
    entries = next((size for size in (16, 32, 64, 128) if size >= len(exponents)), None)
    if entries is None:
        return None
    table = np.zeros(128, np.int32)
    table[exponents % entries] = offset << 5 | drops
    points = switches(element, round, "saturate").points32
    at = len(points) // 2  # the first switch point above zero
    zero, out = points[[at, at - 1]], points[[-1, 0]]
    return {
        "entries": entries, "taper": table, "origin": origin << 23, "smallest": int(pattern[0]), "biggest": int(pattern[-1]),
        "zero_below": _from(zero), "out_from": _from(out),
    }  # fmt: skip


def _drops(pattern: np.ndarray) -> np.ndarray | None:
    """For each binade from the first value's to the last's the lowest bits that its values, and those on both sides, do not use."""
    found = []
    for exponent in range(int(pattern[0] >> 23), int(pattern[-1] >> 23) + 1):
        start = max(int(np.searchsorted(pattern, exponent << 23, side="right")) - 1, 0)
        end = min(int(np.searchsorted(pattern, (exponent + 1) << 23, side="left")), len(pattern) - 1)
        gaps = np.diff(pattern[start : end + 1])
        if not gaps.size:  # the largest value is the last binade's first number: nothing is left to round
            found.append(23)
            continue
        gap = int(gaps[0])
        if gap & (gap - 1) or np.any(gaps != gap):
            return None
        found.append(gap.bit_length() - 1)
    return np.array(found, np.int64)


def _from(points: np.ndarray) -> np.ndarray:
    """Patterns of the magnitudes from which on numbers above a switch point, and below another, have left."""
    bits = np.abs(points).view(np.int32)
    return np.array([bits[0], bits[1] + (0 if bits[1] == 0x7F800000 else 1)], np.int32)
