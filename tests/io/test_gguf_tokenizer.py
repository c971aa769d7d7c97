"""Tokenizers out of GGUF fields: the same tokens as the tokenizer that the fields were written from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf_file import Field, File
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from anybit.errors import FileFormatError
from anybit.io.gguf.container import Container
from anybit.io.gguf.tokenizer import PRE, tokenizer_json

SAMPLE = [
    "the quick brown fox jumps over the lazy dog", "def main(argument): return argument + 12345", "HELLO World, it's what we'll do!\n\n",
    "na\u00efve caf\u00e9 \u2014 \u65e5\u672c\u8a9e \U0001f600 tabs\tand  double  spaces   ",
    "1234567 <tag> x=1; y = 22", " leading", "a\r\nb\n \n c",
]  # fmt: skip
STRING, ARRAY, F32, I32, U32, BOOL = 8, 9, 6, 5, 4, 7


def fields(**values: Any) -> tuple[Field, ...]:
    made = []
    for key, value in values.items():
        name = f"tokenizer.ggml.{key}"
        if isinstance(value, list):
            of = STRING if value and isinstance(value[0], str) else F32 if value and isinstance(value[0], float) else I32
            made.append(Field(name, ARRAY, value, of))
        else:
            kind = BOOL if isinstance(value, bool) else STRING if isinstance(value, str) else U32
            made.append(Field(name, kind, value))
    return tuple(made)


def rebuilt(path: Path, **values: Any) -> Tokenizer:
    path.write_bytes(File(fields(**values), ()).bytes())
    return Tokenizer.from_str(tokenizer_json(Container(path)).decode())


def words_of(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), [" ".join(pair) for pair in model["merges"]]


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|end|>", "<|begin|>"]
    )
    tokenizer.train_from_iterator(SAMPLE * 4, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def sentence_piece() -> Tokenizer:
    """As Hugging Face stores Llama 2's: BPE over whole text with spaces as U+2581, bytes for what is unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, limit_alphabet=40)
    tokenizer.train_from_iterator(SAMPLE[:3] * 4, trainer)
    return tokenizer


@pytest.mark.parametrize("pre", sorted(PRE))
def test_byte_level(tmp_path: Path, byte_level: Tokenizer, pre: str) -> None:
    words, merges = words_of(byte_level)
    types = [3 if word in ("<|end|>", "<|begin|>") else 1 for word in words]
    begin = words.index("<|begin|>")
    got = rebuilt(
        tmp_path / "a", model="gpt2", pre=pre, tokens=words, token_type=types, merges=merges, bos_token_id=begin, add_bos_token=True
    )
    for text in SAMPLE:
        ids = got.encode(text).ids
        assert ids[0] == begin
        assert got.decode(ids) == text and got.decode(ids, skip_special_tokens=False) == "<|begin|>" + text
        if pre == "gpt-2":
            assert ids[1:] == byte_level.encode(text).ids
    assert got.encode("x<|end|>y", add_special_tokens=False).ids.count(words.index("<|end|>")) == 1


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["It", "'s", " 12345", " HELLOworld", "!!", "\n\n", " x"]),
        ("llama-bpe", ["It", "'s", " ", "123", "45", " HELLOworld", "!!\n\n", " x"]),
        ("qwen2", ["It", "'s", " ", "1", "2", "3", "4", "5", " HELLOworld", "!!\n\n", " x"]),
        ("tekken", ["It", "'s", " ", "1", "2", "3", "4", "5", " HELLOworld", "!!\n\n", " x"]),
        ("smollm", ["It", "'s", " ", "1", "2", "3", "4", "5", " HELLOworld", "!!", "\n\n", " x"]),
        ("default", ["It", "'", "s", " ", "123", "45", " HELLOworld", "!!", "\n\n", " x"]),
    ],
)
def test_where_text_is_cut(tmp_path: Path, byte_level: Tokenizer, pre: str, pieces: list[str]) -> None:
    """Against what the models' own expressions do, by hand."""
    words, merges = words_of(byte_level)
    made = rebuilt(tmp_path / "a", model="gpt2", pre=pre, tokens=words, merges=merges)
    text = "It's 12345 HELLOworld!!\n\n x"
    found = [text[start:stop] for _, (start, stop) in made.pre_tokenizer.pre_tokenize_str(text)]
    assert found == pieces


