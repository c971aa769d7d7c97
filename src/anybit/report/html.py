"""One offline HTML file: no script, no font, no image, no address to fetch. Everything that comes from outside is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeAlias

from anybit.errors import OutputError
from anybit.report.table import Column

MOST_BYTES = 3_000_000

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: 0.25em 0.8em; border-bottom: 1px solid #8884; text-align: right; }
th { vertical-align: bottom; } .left { text-align: left; }
pre { background: #8882; padding: 0.8em; overflow-x: auto; white-space: pre-wrap; }
svg { max-width: 100%; height: auto; }
"""


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Code:
    """Text that keeps its lines: commands, samples."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table of cells that are text."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Facts:
    """Names and values, one pair a line."""

    pairs: Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class Drawing:
    """Markup of our own making (report/svg.py), which escapes what it is given; put in as it is."""

    markup: str


Part: TypeAlias = Paragraph | Code | Table | Facts | Drawing


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    heading: str
    parts: Sequence[Part]


def page(title: str, sections: Sequence[Section]) -> str:
    """The whole file. OutputError: it would be 3 MB or more."""
    body = "".join(f"<section><h2>{escape(s.heading)}</h2>{''.join(_part(p) for p in s.parts)}</section>\n" for s in sections)
    text = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/><meta name="viewport" content="width=device-width"/>'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n{body}</body></html>\n"
    )
    if len(text.encode()) >= MOST_BYTES:
        raise OutputError(f"the report would have {len(text.encode())} bytes, it must stay under {MOST_BYTES}; report fewer formats")
    return text


def _part(part: Part) -> str:
    if isinstance(part, Paragraph):
        return f"<p>{escape(part.text)}</p>"
    if isinstance(part, Code):
        return f"<pre>{escape(part.text)}</pre>"
    if isinstance(part, Drawing):
        return f'<div class="scroll">{part.markup}</div>'
    if isinstance(part, Facts):
        cells = (f'<th class="left">{escape(str(name))}</th><td class="left">{escape(str(value))}</td>' for name, value in part.pairs)
        rows = "".join(f"<tr>{cell}</tr>" for cell in cells)
        return f'<div class="scroll"><table>{rows}</table></div>'
    head = "".join(f"<th{_align(column)}>{escape(column.heading.replace(chr(10), ' '))}</th>" for column in part.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td{_align(column)}>{escape(cell)}</td>" for column, cell in zip(part.columns, row, strict=True)) + "</tr>"
        for row in part.rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _align(column: Column) -> str:
    return ' class="left"' if column.align == "left" else ""
