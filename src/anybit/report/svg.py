"""Our own SVG plot: loss (log axis) against stored bits a weight, with the Pareto frontier. No script, no font, no other file.

Colours are mid-tones and the text takes the page's colour, so that the plot reads on light and dark pages alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from html import escape

WIDTH, HEIGHT = 860, 520
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 20, 84
FONT = 13
CHARACTER = 0.63  # width of a character in a wide sans-serif font, in font sizes
RADIUS = 5.0
LINE, FILL, SECOND = "#3d7dca", "#3d7dca", "#c9762b"


@dataclass(frozen=True)
class Point:
    """One format: exact bits a weight, its loss (> 0), and the loss under a second condition, if it was measured."""

    label: str
    bits: Fraction
    loss: float
    second: float | None = None


@dataclass(frozen=True)
class Box:
    """A rectangle that is taken."""

    x0: float
    y0: float
    x1: float
    y1: float

    def overlap(self, other: Box) -> float:
        """The common area."""
        wide = min(self.x1, other.x1) - max(self.x0, other.x0)
        high = min(self.y1, other.y1) - max(self.y0, other.y0)
        return max(wide, 0.0) * max(high, 0.0)


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both bits and loss, by ascending bits.

    >>> [p.label for p in frontier([Point("a", Fraction(4), 0.1), Point("b", Fraction(5), 0.2), Point("c", Fraction(8), 0.01)])]
    ['a', 'c']
    """
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.bits, p.loss)):
        if not best or point.loss < best[-1].loss:
            best.append(point)
    return best


class Axes:
    """Data to pixels: bits linear to the right, loss logarithmic upwards."""

    def __init__(self, points: Sequence[Point]) -> None:
        bits = [float(p.bits) for p in points]
        losses = [value for p in points for value in (p.loss, p.second) if value]
        self.x0, self.x1 = math.floor(min(bits) - 0.25), math.ceil(max(bits) + 0.25)
        self.y0, self.y1 = math.log10(min(losses)) - 0.15, math.log10(max(losses)) + 0.15

    def x(self, bits: float) -> float:
        """Pixels from the left."""
        return LEFT + (bits - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, loss: float) -> float:
        """Pixels from the top."""
        return HEIGHT - BOTTOM - (math.log10(loss) - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)

    def loss_ticks(self) -> list[tuple[float, bool]]:
        """(value, labelled): decades always, 2 and 5 between them too when there are few decades."""
        ticks = []
        few = self.y1 - self.y0 < 3.5
        for exponent in range(math.floor(self.y0), math.ceil(self.y1) + 1):
            for digit in range(1, 10):
                value = digit * 10.0**exponent
                if self.y0 <= math.log10(value) <= self.y1:
                    ticks.append((value, digit == 1 or (few and digit in (2, 5))))
        return ticks


def pareto(points: Sequence[Point], x_title: str, y_title: str, first: str, second: str = "", standalone: bool = False) -> str:
    """The plot as an <svg> element; `standalone` adds what a file of its own needs.

    Args: points, of which those with a loss that is no positive number are left out; first and second, what filled and hollow
        markers mean.
    """
    points = [point for point in points if point.loss > 0 and math.isfinite(point.loss)]
    names = ' xmlns="http://www.w3.org/2000/svg"' if standalone else ""
    head = (
        f'<svg{names} viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img"'
        f' font-family="sans-serif" font-size="{FONT}" fill="currentColor"><title>{escape(f"{y_title} against {x_title}")}</title>'
    )
    if not points:
        return head + f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">nothing to plot</text></svg>'
    axes = Axes(points)
    shown_second = second if any(point.second for point in points) else ""
    body = [*_grid(axes, x_title, y_title), _stairs(axes, frontier(points)), *_markers(axes, points), *_labels(axes, points)]
    return head + "".join(body) + _legend(first, shown_second) + "</svg>"


