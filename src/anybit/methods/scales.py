"""What a scale rule is, what it sees, and the registry that finds rules by name: each is one function in a file of `scale_rules/`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from anybit.errors import FormatError, UnknownNameError
from anybit.formats import Element
from anybit.kernels.rounding import block_sums
from anybit.methods.values import Elsewhere, Values, values_of
from anybit.registry import Registry


@dataclass(frozen=True)
class Range:
    """What a rule sees of some blocks.

    low, high: float64, extremes of each block. least, most: the element's values (or, for two's complement, minus the largest) that they
    are brought to. bottom: the element's true least value. element: what codes mean. scale: the element that stores the scales. values:
    the blocks' values, in bounded memory; None under a zero point, where only the width counts.
    """

    low: np.ndarray
    high: np.ndarray
    least: float
    most: float
    bottom: float
    element: Element
    scale: Element
    values: Values | None = None

    @property
    def largest(self) -> np.ndarray:
        """The largest magnitude of each block."""
        return np.maximum(self.high, -self.low)

    @property
    def count(self) -> int:
        """How many values the element has; 4 for pairs with outliers, whose best scale lies as far from absmax's as that of few values."""
        if self.element.dim > 1 and self.element.reach[1] < self.element.max:
            return 4
        return len(self.element.finite) if self.element.bits <= 16 else 1 << self.element.bits

    @property
    def power_of_two(self) -> bool:
        """Whether scales are powers of two."""
        return self.scale.bits <= 8 and bool(np.all(np.frexp(self.scale.finite)[0] == 0.5))

    def rounded(self, ratio: np.ndarray) -> np.ndarray:
        """float32: the nearest value of the element."""
        if isinstance(ratio, Elsewhere):
            return values_of(self.element, ratio.encoded(self.element))
        return values_of(self.element, self.element._codes(ratio, "nearest-even", "saturate"))

    def sums(
        self, rule: str, what: str, terms: Callable[..., tuple[np.ndarray, ...]], scale: np.ndarray, *offset: np.ndarray
    ) -> list[np.ndarray]:
        """float64, one a block each: the native sums `what` (see `block_sums`) of the values' codes under scales and offsets, float32; or,
        where there is no native way, those of `terms(values, importance, scale, *offset)`. FormatError: as `seen`."""
        values = self.seen(rule)
        if values.rows is not None:
            x, size, weight = values.rows
            before, after = values.offset, offset[0] if offset else None
            found = block_sums(self.element, "nearest-even", "saturate", what, x, size, scale, after, before, weight)
            if found is not None:
                return [column.reshape(scale.shape) for column in found.T]
        return values.sums(terms, scale, *offset)

    def seen(self, rule: str) -> Values:
        """The values. FormatError: a zero point, under which there is only a width."""
        if self.values is None:
            raise FormatError(f"scale={rule} looks at values around zero, and zero points move them; use absmax or mse")
        return self.values


Candidates = Callable[..., list[np.ndarray]]


@dataclass(frozen=True)
class Rule:
    """One scale rule.

    candidates: from a Range (and the number in the rule's name, if it takes one) to scales, each one a block: float64, 0 where a block is
        zero, negative where the rule mirrors a block. With several, the one of least loss after storing it is taken, block by block; the
        first also decides the scales of the scales and must itself be in range.
    powered: an error of a value costs the power of its magnitude that the rule's number says, not its square. Importance multiplies it.
    offsets: from a Range without offset to the offsets wanted, one a block, for formats that have them; None: each block's least value.
    symmetric: codes of two's complement keep off the most negative one.
    allowed: least and largest number that the name may end in; None: no number. number: the one given, or the default (None: none).
    stiffness: from a Range and the scales wanted (None: for offsets) to float64, one a block: what the square of a scale's (an offset's)
        error costs. Rules that say so have scales of scales fitted to it, and the stored neighbours of their first candidate tried, of
        scale and offset together.
    searches: whether it looks at errors at all, so that importance means something. weighted: without importance it is refused.
    round: how a scale goes to its element: nearest-even, or down, towards zero.
    """

    name: str
    candidates: Candidates
    powered: bool = False
    offsets: Callable[[Range], np.ndarray] | None = None
    stiffness: Callable[[Range, np.ndarray | None], np.ndarray] | None = None
    symmetric: bool = False
    allowed: tuple[float, float] | None = None
    number: float | None = None
    searches: bool = False
    weighted: bool = False
    round: str = "nearest-even"

    @property
    def about(self) -> str:
        """What the rule does and where it comes from."""
        return inspect.getdoc(self.candidates) or ""

    @property
    def _more(self) -> tuple[float, ...]:
        return () if self.allowed is None else (float(self.number or 0),)

    def __call__(self, r: Range) -> list[np.ndarray]:
        return self.candidates(r, *self._more)

    def cost(self, error: np.ndarray) -> np.ndarray:
        """float64: what errors of values cost."""
        return np.power(np.abs(error, dtype=np.float64), self._more[0]) if self.powered else np.square(error, dtype=np.float64)


_NUMBER = re.compile(r"([a-z0-9]*?[a-z])(\d{1,4}(?:\.\d{1,4})?)")


class Rules(Registry[Rule]):
    """Rules by name; `lp2.4` is the rule `lp` with the number 2.4."""

    def __getitem__(self, name: str) -> Rule:
        if name in self:
            rule = super().__getitem__(name)
            if rule.allowed is not None and rule.number is None:
                low, high = rule.allowed
                raise UnknownNameError(f"scale={name} needs a number from {low:g} to {high:g}, as in scale={name}{(low + high) / 2:g}")
            return rule
        found = _NUMBER.fullmatch(name)
        if found is None or found[1] not in self:
            return super().__getitem__(name)
        rule, number = super().__getitem__(found[1]), float(found[2])
        if rule.allowed is None:
            raise UnknownNameError(f"scale={name}: {rule.name} takes no number")
        low, high = rule.allowed
        if not low <= number <= high:
            raise UnknownNameError(f"scale={name}: {rule.name} takes a number from {low:g} to {high:g}")
        return replace(rule, name=name, number=number)


SCALES = Rules("scale rule", "anybit.methods.scale_rules")


def counted(importance: np.ndarray) -> np.ndarray:
    """float64[k]: what errors weigh where scales are searched; channels without input count a little."""
    return np.asarray(importance + 0.01 * importance.mean())


def scale_rule(name: str, **details: Any) -> Callable[[Candidates], Candidates]:
    """Registers a function as a rule; `details` are the other fields of Rule."""

    def add(candidates: Candidates) -> Candidates:
        SCALES.add(name, Rule(name, candidates, **details))
        return candidates

    return add
