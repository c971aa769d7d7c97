"""The matrix product in rational arithmetic, and the derived bound within which `reference.linear` stays of it."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise

import numpy as np

from anybit.reference.fma import F32
from anybit.reference.linear import Operands, act_edges, quantize_activations, weight_edges

UNIT = 2**24  # one rounding is off by at most 1 / UNIT, relative
LEAST = Fraction(1, 2**149)  # and by half of this where the result is subnormal


def exact_matmul(x: F32, w: Operands, act: str | None = None) -> tuple[list[list[Fraction]], list[list[Fraction]]]:
    """x[m, k] times w[n, k] transposed, exactly, and how far the contract's result may lie from it: two [m][n] lists.

    Exact means: of the same table, scales, offsets and, with act "int8", the same q and s.

    Derivation: a term that passes j roundings is off by at most g(j) = j u / (1 - j u) of itself, u = 2^-24. j counts the fma inside
    a block (its length; with int8 activations one conversion and one product of scales instead), the products that fold the scales
    and the step, and the fma across blocks (two a block with an offset). A subnormal result adds 2^-150, which the factors that
    follow carry on: inside a block times the scale, in a scale times the block's sum.

    Cost: m n k rational products.
    """
    edges = act_edges(x.shape[1], w.block) if act == "int8" else weight_edges(x.shape[1], w.block)
    spans = list(pairwise(edges))
    inner = 2 if act == "int8" else max(last - first for first, last in spans)
    roundings = inner + max(len(w.levels) + 1, len(w.offsets) + 1) + 2 * len(spans)
    growth = Fraction(roundings, UNIT - roundings)
    results, bounds = [], []
    for inputs in _inputs(x, edges, act):
        pairs = [_output(inputs, w, j, spans, act, growth) for j in range(w.values.shape[0])]
        results.append([total for total, _ in pairs])
        bounds.append([bound for _, bound in pairs])
    return results, bounds


def _inputs(x: F32, edges: list[int], act: str | None) -> list[list[tuple[Fraction, int]]]:
    """Each row of x as the product sees it, x or q * s, and beside it what is summed before scaling: q, or 0 for float activations."""
    if act is None:
        return [[(Fraction(float(v)), 0) for v in row] for row in x]
    q, s, _ = quantize_activations(x, edges)
    repeated = np.repeat(s, np.diff(edges), axis=1)
    return [[(int(a) * Fraction(float(b)), int(a)) for a, b in zip(*rows, strict=True)] for rows in zip(q, repeated, strict=True)]


def _output(
    inputs: list[tuple[Fraction, int]], w: Operands, row: int, spans: list[tuple[int, int]], act: str | None, growth: Fraction
) -> tuple[Fraction, Fraction]:
    """One output and its bound."""
    table, step = (w.t, w.step) if act == "int8" and w.t is not None else (w.values, w.step_float)
    total = bound = Fraction(0)
    for first, last in spans:
        b = first // w.block
        levels, offsets = ([Fraction(float(f[row, b])) for f in factors] for factors in (w.levels, w.offsets))
        scale = _product([*levels, Fraction(step)])
        offset = _product(offsets) if offsets else Fraction(0)
        zero = int(w.zero[row, b]) if w.zero is not None else 0
        weights = [Fraction(float(v)) - zero for v in table[row, first:last]]
        some = [u for u, _ in inputs[first:last]]
        terms = [u * v for u, v in zip(some, weights, strict=True)]
        total += scale * sum(terms) + offset * sum(some)
        mass, input_mass = sum(map(abs, terms)), sum(map(abs, some))
        bound += growth * (abs(scale) * mass + abs(offset) * input_mass)
        dots = sum(abs(q) * (1 + abs(v)) for (_, q), v in zip(inputs[first:last], weights, strict=True))
        largest = 1 + max(map(abs, [*levels, *offsets, Fraction(step)]))
        bound += LEAST * ((last - first + 2) * (1 + abs(scale) + abs(offset)) + largest ** len(w.levels) * (mass + input_mass + dots))
    return total, bound


def _product(values: Iterable[Fraction]) -> Fraction:
    result = Fraction(1)
    for value in values:
        result *= value
    return result
