"""Statistics that have no factor: damping is raised stepwise and said, then codes are nearest and that is said; for every method."""

import numpy as np
import pytest
from calibrated import layer, loss

from anybit.formats import Spec
from anybit.methods.statistics import Statistics
from anybit.methods.step import STEPS, Correction, Rounding, Target

EXPRESSIONS = {"nupes": "pow4_a0.6@32", "matgptq": "int8@32+nest=4.2", "hqq": "uint4@32+zp=fp16", "ldlq": "e8p@32"}
USING = sorted(name for name in STEPS if issubclass(STEPS[name], (Rounding, Correction)) and "xtx" in STEPS[name].needs)


def statistics(x: np.ndarray, lowered: float) -> Statistics:
    """X^T X less `lowered` times its mean diagonal on the diagonal, as roundings could make it; the original inputs are the same."""
    found = Statistics(x.shape[1], frozenset({"xtx", "cross", "mean", "variance"}))
    found.add(x, "layer", x)
    assert found.xtx is not None and found.cross is not None
    found.xtx -= np.float32(lowered * found.xtx.diagonal().mean()) * np.eye(len(found.xtx), dtype=np.float32)
    return found


def made(name: str, stats: Statistics) -> Target:
    step, target = STEPS[name](), Target("w", layer()[0], Spec.parse(EXPRESSIONS.get(name, "int4@32")))
    if isinstance(step, Rounding):
        step.round(target, stats)
    else:
        assert isinstance(step, Correction)
        STEPS["nearest"]().round(target, stats)  # type: ignore[attr-defined]
        step.correct(target, stats)
    return target


def objective(target: Target, stats: Statistics) -> np.ndarray:
    """X^T X as it was gathered, with the damping that the target's notes tell of, or the usual share of a hundredth."""
    assert stats.xtx is not None
    raised = [float(note.split(" to ")[1].split(":")[0]) for note in target.notes if note.startswith("damping was raised from")]
    h = stats.xtx.astype(np.float64)
    return h + max(raised, default=0.01) * h.diagonal().mean() * np.eye(len(h))


def values(target: Target) -> np.ndarray:
    low_rank = (added.b @ added.a for added in target.added if added.b is not None)
    return np.asarray(target.rounded + sum(low_rank, np.zeros(1, np.float32)))


def check(name: str, stats: Statistics) -> Target:
    """On the objective it is no worse than without statistics; matgptq's is that of all widths together (test_matgptq.py)."""
    w, target = layer()[0], made(name, stats)
    h, nearest = objective(target, stats), values(made(name, Statistics(96, frozenset({"xtx", "cross"}))))
    assert np.isfinite(values(target)).all()
    assert name == "matgptq" or loss(w, values(target), h) <= loss(w, nearest, h) * (1 + 1e-6)
    return target


@pytest.mark.parametrize("name", USING)
@pytest.mark.parametrize("tokens", [1, 5])
def test_fewer_tokens_than_channels(name: str, tokens: int) -> None:
    check(name, statistics(layer()[1][:tokens], 0))


@pytest.mark.parametrize("name", USING)
def test_indefinite_statistics_raise_damping_and_say_so(name: str) -> None:
    """A fiftieth of the mean diagonal is missing, which no channel is short of: the first damping that serves is larger."""
    notes = check(name, statistics(layer()[1], 0.02)).notes
    assert len([note for note in notes if note.startswith("damping was raised from")]) == 1, notes


@pytest.mark.parametrize("name", USING)
def test_what_no_damping_serves_is_left_nearest_and_said(name: str) -> None:
    w, x, _ = layer()
    hopeless = statistics(x, 0)
    assert hopeless.xtx is not None
    hopeless.xtx[:] = 100 - 99 * np.eye(96, dtype=np.float32)  # one large eigenvalue above 0, all others at -99
    target = made(name, hopeless)
    assert any("no factor at any damping" in note for note in target.notes), target.notes
    nearest = values(made(name, Statistics(96, frozenset({"xtx", "cross"}))))
    assert np.abs(values(target) - w).max() <= np.abs(nearest - w).max() * (1 + 1e-6)
