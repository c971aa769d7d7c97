"""What the codes of bipolar, fixed-point, posit, power-of-two, logarithmic, power-exponent and P3109 numbers mean, by exact fractions.

Each function reads one family's definition literally, for one code. Values that are float32 roundings of roots are found by comparing
powers of whole numbers, never by computing a root.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from itertools import product
from typing import Any

Value = Fraction | str
Definition = Mapping[str, Any]


def power_of_two(exponent: int) -> Fraction:
    """2^exponent."""
    return Fraction(2) ** exponent


def nearest_float32(is_below: Callable[[Fraction], bool]) -> Fraction:
    """The float32 nearest to an irrational positive number, told only whether a number lies below it: bisection over significands."""
    exponent = 0
    while not is_below(power_of_two(exponent)):
        exponent -= 1
    while is_below(power_of_two(exponent + 1)):
        exponent += 1
    low, high = 1 << 24, 1 << 25  # in halves of the last digit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_below(middle * power_of_two(exponent - 24)) else (low, middle)
    # The number lies in low .. low + 1 halves: above an odd half it belongs to the digit above.
    return (low + 1) // 2 * power_of_two(exponent - 23)


def whole(code: int, bits: int, signed: bool) -> int:
    """Two's complement or unsigned."""
    return code - 2**bits if signed and code >= 2 ** (bits - 1) else code


def bipolar(code: int, d: Definition) -> Value:
    """Each bit counts +1 or -1 times its power of two."""
    return Fraction(sum((2 * (code >> i & 1) - 1) * 2**i for i in range(d["bits"])))


def fixed(code: int, d: Definition) -> Value:
    """A whole number of steps of 2^-F."""
    return whole(code, d["bits"], d["signed"]) * power_of_two(-d["fraction"])


@lru_cache(maxsize=16)
def _sums_of_powers(width: int, signed: bool, digits: int) -> list[int]:
    """All whole numbers of the range that are sums or differences of at most so many powers of two, by trying all."""
    found = {0}
    for _ in range(digits):
        found |= {n + sign * 2**i for n, i, sign in product(found, range(width + 1), (1, -1))}
    low = -(2 ** (width - 1)) if signed else 0
    return sorted(n for n in found if low <= n < low + 2**width)


def few_digits(code: int, d: Definition) -> Value:
    """The code is a position among the numbers of few digits; past the end the last."""
    numbers = _sums_of_powers(d["width"], d["signed"], d["digits"])
    return numbers[min(code, len(numbers) - 1)] * power_of_two(-d["fraction"])


def posit(code: int, d: Definition, more: int = 0) -> Value:
    """The formula of the 2022 standard on the bit string, ((1 - 3 s) + f) 2^((1 - 2 s)(2^es r + e + s)); `more`: extra bits."""
    bits, es = d["bits"] + more, d["es"]
    if code == 0:
        return Fraction(0)
    if code == 2 ** (bits - 1):
        return "nan"
    text = f"{code:0{bits}b}"
    s, body = int(text[0]), text[1:]
    run = len(body) - len(body.lstrip(body[0]))
    r = run - 1 if body[0] == "1" else -run
    rest = body[run + 1 :]
    e = int((rest[:es] + "0" * es)[:es] or "0", 2)
    f = Fraction(int(rest[es:] or "0", 2), 2 ** len(rest[es:]))
    return ((1 - 3 * s) + f) * power_of_two((1 - 2 * s) * (2**es * r + e + s))


def pot(code: int, d: Definition) -> Value:
    """Sign and exponent; the lowest field is zero, if there is one."""
    sign, field = divmod(code, 2 ** (d["bits"] - 1))
    if d["zero"] and field == 0:
        return "-0" if sign else Fraction(0)
    return (-1) ** sign * power_of_two(field - d["zero"])


