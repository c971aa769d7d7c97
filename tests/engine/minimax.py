"""A Remez fit in 50-digit decimals: where the coefficients of the float32 exponential come from."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, getcontext

getcontext().prec = 50


def solve(matrix: list[list[Decimal]], right: list[Decimal]) -> list[Decimal]:
    """Gaussian elimination with partial pivoting."""
    n = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for r in range(i + 1, n):
            factor = rows[r][i] / rows[i][i]
            rows[r] = [a - factor * b for a, b in zip(rows[r], rows[i], strict=True)]
    result = [Decimal(0)] * n
    for i in reversed(range(n)):
        result[i] = (rows[i][n] - sum(rows[i][j] * result[j] for j in range(i + 1, n))) / rows[i][i]
    return result


def exp_coefficients(half_width: Decimal, degree: int, rounds: int = 6, grid: int = 1501) -> tuple[list[Decimal], Decimal]:
    """q with exp(r) ~ 1 + r + r^2 q(r), least maximal relative error on [-half_width, half_width]; and that error."""

    def wanted(r: Decimal) -> Decimal:
        return r.exp() - 1 - r

    return remez(wanted, lambda r, i: r ** (i + 2), lambda r: (-r).exp(), half_width, degree + 1, rounds, grid)


def remez(
    wanted: Callable[[Decimal], Decimal],
    basis: Callable[[Decimal, int], Decimal],
    weight: Callable[[Decimal], Decimal],
    half_width: Decimal,
    terms: int,
    rounds: int,
    grid: int,
) -> tuple[list[Decimal], Decimal]:
    """Exchange on a grid: solve for equal alternating weighted errors, move the points to the extrema, repeat."""
    cells = [half_width * (2 * Decimal(i) / grid - 1) for i in range(grid + 1)]
    values = [(r, wanted(r), weight(r), [basis(r, i) for i in range(terms)]) for r in cells]
    points = [values[round(grid * (i + Decimal("0.5")) / (terms + 1))] for i in range(terms + 1)]
    coefficients: list[Decimal] = []
    worst = Decimal(0)
    for _ in range(rounds):
        matrix = [[b * w for b in base] + [Decimal((-1) ** i)] for i, (_, _, w, base) in enumerate(points)]
        *coefficients, _level = solve(matrix, [f * w for _, f, w, _ in points])
        errors = [w * (f - sum(c * b for c, b in zip(coefficients, base, strict=True))) for _, f, w, base in values]
        worst = max(abs(e) for e in errors)
        extrema: list[int] = []
        for i, e in enumerate(errors):
            if extrema and (errors[extrema[-1]] > 0) == (e > 0):
                if abs(e) > abs(errors[extrema[-1]]):
                    extrema[-1] = i
            else:
                extrema.append(i)
        while len(extrema) > terms + 1:
            extrema.pop(0 if abs(errors[extrema[0]]) < abs(errors[extrema[-1]]) else -1)
        if len(extrema) <= terms:
            break
        points = [values[i] for i in extrema]
    return coefficients, worst
