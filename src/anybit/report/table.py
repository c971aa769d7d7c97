"""Text tables: aligned columns, numbers to the right, never wrapped or cut."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO


@dataclass(frozen=True)
class Column:
    """A column's heading, which may have several lines, and how its cells are aligned: "left" or "right"."""

    heading: str
    align: str = "right"


def render(columns: Sequence[Column], rows: Sequence[Sequence[str]], color: bool = False) -> str:
    """The table as text, one line a row, no line longer than the table needs.

    >>> print(render([Column("format", "left"), Column("KL")], [["int4@32", "0.012"], ["int2@64", "1.5"]]))
    format      KL
    int4@32  0.012
    int2@64    1.5
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold" if color else "")
    for column in columns:
        table.add_column(Text(column.heading), justify="right" if column.align == "right" else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    out = io.StringIO()
    # As wide as it comes: a terminal that is narrower wraps lines itself, a file has no width.
    console = Console(file=out, width=10_000, force_terminal=color, color_system="standard" if color else None, legacy_windows=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def show(columns: Sequence[Column], rows: Sequence[Sequence[str]], stream: TextIO | None = None) -> None:
    """Prints a table, with a bold heading on a terminal that takes colour (NO_COLOR unset)."""
    import os

    stream = sys.stdout if stream is None else stream
    stream.write(render(columns, rows, color=stream.isatty() and not os.environ.get("NO_COLOR")) + "\n")


def facts(pairs: Sequence[tuple[str, Any]], stream: TextIO | None = None) -> None:
    """Prints `name   value` lines with the values aligned."""
    stream = sys.stdout if stream is None else stream
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        stream.write(f"{name:<{width}}  {value}\n")


def size(count: int) -> str:
    """Bytes for people, decimal units.

    >>> size(9_972_168)
    '10.0 MB'
    """
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError


def significant(value: float | None, digits: int = 3) -> str:
    """A number with some significant digits, with an exponent only where it would be long; a dash for None.

    >>> significant(0.0012345), significant(27.46, 4), significant(1.2e-7)
    ('0.00123', '27.46', '1.20e-07')
    """
    if value is None:
        return "-"
    if value == 0 or value != value or abs(value) == float("inf"):
        return f"{value:g}"
    import math

    places = digits - 1 - math.floor(math.log10(abs(value)))
    if places > 6 or abs(value) >= 1e7:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(places, 0)}f}"
