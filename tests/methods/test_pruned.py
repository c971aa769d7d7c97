"""Pruned weights stay zero through every rounding, and gptq makes up for errors on the others: the loop in float64, weight by weight."""

import numpy as np
import pytest
from calibrated import damped, layer, loss

from anybit.calibrate.block import Assignment
from anybit.calibrate.run import _round
from anybit.errors import UsageError
from anybit.formats import Spec
from anybit.methods.adaround import Adaround
from anybit.methods.descent import Descent
from anybit.methods.gptaq import Gptaq
from anybit.methods.gptq import Gptq
from anybit.methods.nearest import Nearest
from anybit.methods.prune import Magnitude, TwoFour, zeros_again
from anybit.methods.refit import Refit
from anybit.methods.rtn import dequantize_parts, quantize_parts, stored_grids
from anybit.methods.signround import Signround
from anybit.methods.statistics import Statistics
from anybit.methods.step import Correction, Group, GroupStep, Rounding, Target


def pruned(expression: str, step: GroupStep, seed: int = 0) -> tuple[Target, Statistics, np.ndarray]:
    w, x, off = layer(seed=seed)
    stats = Statistics(x.shape[1], frozenset({"xtx", "cross", "mean", "variance"}))
    stats.add(x, "layer", off)
    target = Target("w", w, Spec.parse(expression))
    group = Group("qkv", 0, [target], stats)
    step.apply(group)
    return target, stats, x


@pytest.mark.parametrize("expression", ["int4@32", "int3@32:fp32+scale=mse", "uint4@32+zp", "fp4_e2m1@16", "pot4@32"])
@pytest.mark.parametrize("step", [TwoFour(), Magnitude(fraction=0.4, weighted=True)])
@pytest.mark.parametrize(
    ("rounding", "corrections"),
    [
        (Nearest(), ()), (Gptq(), ()), (Gptq(), (Descent(),)), (Gptq(), (Refit(),)), (Gptaq(), ()), (Adaround(steps=20), ()),
        (Signround(steps=20), ()),
    ],
)  # fmt: skip
def test_zeros_stay(expression: str, step: GroupStep, rounding: Rounding, corrections: tuple[Correction, ...]) -> None:
    target, stats, _ = pruned(expression, step)
    assert target.pruned is not None and 0.35 < target.pruned.mean() <= 0.5
    _round(target, Assignment(target.spec, rounding, corrections), stats)
    assert (target.rounded[target.pruned] == 0).all()
    assert (target.rounded[~target.pruned] != 0).mean() > 0.5
    if isinstance(rounding, Gptq):
        assert not any("set to zero again" in note for note in target.notes), "they were zero all the time"


@pytest.mark.parametrize("order", ["natural", "activation"])
def test_the_loop_is_gptq_with_some_weights_fixed(order: str) -> None:
    """OBQ's loop by the textbook, in float64: each weight in turn is rounded, or zero; the rest of its row moves by H^-1's column."""
    target, stats, x = pruned("int4@32:fp32", TwoFour())
    w, mask = target.weight.astype(np.float64), target.pruned
    parts = quantize_parts(target.weight, target.spec)
    scale = stored_grids(parts, target.spec.format, w.shape).scale.astype(np.float64).repeat(32, axis=1)[:, : w.shape[1]]
    h = damped(x)
    turns = np.arange(len(h)) if order == "natural" else np.argsort(-(x.astype(np.float64) ** 2).sum(axis=0), kind="stable")
    inverse, moved, want = np.linalg.inv(h[np.ix_(turns, turns)]), w[:, turns].copy(), np.zeros_like(w)
    for i, column in enumerate(turns):
        s = scale[:, column]
        q = np.where(mask[:, column], 0, np.clip(np.rint(moved[:, i] / s), -8, 7) * s)
        want[:, column] = q
        moved[:, i:] -= np.outer((moved[:, i] - q) / inverse[0, 0], inverse[0])
        inverse = (inverse - np.outer(inverse[:, 0], inverse[0]) / inverse[0, 0])[1:, 1:]
    Gptq(order=order).round(target, stats)
    got = target.rounded
    ours, theirs, nearest = (loss(w, q, h) for q in (got, want, dequantize_parts(parts, target.spec.format, w.shape)))
    assert (got == want.astype(np.float32)).mean() > 0.95 and ours <= 1.01 * theirs < nearest


def test_zeros_are_set_again() -> None:
    target, stats, _ = pruned("int4@32", TwoFour())
    Nearest().round(target, stats)
    assert zeros_again(target) == 0 and target.parts is not None and target.pruned is not None
    codes = np.array(target.parts["codes"])
    codes[target.pruned] = 3
    target.parts = {**target.parts, "codes": codes}
    assert zeros_again(target) == target.pruned.sum() and (target.rounded[target.pruned] == 0).all()


@pytest.mark.parametrize("expression", ["int4@32+off", "uint4@32+zp=fp16", "pot3_nz@32", "e8p@32", "bipolar3@32"])
def test_formats_without_a_zero_are_refused(expression: str) -> None:
    with pytest.raises(UsageError, match=r"has no zero: pruned weights would come back"):
        pruned(expression, TwoFour())


def test_channels_are_not_mixed_afterwards() -> None:
    target, stats, _ = pruned("int4@32", TwoFour())
    group = Group("qkv", 0, [target], stats)
    before = target.pruned
    index = np.random.default_rng(0).permutation(96)
    group.permute_input(index)
    assert before is not None and target.pruned is not None and np.array_equal(target.pruned, target.weight == 0)
    with pytest.raises(UsageError, match=r"steps that prune come after those that mix channels"):
        group.hadamard_input(32)
