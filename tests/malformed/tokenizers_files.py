"""tokenizer.json: byte-level BPE, BPE with byte fallback, Unigram, WordPiece, WordLevel."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

from anybit.io.tokenizer import read_tokenizer
from malformed.json_damage import Object, Raw, damage, damage_bytes, dump, hostile, parse

TEXTS = ("", "abcd  def \u00e4\U0001f600\n1234", "a" * 60, "<s> ab cd </s>", "\0\x1b x")
_SPLIT = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Expressions that take exponential time in a backtracking engine, or that no engine takes.
REGEXES = (
    "(a+)+$",
    "(a|aa)+$",
    "(.*)*x",
    "((((a*)*)*)*)*b",
    "(?=",
    "[",
    "a{99999}",
    "(a{1000}){1000}",
    "\\p{Nope}",
    "(?<=a+)b",
    "x*" * 200,
    "",
    "^",
    "\\1(a)",
)


def _added(*words: tuple[int, str]) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": i, "content": word, **flags} for i, word in words]


def _whole(model: dict[str, Any], **parts: Any) -> str:
    kept = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return json.dumps({"version": "1.0", "added_tokens": [], **kept, **parts, "model": model})


@cache
def bases() -> tuple[str, ...]:
    letters = {c: i for i, c in enumerate(["<unk>", "<s>", "</s>", *"abcdefgh1234", "\u0120", "\u2581", "ab", "cd", "abcd", "\u0120a"])}
    bpe = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": letters,
        "merges": [["a", "b"], ["c", "d"], ["ab", "cd"], ["\u0120", "a"]],
    }
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Isolated", "invert": False}
    special = {name: {"id": name, "ids": [i], "tokens": [name]} for i, name in ((1, "<s>"), (2, "</s>"))}
    around = {
        "type": "TemplateProcessing",
        "special_tokens": special,
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    }
    spaces = [{"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]
    ends = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    ends += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    words = [["<unk>", 0.0], ["<s>", 0.0], ["</s>", 0.0], ["\u2581", -2.0], *([c, -3.0] for c in "abcdefgh"), ["ab", -2.5], ["abcd", -4.0]]
    return (
        _whole(
            bpe,
            added_tokens=_added((1, "<s>"), (2, "</s>")),
            pre_tokenizer={"type": "Sequence", "pretokenizers": [split, level]},
            decoder={**level, "use_regex": True},
            post_processor=around,
            normalizer={"type": "NFC"},
        ),
        _whole(
            {**bpe, "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True, "merges": ["a b", "c d", "ab cd"]},
            added_tokens=_added((0, "<unk>"), (1, "<s>"), (2, "</s>")),
            normalizer={"type": "Sequence", "normalizers": spaces},
            decoder={"type": "Sequence", "decoders": ends},
            post_processor=around,
        ),
        _whole(
            {"type": "Unigram", "unk_id": 0, "vocab": words, "byte_fallback": False},
            pre_tokenizer={"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
            decoder={"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
            truncation={"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
            padding={
                "strategy": {"Fixed": 4},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "x",
            },
        ),
        _whole(
            {
                "type": "WordPiece",
                "unk_token": "<unk>",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": letters,
            },
            normalizer={
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": True,
                "strip_accents": None,
                "lowercase": True,
            },
            pre_tokenizer={"type": "BertPreTokenizer"},
            decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
            post_processor={"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]},
        ),
        _whole(
            {"type": "WordLevel", "vocab": letters, "unk_token": "<unk>"},
            pre_tokenizer={"type": "Digits", "individual_digits": True},
            post_processor={
                "type": "RobertaProcessing",
                "sep": ["</s>", 2],
                "cls": ["<s>", 1],
                "trim_offsets": True,
                "add_prefix_space": True,
            },
        ),
    )


def base() -> dict[str, bytes]:
    return {"tokenizer.json": bases()[0].encode()}


def _strange(tree: Object, rng: random.Random) -> str:
    """Valid structure, hostile content."""
    kind, fields = rng.randrange(5), dict(tree)
    expression = rng.choice(REGEXES)
    if kind == 0:
        fields["pre_tokenizer"] = Object(
            {"type": "Split", "pattern": Object({"Regex": expression}.items()), "behavior": "Isolated", "invert": False}.items()
        )
    elif kind == 1:
        fields["normalizer"] = Object(
            {"type": "Replace", "pattern": Object({"Regex": expression}.items()), "content": "a" * rng.choice((1, 1000))}.items()
        )
    elif kind == 2:  # a normalizer that doubles the text, many times over
        double = Object({"type": "Replace", "pattern": Object([("String", "a")]), "content": "aa"}.items())
        fields["normalizer"] = Object([("type", "Sequence"), ("normalizers", [double] * rng.choice((5, 12, 40)))])
    elif kind == 3:
        depth = rng.choice((3, 15, 30, 200))
        fields["normalizer"] = Raw('{"type":"Sequence","normalizers":[' * depth + '{"type":"Lowercase"}' + "]}" * depth)
    else:
        ids = rng.choice((2**31, 2**32 - 1, 10**6, 63, 64))
        fields["added_tokens"] = [Object({**_added((ids, "ab"))[0]}.items())]
    tree[:] = list(fields.items())
    return f"hostile content {kind}, {expression[:30]!r}"


def variant(rng: random.Random) -> tuple[str, dict[str, bytes]]:
    text = rng.choice(bases())
    kind = rng.random()
    if kind < 0.15:
        what, content = damage_bytes(text.encode(), rng)
        return what, {"tokenizer.json": content}
    tree = parse(text)
    if kind < 0.2:
        tree, what = hostile(rng), "another root"
    elif kind < 0.3:
        what = _strange(tree, rng)
    else:
        under = () if kind < 0.4 else (rng.choice([k for k, v in tree if isinstance(v, list)]),)
        what = f"{'.'.join(under)}: {damage(tree, rng, under)}"
    return what, {"tokenizer.json": (dump(tree) if not isinstance(tree, Raw) else str(tree)).encode("utf-8", "surrogatepass")}


def read(folder: Path) -> None:
    """Opens the tokenizer, and cuts and joins some texts."""
    path = folder / "tokenizer.json"
    tokenizer = read_tokenizer(path.read_bytes(), path)
    for text in TEXTS:
        tokenizer.decode(tokenizer.encode(text).ids)
