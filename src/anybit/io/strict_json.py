"""JSON from files that nobody vouches for: bounded in size, depth and number of values; no duplicate key, no NaN, no lone surrogate.

The standard decoder keeps the last of two equal keys, accepts NaN, and builds twenty bytes of objects from one byte of text. A file
that needs any of that is refused with the byte where it happens.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anybit.errors import FileFormatError

MAX_BYTES = 32 << 20
MAX_DEPTH = 64
MAX_VALUES = 2_000_000
MAX_DIGITS = 20  # 2**64 has 20: no field of any file needs more

scanstring = json.decoder.scanstring  # type: ignore[attr-defined]

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\Z)', re.DOTALL)  # one that does not end is cut to the end: no second look
_PAIR = re.compile(rb"\[\]|\{\}")
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_STRUCTURE = re.compile(rb'\\.|["\[\]{}]', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_SPACE = re.compile(r"[ \t\n\r]*")


class _RefusedError(ValueError):
    """A value that the decoder's hooks reject; its place is found by the caller."""


def shown(text: object, limit: int = 120) -> str:
    """Text from a file as an error message may print it: quoted, control characters escaped, cut to `limit` characters."""
    quoted = repr(text)
    return quoted if len(quoted) <= limit else quoted[: limit - 3] + "..."


