"""A tokenizer.json as the fields of a GGUF file: the inverse of `tokenizer.py`.

Byte-level BPE becomes "gpt2" with the name of its way to cut text, BPE with byte fallback "llama", whose scores are the order of merges: a
token's score is less the later it is made, as SentencePiece's are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from anybit.errors import FileFormatError, UsageError
from anybit.io.gguf.tokenizer import CONTROL, NORMAL, PRE, UNKNOWN, USER
from anybit.io.gguf.writer import Value
from anybit.io.strict_json import shown

UNUSED, BYTE = 5, 6


def _steps(part: Any, key: str) -> list[dict[str, Any]]:
    """A step of a tokenizer, or those of a sequence."""
    if not isinstance(part, dict):
        return []
    if part.get("type") == "Sequence":
        return [step for inner in part.get(key, []) for step in _steps(inner, key)]
    return [part]


def _cut(content: Mapping[str, Any]) -> str:
    """`tokenizer.ggml.pre`: the name of the expressions that text is cut with. UsageError: none has a name."""
    expressions: list[str] = []
    for step in _steps(content.get("pre_tokenizer"), "pretokenizers"):
        kind = step.get("type")
        pattern = step.get("pattern")
        if kind == "Split" and isinstance(pattern, dict) and step.get("behavior") == "Isolated":
            expressions.append(str(pattern.get("Regex", pattern.get("String"))))
        elif kind == "Digits" and step.get("individual_digits"):
            expressions.append(r"\p{N}")
        elif kind == "ByteLevel":
            if step.get("add_prefix_space"):
                raise UsageError("the tokenizer adds a space before text, which GGUF's byte-level BPE does not express")
            if step.get("use_regex", True):
                expressions.append(PRE["gpt-2"][0])
        else:
            raise UsageError(f"the tokenizer cuts text with {shown(kind, 40)}, which no GGUF tokenizer does")
    composed = any(step.get("type") == "NFC" for step in _steps(content.get("normalizer"), "normalizers"))
    for name, known in PRE.items():
        if known == tuple(expressions) and composed == (name in ("qwen2", "deepseek-r1-qwen")):
            return name
    for name, known in PRE.items():  # llama.cpp composes nothing; a normalizer is lost where a name has none
        if known == tuple(expressions) and not composed:
            return name
    raise UsageError(f"the tokenizer cuts text in a way that has no name in GGUF: {shown(expressions, 120)}; known: {', '.join(PRE)}")


def _template(content: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether a text gets a first and a last special token."""
    for step in _steps(content.get("post_processor"), "processors"):
        if step.get("type") == "TemplateProcessing":
            single = step.get("single", [])
            return bool(single and "SpecialToken" in single[0]), bool(single and "SpecialToken" in single[-1])
    return False, False


def _spaces(content: Mapping[str, Any]) -> bool:
    """Whether a space goes before text in a SentencePiece-like tokenizer."""
    if any(step.get("type") == "Prepend" for step in _steps(content.get("normalizer"), "normalizers")):
        return True
    steps = _steps(content.get("pre_tokenizer"), "pretokenizers")
    return any(step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never" for step in steps)


def tokenizer_fields(
    data: bytes, vocab: int, bos: int | None, eos: tuple[int, ...], template: str | None = None, unknown: int | None = None
) -> dict[str, Value]:
    """The fields of a tokenizer for a model of `vocab` tokens.

    Raises: FileFormatError: no tokenizer.json. UsageError: a tokenizer that GGUF does not express, with what it does.
    """
    try:
        content = json.loads(data)
    except ValueError as error:
        raise FileFormatError(f"tokenizer.json: {error}; save the tokenizer again") from None
    model = content.get("model") if isinstance(content, dict) else None
    words = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(words, dict):
        kind = model.get("type") if isinstance(model, dict) else None
        raise UsageError(f"the tokenizer is {shown(kind, 40)}, not BPE, which is what is written to GGUF")
    added = {int(item["id"]): item for item in content.get("added_tokens", [])}
    tokens = {int(index): token for token, index in words.items()} | {i: item["content"] for i, item in added.items()}
    if tokens and max(tokens) >= vocab:
        raise UsageError(f"the tokenizer has the token {max(tokens)}, but the model only {vocab}")
    listed = [tokens.get(i, f"[PAD{i}]") for i in range(vocab)]
    pieces = bool(model.get("byte_fallback"))
    types = []
    for i, token in enumerate(listed):
        if i not in tokens:
            types.append(UNUSED)
        elif pieces and token == (model.get("unk_token") or "<unk>"):
            types.append(UNKNOWN)
        elif i in added:
            types.append(CONTROL if added[i].get("special") else USER)
        elif pieces and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types.append(BYTE)
        else:
            types.append(NORMAL)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", [])]
    fields = {
        "model": Value("str", "llama" if pieces else "gpt2"), "tokens": Value("str", listed, True), "token_type": Value("i32", types, True),
    }  # fmt: skip
    if pieces:
        scores = dict.fromkeys(range(vocab), 0.0)
        ids = {token: i for i, token in tokens.items()}
        for rank, merge in enumerate(merges):
            made = ids.get(merge.replace(" ", "", 1))
            if made is not None and scores[made] == 0.0:
                scores[made] = -float(rank + 1)
        fields |= {"pre": Value("str", "default"), "scores": Value("f32", list(scores.values()), True)}
        fields["add_space_prefix"] = Value("bool", _spaces(content))
    else:
        fields |= {"pre": Value("str", _cut(content)), "merges": Value("str", merges, True)}
    first, last = _template(content)
    fields |= {"add_bos_token": Value("bool", first), "add_eos_token": Value("bool", last)}
    if bos is not None:
        fields["bos_token_id"] = Value("u32", bos)
    if eos:
        fields["eos_token_id"] = Value("u32", eos[0])
    if len(eos) > 1:
        fields["eot_token_id"] = Value("u32", eos[1])
    if unknown is None and pieces and UNKNOWN in types:
        fields["unknown_token_id"] = Value("u32", types.index(UNKNOWN))
    if template:
        fields["chat_template"] = Value("str", template)
    prefixed = {f"tokenizer.ggml.{key}": value for key, value in fields.items() if key != "chat_template"}
    return prefixed | ({"tokenizer.chat_template": fields["chat_template"]} if template else {})