def _levels(bits: int, terms: int) -> list[list[Fraction]]:
    """The level sets as the authors' code writes them, from the largest: 2^-1, 2^-2 ... dealt out in turns; then scaled to whole numbers.

    A narrow term joins when only as many turns are left as it has levels, and takes its level before the wide ones.
    """
    widths = [(bits - 1 + terms - 1 - i) // terms for i in range(terms)]
    turns = 2 ** widths[0] - 1
    sets: list[list[Fraction]] = [[Fraction(0)] for _ in widths]
    exponent = 0
    for turn in range(turns):
        left = turns - turn
        narrow = [i for i, width in enumerate(widths) if width < widths[0] and left <= 2**width - 1]
        for i in narrow + [i for i, width in enumerate(widths) if width == widths[0]]:
            exponent += 1
            sets[i].append(power_of_two(-exponent))
    return [sorted(level * power_of_two(exponent) for level in levels) for levels in sets]


def apot(code: int, d: Definition) -> Value:
    """Sign and one field a term."""
    sign, rest = divmod(code, 2 ** (d["bits"] - 1))
    total = Fraction(0)
    for levels in reversed(_levels(d["bits"], d["terms"])):  # the last term has the lowest bits
        rest, field = divmod(rest, len(levels))
        total += levels[field]
    return "-0" if sign and total == 0 else -total if sign else total


@lru_cache(maxsize=4096)
def root_of_two(steps: int, fraction: int) -> Fraction:
    """The float32 nearest to 2^(steps / 2^fraction)."""
    octave, part = divmod(steps, 2**fraction)
    if part == 0:
        return power_of_two(octave)
    n = 2**fraction
    return nearest_float32(lambda x: x.numerator**n < x.denominator**n << part) * power_of_two(octave)


def log(code: int, d: Definition) -> Value:
    """Sign and the number of steps of the base, field 0 being zero."""
    sign, field = divmod(code, 2 ** (d["bits"] - 1))
    if field == 0:
        return "-0" if sign else Fraction(0)
    return (-1) ** sign * root_of_two(field - 1, d["fraction"])


@lru_cache(maxsize=4096)
def _power(q: int, top: int, exponent: str) -> Fraction:
    if q in (0, top):
        return Fraction(q, top)
    a = Fraction(exponent)
    # x < (q / top)^(1 / a)  means  x^n < (q / top)^m  for a = n / m.
    n, m = a.numerator, a.denominator
    return nearest_float32(lambda x: x.numerator**n * top**m < q**m * x.denominator**n)


def power(code: int, d: Definition) -> Value:
    """The root of a fraction, with the sign of q."""
    top = 2 ** (d["bits"] - 1) - 1
    q = max(whole(code, d["bits"], True), -top)
    return _power(abs(q), top, d["exponent"]) * (-1 if q < 0 else 1)


def p3109(code: int, d: Definition, wide: bool = False) -> Value:
    """`wide` disregards sign and specials: what a code past the last magnitude would mean."""
    bits, precision, signed = d["bits"], d["precision"], d["signed"]
    bias = 2 ** (bits - precision - 1) if signed and bits - precision >= 1 else 2 ** (bits - precision) if not signed else 0
    if not wide:
        if code == (2 ** (bits - 1) if signed else 2**bits - 1):
            return "nan"
        sign, code = divmod(code, 2 ** (bits - 1)) if signed else (0, code)
        if d["infinite"] and code == (2 ** (bits - 1) - 1 if signed else 2**bits - 2):
            return "-inf" if sign else "inf"
    else:
        sign = 0
    e, t = divmod(code, 2 ** (precision - 1))
    t_part = Fraction(t, 2 ** (precision - 1))
    value = t_part * power_of_two(1 - bias) if e == 0 else (1 + t_part) * power_of_two(e - bias)
    return -value if sign else value


DECODE: dict[str, Callable[[int, Definition], Value]] = {
    "bipolar": bipolar, "fixed": fixed, "fewdigits": few_digits, "posit": posit, "pot": pot, "apot": apot, "log": log, "power": power,
    "p3109": p3109,
}  # fmt: skip
"""Family: the value of one code."""


def above(d: Definition, last: int) -> Value | None:
    """Where the grid goes on after its last value, whose code this is; None: by one more step of the last size."""
    if d["family"] == "posit":
        value = posit(last, d)
        assert isinstance(value, Fraction)
        return value * power_of_two(2 ** d["es"])
    if d["family"] == "pot":
        return power_of_two(last - d["zero"] + 1)
    if d["family"] == "log":
        return root_of_two(last, d["fraction"])
    return p3109(last + 1, d, wide=True) if d["family"] == "p3109" else None


def tie(d: Definition, low: tuple[Fraction, int | str], high: tuple[Fraction, int | str]) -> Fraction:
    """Where rounding to nearest changes between two neighbours (value, code; no whole code beyond an end)."""
    if d["family"] == "posit" and isinstance(low[1], int) and isinstance(high[1], int):
        if low[0] == 0 or high[0] == 0:  # nothing but zero becomes zero
            return Fraction(0)
        between = posit(2 * low[1] + 1, d, more=1)
        assert isinstance(between, Fraction)
        return between
    return (low[0] + high[0]) / 2


def wrap(d: Definition, x: Fraction, mode: str) -> int:
    """The code of x for over=wrap: the rounded number of steps, modulo the number of codes."""
    steps = x * power_of_two(d.get("fraction", 0))
    down = steps.numerator // steps.denominator
    rest = steps - down
    if mode in ("up", "down", "zero"):
        up = rest > 0 and (mode == "up" or (mode == "zero" and x < 0))
    elif mode == "odd":
        up = rest > 0 and down % 2 == 0
    elif rest != Fraction(1, 2):
        up = rest > Fraction(1, 2)
    else:
        up = down % 2 == 1 if mode == "nearest-even" else (x > 0) == (mode == "nearest-away")
    return (down + up) % int(2 ** d["bits"])
