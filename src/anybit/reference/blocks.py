"""Quantizing an array block by block in exact fractions: which scales, zero points, offsets and codes a scale rule gives.

Written from docs/expressions.md and docs/contract.md; slow, for small arrays; shares no code with `formats` or `methods`. A format is read
as plain data: element and level `fields`, block kinds and sizes. Fractions everywhere but where the contract says float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from anybit.errors import FormatError
from anybit.reference.rational import Rational, decode
from anybit.reference.rules import candidates, loss

F32 = np.float32
LARGEST = Fraction(float(np.finfo(np.float32).max))
Index = tuple[int, ...]


class Exact:
    """One element: nearest codes of fractions. Elements of more than 8 bits are IEEE-like floats, rounded by their fields, or integers."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields, self.bits = fields, fields["bits"]
        self.wide = fields["family"] == "minifloat" and self.bits > 8
        if self.wide:
            self.smallest = self._value(1)
            self.max = self._value((((1 << fields["exponent"]) - 1) << fields["mantissa"]) - 1)
            self.min, self.values = -self.max, []
            self.beyond = self.max + self._step(self.max)
        else:
            self.rational = Rational(fields)
            self.values = self.rational.finite
            self.min, self.max = self.values[0], self.values[-1]
            self.smallest = min(value for value in self.values if value > 0)
            self.beyond = self.rational.above

    def _value(self, code: int) -> Fraction:
        value = decode(self.fields, code)
        assert isinstance(value, Fraction)
        return value

    def _step(self, x: Fraction) -> Fraction:
        """The distance between values about |x|."""
        low = 1 - self.fields["bias"]
        exponent = max(low, _log2(abs(x))) if x else low
        return Fraction(2) ** (exponent - self.fields["mantissa"])

    def code(self, x: Fraction, mode: str = "nearest-even") -> int:
        """The code of a number, saturating."""
        if not self.wide:
            code = self.rational.encode(x, mode)  # type: ignore[arg-type]
            assert code is not None
            return code
        a = min(abs(x), self.max)
        step = self._step(a)
        whole = math.floor(a / step)
        rest = a / step - whole
        toward = {"zero": False, "up": x > 0, "down": x < 0}.get(mode)
        up = rest > 0 and toward if toward is not None else rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1)
        binades = _log2(step) + self.fields["mantissa"] - (1 - self.fields["bias"])
        sign = 1 << (self.fields["exponent"] + self.fields["mantissa"])
        return (binades << self.fields["mantissa"]) + whole + int(up) + (sign if x < 0 else 0)

    def value(self, code: int) -> Fraction:
        """The number that a code means; -0 is 0."""
        value = decode(self.fields, code)
        return value if isinstance(value, Fraction) else Fraction(0)


def _log2(x: Fraction) -> int:
    """floor(log2 x), x > 0."""
    guess = x.numerator.bit_length() - x.denominator.bit_length()
    return guess if Fraction(2) ** guess <= x else guess - 1


@lru_cache(maxsize=64)
def _made(text: str, element: Any) -> Exact:
    return Exact(dict(element.fields))


def exact(element: Any) -> Exact:
    """The exact element of a definition."""
    return _made(element.name, element)


def extent(block: Any, shape: Index) -> Index:
    """A block's size along each axis."""
    if block.kind == "tensor":
        return shape
    sizes: tuple[int | None, ...] = (None,) if block.kind in ("channel", "token") else tuple(block.sizes)
    sizes = ((1,) * len(shape) + sizes)[-len(shape) :]
    return tuple(n if size is None else min(size, n) for size, n in zip(sizes, shape, strict=True))


