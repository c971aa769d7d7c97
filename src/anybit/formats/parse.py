"""The parser of format expressions: recursive descent over one line, every error with its position (counted from 0)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from anybit.errors import FormatError, near_misses
from anybit.formats.block import KINDS, Block
from anybit.formats.element import Element
from anybit.formats.family import UnknownElementError, _find, shown, suggestion
from anybit.formats.format import Format, Level
from anybit.formats.named import ALIASES
from anybit.formats.packing import PACKINGS
from anybit.formats.policy import Policy, Spec

_TEXT = re.compile(r"[A-Za-z0-9._\-@:+=]*")
_WORD = re.compile(r"[a-z0-9._-]*")
_SIZES = re.compile(r"(all|[1-9][0-9]{0,11})(x(all|[1-9][0-9]{0,11}))*")
_WIDTH = re.compile(r"[1-9][0-9]?")
_WIDTHS = re.compile(r"[1-9][0-9]?(\.[1-9][0-9]?)*")
_FORMAT_KEYS = ("zp", "off", "nest", "open", "pack")
_POLICY_KEYS = ("scale", "round", "over", "nonfinite", "seed")
LONGEST = 1 << 20
"""Longest expression in characters: a codebook of 65,536 entries fits."""


class _Reader:
    """One expression and how far it has been read."""

    def __init__(self, source: str, elements: Mapping[str, Element]) -> None:
        self.elements = elements
        if not isinstance(source, str):
            raise FormatError(f"a format is a text such as int4@128, not {type(source).__name__}")
        self.source = shown(source)
        if len(source) > LONGEST:
            self.fail("the expression is too long", LONGEST)
        legal = _TEXT.match(source)
        assert legal is not None
        if legal.end() < len(source):
            self.fail(f"unexpected {source[legal.end()]!r}; expressions consist of a-z 0-9 . _ - @ : + = x", legal.end())
        self.text, self.at = source.lower(), 0
        if not source:
            raise FormatError("an empty format; write one such as int4@128, or see `anybit formats`")

    def fail(self, reason: str, position: int, suffix: str = "") -> NoReturn:
        raise FormatError(f"{self.source}: {reason} at position {position}{suffix}") from None

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self, mark: str) -> bool:
        """Steps over a separator if it is next."""
        if self.peek() != mark:
            return False
        self.at += 1
        return True

    def word(self, what: str) -> tuple[str, int]:
        """The next run of name characters and where it starts."""
        found = _WORD.match(self.text, self.at)
        assert found is not None
        if not found[0]:
            end = self.at >= len(self.text)
            self.fail(f"{what} expected, {'the expression ends' if end else repr(self.peek()) + ' found'}", self.at)
        start, self.at = self.at, found.end()
        return found[0], start

    def element(self, what: str) -> Element:
        name, start = self.word(what)
        try:
            return self.elements[name] if name in self.elements else _find(name)
        except UnknownElementError:
            close = suggestion(name, ALIASES if start == 0 else ())
            if name == self.text:
                raise FormatError(f"no format named '{name[:80]}'{close or '; `anybit formats` lists them'}") from None
            self.fail(f"no format named '{name[:80]}'", start, close)
        except FormatError as reason:
            self.fail(f"{reason}" if name == self.text else f"{name[:80]}: {reason}", start)

    def block(self) -> Block:
        name, start = self.word("a block")
        if name in KINDS:
            return Block(name)
        if not _SIZES.fullmatch(name):
            self.fail(f"'{name[:80]}' is no block (tensor, channel, token, or sizes such as 128, 32x1, allx32)", start)
        parts = name.split("x")
        if len(parts) > 8:
            self.fail(f"a block has at most 8 sizes, not {len(parts)}", start)
        return Block("sized", tuple(None if size == "all" else int(size) for size in parts))


def _read_body(reader: _Reader) -> Format:
    """element [ "@" block { ":" level } ], or an alias."""
    head = _WORD.match(reader.text)
    assert head is not None
    if head[0] in ALIASES:
        reader.at = head.end()
        if reader.peek() in ("@", ":"):
            reader.fail(f"{head[0]} is a whole format ({ALIASES[head[0]][0]}) and takes no block or scale of its own", reader.at)
        return Format(ALIASES[head[0]][0])
    element, block = reader.element("an element"), None
    levels: list[Level] = []
    if reader.take("@"):
        block = reader.block()
    while reader.peek() == ":":
        if block is None:
            reader.fail("a scale needs a block before it, as in int4@128:bf16", reader.at)
        if levels and levels[-1].block is None:
            reader.fail(f"a scale of the scales {levels[-1].element} needs '@' and a block after {levels[-1].element}", reader.at)
        reader.at += 1
        start = reader.at
        scale = reader.element("a scale's element")
        levels.append(Level(scale, reader.block() if reader.take("@") else None))
        try:
            Format.of(element, block, tuple(levels))
        except FormatError as reason:
            reader.fail(str(reason), start)
    return Format.of(element, block, tuple(levels))


def _read_options(reader: _Reader, with_policy: bool) -> tuple[dict[str, tuple[Element | str | None, int]], dict[str, Any]]:
    """{ "+" name [ "=" value ] }: format options with their positions, and policies."""
    options: dict[str, tuple[Element | str | None, int]] = {}
    policy: dict[str, Any] = {}
    while reader.take("+"):
        key, start = reader.word("an option")
        if key in options or key in policy:
            reader.fail(f"a second +{key}", start)
        if key in ("zp", "off"):
            options[key] = (reader.element("an element") if reader.take("=") else None), start
        elif key == "pack":
            if not reader.take("="):
                reader.fail(f"'=' expected after {key}", reader.at)
            name, at = reader.word("a packing")
            if name not in PACKINGS and name != "plain":
                known = [*sorted(PACKINGS), "plain"]
                reader.fail(f"no packing named '{name[:80]}'", at, near_misses(name[:80], known) or f"; there is {', '.join(known)}")
            options[key] = ("" if name == "plain" else name), start
        elif key in ("nest", "open"):
            if not reader.take("="):
                reader.fail(f"'=' expected after {key}", reader.at)
            name, at = reader.word("a width" if key == "open" else "widths")
            if not (_WIDTHS if key == "nest" else _WIDTH).fullmatch(name):
                reader.fail(f"'{name[:80]}' is no {'width' if key == 'open' else 'list of widths'} in bits, as in nest=4.2+open=4", at)
            options[key] = name, start
        elif key in _POLICY_KEYS:
            if not with_policy:
                reader.fail(f"+{key} says how codes are chosen, not what they mean; give it to quantize(), which takes a Spec", start)
            if not reader.take("="):
                reader.fail(f"'=' expected after {key}", reader.at)
            value, at = reader.word(f"a name for {key}")
            if key == "seed" and not value.isdecimal():
                reader.fail(f"'{value[:80]}' is no seed (an integer from 0 to 2^64 - 1)", at)
            setting: Any = int(value[:30]) if key == "seed" else value
            try:
                Policy(**{key: setting})
            except FormatError as reason:
                reader.fail(str(reason), at)
            policy[key] = setting
        else:
            keys = [*_FORMAT_KEYS, *(_POLICY_KEYS if with_policy else ())]
            reader.fail(f"no option named '{key[:80]}'", start, near_misses(key[:80], keys) or f"; there is {', '.join(keys)}")
    if reader.at < len(reader.text):
        reader.fail(f"{reader.peek()!r} not expected", reader.at)
    return options, policy


def _read(text: str, with_policy: bool, elements: Mapping[str, Element]) -> tuple[Format, Policy]:
    reader = _Reader(text, elements)
    fmt = _read_body(reader)
    options, policy = _read_options(reader, with_policy)
    parts: dict[str, Element | None] = {"zero": fmt.zero, "offset": fmt.offset}
    pack, nested, opened = fmt.pack, fmt.nested, fmt.opened
    made = fmt
    # Each option is checked as soon as it is known, so that an error points at the right one.
    for key, (value, start) in sorted(options.items(), key=lambda option: option[0] == "open"):  # of what the others make
        if fmt.block is None and key != "pack":
            reader.fail(f"+{key} needs a block, as in {'int8@128+nest=4' if key in ('nest', 'open') else f'uint4@128+{key}'}", start)
        if key == "pack":
            pack = str(value)
        elif key == "nest":
            nested = tuple(int(width) for width in str(value).split("."))
        elif key == "open":
            opened = None if int(str(value)) == fmt.element.bits and nested else int(str(value))
        elif key == "zp":
            parts["zero"] = value if isinstance(value, Element) else fmt.element
        else:
            parts["offset"] = value if isinstance(value, Element) else fmt.levels[0].element
        try:
            made = Format.of(fmt.element, fmt.block, fmt.levels, parts["zero"], parts["offset"], pack, nested, opened)
        except FormatError as reason:
            reader.fail(str(reason), start)
    return made, Policy(**policy)


def parse_format(text: str, elements: Mapping[str, Element] | None = None) -> Format:
    """Reads a format; `elements`: by name, beside those that are known. FormatError: with the position and what is allowed there.

    >>> parse_format("int4@12a")
    Traceback (most recent call last):
        ...
    anybit.errors.FormatError: int4@12a: '12a' is no block (tensor, channel, token, or sizes such as 128, 32x1, allx32) at position 5
    """
    return _read(text, with_policy=False, elements=elements or {})[0]


def parse_spec(text: str) -> Spec:
    """Reads a format and a policy. FormatError: as parse_format."""
    return Spec(*_read(text, with_policy=True, elements={}))
