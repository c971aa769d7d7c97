"""States: forks share and do not disturb each other; errors leave them as they were and name what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from anybit.engine import Engine
from anybit.errors import DoesNotFitError, NonFiniteError, ShapeError, UsageError
from anybit.models import describe

IDS = np.random.default_rng(3).integers(0, 96, 200)


@pytest.fixture(scope="module")
def engine(make: Callable[..., Any], engine_of: Callable[..., Any]) -> Engine:
    result: Engine = engine_of(*make(max_position_embeddings=160))
    return result


def test_forks_are_independent(engine: Engine) -> None:
    whole = engine.forward(IDS[:130])
    other_ids = np.concatenate([IDS[:100], IDS[160:190]])
    other = engine.forward(other_ids)
    parent = engine.state()
    engine.forward(IDS[:100], parent)
    child, sibling = parent.fork(), parent.fork()
    assert np.array_equal(engine.forward(other_ids[100:], child), other[100:])
    assert np.array_equal(engine.forward(IDS[100:130], parent), whole[100:])
    assert np.array_equal(engine.forward(other_ids[100:], sibling), other[100:])
    assert (parent.length, child.length) == (130, 130)


def test_truncating_forgets(engine: Engine) -> None:
    whole = engine.forward(IDS[:130])
    state = engine.state()
    engine.forward(IDS[20:150], state)
    for length in (64, 63, 0):
        state.truncate(length)
        assert state.length == length
    engine.forward(IDS[:70], state)
    fork = state.fork()
    engine.forward(IDS[170:190], state)
    state.truncate(70)
    assert np.array_equal(engine.forward(IDS[70:130], state), whole[70:])
    assert np.array_equal(engine.forward(IDS[70:130], fork), whole[70:])


def test_a_snapshot_brings_back(engine: Engine) -> None:
    state = engine.state()
    engine.forward(IDS[:70], state)
    snapshot = state.snapshot()
    first = engine.forward(IDS[70:80], state)
    engine.forward(IDS[90:100], state)
    for _ in range(2):
        state.restore(snapshot)
        assert state.length == 70
        assert np.array_equal(engine.forward(IDS[70:80], state), first)


def test_bytes_are_whole_pages(engine: Engine) -> None:
    """2 layers of 2 key heads: keys of 20 and values of 20 padded to 32, float32, 64 tokens a page."""
    page = 2 * 2 * 64 * (20 + 32) * 4
    state = engine.state()
    assert state.nbytes == 0
    for tokens, pages in ((1, 1), (63, 1), (1, 2)):
        engine.forward(IDS[:tokens], state)
        assert state.nbytes == pages * page


def test_the_context_is_never_exceeded(engine: Engine) -> None:
    assert engine.context == 160
    with pytest.raises(DoesNotFitError, match="161 tokens do not fit into the context of 160"):
        engine.forward(IDS[:161])
    state = engine.state()
    engine.forward(IDS[:160], state)
    with pytest.raises(DoesNotFitError, match="160 tokens and 1 more do not fit"):
        engine.forward([1], state)
    with pytest.raises(DoesNotFitError, match="160 tokens and 1 more do not fit"):
        engine.step([1], [state])
    assert state.length == 160


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([], ShapeError, "non-empty list of integers"),
        ([[1, 2]], ShapeError, "not int64[1, 2]"),
        ([1.5], ShapeError, "not float64[1]"),
        (["a"], ShapeError, "non-empty list of integers"),
        ([1, 96], UsageError, "token id 96 is not in the vocabulary of 96"),
        ([-1], UsageError, "token id -1 is not in the vocabulary"),
    ],
)
def test_wrong_ids(engine: Engine, ids: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        engine.forward(ids)


def test_a_state_of_another_model_is_refused(engine: Engine, make: Callable[..., Any], engine_of: Callable[..., Any]) -> None:
    other = engine_of(*make())
    with pytest.raises(ValueError, match="the cache belongs to another model"):
        engine.forward(IDS[:3], other.state())
    state = engine.state()
    with pytest.raises(ValueError, match="a cache may be given once"):
        engine.step([1, 2], [state, state])


BROKEN = [
    ("model.layers.1.mlp.up_proj.weight", "layer 1: the inner activations of the MLP"),
    ("model.layers.0.self_attn.q_proj.weight", "layer 0: queries, keys or values"),
    ("model.layers.1.self_attn.v_proj.weight", "layer 1: queries, keys or values"),
    ("model.layers.1.self_attn.o_proj.weight", "layer 1: the input of the MLP"),
    ("model.layers.0.mlp.down_proj.weight", "layer 1: the input of attention"),
    ("model.layers.1.mlp.down_proj.weight", "after the last layer: the input of the final norm"),
    ("model.norm.weight", "after the last layer: the input of the head"),
    ("lm_head.weight", "after the last layer: the logits"),
]


@pytest.mark.parametrize(("name", "message"), BROKEN, ids=[name for name, _ in BROKEN])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_overflow_names_where(family: str, name: str, message: str, make: Callable[..., Any], engine_of: Callable[..., Any]) -> None:
    """One weight made so large that sums overflow there and nowhere before."""
    config, arrays = make(family)
    bad = engine_of(config, {**arrays, name: np.full_like(arrays[name], 3e38)})
    state = bad.state()
    with pytest.raises(NonFiniteError, match=re.escape(f"{message} is not finite at token ") + "[0-9]$"):
        bad.forward([7, 8, 9], state)
    assert state.length == 0


def test_the_token_is_the_right_one(make: Callable[..., Any], engine_of: Callable[..., Any]) -> None:
    config, arrays = make()
    arrays["model.embed_tokens.weight"][7] = 3e20  # its sum of squares overflows
    engine = engine_of(config, arrays, chunk=64)
    ids = IDS[:150].copy()
    ids[ids == 7] = 8
    ids[101] = 7
    state = engine.state()
    engine.forward(ids[:5], state)
    with pytest.raises(NonFiniteError, match="layer 0: the input of attention is not finite at token 101"):
        engine.forward(ids[5:], state)
    assert state.length == 5
    others = [engine.state() for _ in range(3)]
    with pytest.raises(NonFiniteError, match="token 0 of sequence 2"):
        engine.step([1, 2, 7], others)
    assert [other.length for other in others] == [0, 0, 0]


def test_a_wrong_weight_is_named(make: Callable[..., Any], engine_of: Callable[..., Any]) -> None:
    config, arrays = make("qwen2", head_dim=None)
    arrays["model.layers.1.self_attn.q_proj.bias"] = np.zeros(3, np.float32)
    with pytest.raises(ShapeError, match=re.escape("weight 'model.layers.1.self_attn.q_proj.bias' has shape [3]; the model needs [48]")):
        engine_of(config, arrays)
    weights = {name: array for name, array in arrays.items() if array.ndim == 1}
    with pytest.raises(ShapeError, match=re.escape("weight 'model.embed_tokens.weight' is missing; the model needs [96, 48]")):
        Engine(describe(config), weights)


def test_longrope_keeps_one_set_for_a_sequence(make: Callable[..., Any], engine_of: Callable[..., Any]) -> None:
    """The plan decides: a short plan may not grow beyond the original context, a long one gives the same bits however it is cut."""
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 10, "long_factor": [4.0] * 10, "original_max_position_embeddings": 64}
    engine = engine_of(*make(rope_scaling=scaling))
    short = engine.state(planned=64)
    with pytest.raises(DoesNotFitError, match="context of 64"):
        engine.forward(IDS[:65], short)
    want = engine.forward(IDS[:100])
    state = engine.state(planned=100)
    assert np.array_equal(np.concatenate([engine.forward(IDS[:30], state), engine.forward(IDS[30:100], state)]), want)
    assert not np.array_equal(engine.forward(IDS[:30]), want[:30])