def _text(x: float, y: float, text: str, anchor: str = "middle", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'


def _line(x0: float, y0: float, x1: float, y1: float, opacity: float, width: float = 1) -> str:
    ends = f'x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"'
    return f'<line {ends} stroke="currentColor" stroke-opacity="{opacity}" stroke-width="{width}"/>'


def _grid(axes: Axes, x_title: str, y_title: str) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for bits in range(axes.x0, axes.x1 + 1):
        x = axes.x(bits)
        parts += [_line(x, TOP, x, bottom, 0.12), _text(x, bottom + 20, str(bits))]
    for loss, labelled in axes.loss_ticks():
        y = axes.y(loss)
        parts.append(_line(LEFT, y, right, y, 0.18 if labelled else 0.06))
        if labelled:
            parts.append(_text(LEFT - 8, y + FONT / 3, f"{loss:g}", "end"))
    parts.append(_line(LEFT, bottom, right, bottom, 0.6))
    parts.append(_line(LEFT, TOP, LEFT, bottom, 0.6))
    parts.append(_text((LEFT + right) / 2, bottom + 44, x_title))
    middle = (TOP + bottom) / 2
    parts.append(_text(18, middle, y_title, extra=f' transform="rotate(-90 18 {middle:.1f})"'))
    return parts


def _stairs(axes: Axes, points: Sequence[Point]) -> str:
    """With whole models of one format each, what is attainable lies above and right of a staircase."""
    path = [f"M{axes.x(float(points[0].bits)):.1f},{axes.y(points[0].loss):.1f}"]
    for point in points[1:]:
        path.append(f"H{axes.x(float(point.bits)):.1f}V{axes.y(point.loss):.1f}")
    return f'<path d="{"".join(path)}" fill="none" stroke="{LINE}" stroke-opacity="0.55" stroke-width="1.5"/>'


def _markers(axes: Axes, points: Sequence[Point]) -> list[str]:
    parts = []
    for point in points:
        x, y = axes.x(float(point.bits)), axes.y(point.loss)
        if point.second and math.isfinite(point.second):
            other = axes.y(point.second)
            parts.append(f'<circle cx="{x:.1f}" cy="{other:.1f}" r="{RADIUS - 0.5}" fill="none" stroke="{SECOND}" stroke-width="1.5"/>')
        title = f"{point.label}: {float(point.bits):.4g} bits, {point.loss:.4g}"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}" fill="{FILL}"><title>{escape(title)}</title></circle>')
    return parts


def _labels(axes: Axes, points: Sequence[Point]) -> list[str]:
    """Each label at the nearest place where it covers nothing; a thin line leads to it from further away."""
    taken = []
    for point in points:
        for loss in (point.loss, point.second):
            if loss:
                x, y = axes.x(float(point.bits)), axes.y(loss)
                taken.append(Box(x - RADIUS - 1, y - RADIUS - 1, x + RADIUS + 1, y + RADIUS + 1))
    best = frontier(points)
    for before, after in itertools.pairwise(best):
        x0, y0, x1, y1 = axes.x(float(before.bits)), axes.y(before.loss), axes.x(float(after.bits)), axes.y(after.loss)
        taken += [Box(x0, y0 - 2, x1, y0 + 2), Box(x1 - 2, y0, x1 + 2, y1)]
    parts = []
    for point in sorted(points, key=lambda p: p.bits):
        x, y = axes.x(float(point.bits)), axes.y(point.loss)
        wide = CHARACTER * FONT * len(point.label)
        box, far = _place(x, y, wide, taken)
        taken.append(box)
        if far:
            nearest = min(max(x, box.x0), box.x1)
            edge = box.y1 - 2 if box.y1 < y else box.y0 + 2
            parts.append(_line(x, y, nearest, edge, 0.45, 0.8))
        parts.append(_text(box.x0, box.y1 - FONT * 0.28, point.label, "start"))
    return parts


def _place(x: float, y: float, wide: float, taken: Sequence[Box]) -> tuple[Box, bool]:
    """The free place nearest to a marker, or the least covered one; whether it needs a leading line."""
    high = FONT * 1.15
    inside = Box(LEFT + 2, TOP, WIDTH - 2, HEIGHT - BOTTOM - 2)
    best, best_cover, best_far = Box(x, y, x + wide, y + high), math.inf, False
    for distance in (RADIUS + 4, 22, 36, 52, 70, 90):
        for dx, dy in ((1, 0), (0.75, -0.75), (0.75, 0.75), (-1, 0), (-0.75, -0.75), (-0.75, 0.75), (0, -1), (0, 1)):
            anchor = x + dx * distance - (wide if dx < 0 else wide / 2 if dx == 0 else 0)
            middle = y + dy * (distance + (high / 3 if dx == 0 else 0))
            box = Box(anchor, middle - high / 2, anchor + wide, middle + high / 2)
            outside = wide * high - box.overlap(inside)
            cover = sum(box.overlap(other) for other in taken) + 4 * outside
            if cover < best_cover - 1e-9:
                best, best_cover, best_far = box, cover, distance > RADIUS + 4
            if cover == 0:
                return best, best_far
    return best, best_far


def _legend(first: str, second: str) -> str:
    y = HEIGHT - 14
    parts = [f'<circle cx="{LEFT + 6}" cy="{y - 4}" r="{RADIUS}" fill="{FILL}"/>', _text(LEFT + 18, y, first, "start")]
    x = LEFT + 40 + CHARACTER * FONT * len(first)
    if second:
        parts.append(f'<circle cx="{x:.1f}" cy="{y - 4}" r="{RADIUS - 0.5}" fill="none" stroke="{SECOND}" stroke-width="1.5"/>')
        parts.append(_text(x + 12, y, second, "start"))
        x += 36 + CHARACTER * FONT * len(second)
    parts.append(f'<path d="M{x:.1f},{y - 8}h12v8h12" fill="none" stroke="{LINE}" stroke-opacity="0.55" stroke-width="1.5"/>')
    return "".join(parts) + _text(x + 32, y, "Pareto frontier", "start")
