"""AdaRound and SignRound: every format whose codes stand for one weight, against nearest and against trying everything."""

import itertools

import numpy as np
import pytest

from anybit.errors import FormatError
from anybit.formats import Spec
from anybit.methods.adaround import Adaround, objective
from anybit.methods.between import between
from anybit.methods.nearest import Nearest
from anybit.methods.signround import Signround
from anybit.methods.statistics import Statistics
from anybit.methods.step import Rounding, Target


def gathered(k: int, seed: int = 0, tokens: int = 400) -> Statistics:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((tokens, 3)) @ rng.standard_normal((3, k)) + 0.4 * rng.standard_normal((tokens, k))).astype(np.float32)
    stats = Statistics(k, frozenset({"xtx"}), expected=tokens)
    stats.add(x, "x")
    return stats


def target(expression: str, n: int = 13, k: int = 40) -> Target:
    w = np.random.default_rng(3).standard_normal((n, k)).astype(np.float32)
    w[2, 5] = 6.0
    return Target("w", w, Spec.parse(expression))


@pytest.mark.parametrize("method", [Adaround(), Signround()])
@pytest.mark.parametrize(
    "expression",
    ["int3@8", "uint3@8+zp", "uint2@8+off", "fp4_e2m1@16:e8m0", "nvfp4+scale=mse", "nf4@20", "posit8@40", "int4@32+scale=signmax"],
)
def test_learned_codes_are_neighbours_and_never_worse_than_nearest(method: Rounding, expression: str) -> None:
    stats, made, plain = gathered(40), target(expression), target(expression)
    found = between(made)
    assert (found.share >= 0).all() and (found.share <= 1).all()
    inside = (found.share > 0) & (found.down != found.up)
    low, high = np.minimum(found.down, found.up), np.maximum(found.down, found.up)
    assert inside.mean() > 0.8 and ((low <= made.weight + 1e-6) & (made.weight <= high + 1e-6))[inside].all()
    method.round(made, stats)
    Nearest().round(plain, stats)
    assert made.parts is not None and plain.parts is not None and stats.xtx is not None
    start = between(target(expression), stats.importance if "mse" in expression else None)
    near_down, near_up = np.abs(made.rounded - start.down), np.abs(made.rounded - start.up)
    assert (np.minimum(near_down, near_up) <= 1e-5 * np.abs(made.weight).max()).all()
    h = stats.xtx.astype(np.float64)
    before, after = objective(made, start.start, h), objective(made, made.parts, h)
    assert (after <= before * (1 + 1e-9)).all()
    assert after.sum() < 0.75 * before.sum(), (before.sum(), after.sum())


@pytest.mark.parametrize("method", [Adaround(), Signround()])
def test_a_third_of_the_way_to_the_best_of_all_choices(method: Rounding) -> None:
    k, start, best, got = 9, 0.0, 0.0, 0.0
    for seed in range(4):
        stats, made = gathered(k, seed), target("int2@9", n=6, k=k)
        assert stats.xtx is not None
        h, found = stats.xtx.astype(np.float64), between(made, stats.importance)
        least = np.full(6, np.inf)
        for choice in itertools.product((False, True), repeat=k):
            e = np.where(choice, found.up, found.down) - made.weight
            least = np.minimum(least, np.einsum("nk,nk->n", e @ h, e))
        method.round(made, stats)
        assert made.parts is not None
        after = objective(made, made.parts, h)
        assert (after >= least * (1 - 1e-6)).all()
        start, best, got = start + objective(made, found.start, h).sum(), best + least.sum(), got + after.sum()
    assert got <= best + 0.65 * (start - best), (start, best, got)


def test_what_cannot_be_chosen_so_is_refused_and_unseen_layers_are_nearest() -> None:
    with pytest.raises(FormatError, match=r"up or down is no choice in e8p"):
        Adaround().round(target("e8p@channel"), gathered(40))
    made, plain = target("int3@8"), target("int3@8")
    Signround().round(made, Statistics(40, frozenset({"xtx"})))
    Nearest().round(plain, Statistics(40, frozenset()))
    assert made.parts is not None and plain.parts is not None
    assert np.array_equal(made.parts["codes"], plain.parts["codes"]) and made.notes
    for wrong in ({"steps": 0}, {"rate": 0.0}, {"weight": -1.0}):
        with pytest.raises(ValueError):
            Adaround(**wrong)  # type: ignore[arg-type]
