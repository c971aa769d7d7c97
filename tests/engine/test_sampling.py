"""Random numbers against published vectors, and choices against a plain float64 version of the rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anybit.engine import Sampling
from anybit.errors import UsageError
from anybit.kernels.cpu import native
from anybit.reference.philox import uniform

# Random123 1.14.0, examples/kat_vectors, "philox4x32 10": counter, key, result
VECTORS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), VECTORS)
def test_philox_gives_the_published_vectors(counter: str, key: str, result: str) -> None:
    assert native.op_philox(words(counter), words(key)) == words(result)


def chosen(logits: np.ndarray, s: Sampling, position: int) -> tuple[int, float]:
    """The rule of `Sampling` in float64, and how far the draw lies from the nearest border between two tokens."""
    p = np.exp((logits.astype(np.float64) - logits.max()) / s.temperature)
    order = np.lexsort((np.arange(len(p)), -logits)) if s.top_k or s.top_p < 1 else np.arange(len(p))
    if s.top_k:
        order = order[: s.top_k]
    if s.top_p < 1:
        order = order[: int(np.searchsorted(np.cumsum(p[order]), s.top_p * p[order].sum())) + 1]
    order = np.sort(order[p[order] >= s.min_p])
    cumulative = np.cumsum(p[order]) / p[order].sum()
    u = uniform(s.seed, position)
    return int(order[np.searchsorted(cumulative, u, side="right")]), float(np.abs(cumulative - u).min())


CHOICES = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.7, seed=2**63 + 5),
    Sampling(temperature=1.5, top_k=5, seed=1),
    Sampling(temperature=1.0, top_k=1, seed=1),
    Sampling(temperature=1.0, top_p=0.6, seed=2),
    Sampling(temperature=1.0, top_p=1e-9, seed=2),
    Sampling(temperature=1.0, min_p=0.1, seed=3),
    Sampling(temperature=2.0, top_k=40, top_p=0.9, min_p=0.05, seed=4),
    Sampling(temperature=1.0, top_k=10**6, seed=5),
]


@pytest.mark.parametrize("sampling", CHOICES, ids=str)
def test_choices_follow_the_rule(sampling: Sampling) -> None:
    """Draws within 1e-5 of a border are left out: weights are float32 exponentials."""
    rng = np.random.default_rng(0)
    s = sampling
    choice = native.Choice(s.temperature, s.top_k, s.top_p, s.min_p, s.seed)
    compared = 0
    for n in (1, 2, 15, 17, 100, 1000):
        logits = (rng.standard_normal((40, n)) * 3).astype(np.float32)
        got = native.choose(logits, [choice] * 40, list(range(40)))
        for row in range(40):
            token, margin = chosen(logits[row], s, row)
            if margin > 1e-5:
                assert got[row] == token
                compared += 1
    assert compared > 200


def test_frequencies_are_the_probabilities() -> None:
    """40,000 draws: each frequency within 5 standard deviations."""
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    choice = native.Choice(1.0, 0, 1.0, 0.0, 9)
    count = 40_000
    got = np.bincount(native.choose(np.tile(logits, (count, 1)), [choice] * count, list(range(count))), minlength=4)
    p = np.exp(logits.astype(np.float64))
    assert np.all(np.abs(got - count * p) < 5 * np.sqrt(count * p * (1 - p)))


def test_greedy_takes_the_first_of_the_largest() -> None:
    greedy = native.Choice(0.0, 0, 1.0, 0.0, 0)
    logits = np.zeros((3, 33), np.float32)
    logits[0, [20, 7]] = 1
    logits[1] = -5
    logits[2, 32] = 0.5
    assert native.choose(logits, [greedy] * 3, [0, 0, 0]) == [7, 0, 32]
    assert native.choose(logits, [native.Choice(1.0, 1, 1.0, 0.0, 0)] * 3, [0, 0, 0]) == [7, 0, 32]


def test_a_choice_depends_on_seed_and_position_only() -> None:
    logits = np.random.default_rng(1).standard_normal((1, 500)).astype(np.float32)
    rows = np.repeat(logits, 64, axis=0)
    choices = [native.Choice(1.0, 0, 1.0, 0.0, seed) for seed in range(64)]
    together = native.choose(rows, choices, [5] * 64)
    assert together == [native.choose(logits, [choice], [5])[0] for choice in choices]
    assert len(set(together)) > 20
    assert len(set(native.choose(rows, [choices[0]] * 64, list(range(64))))) > 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; expected a number of at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0; expected more than 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": 2.0}, "min_p is 2.0; expected 0 to 1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
    ],
)
def test_an_option_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampling(**options)
