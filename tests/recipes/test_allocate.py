"""Allocation against trying everything; what does not fit is said with by how much."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anybit.errors import DoesNotFitError, NonFiniteError, UsageError
from anybit.recipes.allocate import Budget, allocate

Table = dict[str, dict[Any, float]]


def everything(costs: Table, budgets: list[Budget[Any]]) -> list[tuple[float, list[float]]]:
    """(cost, uses) of every allocation that fits."""
    found = []
    for choices in itertools.product(*costs.values()):
        pairs = list(zip(costs, choices, strict=True))
        uses = [math.fsum(budget.use[layer][choice] for layer, choice in pairs) for budget in budgets]
        if all(use <= budget.limit for use, budget in zip(uses, budgets, strict=True)):
            found.append((math.fsum(costs[layer][choice] for layer, choice in pairs), uses))
    return found


def table(rng: np.random.Generator, shape: list[int], most: int, power: int = 1) -> Table:
    return {f"l{i}": {c: float(rng.integers(0, most)) ** power for c in range(count)} for i, count in enumerate(shape)}


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(0, 3), st.sampled_from([4, 1000]), st.floats(0.0, 1.1))
def test_it_is_what_trying_everything_finds(seed: int, layers: int, count: int, most: int, tight: float) -> None:
    """Small whole numbers, so that ties are common; cubes of large ones; limits from too low to idle."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 4, layers).tolist()
    costs = table(rng, shape, most, 3)
    uses = [table(rng, shape, most) for _ in range(count)]
    budgets = [Budget(f"b{i}", use, round(tight * sum(max(each.values()) for each in use.values()))) for i, use in enumerate(uses)]
    possible = everything(costs, budgets)
    if not possible:
        with pytest.raises(DoesNotFitError):
            allocate(costs, *budgets)
        return
    found = allocate(costs, *budgets)
    assert found == allocate(costs, *budgets)
    best = min(cost for cost, _ in possible)
    assert found.cost == best == math.fsum(costs[layer][choice] for layer, choice in found.choices.items())
    assert list(found.choices) == list(costs)
    for budget in budgets:
        assert found.used[budget.name] == math.fsum(budget.use[layer][choice] for layer, choice in found.choices.items()) <= budget.limit
    if budgets:
        assert found.used["b0"] == min(uses[0] for cost, uses in possible if cost == best)


def test_costs_of_very_different_size() -> None:
    """The cheap layer is chosen well beside one that costs a billion times as much."""
    costs = {"big": {"low": 1e6, "high": 0.0}, "small": {"low": 3e-3, "mid": 1e-3, "high": 2e-3}}
    use = {"big": {"low": 1, "high": 2}, "small": {"low": 1, "mid": 1, "high": 2}}
    assert allocate(costs, Budget("size", use, 4)).choices == {"big": "high", "small": "mid"}


def test_a_limit_is_exact() -> None:
    """Bytes of a large model: one more than the limit is too many, though the solver does not see it."""
    costs = {"a": {4: 1.0, 8: 0.0}, "b": {4: 1.1, 8: 0.0}}
    sizes = {"a": {4: 4_000_000_000, 8: 8_000_000_001}, "b": {4: 4_000_000_000, 8: 8_000_000_002}}
    assert allocate(costs, Budget("size", sizes, 12_000_000_002)).choices == {"a": 4, "b": 8}
    assert allocate(costs, Budget("size", sizes, 12_000_000_001)).choices == {"a": 8, "b": 4}
    assert allocate(costs, Budget("size", sizes, 12_000_000_000)).choices == {"a": 4, "b": 4}


def test_layers_alike_take_choices_in_order() -> None:
    costs = {name: {4: 2.0, 8: 1.0} for name in "abcd"}
    use = {name: {4: 4, 8: 8} for name in "abcd"}
    assert allocate(costs, Budget("size", use, 24)).choices == {"a": 4, "b": 4, "c": 8, "d": 8}
    assert allocate(costs).choices == dict.fromkeys("abcd", 8)


def test_many_layers() -> None:
    """200 layers of 6 choices under three budgets: no worse than any of 2,000 random allocations that fit, nor than one exchange away."""
    rng = np.random.default_rng(0)
    names, bits = [f"l{i}" for i in range(200)], (2, 3, 4, 5, 6, 8)
    size = {name: int(rng.integers(10_000, 10_000_000)) for name in names}
    costs = {name: {b: float(rng.lognormal(0, 2)) * 4.0**-b for b in bits} for name in names}
    uses = [{n: {b: size[n] * b for b in bits} for n in names}, {n: {b: b * b * float(rng.integers(1, 9)) for b in bits} for n in names},
            {n: {b: float(rng.random()) + b for b in bits} for n in names}]  # fmt: skip
    limits = [4.1 * sum(size.values()), 20.0 * 5 * 200, 4.9 * 200]
    budgets = [Budget(f"b{i}", use, limit) for i, (use, limit) in enumerate(zip(uses, limits, strict=True))]
    found = allocate(costs, *budgets)
    assert all(found.used[budget.name] <= budget.limit for budget in budgets)
    for name, chosen in found.choices.items():
        for other in bits:
            change = costs[name][other] - costs[name][chosen]
            fits = all(found.used[b.name] + b.use[name][other] - b.use[name][chosen] <= b.limit for b in budgets)
            assert not fits or change >= -1e-9


def test_what_does_not_fit() -> None:
    costs: Table = {"a": {4: 2.0, 8: 1.0}, "b": {4: 2.0, 8: 1.0}}
    sizes, speed = {"a": {4: 4, 8: 8}, "b": {4: 5, 8: 10}}, {"a": {4: 3.0, 8: 1.0}, "b": {4: 4.0, 8: 2.0}}
    message = "'size': the smallest choice of every layer takes 9 bits, 2 bits above the limit of 7; raise it, or add smaller choices"
    with pytest.raises(DoesNotFitError, match=re.escape(message)):
        allocate(costs, Budget("size", sizes, 7, "bits"))
    # 4, 4: 9 and 7; 4, 8: 14 and 5; 8, 4: 13 and 5; 8, 8: 18 and 3. Nearest to (10, 4): 13 is 30 % above, 5 is 25 %.
    message = "the budgets 'size', 'time' hold one by one, but not together: with every limit 30 % higher they do"
    with pytest.raises(DoesNotFitError, match=re.escape(message)):
        allocate(costs, Budget("size", sizes, 10), Budget("time", speed, 4))


@pytest.mark.parametrize(
    ("costs", "budgets", "error", "message"),
    [
        ({}, [], UsageError, "no layers to allocate"),
        ({"a": {}}, [], UsageError, "layer 'a' has no choices"),
        ({"a": {4: math.nan}}, [], NonFiniteError, "the costs: nan for choice 4 of layer 'a'"),
        ({"a": {4: 1.0}}, [Budget("size", {}, 1)], UsageError, "budget 'size' lacks layer or choice 'a'"),
        ({"a": {4: 1.0}}, [Budget("size", {"a": {8: 1.0}}, 1)], UsageError, "budget 'size' lacks layer or choice 4"),
        ({"a": {4: 1.0}}, [Budget("size", {"a": {4: -1.0}}, 1)], NonFiniteError, "budget 'size': its limit 1 and its uses must be finite"),
        ({"a": {4: 1.0}}, [Budget("size", {"a": {4: 1.0}}, math.inf)], NonFiniteError, "budget 'size': its limit inf"),
    ],
)
def test_input_is_checked(costs: Any, budgets: list[Budget[Any]], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        allocate(costs, *budgets)
