"""The tokenizer of a GGUF file as a tokenizer.json: byte-level BPE ("gpt2") and SentencePiece-like BPE with byte fallback ("llama").

Source: llama.cpp's llama-vocab.cpp for how a file's fields are meant; the tokenizers library's JSON for what they become.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from anybit.errors import FileFormatError
from anybit.io.gguf.container import Container
from anybit.io.strict_json import shown

MAX_TOKEN = 1024
MAX_CUTS = 1 << 28  # characters of all pieces of all tokens; Gemma's 262,144 tokens have 2^25
NORMAL, UNKNOWN, CONTROL, USER = 1, 2, 3, 4
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tokenizer.ggml.pre: how text is cut before merging. Each expression cuts the pieces of the one before.
PRE: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais"), (_GPT2,)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"), (_LLAMA3.replace("{1,3}", ""),)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), (r"\p{N}", _GPT2)),
    "tekken": (_TEKKEN,),
    "default": (
        r"[\p{P}\$\+<=>\^~\|]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
        r"\p{N}+",
        r"[0-9][0-9][0-9]",
    ),
}
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "tekken")  # a piece that is a token is never merged
_NFC = ("qwen2", "deepseek-r1-qwen")
_SPACE = "\u2581"


class _Vocabulary:
    """The checked fields of a file that a tokenizer is made of."""

    def __init__(self, file: Container) -> None:
        self.path, self.metadata = file.path, file.metadata
        self.tokens: list[str] = self.take("tokens", list, str)
        self.types = self.numbers("token_type", NORMAL)
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            twice = next(token for i, token in enumerate(self.tokens) if self.ids[token] != i)
            raise self.fail("tokens", f"lists {shown(twice, 60)} twice")
        longest = max(map(len, self.tokens), default=0)
        if longest > MAX_TOKEN:  # all ways to cut a token are tried
            raise self.fail("tokens", f"has a token of {longest} characters, {MAX_TOKEN} at most")

    def fail(self, key: str, problem: str) -> FileFormatError:
        field = f"tokenizer.ggml.{key}"
        return FileFormatError(f"{self.path}: field '{field}' {problem}{self.metadata.at(field)}; convert the model again")

    def take(self, key: str, kind: type, of: type = object, default: Any = ...) -> Any:
        value = self.metadata.get(f"tokenizer.ggml.{key}", default)
        if value is ...:
            raise self.fail(key, "is missing")
        items: Any = value if isinstance(value, list) else ()
        if value is not default and (type(value) is not kind or not all(isinstance(item, of) for item in items)):
            raise self.fail(key, f"is no {kind.__name__}" + (f" of {of.__name__}" if kind is list else ""))
        return value

    def numbers(self, key: str, default: Any) -> np.ndarray:
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            return np.full(len(self.tokens), default)
        if not isinstance(value, np.ndarray) or value.shape != (len(self.tokens),):
            raise self.fail(key, f"does not hold one number for each of {len(self.tokens)} tokens")
        return value

    def token(self, which: str) -> str | None:
        """A special token by its role."""
        index = self.take(f"{which}_token_id", int, default=None)
        if index is not None and not 0 <= index < len(self.tokens):
            raise self.fail(f"{which}_token_id", f"is {index}, beyond the {len(self.tokens)} tokens")
        return None if index is None else self.tokens[index]

    def added(self) -> list[dict[str, Any]]:
        """Tokens that are found in text before anything is cut: control tokens, and those that users defined."""
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        chosen = np.flatnonzero(np.isin(self.types, (UNKNOWN, CONTROL, USER)))
        return [
            {"id": int(i), "content": self.tokens[i], **flags, "special": bool(self.types[i] != USER)} for i in chosen if self.tokens[i]
        ]

    def around(self, begin: bool) -> dict[str, Any] | None:
        """The post-processor that adds the first and last token. `begin`: whether a file that does not say so has the first."""
        first = self.token("bos") if self.take("add_bos_token", bool, default=begin) else None
        last = self.token("eos") if self.take("add_eos_token", bool, default=False) else None
        if first is None and last is None:
            return None
        used = {token: {"id": token, "ids": [self.ids[token]], "tokens": [token]} for token in (first, last) if token is not None}

        def template(*names: str) -> list[dict[str, Any]]:
            items: list[dict[str, Any]] = []
            for number, name in enumerate(names):
                marks = [first, None, last]
                items += [
                    {"Sequence": {"id": name, "type_id": number}} if mark is None else {"SpecialToken": {"id": mark, "type_id": number}}
                    for place, mark in enumerate(marks)
                    if place == 1 or mark is not None
                ]
            return items

        return {"type": "TemplateProcessing", "single": template("A"), "pair": template("A", "B"), "special_tokens": used}


def _byte_level(words: _Vocabulary) -> dict[str, Any]:
    name = words.take("pre", str, default="default")
    if name not in PRE:
        raise words.fail("pre", f"is {shown(name, 60)}, a way of cutting text that is not known here (known: {', '.join(PRE)})")
    merges: list[str] = words.take("merges", list, str)
    for i, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        if left not in words.ids or right not in words.ids or left + right not in words.ids:
            raise words.fail("merges", f"has {shown(merge, 60)} at {i}, which does not join two tokens into a third")
    cut: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False} for expression in PRE[name]
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "normalizer": {"type": "NFC"} if name in _NFC else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cut, level]},
        "post_processor": words.around(name in ("llama-bpe", "llama3", "llama-v3", "falcon3", "tekken")),
        "decoder": {**level, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "ignore_merges": name in _WHOLE_WORDS, "vocab": words.ids,
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }  # fmt: skip


def _merges(words: _Vocabulary) -> list[list[str]]:
    """The pairs of tokens that make a token, best score first: what SentencePiece's BPE would join, as a list."""
    scores = words.numbers("scores", 0.0)
    if sum(len(token) ** 2 for token in words.tokens) > MAX_CUTS:
        raise words.fail("tokens", "has too many long tokens to try all ways of cutting them")
    usable = {token: i for token, i in words.ids.items() if words.types[i] in (NORMAL, USER)}
    found: list[tuple[float, int, int, str, str]] = []
    for token, i in usable.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in usable and right in usable:
                found.append((-float(scores[i]), usable[left], usable[right], left, right))
    found.sort()
    return [[left, right] for *_, left, right in found]


