"""Elements of several weights by exact fractions, as `rational` is for single ones: definitions read literally. Shares no code with
`formats`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import lcm
from typing import Any

Point = tuple[Fraction, ...]


def decode(definition: Mapping[str, Any], code: int) -> Point:
    """The numbers that one code stands for. ValueError: a family that this reference does not define."""
    family = definition["family"]
    if family == "ovp":
        return _pair(definition, code)
    if family == "signed grid":
        return _signed(definition, code)
    if family == "additive":
        return _additive(definition, code)
    if family == "listed":
        return tuple(Fraction(v) for v in definition["values"][code])
    raise ValueError(f"no reference for the family '{family}'")


def _pair(definition: Mapping[str, Any], code: int) -> Point:
    width = definition["bits"] // 2
    high, low = divmod(code, 2**width)
    victim = 2 ** (width - 1)
    if low == victim and high == victim:
        return Fraction(0), Fraction(0)
    if high == victim:
        return _outlier(definition, low, width), Fraction(0)
    if low == victim:
        return Fraction(0), _outlier(definition, high, width)
    return _normal(definition, low, width), _normal(definition, high, width)


def _normal(definition: Mapping[str, Any], code: int, width: int) -> Fraction:
    if definition["normal"] == "int":
        return Fraction(code if code < 2 ** (width - 1) else code - 2**width)
    sign, place = divmod(code, 2 ** (width - 1))
    # flint of 3 bits: integers up to the bits' number and one, then powers of two with what mantissa is left
    size = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 7: 16}[place]
    return Fraction(-size if sign else size)


def _outlier(definition: Mapping[str, Any], code: int, width: int) -> Fraction:
    sign, size = divmod(code, 2 ** (width - 1))
    if size == 0:
        return Fraction(0)
    exponent, mantissa = divmod(size, 2 ** definition["mantissa"])
    value = Fraction(2 ** definition["mantissa"] + mantissa) * Fraction(2) ** (exponent + definition["bias"])
    return -value if sign else value


def _signed(definition: Mapping[str, Any], code: int) -> Point:
    dim, shift = definition["dim"], Fraction(definition["shift"])
    if shift:
        code, up = divmod(code, 2)
        shift = shift if up else -shift
    index, signs = divmod(code, 2 ** (dim - 1))
    negative = [int(bit) for bit in f"{signs:0{dim - 1}b}"]
    negative.insert(0, (sum(negative) + definition["odd"][index]) % 2)
    return tuple(Fraction(-v if n else v) + shift for v, n in zip(definition["grid"][index], negative, strict=True))


def _additive(definition: Mapping[str, Any], code: int) -> Point:
    total = [Fraction(0)] * definition["dim"]
    for book in definition["books"]:
        code, index = divmod(code, len(book))
        total = [t + Fraction(v) for t, v in zip(total, book[index], strict=True)]
    return tuple(total)


class RationalVectors:
    """One element of several weights, by exact distances."""

    def __init__(self, definition: Mapping[str, Any]) -> None:
        self.values = [decode(definition, code) for code in range(2 ** definition["bits"])]
        self._unit = lcm(*{v.denominator for point in self.values for v in point})
        self._whole = [[int(v * self._unit) for v in point] for point in self.values]

    def encode(self, x: Sequence[float]) -> int:
        """The code with the least squared distance from dim finite numbers; the smallest of equally near ones."""
        exact = [Fraction(v) * self._unit for v in x]
        unit = lcm(*(v.denominator for v in exact))
        wanted = [int(v * unit) for v in exact]
        distances = [sum((w - unit * v) ** 2 for w, v in zip(wanted, point, strict=True)) for point in self._whole]
        return distances.index(min(distances))
