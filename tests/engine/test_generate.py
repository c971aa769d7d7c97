"""Generation with the bundled model: against transformers, and against itself in other batches and pieces."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import anybit
from anybit.engine import Engine, Piece, Sampling, generate
from anybit.errors import DoesNotFitError, UsageError
from anybit.model import Model, resolve

PROMPTS = ["import os\n", "def main(", "class Stack:\n    def push(self, item):\n", "\n", "for i in range(10):\n    print(i"]
SAMPLED = Sampling(temperature=0.9, top_p=0.95, seed=11)


@pytest.fixture(scope="module")
def model() -> Model:
    return anybit.load("pycoder-5m")


def run(model: Model, prompts: list[str], **options: Any) -> list[list[Piece]]:
    """The pieces of each prompt."""
    ids = [model.tokenize(prompt).tolist() for prompt in prompts]
    pieces: list[list[Piece]] = [[] for _ in prompts]
    for piece in generate(model.engine, model.tokenizer, ids, **options):
        pieces[piece.sequence].append(piece)
    return pieces


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_greedy_tokens_are_those_of_transformers(model: Model) -> None:
    """One prompt through transformers' generation; for the others each token must be its most likely one after those before."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    oracle = transformers.AutoModelForCausalLM.from_pretrained(resolve("pycoder-5m"), dtype=torch.float32)
    for index, pieces in enumerate(run(model, PROMPTS, max_tokens=100)):
        ids = model.tokenize(PROMPTS[index]).astype(np.int64)
        got = [piece.token for piece in pieces]
        with torch.no_grad():
            if index == 0:
                want = oracle.generate(torch.from_numpy(ids)[None], max_new_tokens=100, do_sample=False, pad_token_id=0)[0, len(ids) :]
            else:
                want = oracle(torch.from_numpy(np.append(ids, got[:-1]))[None]).logits[0, len(ids) - 1 :].argmax(axis=-1)
        assert got == want.tolist()
        shown = got[:-1] if got[-1] in model.spec.eos else got
        assert text(pieces) == model.tokenizer.decode(shown)


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
def test_the_batch_does_not_matter(model: Model, sampling: Sampling) -> None:
    together = run(model, PROMPTS, max_tokens=60, sampling=sampling)
    backwards = run(model, PROMPTS[::-1], max_tokens=60, sampling=sampling)[::-1]
    alone = [run(model, [prompt], max_tokens=60, sampling=sampling)[0] for prompt in PROMPTS]

    def of(runs: list[list[Piece]]) -> list[list[tuple[Any, ...]]]:
        return [[(piece.text, piece.token, piece.finish) for piece in pieces] for pieces in runs]

    assert of(together) == of(alone) == of(backwards)
    assert len(set(map(text, together))) == len(PROMPTS)


def test_seeds_differ_and_repeat(model: Model) -> None:
    texts = [text(run(model, ["import "], max_tokens=30, sampling=Sampling(temperature=1.0, seed=seed))[0]) for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]


def test_stop_strings_end_the_text_and_are_not_shown(model: Model) -> None:
    whole = text(run(model, PROMPTS[:1], max_tokens=80)[0])
    for start, size in itertools.product((3, 20, 47), (1, 4, 9)):
        stop = whole[start : start + size]
        pieces = run(model, PROMPTS[:1], max_tokens=80, stop=["never in it", stop])[0]
        assert text(pieces) == whole[: whole.find(stop)]
        assert pieces[-1].finish == "stop"
        assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)


def test_a_held_back_beginning_of_a_stop_string_is_shown_at_the_end(model: Model) -> None:
    whole = text(run(model, PROMPTS[:1], max_tokens=20)[0])
    pieces = run(model, PROMPTS[:1], max_tokens=20, stop=[whole[-5:] + "never"])[0]
    assert text(pieces) == whole and pieces[-1].finish == "length"


def test_the_end_token_is_not_shown(model: Model) -> None:
    free = run(model, PROMPTS[:1], max_tokens=30, eos=())[0]
    at = 12
    eos = free[at].token
    assert eos is not None
    first = next(i for i, piece in enumerate(free) if piece.token == eos)
    pieces = run(model, PROMPTS[:1], max_tokens=30, eos=[eos])[0]
    assert [piece.token for piece in pieces] == [piece.token for piece in free[: first + 1]]
    assert pieces[-1].finish == "eos" and text(pieces) == text(free[:first])


def test_length_limits(model: Model) -> None:
    assert [piece.finish for piece in run(model, PROMPTS[:1], max_tokens=3)[0]] == [None, None, "length"]
    nothing = run(model, PROMPTS[:2], max_tokens=0)
    assert nothing == [[Piece(0, "", None, "length")], [Piece(1, "", None, "length")]]
    with pytest.raises(UsageError, match="max_tokens is -1"):
        run(model, PROMPTS, max_tokens=-1)


def test_the_context_ends_a_sequence(make: Callable[..., Any], engine_of: Callable[..., Any], model: Model) -> None:
    config, arrays = make(max_position_embeddings=40, eos_token_id=None)
    engine: Engine = engine_of(config, arrays)
    for limit in (None, 1000):
        pieces = list(generate(engine, model.tokenizer, [[5] * 30, [6] * 39], limit))
        assert [piece.finish for piece in pieces if piece.sequence == 0] == [None] * 9 + ["context"]
        assert [piece.finish for piece in pieces if piece.sequence == 1] == ["context"]
    with pytest.raises(DoesNotFitError, match="the prompt has 40 tokens, but the context is 40"):
        generate(engine, model.tokenizer, [[5], [5] * 40], 1)
    with pytest.raises(UsageError, match="the prompt is empty"):
        generate(engine, model.tokenizer, [[5], []], 1)


def test_python_api(model: Model) -> None:
    one = model.generate(PROMPTS[0], max_tokens=20)
    assert isinstance(one, str)
    assert model.generate(PROMPTS[:2], max_tokens=20)[0] == one
    assert "".join(model.stream(PROMPTS[0], max_tokens=20)) == one
    with pytest.raises(DoesNotFitError, match="but the context is 1024"):
        model.generate("x = 1\n" * 600)
