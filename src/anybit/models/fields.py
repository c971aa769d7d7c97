"""Typed reading of a `config.json`: every field is checked, and every complaint names the file, the field and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from anybit.errors import FileFormatError

MISSING: Any = object()
At = Callable[[Sequence[str]], str]


def _nowhere(keys: Sequence[str]) -> str:
    return ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 59 else f"{text[:56]}..."


class Fields:
    """A view of a configuration (or of one object inside it, `path` says which). `at` tells where the field that some keys lead to lies in
    its file, for messages: ` (at byte 7)`, or nothing.

    >>> Fields({"hidden_size": "big"}).integer("hidden_size")
    Traceback (most recent call last):
        ...
    anybit.errors.FileFormatError: config.json: hidden_size is 'big'; expected a whole number from 1 to 16777216
    """

    def __init__(self, values: Mapping[str, Any], file: str = "config.json", path: str = "", at: At = _nowhere) -> None:
        self.values, self.file, self.path, self.at = values, file, path, at

    def fail(self, name: str, problem: str) -> FileFormatError:
        """The error to raise about one field; `name` may go on with the index of an item."""
        keys = f"{self.path}{name}".partition("[")[0].split(".")
        return FileFormatError(f"{self.file}: {self.path}{name} {problem}{self.at(keys)}")

    def _get(self, name: str, default: Any, expected: str) -> Any:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is MISSING:
            state = "is null" if name in self.values else "is missing"
            raise self.fail(name, f"{state}; expected {expected}")
        return default

    def integer(self, name: str, default: Any = MISSING, low: int = 1, high: int = 1 << 24) -> Any:
        """A whole number from low to high; null or absent gives the default, which may be None."""
        expected = f"a whole number from {low} to {high}"
        value = self._get(name, default, expected)
        if value is default:
            return value
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.fail(name, f"is {_shown(value)}; expected {expected}")
        return value

    def number(self, name: str, default: Any = MISSING, low: float = 0.0, high: float = 1e30) -> Any:
        """A finite number above `low` and at most `high`, as a float."""
        expected = f"a number above {low:g}"
        value = self._get(name, default, expected)
        if value is default:
            return value
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or not low < value <= high:
            raise self.fail(name, f"is {_shown(value)}; expected {expected}")
        return float(value)

    def flag(self, name: str, default: Any = MISSING) -> bool:
        """true or false."""
        value = self._get(name, default, "true or false")
        if not isinstance(value, bool):
            raise self.fail(name, f"is {_shown(value)}; expected true or false")
        return value

    def text(self, name: str, default: Any = MISSING) -> str:
        """A string."""
        value = self._get(name, default, "a string")
        if not isinstance(value, str):
            raise self.fail(name, f"is {_shown(value)}; expected a string")
        return value

    def sequence(self, name: str, default: Any = MISSING, length: int | None = None) -> Any:
        """A list, of the given length if one is given."""
        expected = "a list" if length is None else f"a list of {length} entries"
        value = self._get(name, default, expected)
        if value is default:
            return value
        if not isinstance(value, list) or (length is not None and len(value) != length):
            given = f"has {len(value)} entries" if isinstance(value, list) else f"is {_shown(value)}"
            raise self.fail(name, f"{given}; expected {expected}")
        return value

    def section(self, name: str) -> Fields | None:
        """A nested object, or None if it is absent or null."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fail(name, f"is {_shown(value)}; expected an object")
        return Fields(value, self.file, f"{self.path}{name}.", self.at)
