from html.parser import HTMLParser

import pytest

from anybit.errors import OutputError
from anybit.report.html import Code, Drawing, Facts, Paragraph, Section, Table, page
from anybit.report.table import Column, render, significant, size

NASTY = "<img src=x onerror=alert(1)> & \"quotes\" 'too' </pre></table>"


class Checker(HTMLParser):
    """Every tag is closed in order; collects tags and text."""

    VOID = ("meta", "br", "line", "circle", "path")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_everything_is_escaped_and_balanced() -> None:
    parts = [
        Paragraph(NASTY),
        Code(NASTY),
        Facts([(NASTY, NASTY)]),
        Table([Column(NASTY, "left"), Column("b")], [[NASTY, "1"]]),
        Drawing("<svg></svg>"),
    ]
    text = page(NASTY, [Section(NASTY, parts)])
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert checker.text.count("<img src=x onerror=alert(1)>") == 9
    assert not set(checker.tags) & {"img", "script", "link", "iframe", "object"}
    assert "http" not in text
    assert "url(" not in text


def test_a_report_that_is_too_large_is_refused() -> None:
    with pytest.raises(OutputError, match="3000000"):
        page("big", [Section("s", [Code("x" * 3_000_000)])])


def test_rows_must_have_a_cell_a_column() -> None:
    with pytest.raises(ValueError, match="zip"):
        page("t", [Section("s", [Table([Column("a"), Column("b")], [["1"]])])])


def test_text_tables_align_and_are_never_cut() -> None:
    long = "x" * 300
    text = render([Column("name", "left"), Column("two\nlines")], [["a", "1.5"], [long, "22"]])
    lines = text.splitlines()
    assert len(lines) == 4
    assert lines[-1] == f"{long}     22"
    assert lines[0].endswith("  two")
    assert lines[1].endswith("lines")
    assert "\x1b" not in text
    assert "[red]" in render([Column("name")], [["[red]x"]])  # a cell is text, never markup


def test_numbers_for_people() -> None:
    assert [size(n) for n in (0, 999, 1000, 9_972_168, 12_345_678_901)] == ["0 B", "999 B", "1.0 kB", "10.0 MB", "12.3 GB"]
    assert [significant(v) for v in (None, 0.0, 1.0, 0.1234, 1234.5, 1e-9, 3.4e38)] == [
        "-",
        "0",
        "1.00",
        "0.123",
        "1234",
        "1.00e-09",
        "3.40e+38",
    ]
    assert significant(float("nan")) == "nan"
