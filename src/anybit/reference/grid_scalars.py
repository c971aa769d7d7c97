"""Value lists of bipolar, fixed-point, posit, power-of-two, logarithmic, power-exponent and P3109 numbers, built step by step.

Shares no code with `formats` or with the rational reference: posits grow bit by bit from four values, roots are digits of long decimals or
whole-number roots, sums are outer sums of lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal, localcontext
from itertools import pairwise
from typing import Any

import numpy as np

Definition = Mapping[str, Any]


def _signed(half: np.ndarray) -> np.ndarray:
    """Sign and magnitude: the upper half of the codes has the negative values."""
    return np.concatenate([half, -half])


def _twos_complement(values: list[float]) -> np.ndarray:
    """An ascending list from the least value on, put in the order of its codes."""
    return np.roll(np.array(values, np.float64), len(values) // 2)


def bipolar(d: Definition) -> np.ndarray:
    """Bit by bit, each shifts a copy of the list down and one up."""
    values = np.zeros(1)
    for i in range(d["bits"]):
        values = np.concatenate([values - 2.0**i, values + 2.0**i])  # a new highest bit
    return values


def fixed(d: Definition) -> np.ndarray:
    """Equal steps from end to end."""
    count, step = 1 << d["bits"], 2.0 ** -d["fraction"]
    return _twos_complement([(i - count // 2) * step for i in range(count)]) if d["signed"] else np.arange(count) * step


def few_digits(d: Definition) -> np.ndarray:
    """The number of nonzero digits of the non-adjacent form, the shortest there is, is that of ones in n xor 3 n."""
    low = -(1 << (d["width"] - 1)) if d["signed"] else 0
    numbers = [n for n in range(low, low + (1 << d["width"])) if (abs(n) ^ 3 * abs(n)).bit_count() <= d["digits"]]
    numbers += numbers[-1:] * ((1 << d["bits"]) - len(numbers))
    return np.array(numbers) * 2.0 ** -d["fraction"]


def positive_posits(bits: int, es: int) -> np.ndarray:
    """The positive posits ascending, codes 1 .. 2^(bits-1) - 1: from 1 alone, each further bit adds one value in every gap.

    Outside the ends it is one regime further. Inside, where the neighbours' exponents differ by more than one it has the exponent between
    them, and elsewhere it is their mean.
    """
    regime = 2.0 ** (1 << es)
    values = [1.0]
    for _ in range(bits - 2):
        between = []
        for low, high in pairwise(values):
            p, q = int(np.frexp(low)[1]), int(np.frexp(high)[1])
            powers = np.frexp(low)[0] == 0.5 and np.frexp(high)[0] == 0.5
            between.append(2.0 ** ((p + q) // 2 - 1) if powers and q - p > 1 else (low + high) / 2)
        grown = [values[0] / regime]
        for value, gap in zip(values, [*between, values[-1] * regime], strict=True):
            grown += [value, gap]
        values = grown
    return np.array(values)


def posit(d: Definition) -> np.ndarray:
    """Zero, the positive ones, NaR, the negative ones ascending."""
    positive = positive_posits(d["bits"], d["es"])
    return np.concatenate([[0.0], positive, [np.nan], -positive[::-1]])


def pot(d: Definition) -> np.ndarray:
    """Doubling from 1 on, after zero if there is one."""
    half = np.cumprod(np.r_[1.0, np.full((1 << (d["bits"] - 1)) - 1, 2.0)])
    return _signed(np.r_[0.0, half[:-1]] if d["zero"] else half)


def apot(d: Definition) -> np.ndarray:
    """Exponents by counting what lies below: all terms' levels of earlier turns, then the later terms of the same turn."""
    each, wide = divmod(d["bits"] - 1, d["terms"])
    wide, width = (wide, each + 1) if wide else (d["terms"], each)
    narrow_levels = (1 << (width - 1)) - 1 if wide < d["terms"] else 0
    half = np.zeros(1)
    for term in range(d["terms"]):
        is_wide = term < wide
        levels = [0.0]
        for turn in range((1 << width) - 1 if is_wide else narrow_levels):
            below = turn * wide + min(turn, narrow_levels) * (d["terms"] - wide)
            below += wide - 1 - term if is_wide else wide + d["terms"] - 1 - term
            levels.append(2.0**below)
        half = np.add.outer(half, levels).reshape(-1)
    return _signed(half)


def _float32_of(value: Decimal) -> float:
    """The nearest float32 of a long decimal in its normal range."""
    exponent = 0
    while value >= 2:
        value, exponent = value / 2, exponent + 1
    while value < 1:
        value, exponent = value * 2, exponent - 1
    return float(round(value * 2**23)) * 2.0 ** (exponent - 23)