def _sentence_piece(words: _Vocabulary) -> dict[str, Any]:
    prefix = words.take("add_space_prefix", bool, default=True)
    if words.take("remove_extra_whitespaces", bool, default=False):
        raise words.fail("remove_extra_whitespaces", "is true, which is not supported")
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    first = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    unknown = next((words.tokens[i] for i in np.flatnonzero(words.types == UNKNOWN)), words.token("unknown"))
    decode: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    ]  # fmt: skip
    if prefix:
        decode.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*first, spaces]},
        "pre_tokenizer": None,
        "post_processor": words.around(True),
        "decoder": {"type": "Sequence", "decoders": decode},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": unknown, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": words.ids, "merges": _merges(words),
        },
    }  # fmt: skip


def tokenizer_json(file: Container) -> bytes:
    """The tokenizer of a file as the tokenizers library stores it.

    Raises: FileFormatError: another kind of tokenizer or way of cutting text (named), or fields that are missing or contradict each other.
    """
    kind = file.metadata.get("tokenizer.ggml.model")
    makers = {"gpt2": _byte_level, "llama": _sentence_piece}
    if not isinstance(kind, str) or kind not in makers:
        known = ", ".join(makers)
        what = f"is {shown(kind, 60)}, which is not supported{file.metadata.at('tokenizer.ggml.model')}"
        raise FileFormatError(f"{file.path}: field 'tokenizer.ggml.model' {what}; supported: {known}")
    words = _Vocabulary(file)
    made = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": words.added(), **makers[kind](words)}
    return json.dumps(made, ensure_ascii=False).encode("utf-8", "surrogatepass")
