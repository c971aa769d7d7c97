"""Families of elements: each is one file in `elements/`, found by importing the folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from anybit.errors import FormatError, near_misses
from anybit.formats.element import Element
from anybit.registry import Registry


@dataclass(frozen=True)
class Family:
    """One family.

    parse: the element that a text names; None if the text has not this family's form; FormatError(reason) if it has but contradicts itself.
    members: built-in names with a line about each, for tables, exhaustive tests and near misses.
    form: the general spelling, for messages and documentation.
    """

    name: str
    about: str
    form: str
    parse: Callable[[str], Element | None]
    members: Mapping[str, str] = field(default_factory=dict)


FAMILIES: Registry[Family] = Registry("format family", "anybit.formats.elements")


def register_folder(path: str | Path) -> None:
    """Adds the elements that a user's own .py files define, for this process: in expressions, listings, kernels and checkpoints.

    A file is like those in `anybit/formats/elements` (CONTRIBUTING.md shows one): it runs when it is read. The environment variable
    ANYBIT_FORMATS names such folders for every command, as PATH does. UsageError: no such folder, or a file name that is taken.
    """
    FAMILIES.add_folder(path)


for _folder in filter(None, os.environ.get("ANYBIT_FORMATS", "").split(os.pathsep)):
    register_folder(_folder)


def families() -> dict[str, Family]:
    """All families, sorted by name: in whatever order their files were imported."""
    return {name: FAMILIES[name] for name in sorted(FAMILIES)}


class UnknownElementError(FormatError):
    """No family knows the text at all (rather than knowing why it is wrong)."""


@lru_cache(maxsize=4096)
def _find(text: str) -> Element:
    for family in families().values():
        element = family.parse(text)
        if element is not None:
            return element
    raise UnknownElementError(text)


def parse_element(text: str) -> Element:
    """The element that an expression such as int4, fp8_e4m3fn or codebook_-1_0_1 names.

    FormatError: no such element (near misses suggested), or one that contradicts itself (with the reason).

    >>> parse_element("fp4_e2m1").max
    6.0
    """
    if not isinstance(text, str):
        raise FormatError(f"an element is a text such as int4, not {type(text).__name__}")
    try:
        return _find(text.lower() if text.isascii() else text)
    except UnknownElementError:
        raise FormatError(unknown(text)) from None
    except FormatError as reason:
        raise FormatError(f"{shown(text)}: {reason}") from None


def unknown(text: str) -> str:
    """The message for a name that nothing knows."""
    return f"no format named '{shown(text)}'{suggestion(text) or '; `anybit formats` lists them'}"


def shown(text: str) -> str:
    """A user's text as one line of at most 80 characters."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:80])
    return line if len(text) <= 80 else line[:77] + "..."


def suggestion(text: str, more: Iterable[str] = ()) -> str:
    """Built-in names near to a text; names that it begins come alone."""
    text = text[:80].lower()
    known = [name for family in families().values() for name in family.members] + list(more)
    return near_misses(text, [name for name in known if len(text) > 2 and name.startswith(text)]) or near_misses(text, known)
