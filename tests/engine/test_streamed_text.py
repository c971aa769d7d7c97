"""Streaming against decoding everything at once, with the tokenizer's own decoder as the oracle."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from anybit.engine.text import Detokenizer, StopFilter


def byte_level() -> Tokenizer:
    """One token for each byte, and a few longer ones that end inside characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: i for i, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def spaced() -> Tokenizer:
    """Words with a leading mark for the space, which the decoder drops at the start of a text."""
    tokenizer = Tokenizer(models.WordLevel({"▁one": 0, "▁two": 1, "three": 2, "▁": 3}, unk_token="▁"))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


@pytest.mark.parametrize("seed", range(20))
def test_pieces_join_to_the_whole_text(seed: int) -> None:
    rng = random.Random(seed)
    tokenizer = byte_level()
    text = "".join(rng.choice(["a", " ", "é", "漢", "🦊", "\n", "\u200d", "z"]) for _ in range(60))
    ids = tokenizer.encode(text).ids
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in ids] + [detokenizer.finish()]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("seed", range(20))
def test_broken_bytes_give_what_the_tokenizer_gives(seed: int) -> None:
    rng = random.Random(seed)
    tokenizer = byte_level()
    ids = [rng.randrange(256) for _ in range(50)]
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in ids] + [detokenizer.finish()]
    assert "".join(pieces) == tokenizer.decode(ids)


def test_a_cut_character_comes_at_the_end() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("ok漢").ids[:-1]
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(token) for token in ids] == ["o", "k", "", ""]
    assert detokenizer.finish() == "\ufffd"


def test_the_space_after_the_prompt_is_kept() -> None:
    tokenizer = spaced()
    detokenizer = Detokenizer(tokenizer, [0, 1])
    assert [detokenizer.push(token) for token in (0, 2, 1)] == [" one", "three", " two"]
    assert Detokenizer(tokenizer).push(0) == "one"


def test_a_prompt_that_ends_inside_a_character() -> None:
    tokenizer = byte_level()
    detokenizer = Detokenizer(tokenizer, tokenizer.encode("漢").ids[:2])
    assert [detokenizer.push(token) for token in tokenizer.encode("ab").ids] == ["a", "b"]


@pytest.mark.parametrize("seed", range(50))
def test_no_part_of_a_stop_string_is_shown(seed: int) -> None:
    rng = random.Random(seed)
    text = "".join(rng.choice("ab") for _ in range(40))
    stops = ["".join(rng.choice("ab") for _ in range(rng.randint(1, 6))) for _ in range(rng.randint(1, 3))]
    first = min([(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text], default=(0, len(text)))[1]
    stop_filter = StopFilter(stops)
    shown, at = "", 0
    while at < len(text) and stop_filter.hit is None:
        size = rng.randint(1, 5)
        shown += stop_filter.push(text[at : at + size])
        at += size
    assert (stop_filter.hit is not None) == (first < len(text))
    if stop_filter.hit is None:
        shown += stop_filter.finish()
    else:
        assert stop_filter.push("more") == "" and text[first:].startswith(stop_filter.hit)
    assert shown == text[:first]
