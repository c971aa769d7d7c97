"""Number formats by exact fractions: the definition read literally, one code or one number at a time. Slow; shares no code with `formats`.

A definition is plain data (`Element.fields`). A value is a Fraction, or one of the names "nan", "inf", "-inf", "-0".
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from anybit.reference import rational_scalars as scalars

Value = Fraction | str


def decode(definition: Mapping[str, Any], code: int) -> Value:
    """The value of one code. ValueError: a family that this reference does not define."""
    family = definition["family"]
    if family == "integer":
        return _integer(code, definition["bits"], definition["signed"], definition["symmetric"])
    if family == "opened":
        step = 2 ** (definition["master"] - definition["bits"])
        return _integer(code, definition["bits"], definition["signed"], False) * step
    if family == "ternary":
        return Fraction((-1, 0, 1, 1)[code])
    if family == "binary":
        return Fraction((-1, 1)[code])
    if family == "codebook":
        entries = definition["entries"]
        return Fraction(entries[code] if code < len(entries) else entries[-1])
    if family == "minifloat":
        return _minifloat(code, **{key: definition[key] for key in definition if key not in ("family", "bits")})
    if family in scalars.DECODE:
        return scalars.DECODE[family](code, definition)
    if family == "listed":  # no definition of its own here: its values are taken as given, and encoding is judged by them
        return _listed(definition["values"][code])
    raise ValueError(f"no reference for the family '{family}'")


def _listed(value: float) -> Value:
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return "-0" if value == 0 and math.copysign(1.0, value) < 0 else Fraction(value)


def opened(master: Fraction, definition: Mapping[str, Any]) -> Fraction:
    """What opening makes of a stored integer: half up to a multiple of the coarser step, counted from the least value, and no further up
    than the last one."""
    step = 2 ** (definition["master"] - definition["bits"])
    least = -(2 ** (definition["master"] - 1)) if definition["signed"] else 0
    steps = math.floor((master - least) / step + Fraction(1, 2))
    return Fraction(least + min(steps, 2 ** definition["bits"] - 1) * step)


def _integer(code: int, bits: int, signed: bool, symmetric: bool) -> Fraction:
    if not signed or code < 2 ** (bits - 1):
        return Fraction(code)
    value = code - 2**bits
    unused = symmetric and value == -(2 ** (bits - 1))
    return Fraction(value + 1 if unused else value)


def _minifloat(
    code: int, signed: bool, exponent: int, mantissa: int, bias: int, specials: str, subnormals: bool, zero: bool, wide: bool = False
) -> Value:
    """`wide` disregards specials and lets the exponent field grow: what the codes past the last would mean."""
    fields = code if wide else code % 2 ** (exponent + mantissa)
    negative = signed and not wide and code >= 2 ** (exponent + mantissa)
    e, m = divmod(fields, 2**mantissa)
    if not wide:
        if specials == "fnuz" and negative and fields == 0:
            return "nan"
        if specials == "fn" and fields == 2 ** (exponent + mantissa) - 1:
            return "nan"
        if specials == "ieee" and e == 2**exponent - 1:
            return "nan" if m else "-inf" if negative else "inf"
    if fields == 0 and zero:
        return "-0" if negative else Fraction(0)
    fraction = Fraction(m, 2**mantissa)
    if e == 0 and subnormals:
        value = fraction * Fraction(2) ** (1 - bias)
    else:
        value = (1 + fraction) * Fraction(2) ** (e - bias)
    return -value if negative else value


class Rational:
    """One element by exact comparison."""

    def __init__(self, definition: Mapping[str, Any]) -> None:
        self.definition = definition
        self.values = [decode(definition, code) for code in range(2 ** definition["bits"])]
        self.code_of: dict[Value, int] = {}
        for code, value in enumerate(self.values):
            if definition.get("symmetric") and code == 2 ** (definition["bits"] - 1):
                continue  # never given by encoding
            self.code_of.setdefault(value, code)
        self.finite = sorted(value for value in self.code_of if isinstance(value, Fraction))
        least, most = self.finite[0], self.finite[-1]
        # One step further, by definition as a float64.
        self.below, self.above = Fraction(float(2 * least - self.finite[1])), Fraction(float(2 * most - self.finite[-2]))
        if definition["family"] == "minifloat":
            fields = {key: definition[key] for key in definition if key not in ("family", "bits")}
            beyond = _minifloat(self.code_of[most] + 1, wide=True, **fields)
            assert isinstance(beyond, Fraction)
            self.above = beyond
            if definition["signed"]:
                self.below = -self.above
        above = scalars.above(definition, self.code_of[most])
        if isinstance(above, Fraction):
            self.above, self.below = above, -above if least < 0 else self.below
        nan = [code for code, value in enumerate(self.values) if value == "nan"]
        # Among the NaNs of IEEE formats the quiet positive one: highest mantissa bit only.
        self.nan = None
        if nan:
            ieee = definition.get("specials") == "ieee"
            self.nan = self.code_of["inf"] + 2 ** (definition["mantissa"] - 1) if ieee else nan[0]

    def encode(self, x: float, mode: str, over: str = "saturate") -> int | None:
        """The code of a finite float; None where over="error" would refuse it."""
        exact = Fraction(x)
        negative = str(x).startswith("-")
        if over == "wrap":
            return scalars.wrap(self.definition, exact, mode)
        code = self._code(exact, mode)
        if code == "below" or code == "above":
            if over == "error":
                return None
            if over == "nan":
                return self.nan
            if over == "inf" and code == "above":
                return self.code_of["inf"]
            if over == "inf" and "-inf" in self.code_of:
                return self.code_of["-inf"]
            code = self.code_of[self.finite[0] if code == "below" else self.finite[-1]]
        assert isinstance(code, int)
        return self.code_of["-0"] if negative and self.values[code] == 0 and "-0" in self.code_of else code

    def stochastic(self, x: float, bits: int, word: int, over: str = "saturate") -> int | None:
        """The code of a finite float by stochastic rounding with the upper `bits` bits of a 32-bit word; None as in `encode`.

        Differences and product are rounded to float64 before they are compared, as the definition says.
        """
        exact, negative = Fraction(x), str(x).startswith("-")
        sign = -1 if negative else 1
        # Seen from below: a negative value's neighbours are those of its negative on the mirrored grid.
        chain = sorted(sign * v for v in [self.below, *self.finite, self.above])
        at = bisect_right(chain, sign * exact) - 1
        if at >= 0 and chain[at] != sign * exact and at + 1 < len(chain):
            r, gap = word >> (32 - bits), Fraction(float(chain[at + 1] - chain[at]))
            at += Fraction(float(r * gap)) < Fraction(float(sign * exact - chain[at])) * 2**bits
        value = sign * chain[max(at, 0)]
        if value in (self.below, self.above):
            if over == "error":
                return None
            if over == "nan":
                return self.nan
            inf = "-inf" if value == self.below else "inf"
            if over == "inf" and inf in self.code_of:
                return self.code_of[inf]
            value = self.finite[0] if value == self.below else self.finite[-1]
        return self.code_of["-0"] if negative and value == 0 and "-0" in self.code_of else self.code_of[value]

    def _code(self, x: Fraction, mode: str) -> int | str:
        if x in self.code_of:
            return self.code_of[x]
        if x <= self.below:
            return "below"
        if x >= self.above:
            return "above"
        # (value, parity of its code, answer); a neighbour beyond the end has the other parity.
        i = bisect_right(self.finite, x)
        first, last = self.code_of[self.finite[0]], self.code_of[self.finite[-1]]
        low: tuple[Fraction, int, int | str] = (self.below, (first + 1) % 2, "below")
        high: tuple[Fraction, int, int | str] = (self.above, (last + 1) % 2, "above")
        if i > 0:
            code = self.code_of[self.finite[i - 1]]
            low = self.finite[i - 1], code % 2, code
        if i < len(self.finite):
            code = self.code_of[self.finite[i]]
            high = self.finite[i], code % 2, code
        return (high if self._takes_high(x, low, high, mode) else low)[2]

    def _takes_high(self, x: Fraction, low: tuple[Fraction, int, Any], high: tuple[Fraction, int, Any], mode: str) -> bool:
        if mode in ("up", "down"):
            return mode == "up"
        if mode == "zero":
            return x < 0 if low[0] >= 0 or high[0] <= 0 else x >= 0
        if low[1] != high[1]:
            even_high = high[1] == 0
        else:
            even_high = isinstance(high[2], int) and isinstance(low[2], int) and high[2] < low[2]
        if mode == "odd":
            return not even_high if low[1] != high[1] else even_high
        tie = scalars.tie(self.definition, (low[0], low[2]), (high[0], high[2]))
        if x != tie:
            return x > tie
        if mode == "nearest-even" or abs(low[0]) == abs(high[0]):
            return even_high
        return (abs(high[0]) > abs(low[0])) == (mode == "nearest-away")
