"""One choice for each layer, of least total cost within budgets: a multiple-choice knapsack, solved exactly as an integer program.

Source: HAWQ-V3, arXiv 2011.10680 (cost: second-order sensitivity; budgets: size, bit operations, latency), for any costs and
any number of budgets. Solver: HiGHS through scipy.optimize.milp.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from anybit.errors import DoesNotFitError, NonFiniteError, UsageError

Choice = TypeVar("Choice", bound=Hashable)
Table = Mapping[str, Mapping[Choice, float]]
ROUNDS = 100


@dataclass(frozen=True)
class Budget(Generic[Choice]):
    """The sum over layers of `use[layer][choice]` is at most `limit`, both not negative, in the same unit (`unit` is for messages)."""

    name: str
    use: Table[Choice]
    limit: float
    unit: str = ""


@dataclass(frozen=True)
class Allocated(Generic[Choice]):
    """What was chosen, its total cost, and what it uses of each budget by name."""

    choices: dict[str, Choice]
    cost: float
    used: dict[str, float]


def allocate(costs: Table[Choice], *budgets: Budget[Choice]) -> Allocated[Choice]:
    """The choice of every layer for which the costs sum to the least while every budget holds.

    Budgets hold exactly: sums are math.fsum, rounded once. The cost is the least but for the solver's tolerance, a millionth of the largest
    difference between two choices of a layer, and no exchange of one layer's choice makes it less. Ties: among equal costs the least of the
    first budget, as far as the same tolerance tells them from others; layers with the same numbers take their choices in the order in which
    both were given. The same input gives the same result (with one version of SciPy).

    Args: costs: {layer: {choice: cost}}, layers may have different choices; a budget's `use` has the same keys (more are passed over).
    Raises: DoesNotFitError: no allocation fits: which budget, and by how much; UsageError: no layers, a layer without choices, or keys
        that a budget lacks; NonFiniteError: a number that is not finite, or a use or limit that is negative.

    >>> costs = {"a": {4: 3.0, 8: 0.1}, "b": {4: 1.0, 8: 0.2}, "c": {4: 0.5, 8: 0.4}}
    >>> sizes = {layer: {4: 40, 8: 80} for layer in costs}
    >>> allocate(costs, Budget("size", sizes, 160, "bits"))
    Allocated(choices={'a': 8, 'b': 4, 'c': 4}, cost=1.6, used={'size': 160.0})
    """
    program = _Program(costs, budgets)
    best = program.solve()
    if best is None:
        raise DoesNotFitError(program.why_not())
    return program.allocation(program.in_order(program.of_least_use(program.exchanged(best))))


class _Program(Generic[Choice]):
    """The numbers as arrays: one column a choice of a layer, in the order given."""

    def __init__(self, costs: Table[Choice], budgets: Sequence[Budget[Choice]]) -> None:
        self.budgets = budgets
        self.columns = [(layer, choice) for layer, each in costs.items() for choice in each]
        if not self.columns or not all(costs.values()):
            empty = next((layer for layer, each in costs.items() if not each), None)
            raise UsageError("no layers to allocate" if empty is None else f"layer '{empty}' has no choices")
        ends = np.cumsum([len(each) for each in costs.values()]).tolist()
        self.layers = [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        self.costs = self._row("the costs", costs)
        self.uses = [self._row(f"budget '{budget.name}'", budget.use) for budget in budgets]
        for budget, use in zip(budgets, self.uses, strict=True):
            if not 0 <= budget.limit < math.inf or use.min() < 0:
                raise NonFiniteError(f"budget '{budget.name}': its limit {budget.limit} and its uses must be finite and not negative")

    def _row(self, what: str, table: Table[Choice]) -> np.ndarray:
        try:
            row = np.array([table[layer][choice] for layer, choice in self.columns], np.float64)
        except KeyError as error:
            raise UsageError(f"{what} lacks layer or choice {error.args[0]!r}") from None
        bad = np.flatnonzero(~np.isfinite(row))
        if len(bad):
            layer, choice = self.columns[bad[0]]
            raise NonFiniteError(f"{what}: {row[bad[0]]} for choice {choice!r} of layer '{layer}'")
        return row

    def solve(self, objective: np.ndarray | None = None, most: float | None = None) -> list[int] | None:
        """The columns chosen, or None if nothing fits; `most`: the highest cost that is allowed."""
        objective = self.costs if objective is None else objective
        lowest = np.concatenate([np.full(len(each), objective[each].min()) for each in map(list, self.layers)])
        scale = (objective - lowest).max()
        goal = (objective - lowest) * (1e4 / scale) if scale > 0 else objective - lowest
        units = [budget.limit or 1.0 for budget in self.budgets]
        rows = [(use / unit, budget.limit / unit) for budget, use, unit in zip(self.budgets, self.uses, units, strict=True)]
        if most is not None:
            unit = abs(most) or np.abs(self.costs).max() or 1.0
            rows.append((self.costs / unit, most / unit))
        for _ in range(ROUNDS):
            chosen = self._milp(goal, rows)
            if chosen is None or self._holds(chosen):
                return chosen
            cut = np.zeros(len(self.columns))  # the solver's tolerance let a sum pass that is too large: never this one again
            cut[chosen] = 1.0
            rows.append((cut, len(chosen) - 1.0))
        if most is not None:
            return None
        raise DoesNotFitError(f"{ROUNDS} allocations in turn are above a budget by less than the solver sees; lower a limit a little")

    def _milp(self, goal: np.ndarray, rows: list[tuple[np.ndarray, float]], relaxed: bool = False) -> Any:
        """Columns of the best choice, or None. relaxed: instead by how much (a share) the rows must grow for one to exist."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_matrix

        count = len(self.columns)
        wide = count + relaxed
        one = csr_matrix(
            (np.ones(count), (np.repeat(np.arange(len(self.layers)), [len(each) for each in self.layers]), np.arange(count))),
            shape=(len(self.layers), wide),
        )
        rules = [LinearConstraint(one, 1, 1)]
        if rows:
            matrix = np.array([np.append(row, -1.0) if relaxed else row for row, _ in rows])
            rules.append(LinearConstraint(matrix, -np.inf, [limit for _, limit in rows]))
        top = np.append(np.ones(count), np.inf) if relaxed else np.ones(count)
        whole = np.append(np.ones(count), 0) if relaxed else np.ones(count)
        aim = np.append(np.zeros(count), 1.0) if relaxed else goal
        found = milp(aim, constraints=rules, bounds=Bounds(0, top), integrality=whole, options={"mip_rel_gap": 0.0})
        if found.x is None:
            return None
        return float(found.x[-1]) if relaxed else [each.start + int(np.argmax(found.x[list(each)])) for each in self.layers]

    def _holds(self, chosen: list[int]) -> bool:
        return all(_sum(use, chosen) <= budget.limit for budget, use in zip(self.budgets, self.uses, strict=True))

    def exchanged(self, chosen: list[int]) -> list[int]:
        """With one layer's choice after another exchanged for a cheaper one that fits, until there is none."""
        better = True
        while better:
            better = False
            for i, each in enumerate(self.layers):
                for column in sorted(each, key=lambda j: self.costs[j]):
                    if self.costs[column] >= self.costs[chosen[i]]:
                        break
                    other = [*chosen[:i], column, *chosen[i + 1 :]]
                    if self._holds(other):
                        chosen, better = other, True
                        break
        return chosen

    def of_least_use(self, chosen: list[int]) -> list[int]:
        """Of equal cost and less of the first budget, if there is one."""
        if not self.budgets:
            return chosen
        other = self.solve(self.uses[0], _sum(self.costs, chosen))
        rows = self.costs, self.uses[0]
        return min(chosen, other or chosen, key=lambda each: [_sum(row, each) for row in rows])

    def in_order(self, chosen: list[int]) -> list[int]:
        """Layers with the same choices and numbers: the earlier layer has the earlier choice."""
        alike: dict[Any, list[int]] = {}
        for i, each in enumerate(self.layers):
            numbers = tuple(tuple(row[list(each)].tolist()) for row in (self.costs, *self.uses))
            alike.setdefault((tuple(choice for _, choice in (self.columns[j] for j in each)), numbers), []).append(i)
        for layers in alike.values():
            places = sorted(chosen[i] - self.layers[i].start for i in layers)
            for i, place in zip(layers, places, strict=True):
                chosen[i] = self.layers[i].start + place
        return chosen

    def allocation(self, chosen: list[int]) -> Allocated[Choice]:
        """The result."""
        used = {budget.name: _sum(use, chosen) for budget, use in zip(self.budgets, self.uses, strict=True)}
        return Allocated(dict(self.columns[j] for j in chosen), _sum(self.costs, chosen), used)

    def why_not(self) -> str:
        """Why nothing fits: a budget that not even the smallest choices meet, or by how much all must grow together."""
        for budget, use in zip(self.budgets, self.uses, strict=True):
            least = math.fsum(use[list(each)].min() for each in self.layers)
            if least > budget.limit:
                unit = f" {budget.unit}" if budget.unit else ""
                return (
                    f"budget '{budget.name}': the smallest choice of every layer takes {least:.12g}{unit},"
                    f" {least - budget.limit:.12g}{unit} above the limit of {budget.limit:.12g}; raise it, or add smaller choices"
                )
        rows = [(use / budget.limit, 1.0) for budget, use in zip(self.budgets, self.uses, strict=True) if budget.limit]
        share = self._milp(self.costs, rows, relaxed=True)
        names = ", ".join(f"'{budget.name}'" for budget in self.budgets)
        return f"the budgets {names} hold one by one, but not together: with every limit {100 * share:.3g} % higher they do"


def _sum(row: np.ndarray, chosen: list[int]) -> float:
    return math.fsum(row[j] for j in chosen)