def refuse(where: Path | str, field: str, offset: int, what: str, advice: str) -> FileFormatError:
    """The one shape of every rejection: file, field, byte offset, what is wrong, what to do."""
    return FileFormatError(f"{where}: {field} at byte {offset}: {what}; {advice}")


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise _RefusedError(f"an integer of {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _RefusedError(f"the number {shown(text, 40)} is out of range")
    return value


def _constant(text: str) -> float:
    raise _RefusedError(f"{text} is no JSON number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RefusedError(f"the key {shown(key)} occurs twice in one object")
            seen.add(key)
    return result


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_constant)


def _check_amount(data: bytes, where: Path | str) -> None:
    """Bounds the objects that decoding may build: one for every 8 bytes, with 50,000 to spare for small files."""
    values = data.count(b",") + data.count(b"[") + data.count(b"{")
    if values > min(50_000 + len(data) // 8, MAX_VALUES):
        raise refuse(where, "JSON", 0, f"{values} values in {len(data)} bytes are more than any model needs", "restore the file")


def _shallow(data: bytes) -> bool:
    """Whether brackets that fit each other lie at most MAX_DEPTH deep: so many times the innermost pairs are taken away, at C's speed."""
    brackets = _STRING.sub(b"", data).translate(None, _NO_BRACKET)
    for _ in range(MAX_DEPTH):
        if not brackets:
            return True
        brackets = _PAIR.sub(b"", brackets)
    return not brackets


def _check_depth(data: bytes, where: Path | str) -> None:
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH or _shallow(data):
        return
    depth, quoted = 0, False
    for match in _STRUCTURE.finditer(data):
        token = match[0]
        if token == b'"':
            quoted = not quoted
        elif quoted or len(token) == 2:
            continue
        elif token in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise refuse(where, "JSON", match.start(), f"nested deeper than {MAX_DEPTH} levels", "restore the file")
        else:
            depth -= 1


def _second_of_two(text: str) -> int:
    """Index of the first key that its own object already holds; 0 if there is none. Only runs once a duplicate is known."""
    keys: list[set[str]] = []
    at = 0
    while at < len(text):
        letter = text[at]
        if letter == '"':
            word, end = scanstring(text, at + 1)
            after = _SPACE.match(text, end)
            if after is not None and text.startswith(":", after.end()):
                if word in keys[-1]:
                    return at
                keys[-1].add(word)
            at = end
            continue
        if letter in "{[":
            keys.append(set())
        elif letter in "}]":
            keys.pop()
        at += 1
    return 0


def _after(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]


def place(data: bytes, keys: Sequence[str]) -> int:
    """The byte of the value that lies under some keys of a file which `parse` accepts; of the innermost object on the way that lacks a key.

    >>> place(b'{"a": {"b": 5}}', ["a", "b"])
    12
    """
    text = data.decode("utf-8")
    at = _after(text, 0)
    for key in keys:
        found, here = None, _after(text, at + 1)
        while found is None and text.startswith("{", at) and not text.startswith("}", here):
            name, here = scanstring(text, here + 1)
            here = _after(text, _after(text, here) + 1)  # over the colon
            if name == key:
                found = here
            else:
                here = _after(text, DECODER.raw_decode(text, here)[1])
                here = _after(text, here + 1) if text.startswith(",", here) else here
        if found is None:
            break
        at = found
    return len(text[:at].encode())


@dataclass(frozen=True)
class Where:
    """An object in a JSON file, for messages: the file and the keys that lead to it. `data` reads the file again, to count its bytes."""

    file: str
    data: Callable[[], bytes] | None = None
    keys: tuple[str, ...] = ()

    def __truediv__(self, key: str) -> Where:
        return replace(self, keys=(*self.keys, key))

    def __str__(self) -> str:
        """The file and the keys, those that are no plain words quoted."""
        path = "".join(f".{key}" if key.isidentifier() and key.isascii() else f"[{shown(key)}]" for key in self.keys).removeprefix(".")
        return f"{self.file}: {path}" if path else self.file

    @property
    def at(self) -> str:
        """` (at byte 7)`, or nothing where the bytes are not at hand."""
        if self.data is None:
            return ""
        try:
            return f" (at byte {place(self.data(), self.keys)})"
        except (FileFormatError, ValueError):
            return ""  # the file has changed meanwhile

    @property
    def at_of(self) -> str:
        """The same with the file's name, ` (at byte 7 of config.json)`, for messages that begin with a directory."""
        return self.at.replace(")", f" of {Path(self.file).name})")


def parse(data: bytes, where: Path | str) -> Any:
    """Decodes a whole JSON file.

    Args: data, the file's bytes; where, its name in messages.
    Raises: FileFormatError: not UTF-8, not JSON, too large, too deep, a duplicate key, a number without a finite value.

    >>> parse(b'{"a": [1, 2.5]}', "x.json")
    {'a': [1, 2.5]}
    >>> parse(b'{"a": 1, "a": 2}', "x.json")
    Traceback (most recent call last):
        ...
    anybit.errors.FileFormatError: x.json: JSON at byte 9: the key 'a' occurs twice in one object; keep one of them
    """
    if len(data) > MAX_BYTES:
        raise refuse(where, "JSON", 0, f"{len(data)} bytes are more than the limit of {MAX_BYTES}", "restore the file")
    _check_amount(data, where)
    _check_depth(data, where)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refuse(where, "JSON", error.start, "not UTF-8 text", "restore the file") from None
    try:
        value = DECODER.decode(text)
    except json.JSONDecodeError as error:
        offset = len(text[: error.pos].encode())
        raise refuse(where, "JSON", offset, f"{error.msg[0].lower()}{error.msg[1:]}", "restore the file or correct it there") from None
    except _RefusedError as error:
        what = str(error)
        twice = "twice" in what
        offset = len(text[: _second_of_two(text)].encode()) if twice else 0
        raise refuse(where, "JSON", offset, what, "keep one of them" if twice else "correct the value") from None
    found = _SURROGATE.search(data)
    if found is not None:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise refuse(where, "JSON", found.start(), "half of a surrogate pair is no character", "correct the string") from None
    return value


def read(path: Path) -> Any:
    """Reads and decodes a JSON file. Raises: FileFormatError, also where the file cannot be read or is larger than the limit."""
    return parse(read_small(path), path)


def read_small(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file of at most `limit` bytes. Raises: FileFormatError."""
    try:
        if not path.is_file():
            raise FileFormatError(f"{path}: no such file, or not a regular one; check the path")
        size = path.stat().st_size
        if size > limit:
            what = f"{size} bytes are more than the limit of {limit} for such a file, passed at byte {limit}"
            raise FileFormatError(f"{path}: {what}; restore the file")
        return path.read_bytes()
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read: {error.strerror}; check the path and its permissions") from None


def where(path: Path) -> Where:
    """A JSON file's outermost object, for messages."""
    return Where(str(path), lambda: read_small(path))