def test_sentence_piece(tmp_path: Path, sentence_piece: Tokenizer) -> None:
    words, merges = words_of(sentence_piece)
    rank = {"".join(merge.split(" ")): i for i, merge in reversed(list(enumerate(merges)))}
    types = [2 if w == "<unk>" else 3 if w in ("<s>", "</s>") else 6 if w.startswith("<0x") else 1 for w in words]
    scores = [-float(rank.get(word, 10_000)) for word in words]
    got = rebuilt(
        tmp_path / "a", model="llama", tokens=words, token_type=types, scores=scores, bos_token_id=1, eos_token_id=2, unknown_token_id=0
    )
    plain = sentence_piece.encode
    for text in [*SAMPLE, "unseen \u00df\u4e2d"]:
        ids = got.encode(text).ids
        assert ids[0] == 1, "the first token is added unless the file says no"
        assert ids[1:] == plain(text, add_special_tokens=False).ids
        assert got.decode(ids) == text
    last = rebuilt(tmp_path / "b", model="llama", tokens=words, token_type=types, scores=scores, bos_token_id=1, eos_token_id=2,
                   add_bos_token=False, add_eos_token=True, add_space_prefix=False)  # fmt: skip
    ids = last.encode(" quick").ids
    assert ids[-1] == 2 and ids[0] != 1 and last.decode(ids) == " quick"
    assert last.encode("the", "dog").ids.count(2) == 2


def test_user_defined_tokens(tmp_path: Path, byte_level: Tokenizer) -> None:
    words, merges = words_of(byte_level)
    made = rebuilt(tmp_path / "a", model="gpt2", pre="gpt-2", tokens=[*words, "<tool>", "<|im_end|>"], merges=merges,
                   token_type=[1] * len(words) + [4, 3])  # fmt: skip
    ids = made.encode("a<tool>b<|im_end|>").ids
    assert {len(words), len(words) + 1} <= set(ids)
    assert made.decode(ids) == "a<tool>b", "control tokens are skipped, those of users are text"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model": "bert"}, r"'tokenizer\.ggml\.model' is 'bert', which is not supported \(at byte 24\); supported: gpt2, llama"),
        ({"pre": "viking"}, r"'tokenizer\.ggml\.pre' is 'viking', a way of cutting text that is not known here"),
        ({"tokens": ["a", "b", "a"]}, r"tokens' lists 'a' twice"),
        ({"tokens": ["a", "b", "x" * 1025]}, r"tokens' has a token of 1025 characters, 1024 at most"),
        ({"tokens": [1, 2, 3]}, r"tokens' is no list of str"),
        ({"tokens": 7}, r"tokens' is no list"),
        ({"token_type": [1, 1]}, r"token_type' does not hold one number for each of 3 tokens"),
        ({"merges": ["a c"]}, r"merges' has 'a c' at 0, which does not join two tokens into a third"),
        ({"merges": ["ab"]}, "does not join two tokens"),
        ({"bos_token_id": 3, "add_bos_token": True}, r"bos_token_id' is 3, beyond the 3 tokens"),
        ({"bos_token_id": "x", "add_bos_token": True}, r"bos_token_id' is no int"),
        ({"add_bos_token": 1}, r"add_bos_token' is no bool"),
    ],
)
def test_fields_that_contradict_each_other(tmp_path: Path, values: dict[str, Any], says: str) -> None:
    good = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b", "ab"], "token_type": [1, 1, 1], "merges": ["a b"]}
    assert rebuilt(tmp_path / "good", **good).encode("ab").ids == [2]
    with pytest.raises(FileFormatError, match=says):
        rebuilt(tmp_path / "bad", **{**good, **values})


def test_scores_of_another_length(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="scores' does not hold one number for each of 2 tokens"):
        rebuilt(tmp_path / "a", model="llama", tokens=["a", "b"], token_type=[1, 1], scores=[0.0])
