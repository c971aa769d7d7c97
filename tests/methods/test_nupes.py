"""NUPES: the exponent against trying every thousandth with a quantizer of its own; codes and formats of the result."""

import numpy as np
import pytest
from calibrated import damped, gathered, layer, loss, rounded

from anybit.errors import UsageError
from anybit.methods.nupes import Nupes, exponent
from anybit.methods.statistics import Statistics
from anybit.methods.step import Target


def power_rounded(w: np.ndarray, bits: int, a: float, block: int) -> np.ndarray:
    """float64: sign(q) s (|q| / top)^(1/a), s the largest of each block in float32, each weight to the nearest value."""
    top = 2 ** (bits - 1) - 1
    half = (np.arange(top + 1) / top) ** (1 / a)
    grid = np.concatenate([-half[:0:-1], half])
    parts = w.astype(np.float64).reshape(-1, block)
    s = np.abs(parts).max(axis=1, keepdims=True)
    near = np.abs((parts / s)[..., None] - grid).argmin(axis=-1)
    return (grid[near] * s).reshape(w.shape)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("data", [True, False])
def test_the_exponent_is_the_best_one(bits: int, data: bool) -> None:
    w, x, _ = layer(n=96)
    h = x.astype(np.float64).T @ x.astype(np.float64) if data else np.eye(96)
    costs = {a: loss(w, power_rounded(w, bits, a, 32), h) for a in np.round(np.arange(0.3, 1.0005, 0.002), 3)}
    target = rounded(Nupes(data=data, codes=False), w, f"pow{bits}_a0.5@32:fp32", gathered(x))
    fields = target.format.element.fields
    assert fields["family"] == "power" and fields["bits"] == bits and str(target.format).endswith("@32:fp32")
    a = float(fields["exponent"])
    assert np.abs(target.rounded - power_rounded(w, bits, a, 32)).max() < 1e-6 * np.abs(w).max()
    mine, best, given = loss(w, target.rounded, h), min(costs.values()), costs[0.5]
    # Codes jump as the grid moves, which ripples the curve by a few parts in a hundred; a search between neighbours sees one ripple.
    assert mine <= 1.03 * best and mine < given and abs(a - min(costs, key=lambda key: costs[key])) < 0.1
    assert not target.notes


def test_codes_may_go_anywhere_on_the_grid() -> None:
    w, x, _ = layer(n=64)
    stats, h = gathered(x), damped(x)
    nearest, fed = (rounded(Nupes(codes=codes), w, "pow3_a0.5@32", stats) for codes in (False, True))
    assert loss(w, fed.rounded, h) < 0.7 * loss(w, nearest.rounded, h)
    assert nearest.parts is not None and fed.parts is not None
    steps = np.abs(np.diff(np.sort(np.unique(nearest.rounded / np.abs(nearest.rounded).max()))))
    assert steps.min() > 0 and (np.abs(fed.rounded - w) > np.abs(nearest.rounded - w) + 1e-6).mean() > 0.05


def test_a_search_of_one_number() -> None:
    asked: list[float] = []

    def cost(a: float) -> float:
        asked.append(a)
        return abs(a - 0.637)

    assert abs(exponent(cost, 0.5, 12) - 0.637) <= 0.001 and exponent(cost, 0.5, 0) == 0.6
    assert exponent(lambda a: float(a != 0.55), 0.55, 0) == 0.55, "the given one is tried too"
    assert all(0.15 <= a <= 1 for a in asked)


def test_what_is_asked_for() -> None:
    w, x, _ = layer()
    target = Target("w", w, rounded(Nupes(), w, "pow4_a0.5@32+scale=mse", gathered(x)).spec)
    assert target.spec.scale_rule == "mse"
    with pytest.raises(UsageError, match=r"nupes chooses the exponent of a power grid, and int4@32 is none"):
        rounded(Nupes(), w, "int4@32", gathered(x))
    unseen = rounded(Nupes(), w, "pow4_a0.9@32", Statistics(96, frozenset({"xtx"})))
    assert unseen.notes == ["no token reached it: rounded to nearest"] and unseen.format.element.fields["exponent"] != "0.9"
    assert Nupes(data=False, codes=False).asks(target.spec) == frozenset() and Nupes().asks(target.spec) == {"xtx"}


def test_exponent_and_codes_are_learned() -> None:
    """Less error than nearest codes of any exponent, by codes that leave their neighbours; scales stay."""
    w, x, _ = layer(n=64)
    stats, h = gathered(x), damped(x)
    searched = rounded(Nupes(codes=False), w, "pow3_a0.5@32:fp32", stats)
    found = rounded(Nupes(steps=300), w, "pow3_a0.5@32:fp32", stats)
    least = min(loss(w, power_rounded(w, 3, a, 32), h) for a in np.arange(0.3, 1.0005, 0.01))
    assert loss(w, found.rounded, h) < 0.6 * least
    assert found.parts is not None and searched.parts is not None
    assert np.array_equal(found.parts["scale.0"], searched.parts["scale.0"])
    assert found.format.element.fields["exponent"] != searched.format.element.fields["exponent"]
    assert (np.abs(found.rounded - w) > np.abs(searched.rounded - w) + 1e-6).mean() > 0.05
    # values by the definition, with a quantizer of its own
    a, top = float(found.format.element.fields["exponent"]), 3
    codes = found.parts["codes"].astype(np.int64)
    q = np.where(codes >= 4, codes - 8, codes)
    scale = np.repeat(np.abs(w.astype(np.float64).reshape(64, -1, 32)).max(axis=2), 32, axis=1)
    assert np.abs(found.rounded - np.sign(q) * scale * (np.abs(q) / top) ** (1 / a)).max() < 1e-6 * np.abs(w).max()
    again = rounded(Nupes(steps=300), w, "pow3_a0.5@32:fp32", stats)
    assert again.parts is not None and np.array_equal(again.parts["codes"], found.parts["codes"])


def test_learning_never_ends_worse_than_the_search() -> None:
    w, x, _ = layer(n=20)
    stats, h = gathered(x), damped(x)
    for text in ("pow4_a0.5@32", "pow2_a1@96+scale=mse", "pow6_a0.7@tensor"):
        searched, found = (rounded(Nupes(codes=False, steps=steps), w, text, stats) for steps in (0, 3))
        assert loss(w, found.rounded, h) <= loss(w, searched.rounded, h) * 1.0001
    w[:, :32] = 0
    assert np.isfinite(rounded(Nupes(steps=5), w, "pow4_a0.5@32", stats).rounded).all()
    with pytest.raises(UsageError, match=r"nupes learns codes of grids that have a scale alone, and pow4_a.*@32:fp16\+off has more"):
        rounded(Nupes(steps=5), w, "pow4_a0.5@32:fp16+off", stats)
    with pytest.raises(ValueError, match=r"'steps' is -1; it must be from 0 to 10000"):
        Nupes(steps=-1)
