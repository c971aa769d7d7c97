"""A thousand generations of one prompt among random other traffic give one result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from anybit.cache import CacheSpec
from anybit.engine import Engine, State
from anybit.kernels.cpu import native
from anybit.models import describe

TOKENS = 12


@pytest.mark.parametrize(("act", "cache"), [("int8", None), (None, "int8@20")])
def test_one_result(make: Callable[..., Any], engine_of: Callable[..., Engine], machine: Any, act: str | None, cache: str | None) -> None:
    """500 each: batches of 1 to 24 in random order, prompts of random lengths beside it, forks of one prefill, sampled with one seed."""
    config, arrays = make("llama", num_hidden_layers=1)
    built = engine_of(config, arrays, "int4@16", act)
    engine = Engine(describe(config), built._weights, cache=CacheSpec.parse(cache))
    rng = np.random.default_rng(0)
    choice, greedy = native.Choice(0.9, 0, 0.95, 0.0, 7), native.Choice(0.0, 0, 1.0, 0.0, 0)
    prompt = rng.integers(0, 96, 11)

    def begin(ids: np.ndarray) -> tuple[State, np.ndarray]:
        state = engine.state()
        return state, engine.forward(ids, state, all_logits=False)

    prefilled, first = begin(prompt)
    alone, logits, want = prefilled.fork(), first, []
    for _ in range(TOKENS):
        want.append(native.choose(logits, [choice], [alone.length])[0])
        logits = engine.step([want[-1]], [alone])
    assert len(set(want)) > 3

    # live sequences: [state, its tokens so far, whether it is one of ours, tokens left]
    live: list[list[Any]] = []
    begun = done = steps = 0
    while done < 500:
        machine.set_threads(1 + steps % 3)
        size = int(rng.integers(1, 25))
        while len(live) < size:
            if begun < 500 and rng.random() < 0.8:
                state = prefilled.fork() if rng.random() < 0.7 else begin(prompt)[0]
                live.append([state, native.choose(first, [choice], [state.length]), True, TOKENS - 1])
                begun += 1
            else:
                state, other = begin(rng.integers(0, 96, int(rng.integers(1, 90))))
                live.append([state, native.choose(other, [greedy], [state.length]), False, int(rng.integers(1, 9))])
        batch = [live[i] for i in rng.permutation(len(live))[: max(1, size)]]
        logits = engine.step([each[1][-1] for each in batch], [each[0] for each in batch])
        chosen = native.choose(logits, [choice if each[2] else greedy for each in batch], [each[0].length for each in batch])
        for each, token in zip(batch, chosen, strict=True):
            each[1].append(token)
            each[3] -= 1
            if each[3] == 0 and each[2]:
                assert each[1] == want, (done, steps)
                done += 1
        live = [each for each in live if each[3] > 0]
        steps += 1
    assert steps > 100
