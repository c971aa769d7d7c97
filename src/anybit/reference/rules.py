"""Scale rules in exact fractions, one block at a time: candidate scales, and what a search minimises. Written from docs/expressions.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

Values = list[Fraction]


def candidates(values: Values, fmt: Any, element: Any, shift: Fraction, rule: str, number: float | None) -> list[Fraction]:
    """The scales that a rule gives a block of values, the first being the one that it starts from. ValueError: no such rule here."""
    if fmt.zero is not None and fmt.offset is None:
        values = [Fraction(0), max(*values, Fraction(0)) - min(*values, Fraction(0))]
        least, most, bottom = Fraction(0), element.max - element.min, Fraction(0)
    else:
        values = [v - shift for v in values]
        most, bottom = max(element.max, Fraction(0)), element.min
        twos = element.fields["family"] == "integer" and element.min < 0 and fmt.offset is None
        least = -most if twos else min(element.min, Fraction(0))
        if element.fields["family"] == "posit" and fmt.offset is None:
            most = Fraction(2) ** 2 ** element.fields["es"]
            least = -most
    top, largest = max(most, -least), max(map(abs, values))
    if rule in ("floor", "ceil", "even", "signmax", "full") and largest == 0:
        return [Fraction(0)]
    if rule in ("absmax", "clip"):
        return [_absmax(values, least, most)]
    if rule == "full":
        return [largest / ((most - bottom) / 2)] if least < 0 < most else [_absmax(values, least, most)]
    if rule == "signmax":
        return [(min(values) if -min(values) > max(values) else max(values)) / bottom]
    if rule == "floor":
        return [_power(_log2(largest) - _log2(top)) / Fraction(number or 1)]
    if rule == "ceil":
        return [_power(_log2(largest / top) + (largest / top != _power(_log2(largest / top))))]
    if rule == "even":
        below: Values = [abs(v) for v in element.values if abs(v) < top]
        step = top - max(below) if fmt.zero is None or fmt.offset is not None else Fraction(1)
        return [_power(_log2(largest + step / 2 * _power(_log2(largest) - _log2(top))) - _log2(top))]
    if rule == "p":
        assert number is not None
        rank = max(1, math.ceil(len(values) * Fraction(str(number)) / 100))
        limit = sorted(map(abs, values))[rank - 1]
        return [_absmax([min(max(v, -limit), limit) for v in values], least, most)]
    return _search(values, fmt, element, least, most, rule, number)


def _search(values: Values, fmt: Any, element: Any, least: Fraction, most: Fraction, rule: str, number: float | None) -> list[Fraction]:
    top, largest, base = max(most, -least), max(map(abs, values)), _absmax(values, least, most)
    scales = [v for v in fmt.levels[0].element.values.tolist() if v > 0] if fmt.levels[0].element.bits <= 8 else [3.0]
    if rule in ("mse", "lp") and all(math.frexp(v)[0] == 0.5 for v in scales if math.isfinite(v)):
        s = _power(_log2(largest) - _log2(top)) if largest else Fraction(0)
        return [s, s / 2, s * 2]
    if rule == "mse":
        steps = np.linspace(0.6, 1.6, 26) if len(element.values) > 4 or element.wide else np.linspace(0.15, 1.2, 36)
        return [base, *(base * Fraction(float(step)) for step in steps)]
    if rule == "lp":
        return [base * (1 - Fraction(8 * i, 1000)) for i in range(100)]
    if rule == "4over6":
        return [base, base * top / max(abs(v) for v in element.values if 0 < abs(v) < top)]
    if rule == "sigma":
        mean = sum(values, Fraction(0)) / len(values)
        spread = Fraction(number or 0) * Fraction(math.sqrt(sum((v - mean) ** 2 for v in values) / len(values)))
        alpha = max(abs(mean + spread), abs(mean - spread)) / top if largest else Fraction(0)
        return [alpha, *(alpha * Fraction(75 + 2 * i, 100) for i in range(38))]
    raise ValueError(f"no reference for the scale rule '{rule}'")


def loss(values: Sequence[Any], found: Sequence[Any], rule: str, number: float | None) -> float:
    """What a search minimises over a block: the sum of |error|^2, or of |error|^number for lp."""
    errors = [abs(float(a) - float(b)) for a, b in zip(values, found, strict=True)]
    return math.fsum(e ** (number if rule == "lp" and number else 2) for e in errors)


def _absmax(values: Values, least: Fraction, most: Fraction) -> Fraction:
    sides = [max(values) / most] if most > 0 else []
    sides += [min(values) / least] if least < 0 else []
    return max(*sides, Fraction(0), Fraction(0))


def _power(exponent: int) -> Fraction:
    return Fraction(2) ** exponent


def _log2(x: Fraction) -> int:
    """floor(log2 x), x > 0."""
    guess = x.numerator.bit_length() - x.denominator.bit_length()
    return guess if Fraction(2) ** guess <= x else guess - 1
