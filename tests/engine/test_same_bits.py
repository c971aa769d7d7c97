"""The same bits for every chunk, batch, thread count and instruction set: equality, no tolerance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from anybit.engine import Engine

LENGTH = 700  # more than one span of 512 keys


@pytest.fixture(scope="module", params=["fp32", "int4@16", "int4@16 int8"])
def built(
    request: pytest.FixtureRequest, make: Callable[..., Any], engine_of: Callable[..., Any]
) -> tuple[Callable[..., Engine], np.ndarray]:
    """Makes engines on equal weights, and gives tokens."""
    fmt, _, act = request.param.partition(" ")
    config, arrays = make("qwen3", attention_bias=True, use_sliding_window=True, sliding_window=600, max_window_layers=1)
    ids = np.random.default_rng(2).integers(0, 96, LENGTH)
    return (lambda **options: engine_of(config, arrays, fmt, act or None, **options)), ids


def test_chunks(built: Any, machine: Any) -> None:
    engine, ids = built
    want = engine().forward(ids)
    for chunk in (1, 7, 64, 100):
        machine.set_threads(1 + chunk % 3)
        state = (other := engine(chunk=chunk)).state()
        assert np.array_equal(other.forward(ids, state), want), chunk
        assert state.length == LENGTH
    same = engine()
    state = same.state()
    assert np.array_equal(np.concatenate([same.forward(part, state) for part in np.split(ids, [1, 3, 70, 130, 640])]), want)
    assert np.array_equal(same.forward(ids, all_logits=False), want[-1:])


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads(built: Any, machine: Any, threads: int) -> None:
    """With many threads few queries are cut into spans: another path to the same sums."""
    engine, ids = built
    one = engine()
    machine.set_threads(1)
    state = one.state()
    want = [one.forward(ids[:-3], state)[-1:], *(one.step([token], [state]) for token in ids[-3:])]
    machine.set_threads(threads)
    state = one.state()
    got = [one.forward(ids[:-3], state)[-1:], *(one.step([token], [state]) for token in ids[-3:])]
    assert all(np.array_equal(g, w) for g, w in zip(got, want, strict=True))
    assert np.array_equal(got[-1], one.forward(ids)[-1:])


def test_instruction_sets(built: Any, machine: Any) -> None:
    engine, ids = built
    results = []
    for isa in machine.native.supported_isas():
        machine.use_isa(isa)
        results.append(engine().forward(ids[:140]))
    assert all(np.array_equal(result, results[0]) for result in results)


def test_batches(built: Any) -> None:
    """Sequences of different lengths together, in any order, alone: the same."""
    make_engine, ids = built
    engine = make_engine()
    lengths = [1, 64, 65, 130, 520]
    states = [engine.state() for _ in lengths]
    alone = []
    for length, state in zip(lengths, states, strict=True):
        engine.forward(ids[:length], state)
        fork = state.fork()
        alone.append(engine.step([int(ids[length])], [fork]))
    tokens = [int(ids[length]) for length in lengths]
    order = [3, 0, 4, 2, 1]
    together = engine.step([tokens[i] for i in order], [states[i] for i in order])
    for row, i in enumerate(order):
        assert np.array_equal(together[row], alone[i][0])
        assert states[i].length == lengths[i] + 1
