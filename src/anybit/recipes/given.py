"""A mapping of another tool's file while it is read: every key is taken, passed over with a note, or refused with its line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from anybit.errors import FileFormatError, near_misses

Kind = type | tuple[type, ...]
Lines = Callable[[tuple[str, ...]], int]
"""The line, from 1, of what lies under some keys, or of the innermost part of the way that is there."""


class Given:
    """`value` as it was read, `keys` that lead to it, `lines` by keys, `notes` for what was passed over."""

    def __init__(self, value: Any, file: str, lines: Lines, keys: tuple[str, ...] = (), notes: list[str] | None = None) -> None:
        self.file, self.lines, self.keys = file, lines, keys
        self.notes: list[str] = [] if notes is None else notes
        self._taken: set[str] = set()
        if not isinstance(value, dict):
            raise self.error((), f"must be a mapping, not {shown(value)}")
        self.value: dict[str, Any] = value

    def __contains__(self, key: str) -> bool:
        return key in self.value

    def error(self, keys: tuple[str, ...], why: str) -> FileFormatError:
        """file, line, key, reason."""
        path = (*self.keys, *keys)
        return FileFormatError(f"{self.file}: line {self.lines(path)}: {'.'.join(path) or 'the file'}: {why}")

    def refuse(self, key: str, why: str) -> FileFormatError:
        """For a key whose value says something that no recipe here can say."""
        return self.error((key,), f"{shown(self.value.get(key))}: {why}")

    def take(self, key: str, kind: Kind, default: Any = None, allowed: Iterable[Any] | None = None) -> Any:
        """The value of a key, or the default where it is left out or null. FileFormatError: of another type, or not allowed."""
        self._taken.add(key)
        value = self.value.get(key)
        if value is None:
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.refuse(key, f"it must be {' or '.join(k.__name__ for k in kinds)}")
        if allowed is not None and value not in list(allowed):
            raise self.refuse(key, f"there is {', '.join(map(str, allowed))}")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of text, or one text; empty where it is left out."""
        found = self.take(key, (list, str), [])
        found = [found] if isinstance(found, str) else found
        if not all(isinstance(each, str) for each in found):
            raise self.refuse(key, "it must be a list of text")
        return list(found)

    def inside(self, key: str) -> Given | None:
        """The mapping under a key; None where it is left out or null."""
        self._taken.add(key)
        if self.value.get(key) is None:
            return None
        return Given(self.value[key], self.file, self.lines, (*self.keys, key), self.notes)

    def each(self) -> list[tuple[str, Given]]:
        """All mappings inside, by key."""
        return [(key, made) for key in self.value if (made := self.inside(key)) is not None]

    def note(self, key: str, why: str) -> None:
        """Says that a key was passed over, where it is there and says something."""
        self._taken.add(key)
        if self.value.get(key) not in (None, [], {}, False):
            self.notes.append(f"{'.'.join((*self.keys, key))} is not taken over: {why}")

    def only(self, key: str, values: Iterable[Any], why: str) -> None:
        """Refuses every value of a key but these, which say what is done anyway; left out or null is fine too."""
        self._taken.add(key)
        value = self.value.get(key)
        if value is not None and not any(value == each and type(value) is type(each) for each in values):
            raise self.refuse(key, why)

    def done(self) -> None:
        """FileFormatError: a key that nobody took."""
        for key in self.value:
            if key not in self._taken:
                known = sorted(self._taken)
                raise self.error((key,), f"this key is not known{near_misses(key, known)}; known here: {', '.join(known)}")


def shown(value: Any) -> str:
    """A value as a message prints it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
