"""The values of a number format on a line of plain characters, for a terminal of any width."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

LEAST_WIDTH = 24
GAP = 3  # columns between zero and the smallest values on a logarithmic line
MANY = "#"


@dataclass(frozen=True)
class Scale:
    """Where values lie on a line: `column(value)`, 0 to width - 1. kind: "linear" or "logarithmic"."""

    kind: str
    width: int
    column: Callable[[float], int]


def linear(values: np.ndarray, width: int) -> Scale:
    """Least value at the left end, largest at the right."""
    low, high = float(values.min()), float(values.max())
    span = high - low or 1.0
    return Scale("linear", width, lambda v: round((v - low) / span * (width - 1)))


def logarithmic(values: np.ndarray, width: int) -> Scale:
    """Powers of two equally far apart, away from zero on both sides; zero lies `GAP` columns from the smallest values."""
    sizes = np.abs(values[values != 0])
    small, large = math.log2(sizes.min()), math.log2(sizes.max())
    left, right = bool((values < 0).any()), bool((values > 0).any())
    zero = (width - 1) // 2 if left and right else width - 1 if left else 0
    room = zero if left else width - 1
    gap = GAP if (left and right) or bool((values == 0).any()) else 0

    def column(v: float) -> int:
        if v == 0:
            return zero
        away = gap + (math.log2(abs(v)) - small) / (large - small or 1.0) * (room - gap)
        return zero + round(math.copysign(away, v))

    return Scale("logarithmic", width, column)


def choose(values: np.ndarray, width: int) -> Scale:
    """The scale that spreads the values over clearly more columns; linear otherwise."""
    plain = linear(values, width)
    if np.count_nonzero(values) < 2:
        return plain
    steep = logarithmic(values, width)
    return steep if _spread(values, steep) > 1.5 * _spread(values, plain) else plain


def _spread(values: np.ndarray, scale: Scale) -> float:
    """How many columns hold the values, columns of few values counting for less: e to the entropy of their shares."""
    shares = np.bincount([scale.column(v) for v in values.tolist()]) / len(values)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def number_line(values: Sequence[float] | np.ndarray, width: int = 100) -> list[str]:
    """Lines of text: a title, a mark where values lie, an axis, its labels. `values`: finite, at least one; width in columns.

    >>> print("\\n".join(number_line([-1, 0, 1, 2], 31)))
    4 values on a linear line
    |         |         |         |
    +---------+---------+---------+
    -1        0         1         2
    """
    points = np.unique(np.asarray(values, dtype=np.float64))
    width = max(width, LEAST_WIDTH)
    scale = choose(points, width)
    counts = [0] * width
    for v in points.tolist():
        counts[scale.column(v)] += 1
    marks = "".join(" " if n == 0 else "|" if n == 1 else str(n) if n <= 9 else MANY for n in counts)
    axis, labels = _labelled(ticks(points, scale), scale)
    crowded = max(counts) > 1
    key = f"; 2 to 9: so many in one column{f', {MANY}: more' if max(counts) > 9 else ''}" if crowded else ""
    return [f"{len(points)} values on a {scale.kind} line{key}", marks.rstrip(), axis, labels]


def ticks(points: np.ndarray, scale: Scale) -> list[float]:
    """Values worth a label, the most wanted first."""
    wanted = [float(points[0]), float(points[-1])]
    if points[0] < 0 < points[-1] or (points == 0).any():
        wanted.append(0.0)
    if len(points) <= 40:
        return wanted + sorted(points.tolist(), key=lambda v: (abs(v), v))
    if scale.kind == "linear":
        step = _round_step((points[-1] - points[0]) / max(1, scale.width // 12))
        return wanted + [i * step for i in range(math.ceil(points[0] / step), math.floor(points[-1] / step) + 1)]
    sizes = np.abs(points[points != 0])
    low, high = math.ceil(math.log2(sizes.min())), math.floor(math.log2(sizes.max()))
    every = max(1, round(10 * (high - low) / scale.width / (1 if points[0] >= 0 else 0.5)))
    powers = [2.0**e for e in range(low, high + 1, every)]
    return wanted + [v for p in powers for v in (p, -p) if points[0] <= v <= points[-1]]


def _round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten, at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= least)


def _labelled(wanted: Iterable[float], scale: Scale) -> tuple[str, str]:
    """The axis and its labels: each tick that is wanted and finds room."""
    axis, labels = ["-"] * scale.width, [" "] * scale.width
    seen: set[float] = set()
    for value in wanted:
        text, at = label(value), scale.column(value)
        start = min(max(at - len(text) // 2 if at else 0, 0), scale.width - len(text))
        around = labels[max(0, start - 1) : start + len(text) + 1]
        if value in seen or any(c != " " for c in around):
            continue
        seen.add(value)
        labels[start : start + len(text)] = text
        axis[at] = "+"
    return "".join(axis), "".join(labels).rstrip()


def label(value: float) -> str:
    """A value in few characters; powers of two by their exponent where that is shorter.

    >>> label(0.015625), label(2.0**-75), label(-0.6961928)
    ('0.01562', '2^-75', '-0.6962')
    """
    text, (part, exponent) = f"{value:.{6 if abs(value) < 1e6 and value == int(value) else 4}g}", math.frexp(value)
    return f"{'-' * (part < 0)}2^{exponent - 1}" if abs(part) == 0.5 and len(text) > 7 + (part < 0) else text


def scatter(points: np.ndarray, width: int = 60, height: int = 20) -> list[str]:
    """Pairs float64[n, 2] in a frame: the first number to the right, the second upwards, * for one pair, 2 to 9 for so many, # for more."""
    low, high = points.min(0), points.max(0)
    span = np.where(high > low, high - low, 1)
    counts = np.zeros((height, width), int)
    for x, y in (points - low) / span:
        counts[height - 1 - round(y * (height - 1)), round(x * (width - 1))] += 1
    rows = ["".join(" " if n == 0 else "*" if n == 1 else str(n) if n <= 9 else MANY for n in row) for row in counts]
    frame = "+" + "-" * width + "+"
    title = f"{len(points)} pairs: first {low[0]:g} to {high[0]:g} rightwards, second {low[1]:g} to {high[1]:g} upwards"
    return [title, frame, *(f"|{row}|" for row in rows), frame]
