"""The pages about formats say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from anybit.errors import FormatError
from anybit.formats import NONFINITES, OVERS, ROUNDS, Spec, named_formats
from anybit.formats.describe import document

DOCS = Path(__file__).parents[2] / "docs"


def test_formats_page_is_current() -> None:
    assert (DOCS / "formats.md").read_text(encoding="utf-8") == document(), "python -m anybit.formats.describe > docs/formats.md"
    for named in named_formats():
        assert f"| `{named.name}` |" in document()


def test_expressions_page() -> None:
    """Its examples parse, its error messages are those of the parser, its policies are all there."""
    text = (DOCS / "expressions.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```\n(.*?)```", text, re.S)
    for line in blocks[0].splitlines():
        Spec.parse(line.split()[0])
    for line in blocks[-1].splitlines():
        expression = re.match(r"no format named '([^']*)'", line) or re.match(r"([^:]*):", line)
        assert expression is not None
        with pytest.raises(FormatError) as caught:
            Spec.parse(expression[1])
        assert str(caught.value) == line
    for name in (*ROUNDS, *OVERS, *NONFINITES):
        assert f"`{name}`" in text
