"""Generation: prompts in, pieces of text out, for several sequences at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from anybit.engine.engine import Engine
from anybit.engine.sampling import Sampling
from anybit.engine.state import State
from anybit.engine.text import Decodes, Detokenizer, StopFilter
from anybit.errors import DoesNotFitError, UsageError
from anybit.kernels.cpu import native


@dataclass(frozen=True)
class Piece:
    """What one step gave one sequence. `text` may be empty; `finish` is None until the last piece of a sequence, then why it ended:
    "eos" (an end token), "stop" (a stop string), "length" (max_tokens), or "context" (the model's context is full).
    """

    sequence: int
    text: str
    token: int | None
    finish: str | None = None


@dataclass
class _Sequence:
    index: int
    state: State
    choice: Any
    text: Detokenizer
    stop: StopFilter
    left: int  # tokens that may still come
    full: str  # why it ends when none may
    token: int = 0
    done: bool = field(default=False)

    def take(self, token: int, eos: frozenset[int]) -> Piece:
        """The piece that a token gives."""
        self.token = token
        self.left -= 1
        finish = "eos" if token in eos else None
        shown = "" if finish else self.stop.push(self.text.push(token))
        if finish is None and self.stop.hit is None and self.left == 0:
            finish = self.full
        if finish and self.stop.hit is None:
            shown += self.stop.push(self.text.finish())
            if self.stop.hit is None:
                shown += self.stop.finish()
        if self.stop.hit is not None:
            finish = "stop"
        self.done = finish is not None
        return Piece(self.index, shown, token, finish)


def check_prompt(engine: Engine, prompt: Sequence[int]) -> None:
    """Raises UsageError: an empty prompt. DoesNotFitError: it leaves no room for a token; it is never cut."""
    if not len(prompt):
        raise UsageError("the prompt is empty: at least one token is needed to continue from")
    if len(prompt) >= engine.context:
        raise DoesNotFitError(f"the prompt has {len(prompt)} tokens, but the context is {engine.context}, the generated tokens included")


def generate(
    engine: Engine,
    tokenizer: Decodes,
    prompts: Sequence[Sequence[int]],
    max_tokens: int | None = None,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    eos: Sequence[int] | None = None,
) -> Iterator[Piece]:
    """Continues every prompt; pieces come as they are made, those of one sequence in order.

    A sequence's text does not depend on the others. The end token and stop strings are not shown.

    Args: prompts, token ids; max_tokens, None for as many as the context holds (it also ends a sequence that reaches it); eos, the
        end tokens (None: the model's).
    Raises: as `check_prompt`, before any work; NonFiniteError while running.
    """
    sampling = sampling or Sampling()
    if max_tokens is not None and max_tokens < 0:
        raise UsageError(f"max_tokens is {max_tokens}; expected at least 0")
    for prompt in prompts:
        check_prompt(engine, prompt)
    return _run(engine, tokenizer, prompts, max_tokens, sampling, stop, frozenset(engine.spec.eos if eos is None else eos))


def _run(
    engine: Engine,
    tokenizer: Decodes,
    prompts: Sequence[Sequence[int]],
    max_tokens: int | None,
    sampling: Sampling,
    stop: Sequence[str],
    eos: frozenset[int],
) -> Iterator[Piece]:
    choice = native.Choice(sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.seed)
    live: list[_Sequence] = []
    for index, prompt in enumerate(prompts):
        room = engine.context - len(prompt)
        left, full = (room, "context") if max_tokens is None or max_tokens > room else (max_tokens, "length")
        if left == 0:
            yield Piece(index, "", None, full)
            continue
        state = engine.state(len(prompt) + left)
        sequence = _Sequence(index, state, choice, Detokenizer(tokenizer, prompt), StopFilter(stop), left, full)
        logits = engine.forward(prompt, state, all_logits=False)
        yield sequence.take(native.choose(logits, [choice], [state.length])[0], eos)
        if not sequence.done:
            live.append(sequence)
    while live:
        states = [sequence.state for sequence in live]
        logits = engine.step([sequence.token for sequence in live], states)
        tokens = native.choose(logits, [sequence.choice for sequence in live], [state.length for state in states])
        for sequence, token in zip(live, tokens, strict=True):
            yield sequence.take(token, eos)
        live = [sequence for sequence in live if not sequence.done]
