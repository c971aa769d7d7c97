"""Regular expressions of recipes, which come from elsewhere: Python's, searched for in bounded time whatever they say.

`re` tries the ways of matching one after the other, and `(a+)+b` has exponentially many. Here the set of all places from which the rest of
the text can match is carried through the expression from its end to its beginning, one bit a character: a step costs one operation on the
whole set, and a repetition ends when the set no longer grows. What a single character or an anchor matches is asked of `re`.

Left out are groups that a match has to remember or to cut off: back references, conditions, atomic groups and possessive repetitions; and
looking behind. Source: the set construction of Thompson, CACM 11(6) 1968, run backwards, so that looking ahead is one more set.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from anybit.errors import UsageError

MAX_LENGTH = 4096
MAX_DEPTH = 32

_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|N\{[^}]*\}|0[0-7]{0,2}|.)", re.DOTALL)
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_GROUP = re.compile(r"\((?:\?(?:P<\w+>|[:=!]|(i):|(i)\)|#[^)]*\)))?")
_REPEAT = re.compile(r"[*+?]|\{(?!\})(\d*)(?:(,)(\d*))?\}")
_ANCHORS = ("^", "$", r"\A", r"\Z", r"\z", r"\b", r"\B")


class _Subject:
    """A text: for each character or class, and each anchor, the places where it matches, as bits."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.everywhere = (2 << len(text)) - 1
        self.letters: dict[str, int] = {}
        for i, letter in enumerate(text):
            self.letters[letter] = self.letters.get(letter, 0) | 1 << i
        self.found: dict[str, int] = {}

    def places(self, source: str) -> int:
        """Where an expression of one character matches one, or an anchor none."""
        if source not in self.found:
            match = re.compile(source).match
            if source in _ANCHORS:
                self.found[source] = sum(1 << i for i in range(len(self.text) + 1) if match(self.text, i))
            else:
                self.found[source] = sum(places for letter, places in self.letters.items() if match(letter))
        return self.found[source]


Node = Callable[[_Subject, int], int]
"""Of a text and a set of places: from where a part of an expression reaches one of them."""


def _sequence(parts: list[Node]) -> Node:
    parts = parts[::-1]

    def before(subject: _Subject, after: int) -> int:
        for part in parts:
            if not after:
                return 0
            after = part(subject, after)
        return after

    return before


def _choice(parts: list[Node]) -> Node:
    def before(subject: _Subject, after: int) -> int:
        found = 0
        for part in parts:
            found |= part(subject, after)
        return found

    return before


def _ahead(part: Node, wanted: bool) -> Node:
    def before(subject: _Subject, after: int) -> int:
        found = part(subject, subject.everywhere)
        return after & (found if wanted else ~found)

    return before


def _repeated(part: Node, least: int, most: int | None) -> Node:
    """A set that one more repetition leaves as it is stays so for all further ones: texts are finite, and nothing goes back."""

    def before(subject: _Subject, after: int) -> int:
        for _ in range(least):
            more = part(subject, after)
            if more == after:
                break
            after = more
        seen, new, left = after, after, most
        while new and (left is None or left > least):
            new = part(subject, new) & ~seen
            seen |= new
            left = None if left is None else left - 1
        return seen

    return before


class _Parser:
    """Reads an expression that `re` has compiled, so that only its structure is left to be found."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth, self.ignoring_case = text, 0, 0, False

    def refuse(self, what: str) -> UsageError:
        return UsageError(f"has {what} at character {self.at + 1}, which is not taken here; write it without")

    def choice(self) -> Node:
        parts = [self.sequence()]
        while self.text.startswith("|", self.at):
            self.at += 1
            parts.append(self.sequence())
        return parts[0] if len(parts) == 1 else _choice(parts)

    def sequence(self) -> Node:
        parts: list[Node] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            part = self.item()
            if part is None:
                continue
            repeat = _REPEAT.match(self.text, self.at)
            if repeat is not None:
                self.at = repeat.end()
                if self.text.startswith("+", self.at):
                    raise self.refuse("a possessive repetition")
                self.at += self.text.startswith("?", self.at)
                part = _repeated(part, *_counts(repeat))
            parts.append(part)
        return parts[0] if len(parts) == 1 else _sequence(parts)

    def item(self) -> Node | None:
        letter = self.text[self.at]
        if letter == "(":
            return self.group()
        form = _ESCAPE if letter == "\\" else _CLASS if letter == "[" else None
        found = form.match(self.text, self.at) if form else None
        source = found[0] if found else letter
        if len(source) > 1 and source[0] == "\\" and source[1] in "123456789":
            raise self.refuse("a back reference")
        self.at += len(source)
        if source in _ANCHORS:
            return lambda subject, after: after & subject.places(source)
        if source in "*+?{}":
            source = re.escape(source)
        one = f"(?i:{source})" if self.ignoring_case else source
        return lambda subject, after: after >> 1 & subject.places(one)

    def group(self) -> Node | None:
        opening = _GROUP.match(self.text, self.at)
        assert opening is not None
        mark = opening[0]
        if mark == "(" and self.text.startswith("?", self.at + 1):
            names = {"(?<": "looking behind", "(?P": "a back reference", "(?(": "a condition", "(?>": "an atomic group"}
            raise self.refuse(names.get(self.text[self.at : self.at + 3], "flags other than i"))
        if self.depth == MAX_DEPTH:
            raise self.refuse(f"a group more than {MAX_DEPTH} deep")
        self.at = opening.end()
        if mark.startswith("(?#"):
            return None
        if opening[2]:  # (?i) at the beginning
            self.ignoring_case = True
            return None
        outer, self.ignoring_case, self.depth = self.ignoring_case, self.ignoring_case or bool(opening[1]), self.depth + 1
        part = self.choice()
        self.at += 1  # over the bracket
        self.ignoring_case, self.depth = outer, self.depth - 1
        return _ahead(part, mark == "(?=") if mark in ("(?=", "(?!") else part


def _counts(repeat: re.Match[str]) -> tuple[int, int | None]:
    if repeat[0][0] in "*+?":
        return int(repeat[0] == "+"), 1 if repeat[0] == "?" else None
    least = int(repeat[1] or 0)
    return least, least if repeat[2] is None else int(repeat[3]) if repeat[3] else None


class Pattern:
    """An expression, to be asked whether a text matches it: the answers of `re.search` and `re.match`, no groups.

    >>> Pattern("(a+)+b").search("a" * 1000)
    False

    Raises: UsageError, which goes on from what is wrong ("has a back reference ..."): no regular expression, one of more than 4,096
        characters, or one with what is left out here.
    """

    def __init__(self, text: str) -> None:
        if len(text) > MAX_LENGTH:
            raise UsageError(f"has {len(text)} characters, {MAX_LENGTH} at most; write several")
        try:
            re.compile(text)
        except (re.error, OverflowError, RecursionError) as error:
            raise UsageError(f"is no regular expression: {error}; correct it") from None
        self.text = text
        self._before = _Parser(text).choice()

    def search(self, text: str) -> bool:
        """Whether it matches anywhere in a text."""
        subject = _subject(text)
        return self._before(subject, subject.everywhere) != 0

    def match(self, text: str) -> bool:
        """Whether it matches from a text's beginning on."""
        subject = _subject(text)
        return self._before(subject, subject.everywhere) & 1 != 0


@lru_cache(maxsize=4096)
def _subject(text: str) -> _Subject:
    return _Subject(text)


@lru_cache(maxsize=1024)
def pattern(text: str) -> Pattern:
    """A pattern, kept for the next time. UsageError: see `Pattern`."""
    return Pattern(text)