def log_steps(d: Definition) -> np.ndarray:
    """2^(i / 2^fraction) for one step more than there are codes."""
    with localcontext() as context:
        context.prec = 80
        root = Decimal(2)
        for _ in range(d["fraction"]):
            root = root.sqrt()
        octave = [_float32_of(root**i) for i in range(1 << d["fraction"])]
    steps = np.arange(1 << (d["bits"] - 1))
    return np.array(octave)[steps % len(octave)] * 2.0 ** (steps // len(octave))


def log(d: Definition) -> np.ndarray:
    """Zero and the steps."""
    return _signed(np.r_[0.0, log_steps(d)[:-1]])


def _root(n: int, degree: int) -> int:
    """The whole part of the degree-th root, by Newton's iteration from a little above it."""
    high = max(0, n.bit_length() - 53)
    guess = (np.log2(float(n >> high)) + high) / degree
    x = int(2.0 ** (guess % 1) * (1 + 1e-9) * 2**60) + 1 << max(0, int(guess) - 60)
    while True:
        y = ((degree - 1) * x + n // x ** (degree - 1)) // degree
        if y >= x:
            return x
        x = y


def power(d: Definition) -> np.ndarray:
    """(q / top)^(d / n) for a = n / d, as a whole-number n-th root with 90 binary digits to spare."""
    top = (1 << (d["bits"] - 1)) - 1
    n, m = Decimal(d["exponent"]).as_integer_ratio()
    spare = 90 + -(-m * top.bit_length() // n)
    positive = []
    for q in range(1, top + 1):
        root = _root((q**m << spare * n) // top**m, n)
        shift = root.bit_length() - 24
        positive.append(float((root + (1 << (shift - 1))) >> shift) * 2.0 ** (shift - spare))
    least = [-x for x in reversed(positive)]
    return _twos_complement([least[0], *least, 0.0, *positive])


def _p3109_steps(d: Definition, count: int) -> np.ndarray:
    """`count` magnitudes: the first two binades in steps of one size, each further one in steps of twice the size."""
    per_binade = 1 << (d["precision"] - 1)
    bias = 2.0 ** (d["bits"] - d["precision"] - d["signed"]) // 1
    value, step = 0.0, 2.0 ** (1 - bias) / per_binade
    out = []
    for i in range(count):
        out.append(value)
        value += step
        if (i + 1) % per_binade == 0 and i + 1 >= 2 * per_binade:
            step *= 2
    return np.array(out)


def p3109(d: Definition) -> np.ndarray:
    """Magnitudes with the specials written over the last ones."""
    half = _p3109_steps(d, 1 << (d["bits"] - d["signed"]))
    if d["signed"]:
        if d["infinite"]:
            half[-1] = np.inf
        values = _signed(half)
        values[len(half)] = np.nan
        return values
    half[-1] = np.nan
    if d["infinite"]:
        half[-2] = np.inf
    return half


VALUES: dict[str, Callable[[Definition], np.ndarray]] = {
    "bipolar": bipolar, "fixed": fixed, "fewdigits": few_digits, "posit": posit, "pot": pot, "apot": apot, "log": log, "power": power,
    "p3109": p3109,
}  # fmt: skip
"""Family: the value of each code."""


def above(d: Definition, points: np.ndarray) -> float | None:
    """Where the grid goes on after its last value; None: by one more step of the last size."""
    if d["family"] == "posit":
        return float(points[-1] * 2.0 ** (1 << d["es"]))
    if d["family"] == "pot":
        return float(2 * points[-1])
    if d["family"] == "log":
        return float(log_steps(d)[-1])
    if d["family"] == "p3109":
        steps = _p3109_steps(d, 2 + (1 << d["bits"]))
        return float(steps[np.searchsorted(steps, points[-1]) + 1])
    return None


def ties(d: Definition, chain: np.ndarray) -> np.ndarray | None:
    """Where rounding to nearest changes between the entries of `chain` (finite values and one beyond each end); None: in the middle."""
    if d["family"] != "posit":
        return None
    positive = positive_posits(d["bits"] + 1, d["es"])[2:-1:2]  # the values that one more bit puts between those of this width
    end = (chain[-2] + chain[-1]) / 2
    return np.concatenate([[-end], -positive[::-1], [0.0, 0.0], positive, [end]])


def wrap(d: Definition, x: np.ndarray, mode: str) -> np.ndarray:
    """Codes for over=wrap: how many steps x is, rounded, counted round the ring of codes."""
    step = 2.0 ** -d.get("fraction", 0)
    x = np.fmod(x, step * (1 << d["bits"]))
    rest = np.fmod(x, step)  # exact, with the sign of x, and so is the difference
    inner, half = (x - rest) / step, np.sign(2 * np.abs(rest) - step)
    odd = np.mod(inner, 2) == 1
    further = {
        "up": rest > 0, "down": rest < 0, "zero": half > 1, "odd": (rest != 0) & ~odd, "nearest-even": (half > 0) | ((half == 0) & odd),
        "nearest-away": half >= 0, "nearest-zero": half > 0,
    }[mode]  # fmt: skip
    return np.mod(inner + further * np.sign(rest), 1 << d["bits"]).astype(np.int64)