class Blocked:
    """An array cut into the blocks of every level: `of(i, index)` is the level-i block that holds the value at an index."""

    def __init__(self, fmt: Any, shape: Index) -> None:
        self.extents = [extent(block, shape) for block in [fmt.block, *(level.block for level in fmt.levels[:-1])]]
        self.shape = shape
        self.members: dict[Index, list[Index]] = {}
        for index in product(*map(range, shape)):
            self.members.setdefault(self.of(0, index), []).append(index)

    def of(self, level: int, index: Index) -> Index:
        return tuple(i // size for i, size in zip(index, self.extents[level], strict=True))

    def outer(self, level: int, block: Index) -> Index:
        """The level-`level` block that a first-level block lies in."""
        return self.of(level, self.members[block][0])

    def grid(self, level: int) -> Index:
        return tuple(-(-n // size) for n, size in zip(self.shape, self.extents[level], strict=True))


class Levels:
    """One chain of levels (scales or offsets): codes of each level, and the exact and the float32 number of each first-level block."""

    def __init__(self, elements: list[Exact], cut: Blocked, targets: dict[Index, Fraction]) -> None:
        self.elements, self.cut = elements, cut
        self.codes: list[dict[Index, int]] = [{} for _ in elements]
        if len(elements) > 1:
            self._fix(targets)

    def _fix(self, targets: dict[Index, Fraction]) -> None:
        """Levels 1 and up: each brings the largest number below it to the end of that element (to 1 where it has float32's range)."""
        last = len(self.elements) - 1
        above: list[dict[Index, Fraction]] = [{} for _ in self.elements]
        below: list[dict[Index, Fraction]] = [{} for _ in self.elements]
        wanted: list[dict[Index, Fraction]] = [{} for _ in self.elements]
        for block, target in targets.items():
            for level in range(1, last + 1):
                key = self.cut.outer(level, block)
                above[level][key] = max(above[level].get(key, Fraction(0)), target)
                below[level][key] = max(below[level].get(key, Fraction(0)), -target)
        for block in targets:
            for level in range(1, last + 1):
                key = self.cut.outer(level, block)
                need = max(above[1][self.cut.outer(1, block)], below[1][self.cut.outer(1, block)])
                for under in self.elements[:level]:
                    need /= end(under)
                wanted[level][key] = max(wanted[level].get(key, Fraction(0)), need)
        for level in range(last, 0, -1):
            element, under = self.elements[level], self.elements[level - 1]
            for block in targets:
                key = self.cut.outer(level, block)
                if key in self.codes[level]:
                    continue
                ratio = min(max(wanted[level][key] / self.product(block, level + 1), element.smallest), element.max)
                top = level == last and below[level][key] > above[level][key] and self.elements[0].min >= 0
                code = element.code(-ratio if top else ratio)
                if ratio / abs(element.value(code)) * end(under) > (under.max + under.beyond) / 2:
                    code = element.code(-ratio if top else ratio, "down" if top else "up")
                self.codes[level][key] = code

    def product(self, block: Index, start: int = 1) -> Fraction:
        """The exact product of the levels from `start` up, without their sign from the last where that is a mirror of levels between."""
        total = Fraction(1)
        for level in range(start, len(self.elements)):
            total *= self.elements[level].value(self.codes[level][self.cut.outer(level, block)])
        return abs(total) if start > 1 else total

    def number(self, block: Index) -> np.float32:
        """fl(fl(first * second) * third) ..."""
        total = F32(float(self.elements[0].value(self.codes[0][block])))
        with np.errstate(over="ignore", under="ignore"):
            for level in range(1, len(self.elements)):
                total = F32(total * F32(float(self.elements[level].value(self.codes[level][self.cut.outer(level, block)]))))
        return total

    def store_scale(self, block: Index, target: Fraction, limit: Fraction) -> np.float32:
        """The first-level code of a scale: never zero, and no more than float32 can bear."""
        first = self.elements[0]

        def coded(size: Fraction, mode: str) -> int:
            held = min(max(size / abs(self.product(block)), first.smallest), first.max)
            return first.code(-held if target < 0 else held, mode)

        self.codes[0][block] = coded(abs(target), "nearest-even")
        if not abs(Fraction(float(self.number(block)))) <= limit:
            self.codes[0][block] = coded(limit, "zero")
        return self.number(block)

    def store_offset(self, block: Index, target: Fraction) -> np.float32:
        first = self.elements[0]
        self.codes[0][block] = first.code(min(max(target / self.product(block), first.min), first.max))
        return self.number(block)


def end(element: Exact) -> Fraction:
    """What the largest number of a level is brought to by the level above."""
    return element.max if element.max < 2**64 else Fraction(1)


def quantize(x: np.ndarray, fmt: Any, rule: str, number: float | None = None) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Parts (int64 codes on their grids) and float32 values of a small finite float32 array in a format with blocks.

    `rule` and `number`: as in the expression (`p` and 99.9). Saturating, nearest even. FormatError: a block too large for its element.
    """
    cut, element = Blocked(fmt, x.shape), exact(fmt.element)
    values = {block: [Fraction(float(x[i])) for i in members] for block, members in cut.members.items()}
    kinds = [level.element for level in fmt.levels]
    offsets, shift = None, dict.fromkeys(values, F32(0))
    if fmt.offset is not None:
        width = element.max - element.min
        wanted = {b: min(v) - element.min * (max(v) - min(v)) / width for b, v in values.items()}
        offsets = Levels([exact(fmt.offset), *map(exact, kinds[1:])], cut, wanted)
        shift = {b: offsets.store_offset(b, wanted[b]) for b in values}
    options = {b: candidates(v, fmt, element, Fraction(float(shift[b])), rule, number) for b, v in values.items()}
    scales = Levels([exact(kind) for kind in kinds], cut, {b: abs(each[0]) for b, each in options.items()})
    zero = exact(fmt.zero) if fmt.zero is not None else None
    codes, back = np.zeros(x.shape, np.int64), np.zeros(x.shape, np.float32)
    zeros: dict[Index, int] = {}
    for block, members in cut.members.items():
        best: tuple[float, list[int], list[np.float32]] | None = None
        kept = (0, 0)
        for i, target in enumerate(options[block]):
            found = _encode(x, members, fmt, element, scales, block, target, shift[block], zero, rule == "clip", i == 0)
            cost = loss([x[i] for i in members], found[1], rule, number) if len(options[block]) > 1 else 0.0
            if best is None or cost < best[0]:
                best, kept = (cost, *found[:2]), (scales.codes[0][block], found[2])
        assert best is not None
        scales.codes[0][block], zeros[block] = kept
        for index, code, value in zip(members, best[1], best[2], strict=True):
            codes[index], back[index] = code, value
    parts = {"codes": codes}
    for name, chain in (("scale", scales), ("offset", offsets)):
        for level, stored in enumerate(chain.codes if chain is not None else []):
            parts[f"{name}.{level}"] = _on_grid(stored, cut.grid(level))
    if zero is not None:
        parts["zero"] = _on_grid(zeros, cut.grid(0))
    return parts, back


def _on_grid(stored: dict[Index, int], grid: Index) -> np.ndarray:
    out = np.zeros(grid, np.int64)
    for index, code in stored.items():
        out[index] = code
    return out


def _encode(
    x: np.ndarray,
    members: Iterable[Index],
    fmt: Any,
    element: Exact,
    scales: Levels,
    block: Index,
    target: Fraction,
    shift: np.float32,
    zero: Exact | None,
    symmetric: bool,
    first: bool,
) -> tuple[list[int], list[np.float32], int]:
    """Codes and values of one block at a target scale, and the code of its zero point. FormatError: the scale that a rule starts from
    (`first`) would have to fall more than twofold so that the element's largest value stays in float32."""
    limit = LARGEST
    if fmt.offset is not None:
        limit -= abs(Fraction(float(shift))) if element.min < 0 else max(Fraction(float(shift)), Fraction(0))
    reach = max(element.max, -element.min) if zero is None else element.max - element.min
    if first and fmt.offset is None and abs(target) > 2 * (1 + Fraction(1, 2**20)) * limit / reach:
        raise FormatError(f"block {list(block)} is too large: its scale would have to fall more than twofold; divide the array")
    scale = scales.store_scale(block, target, limit / reach)
    z, z_code = Fraction(0), 0
    if zero is not None:
        numbers = [Fraction(float(x[i])) for i in members]
        low, high = min(*numbers, Fraction(0)), max(*numbers, Fraction(0))
        least, most = max(zero.min, element.min), min(zero.max, element.max)
        wanted = Fraction(0) if fmt.offset is not None else element.min - (low / Fraction(float(scale)) if scale else 0)
        wanted = min(max(wanted, least), most) if fmt.offset is None else wanted
        if fmt.offset is None and (least > element.min or most < element.max):
            half = Fraction(1, 2)
            grown = max(high / max(element.max - wanted, half), -low / max(wanted - element.min, half), target)
            scale = scales.store_scale(block, grown, limit / reach)
        z_code = zero.code(wanted)
        z = zero.value(z_code)
    whole = zero is not None and zero.bits <= 8 and all(v.denominator == 1 for v in zero.values)
    out: list[int] = []
    back: list[np.float32] = []
    for index in members:
        ratio = F32(F32(x[index] - shift) / scale) if scale else F32(x[index] * F32(0))
        if symmetric and element.min < 0 and fmt.element.fields["family"] == "integer":
            ratio = F32(min(max(float(ratio), -float(element.max)), float(element.max)))
        if zero is not None and not whole:
            ratio = F32(ratio + F32(float(z)))
        exactly = Fraction(round(Fraction(float(ratio)))) + z if whole else Fraction(float(ratio))
        code = element.code(exactly) if exactly or not math.copysign(1, ratio) < 0 else _minus_zero(element)
        value = F32(-0.0 if decode(element.fields, code) == "-0" else float(element.value(code)))
        if whole:
            value = F32(value - F32(float(z)))
        with np.errstate(over="ignore", under="ignore"):
            value = F32(value * scale)
            if zero is not None and not whole:
                value = F32(value + -F32(F32(float(z)) * scale))
            if fmt.offset is not None:
                value = F32(value + shift)
        out.append(code)
        back.append(value)
    return out, back, z_code


def _minus_zero(element: Exact) -> int:
    """The code of -0 where there is one."""
    plain = element.code(Fraction(0))
    return element.rational.code_of.get("-0", plain) if not element.wide else plain | 1 << (element.bits - 1)
