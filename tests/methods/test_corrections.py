"""Corrections and pruning against their formulas."""

import numpy as np
import pytest

from anybit.errors import UsageError
from anybit.formats import Spec
from anybit.methods.bias_correction import BiasCorrection
from anybit.methods.flap import Flap
from anybit.methods.lorc import Lorc
from anybit.methods.nearest import Nearest
from anybit.methods.prune import Magnitude, TwoFour
from anybit.methods.statistics import Statistics
from anybit.methods.step import Group, Target


def inputs(k: int, tokens: int = 300, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((k, k)) * np.exp(rng.standard_normal(k))
    return (rng.standard_normal((tokens, k)) @ mixing / k + rng.standard_normal(k)).astype(np.float32)


def gathered(x: np.ndarray, *needs: str) -> Statistics:
    stats = Statistics(x.shape[1], frozenset(needs), expected=len(x))
    stats.add(x, "x")
    return stats


def rounded(spec: str = "int3@16", n: int = 21, k: int = 48, bias: np.ndarray | None = None) -> Target:
    w = np.random.default_rng(5).standard_normal((n, k)).astype(np.float32)
    target = Target("w", w, Spec.parse(spec), bias)
    Nearest().round(target, Statistics(k, frozenset()))
    return target


@pytest.mark.parametrize("bias", [None, np.arange(21, dtype=np.float32)])
def test_the_corrected_bias_makes_the_mean_output_right(bias: np.ndarray | None) -> None:
    x, target = inputs(48), rounded(bias=bias)
    before = 0 if bias is None else bias
    off = (x @ target.rounded.T + before - (x @ target.weight.T + before)).mean(axis=0)
    BiasCorrection().correct(target, gathered(x, "mean", "variance"))
    assert target.bias is not None
    now = (x @ target.rounded.T + target.bias - (x @ target.weight.T + before)).mean(axis=0)
    assert np.abs(off).max() > 0.01 and np.abs(now).max() < 1e-5
    empty = rounded()
    BiasCorrection().correct(empty, Statistics(48, frozenset({"mean"})))
    assert empty.bias is None and empty.notes


def error(x: np.ndarray, target: Target) -> tuple[float, float]:
    """Squared error of weights and of outputs, branches included."""
    w = target.rounded.astype(np.float64)
    for added in target.added:
        assert added.b is not None
        w = w + added.b.astype(np.float64) @ added.a
    d = w - target.weight
    return float(np.square(d).sum()), float(np.square(x @ d.T).sum())


def test_low_rank_parts_are_the_best_of_their_rank() -> None:
    x = inputs(48)
    stats = gathered(x, "xtx")
    for weighted in (False, True):
        last = error(x, rounded())[weighted]
        for rank in (1, 3, 9, 21):
            target = rounded()
            Lorc(rank=rank, weighted=weighted, format="fp32", damp=1e-9).correct(target, stats)
            found = error(x, target)[weighted]
            e = (target.weight - target.rounded).astype(np.float64)
            if weighted:  # Eckart-Young on the outputs
                left = np.linalg.svd(e @ x.T.astype(np.float64), compute_uv=False)
            else:
                left = np.linalg.svd(e, compute_uv=False)
            assert found == pytest.approx(float(np.square(left[rank:]).sum()), rel=2e-3, abs=1e-6 * float(np.square(left).sum()))
            assert found < last
            last = found
    plain, weighted_one = rounded(), rounded()
    Lorc(rank=4, weighted=False).correct(plain, stats)
    Lorc(rank=4).correct(weighted_one, stats)
    assert error(x, weighted_one)[1] < error(x, plain)[1] and error(x, weighted_one)[0] > error(x, plain)[0]
    coded = rounded()
    Lorc(rank=4, format="int8@16").correct(coded, stats)
    assert error(x, coded)[1] < error(x, rounded())[1]
    assert Lorc(weighted=False).asks(coded.spec) == frozenset()
    for wrong in ({"rank": 0}, {"damp": 0.0}, {"format": "int0"}):
        with pytest.raises(ValueError):
            Lorc(**wrong)  # type: ignore[arg-type]


def group(role: str = "down", spec: str = "int4@16", k: int = 48, x: np.ndarray | None = None) -> Group:
    x = inputs(k) if x is None else x
    w = np.random.default_rng(5).standard_normal((21, k)).astype(np.float32)
    return Group(role, 0, [Target("w", w, Spec.parse(spec))], gathered(x, "mean", "variance"), heads=k // 8, head_dim=8)


def test_the_least_weights_are_pruned_and_stay_zero() -> None:
    made = group()
    before = np.array(made.targets[0].weight)
    Magnitude(fraction=0.25).apply(made)
    after = made.targets[0].weight
    assert ((after == 0).sum(axis=1) == 12).all() and np.array_equal(after[after != 0], before[after != 0])
    for row, old in zip(after, before, strict=True):
        assert np.abs(old[row == 0]).max() <= np.abs(old[row != 0]).min()
    Nearest().round(made.targets[0], made.stats)
    assert (made.targets[0].rounded[after == 0] == 0).all()
    weighted = group()
    Magnitude(fraction=0.25, weighted=True).apply(weighted)
    assert not np.array_equal(weighted.targets[0].weight == 0, after == 0)
    with pytest.raises(UsageError, match=r"bipolar4@16.* has no zero: pruned weights would come back"):
        Magnitude().apply(group(spec="bipolar4@16"))


def test_two_of_four() -> None:
    x = inputs(50)
    made = group(k=50, spec="int4@10", x=x)
    before = np.array(made.targets[0].weight)
    TwoFour().apply(made)
    after = made.targets[0].weight
    zeros = (after == 0)[:, :48].reshape(21, 12, 4)
    assert (zeros.sum(axis=2) == 2).all() and not (after[:, 48:] == 0).any(), "what is no whole four stays"
    scores = (np.abs(before) * np.sqrt((x.astype(np.float64) ** 2).mean(axis=0)))[:, :48].reshape(21, 12, 4)
    assert (np.where(zeros, scores, 0).max(axis=2) <= np.where(zeros, np.inf, scores).min(axis=2)).all()


@pytest.mark.parametrize(("role", "unit"), [("o", 8), ("down", 1)])
def test_flap_removes_what_fluctuates_least_and_keeps_its_mean(role: str, unit: int) -> None:
    x = inputs(48)
    made = group(role, x=x)
    target, before = made.targets[0], np.array(made.targets[0].weight)
    Flap(fraction=0.34).apply(made)
    gone = (target.weight == 0).all(axis=0)
    assert gone.sum() == int(0.34 * (48 // unit)) * unit
    scores = (x.astype(np.float64).var(axis=0) * (before.astype(np.float64) ** 2).sum(axis=0)).reshape(-1, unit).mean(axis=1)
    per_unit = gone.reshape(-1, unit)
    assert (per_unit.all(axis=1) == per_unit.any(axis=1)).all() and scores[per_unit[:, 0]].max() <= scores[~per_unit[:, 0]].min()
    assert target.bias is not None
    mean_before, mean_after = (x @ before.T).mean(axis=0), (x @ target.weight.T + target.bias).mean(axis=0)
    assert np.allclose(mean_before, mean_after, atol=1e-4)
    other = group("qkv")
    Flap().apply(other)
    assert other.targets[0].bias is None
