"""Our own SVG picture of a number format: its values on lines, the worst relative error by magnitude, and the table of its codes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

import numpy as np

from anybit.report.number_line import label, linear, ticks

WIDTH, LEFT, RIGHT = 980, 76, 24
INNER = WIDTH - LEFT - RIGHT
FONT, SMALL = 13, 11
TOP = 66
STRIP = 74  # height of one line of values
CURVE = 270  # height of the error panel
POSITIVE, NEGATIVE, SPECIAL = "#2f6fbf", "#c0652a", "#8a8a8a"
LEAST_ERROR = 2.0**-30


@dataclass(frozen=True)
class Picture:
    """What is drawn. title and facts: two lines of text. values: float64[codes], NaN and infinities included, index = code."""

    title: str
    facts: str
    values: np.ndarray


def draw(picture: Picture) -> str:
    """The whole file. Pairs (values[codes, 2]) are drawn as points in a plane."""
    body: list[str] = []
    y = TOP
    if picture.values.ndim == 2:
        body, y = _plane(picture.values, y)
    else:
        finite = np.unique(picture.values[np.isfinite(picture.values)]) + 0.0
        body.append(_strip(finite, y, logarithmic=False))
        y += STRIP
        sizes = np.abs(finite[finite != 0])
        if sizes.size and sizes.max() > 16 * sizes.min():
            body.append(_strip(finite, y, logarithmic=True))
            y += STRIP
        if (finite > 0).sum() + (finite < 0).sum() > 1:
            body.append(_curves(finite, y + 20))
            y += CURVE + 66
        table, y = _codes(picture.values, y + 12)
        body += table
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img"'
        f' font-family="sans-serif" font-size="{FONT}" fill="#222"><title>{escape(picture.title)}</title>'
        f'<rect width="{WIDTH}" height="{y}" fill="#fff"/>'
    )
    titles = _text(20, 26, picture.title, "start", ' font-size="17" font-weight="bold"') + _text(20, 46, picture.facts, "start")
    return head + titles + "".join(body) + "</svg>\n"


def relative_errors(finite: np.ndarray, sign: int, edges: np.ndarray) -> np.ndarray:
    """The largest |q(x) - x| / |x| for |x| in each interval [edges[i], edges[i + 1]], x of one sign, q(x) the nearest value.

    Between the middles of neighbours the quotient is monotone on either side of each value, so ends and middles decide.

    >>> relative_errors(np.array([0.0, 1.0, 2.0]), 1, np.array([1.0, 2.0, 4.0])).round(3).tolist()
    [0.333, 0.5]
    """
    points = np.sort(sign * finite)
    middles = (points[:-1] / 2 + points[1:] / 2)[points[1:] > 0]
    middles = middles[(middles > edges[0]) & (middles < edges[-1])]

    def error(x: np.ndarray) -> np.ndarray:
        at = np.clip(np.searchsorted(points, x), 1, len(points) - 1)
        return np.minimum(np.abs(x - points[at - 1]), np.abs(x - points[at])) / x

    at_edges = error(edges)
    worst = np.maximum(at_edges[:-1], at_edges[1:])
    np.maximum.at(worst, np.searchsorted(edges, middles) - 1, error(middles))
    return worst


def _text(x: float, y: float, text: str, anchor: str = "middle", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'


def _line(x0: float, y0: float, x1: float, y1: float, color: str = "#222", opacity: float = 1, width: float = 1) -> str:
    ends = f'x1="{x0:.2f}" y1="{y0:.2f}" x2="{x1:.2f}" y2="{y1:.2f}"'
    return f'<line {ends} stroke="{color}" stroke-opacity="{opacity:g}" stroke-width="{width:g}"/>'


def _strip(finite: np.ndarray, y: float, logarithmic: bool) -> str:
    """One line with a tick a value, and labels where there is room."""
    low, high = float(finite[0]), float(finite[-1])
    if logarithmic:
        sizes = np.log2(np.abs(finite[finite != 0]))
        small, large = float(sizes.min()), float(sizes.max())
        both = low < 0 < high
        zero = LEFT + (INNER / 2 if both else INNER if low < 0 else 0)
        room, gap = (INNER / 2 if both else INNER), 24.0

        def place(v: float) -> float:
            away = 0.0 if v == 0 else gap + (math.log2(abs(v)) - small) / (large - small) * (room - gap)
            return zero + math.copysign(away, v)

    else:

        def place(v: float) -> float:
            return LEFT + (v - low) / (high - low) * INNER

    base = y + 30
    opacity = 1 if len(finite) <= 64 else 0.6 if len(finite) <= 300 else 0.25
    drawn: dict[float, float] = {}
    for v in finite.tolist():  # of strokes that fall together one is enough
        drawn.setdefault(round(place(v), 1 if len(finite) <= 1000 else 0), v)
    parts = [_text(LEFT - 10, base + 4, "log" if logarithmic else "linear", "end", f' font-size="{SMALL}"')]
    parts.append(_line(LEFT, base, WIDTH - RIGHT, base, opacity=0.5))
    for x, v in drawn.items():
        parts.append(_line(x, base - 16, x, base, SPECIAL if v == 0 else POSITIVE if v > 0 else NEGATIVE, opacity))
    wanted = [low, high, 0.0, *sorted(finite.tolist(), key=lambda v: (math.log2(abs(v)) % 1 if v else 0, abs(v), v))]
    if not logarithmic and len(finite) > 64:
        wanted = ticks(finite, linear(finite, 120))
    elif not low <= 0 <= high:
        wanted = [low, high, *wanted[3:]]
    taken: list[tuple[float, float]] = []
    for v in wanted:
        text, x = label(v), place(v)
        half = 0.32 * SMALL * len(text) + 5
        middle = min(x, WIDTH - half)
        if all(middle + half < a or middle - half > b for a, b in taken):
            taken.append((middle - half, middle + half))
            parts += [_line(x, base, x, base + 4), _text(middle, base + 17, text, extra=f' font-size="{SMALL}"')]
        if len(taken) > 40:
            break
    return "".join(parts)


def _curves(finite: np.ndarray, y: float) -> str:
    """Worst relative error of round to nearest, both axes logarithmic; the negative side apart where it differs."""
    sizes = np.abs(finite[finite != 0])
    start, stop = math.log2(sizes.min()) - 1.5, math.log2(sizes.max()) + 1
    edges = np.exp2(np.linspace(start, stop, INNER + 1))
    curves = {}
    for sign, color, name in ((1, POSITIVE, "positive"), (-1, NEGATIVE, "negative")):
        if (sign * finite > 0).any():
            curves[name] = (color, np.clip(relative_errors(finite, sign, edges), LEAST_ERROR, 4))
    if len(curves) == 2 and np.array_equal(curves["positive"][1], curves["negative"][1]):
        curves = {"either sign": curves["positive"]}
    least = min(float(worst.min()) for _, worst in curves.values())
    most = min(2.0, max(float(worst.max()) for _, worst in curves.values()))
    low, high = math.log10(least) - 0.1, math.log10(most) + 0.1

    def across(log2: float) -> float:
        return LEFT + (log2 - start) / (stop - start) * INNER

    def down(error: float) -> float:
        return y + CURVE - (min(math.log10(error), high) - low) / (high - low) * CURVE

    title = "worst relative error of round to nearest by magnitude, here (thin) and in each octave (thick)"
    parts = [_text(LEFT, y - 8, title, "start", ' font-weight="bold"')]
    few = high - low < 2.5
    for decade in range(math.floor(low), math.ceil(high) + 1):
        for digit in (1, 2, 5) if few else (1,):
            value = digit * 10.0**decade
            if low <= math.log10(value) <= high:
                parts += [_line(LEFT, down(value), WIDTH - RIGHT, down(value), opacity=0.15)]
                parts.append(_text(LEFT - 8, down(value) + 4, f"{100 * value:g} %", "end", f' font-size="{SMALL}"'))
    every = max(1, math.ceil((stop - start) / 16))
    for e in range(math.ceil(start), math.floor(stop) + 1):
        if e % every == 0:
            parts.append(_line(across(e), y, across(e), y + CURVE, opacity=0.12))
            parts.append(_text(across(e), y + CURVE + 17, label(2.0**e), extra=f' font-size="{SMALL}"'))
    parts += [_line(LEFT, y + CURVE, WIDTH - RIGHT, y + CURVE, opacity=0.6), _line(LEFT, y, LEFT, y + CURVE, opacity=0.6)]
    octaves = np.exp2(np.r_[start, np.arange(math.ceil(start), math.floor(stop) + 1), stop])
    for i, (name, (color, worst)) in enumerate(curves.items()):
        path = "".join(f"{'L' if j else 'M'}{LEFT + j + 0.5:.1f},{down(e):.1f}" for j, e in enumerate(worst.tolist()))
        parts.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-opacity="0.55"/>')
        steps = relative_errors(finite, -1 if name == "negative" else 1 if (finite > 0).any() else -1, np.unique(octaves))
        ends = [across(math.log2(v)) for v in np.unique(octaves).tolist()]
        path = f"M{LEFT},{down(steps[0]):.1f}" + "".join(f"V{down(e):.1f}H{x:.1f}" for x, e in zip(ends[1:], steps.tolist(), strict=True))
        parts.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        x = WIDTH - RIGHT - 90 * (len(curves) - i)  # above the panel, where no curve is
        parts += [_line(x, y - 12, x + 20, y - 12, color, width=2), _text(x + 26, y - 8, name, "start", f' font-size="{SMALL}"')]
    return "".join(parts)


def _codes(values: np.ndarray, y: float) -> tuple[list[str], int]:
    """The value of every code, up to 256 of them; row and column give the code."""
    count = len(values)
    title = "value by code" if count <= 256 else f"{count} codes: too many for a table"
    parts = [_text(LEFT, y, title, "start", ' font-weight="bold"')]
    if count > 256:
        return parts, round(y + 20)
    columns = 16 if count > 16 else min(8, count)
    wide, high, digits = INNER / columns, 20, max(1, math.ceil(math.log2(max(count, 2)) / 4))
    small = f' font-size="{SMALL - 1 if columns == 16 else SMALL}"'
    for row in range(-(-count // columns)):
        top = y + 10 + row * high
        parts.append(_text(LEFT - 8, top + 14, f"{row * columns:0{digits}x}", "end", f' font-size="{SMALL}" fill="{SPECIAL}"'))
        for column, v in enumerate(values[row * columns : (row + 1) * columns].tolist()):
            kind = SPECIAL if not math.isfinite(v) or v == 0 else POSITIVE if v > 0 else NEGATIVE
            text = f"{v:.4g}" if columns < 16 else _short(v)
            note = f"<title>code {row * columns + column}: {v!r}</title>"
            frame = f'x="{LEFT + column * wide:.1f}" y="{top}" width="{wide:.1f}" height="{high}"'
            parts.append(f'<rect {frame} fill="{kind}" fill-opacity="0.12" stroke="#fff">{note}</rect>')
            parts.append(_text(LEFT + (column + 0.5) * wide, top + 14, text, extra=small))
    return parts, round(y + 10 + -(-count // columns) * high + 20)


def _short(v: float) -> str:
    """Three digits, or two where these would take more than eight characters, so that sixteen cells fit.

    >>> _short(-16777216.0), _short(5.960464e-08), _short(0.125), _short(1024.0), _short(-(2.0**-63))
    ('-1.68e7', '5.96e-8', '0.125', '1024', '-1.1e-19')
    """
    size = abs(v)
    text = f"{v:.0f}" if 1000 <= size < 1e4 and v == round(v) else f"{v:.2e}" if 0 < size < 0.001 else f"{v:.3g}"
    digits, _, exponent = text.partition("e")
    short = f"{digits}e{int(exponent)}" if exponent else text
    return short if len(short) <= 8 else f"{v:.1e}"


def _plane(pairs: np.ndarray, y: float) -> tuple[list[str], int]:
    """Points of pairs of numbers."""
    side, finite, y = 560, pairs[np.isfinite(pairs).all(1)], y + 20
    limit = float(np.abs(finite).max()) or 1.0
    middle, center = LEFT + side / 2, y + side / 2
    parts = [_line(LEFT, center, LEFT + side, center, opacity=0.3), _line(middle, y, middle, y + side, opacity=0.3)]
    for a, b in np.unique(finite, axis=0).tolist():
        at = f'cx="{middle + a / limit * side / 2:.1f}" cy="{center - b / limit * side / 2:.1f}"'
        parts.append(f'<circle {at} r="2.5" fill="{POSITIVE}" fill-opacity="0.7"><title>{a:g}, {b:g}</title></circle>')
    for v in (-limit, limit):
        parts.append(_text(LEFT + side + 8 if v > 0 else LEFT - 8, center + 4, f"{v:g}", "start" if v > 0 else "end"))
        parts.append(_text(middle + 8, y + 4 if v > 0 else y + side + 4, f"{v:g}", "start"))
    parts += [_text(LEFT + side, center - 8, "first weight", "end"), _text(middle - 8, y + 4, "second weight", "end")]
    return parts, round(y + side + 24)
