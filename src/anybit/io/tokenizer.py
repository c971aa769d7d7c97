"""tokenizer.json, checked before the tokenizers library sees it: that library runs what the file says, and has no limits of its own.

A file can ask it for expressions that take exponential time, for a normalizer that doubles a text forty times over, for padding to 2^60
tokens; and some contents abort it. What none of the supported models needs is refused here. Truncation and padding are switched off: a
prompt is never cut without a word, and nothing here works on padded batches.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anybit.errors import FileFormatError
from anybit.io import strict_json
from anybit.io.strict_json import Where, shown

MAX_ID = 1 << 24
MAX_WORD = 4096  # characters of a token; DeepSeek's and Qwen's longest have 128
MAX_STEPS = 64  # normalizers, pre-tokenizers, decoders, post-processors
MAX_DEPTH = 8  # of sequences in sequences
MAX_GROWTH = 64  # times that replacements may lengthen a text
MAX_REGEX = 2048
MAX_BITS = 16  # of the number of ways in which an expression can match without repetitions that have no end
MODELS = ("BPE", "Unigram", "WordPiece", "WordLevel")
_STAGES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_ADVICE = "save the model's fast tokenizer again (tokenizer.save_pretrained)"
_TRIALS = ("", "a\u00e9\u4e2d \U0001f600  1234\n\tThe end's", " \0 \x1b", "a" * 40)

# one unit of an expression: an escape, a class (one level of classes inside), or any character
_UNIT = re.compile(r"\\[pPxukg]\{[^}]*\}|\\.|\[\^?\]?(?:\\.|\[:?[^\]]*\]|[^\]\\])*\]|.", re.DOTALL)
_QUANTIFIER = re.compile(r"(?:[*+?]|\{(\d*)(?:(,)(\d*))?\})[?+]?")


class _Reader:
    """Walks a decoded file; every refusal says where."""

    def __init__(self, where: Where) -> None:
        self.where, self.steps, self.growth = where, 0, 1.0

    def fail(self, where: Where, what: str) -> FileFormatError:
        field = ".".join(where.keys) or "the top level"
        return FileFormatError(f"{where.file}: field {shown(field)} {what}{where.at}; {_ADVICE}")

    def fields_of(self, value: object, where: Where) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.fail(where, f"is {shown(value, 40)}, not an object")
        return value

    def number(self, value: object, where: Where, most: int = MAX_ID) -> None:
        if type(value) is not int or not 0 <= value < most:
            raise self.fail(where, f"is {shown(value, 40)}; a whole number below {most} is needed")

    def word(self, value: object, where: Where, what: str) -> str:
        if not isinstance(value, str) or len(value) > MAX_WORD:
            raise self.fail(where, f"{what} {shown(value, 60)}; text of at most {MAX_WORD} characters is needed")
        return value

    def whole(self, value: object) -> None:
        top = self.fields_of(value, self.where)
        model = self.fields_of(top.get("model"), self.where / "model")
        words = self.model(model, self.where / "model")
        added = self.where / "added_tokens"
        listed = top.get("added_tokens", [])
        if not isinstance(listed, list) or len(listed) > MAX_ID:
            raise self.fail(added, "is no list")
        for item in listed:
            self.number(self.fields_of(item, added).get("id"), added)
            words.append(self.word(item.get("content"), added, "holds"))
            if not item["content"]:
                raise self.fail(added, "holds an empty token")
        for stage in _STAGES:
            if top.get(stage) is not None:
                self.step(top[stage], self.where / stage, 0)

    def model(self, model: dict[str, Any], where: Where) -> list[str]:
        """The words of the vocabulary."""
        if model.get("type") not in MODELS:
            raise self.fail(where / "type", f"is {shown(model.get('type'), 40)}; supported: {', '.join(MODELS)}")
        if model.get("dropout") not in (None, 0):
            raise self.fail(where / "dropout", f"is {shown(model['dropout'], 40)}: tokens would be drawn at random")
        vocabulary, place = model.get("vocab"), where / "vocab"
        if model["type"] == "Unigram":
            pairs = vocabulary if isinstance(vocabulary, list) else [None]
            for pair in pairs:
                if not (isinstance(pair, list) and len(pair) == 2 and type(pair[1]) in (int, float)):
                    raise self.fail(place, f"holds {shown(pair, 40)}; pairs of text and number are needed")
            words = [pair[0] for pair in pairs if pair]
            if model.get("unk_id") is not None:
                self.number(model["unk_id"], where / "unk_id", max(1, len(words)))
        else:
            words = list(self.fields_of(vocabulary, place))
            numbers = set(vocabulary.values()) if all(type(n) is int for n in vocabulary.values()) else {-1}  # type: ignore[union-attr]
            if len(numbers) != len(words) or min(numbers, default=0) < 0 or max(numbers, default=0) >= MAX_ID:
                raise self.fail(place, f"needs a number of its own below {MAX_ID} for each word")
        if not words:
            raise self.fail(place, "is empty")
        for word in words:
            self.word(word, place, "holds")
        for key in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(key) is not None:
                self.word(model[key], where / key, "is")
        if model["type"] == "BPE":
            self.merges(model, set(words), where / "merges")
        return words

    def merges(self, model: dict[str, Any], words: set[str], where: Where) -> None:
        listed = model.get("merges")
        if not isinstance(listed, list):
            raise self.fail(where, "is no list")
        prefix = model.get("continuing_subword_prefix") or ""
        for i, merge in enumerate(listed):
            parts = merge.split(" ") if isinstance(merge, str) else merge
            if not (isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) for part in parts)):
                raise self.fail(where, f"has {shown(merge, 60)} at {i}, no pair of tokens")
            left, right = parts
            joined = left + right[len(prefix) :]
            if left not in words or right not in words or joined not in words or not right.startswith(prefix):
                raise self.fail(where, f"has {shown(merge, 60)} at {i}, which does not join two tokens into a third")

    def step(self, value: object, where: Where, depth: int) -> None:
        """A normalizer, pre-tokenizer, post-processor or decoder, and those inside it."""
        fields = self.fields_of(value, where)
        self.steps += 1
        if depth > MAX_DEPTH or self.steps > MAX_STEPS:
            raise self.fail(where, f"has more than {MAX_STEPS} steps, or more than {MAX_DEPTH} inside each other")
        if not isinstance(fields.get("type"), str):
            raise self.fail(where, f"has the type {shown(fields.get('type'), 40)}")
        for key in ("normalizers", "pretokenizers", "processors", "decoders"):
            inner = fields.get(key, [])
            if not isinstance(inner, list):
                raise self.fail(where / key, "is no list")
            for item in inner:
                self.step(item, where / key, depth + 1)
        if "pattern" in fields:
            self.pattern(fields, where)
        if fields["type"] == "Prepend":
            self.word(fields.get("prepend"), where, "prepends")
        for key in ("start", "stop", "length", "prefix_length"):
            if key in fields:
                self.number(fields[key], where / key, 1 << 16)
        for name, limit in (("sep", 2), ("cls", 2)):
            pair = fields.get(name)
            if pair is not None:
                if not (isinstance(pair, list) and len(pair) == limit):
                    raise self.fail(where / name, f"is {shown(pair, 40)}; a word and its number are needed")
                self.number(pair[1], where / name)
        if fields["type"] == "Strip" and fields.get("stop"):
            raise self.fail(where / "stop", "is not 0: the library aborts at a token that is shorter")
        if fields["type"] == "TemplateProcessing":
            self.template(fields, where)
        for token, special in self.special(fields, where):
            ids, words = special.get("ids"), special.get("tokens")
            if not (isinstance(ids, list) and isinstance(words, list) and len(ids) == len(words) <= MAX_STEPS):
                raise self.fail(where / "special_tokens", f"gives {shown(token, 40)} no numbers and as many words")
            for number in ids:
                self.number(number, where / "special_tokens")

    def template(self, fields: dict[str, Any], where: Where) -> None:
        """The library aborts at a word that its template does not define."""
        known = self.fields_of(fields.get("special_tokens", {}), where / "special_tokens")
        for key in ("single", "pair"):
            pieces = fields.get(key, [])
            for piece in pieces if isinstance(pieces, list) else []:
                inner = piece.get("Sequence") if isinstance(piece, dict) else None
                if key == "single" and isinstance(inner, dict) and inner.get("id") != "A":
                    raise self.fail(where / key, "asks for a second text")
                named = piece.get("SpecialToken", {}) if isinstance(piece, dict) else {}
                if named and (not isinstance(named, dict) or not isinstance(named.get("id"), str) or named["id"] not in known):
                    raise self.fail(where / key, f"names {shown(named, 40)}, which special_tokens does not define")

    def special(self, fields: dict[str, Any], where: Where) -> Iterator[tuple[str, dict[str, Any]]]:
        listed = self.fields_of(fields.get("special_tokens", {}), where / "special_tokens")
        return ((key, self.fields_of(item, where / "special_tokens")) for key, item in listed.items())

    def pattern(self, fields: dict[str, Any], where: Where) -> None:
        pattern = fields["pattern"]
        if not (isinstance(pattern, dict) and len(pattern) == 1 and isinstance(next(iter(pattern.values())), str)):
            raise self.fail(where / "pattern", f"is {shown(pattern, 40)}, no text or expression")
        text = str(next(iter(pattern.values())))
        if not text:
            raise self.fail(where / "pattern", "is empty")
        if "Regex" in pattern:
            reason = slow(text)
            if reason is not None:
                raise self.fail(where / "pattern", f"has the expression {shown(text, 60)}: {reason}")
        if fields["type"] == "Replace":
            content = self.word(fields.get("content"), where / "content", "is")
            shortest = len(text) if "String" in pattern else 1
            self.growth *= max(1.0, len(content) / shortest)
            if self.growth > MAX_GROWTH:
                raise self.fail(where, f"makes a text more than {MAX_GROWTH} times as long")


class _Group:
    """What is known of a group that is being read: in how many ways (as bits) its present alternative can match and how many repetitions
    without end follow each other in it; the ways of all alternatives before, and the most such repetitions."""

    def __init__(self) -> None:
        self.bits, self.endless, self.ways, self.most_endless = 0.0, 0, 0.0, 0

    def another(self) -> None:
        """An alternative ends."""
        self.ways += 2.0**self.bits
        self.most_endless = max(self.most_endless, self.endless)
        self.bits, self.endless = 0.0, 0


def slow(expression: str) -> str | None:
    """Why an expression could take time without bound, or None: repetitions of what can itself match in several ways, or too many in a row.

    >>> slow(r"\\\\s+(?!\\\\S)|[^\\\\r\\\\n\\\\p{L}]?\\\\p{L}+")
    >>> slow("(a+)+")
    'it repeats a group that repeats or chooses'
    """
    if len(expression) > MAX_REGEX:
        return f"it has {len(expression)} characters, {MAX_REGEX} at most"
    groups, size, at = [_Group()], 1, 0
    while at < len(expression):
        unit = _UNIT.match(expression, at)
        assert unit is not None
        text, at, closed = unit[0], unit.end(), None
        if text == "(":
            if len(groups) > MAX_DEPTH:
                return f"groups more than {MAX_DEPTH} deep"
            groups.append(_Group())
            if expression.startswith("?", at):  # (?:  (?=  (?i:
                at += 1
            continue
        if text == "|":
            groups[-1].another()
            continue
        if text == ")":
            if len(groups) == 1:
                return "a bracket closes nothing"
            groups[-1].another()
            closed = groups.pop()
        repeat = _QUANTIFIER.match(expression, at)
        unbounded, fewest, most = False, 1, 1
        if repeat is not None:
            at = repeat.end()
            unbounded = repeat[0][0] in "*+" or (repeat[2] is not None and not repeat[3])
            fewest = int(repeat[1] or 0) if repeat[0][0] == "{" else int(repeat[0][0] == "+")
            most = max(fewest, 1) if unbounded else int(repeat[3]) if repeat[3] else fewest if repeat[1] else 1
            size *= max(1, 1 if unbounded else most)
            if size > 10_000:
                return "its counts multiply to more than 10000"
            if closed is not None and (closed.ways > 1 or closed.most_endless) and (unbounded or most > 16):
                return "it repeats a group that repeats or chooses"
        groups[-1].bits += math.log2(max(most - fewest, 0) + 1) + (math.log2(closed.ways) * most if closed else 0)
        groups[-1].endless += int(unbounded) + (closed.most_endless * most if closed else 0)
        if groups[-1].endless > 4:
            return "more than four repetitions follow each other"
        if groups[-1].bits > MAX_BITS:
            return f"it can match in more than 2^{MAX_BITS} ways"
    return None if len(groups) == 1 else "a bracket is not closed"


def read_tokenizer(content: bytes, where: Path | str) -> Any:
    """A `tokenizers.Tokenizer` that neither truncates nor pads. `where`: the file's name in messages.

    Raises: FileFormatError: no JSON, a field that is missing or wrong (named, with its byte), or what the library does not take.
    Cost: two passes over the file, 0.3 s for 150,000 tokens.
    """
    place = Where(str(where), lambda: content)
    _Reader(place).whole(strict_json.parse(content, str(where)))
    from tokenizers import Tokenizer

    try:
        made = Tokenizer.from_str(content.decode())
        made.no_truncation()
        made.no_padding()
        for text in _TRIALS:
            made.decode(made.encode(text).ids)
        for index in range(min(made.get_vocab_size(), 256)):
            made.decode([index])
    except BaseException as error:  # the library raises nothing narrower than Exception, and its panics are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        told = str(error)
        line = re.search(r" at line (\d+) column (\d+)", told)
        at = _byte(content, int(line[1]), int(line[2])) if line else strict_json.place(content, ["model"])
        raise FileFormatError(f"{where}: the tokenizers library does not take it at byte {at}: {shown(told, 300)}; {_ADVICE}") from None
    return made


def _byte(content: bytes, line: int, column: int) -> int:
    """The place that a message gives by line and column, both from 1."""
    return sum(len(each) + 1 for each in content.split(b"\n")[: line - 1]) + max(0, column - 1)
