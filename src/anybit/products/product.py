"""Product: a function of an activation and a weight in the place of their product, and what it asks of the two.

A rule's text is its name, a number where it has one, and an argument after `=` where it takes one: `lmul`, `lmul3`, `shift2`,
`table=mitchell`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from anybit.errors import UnknownNameError, UsageError, near_misses
from anybit.formats import Element, Format
from anybit.registry import Registry

SMALLEST = 0x00800000  # the pattern of 2^-126
INFINITE = 0x7F800000


@dataclass(frozen=True, eq=False)
class Product(ABC):
    """A product rule with its parameters. name: its text, which a checkpoint stores. acts: activations that it takes (None: float)."""

    name: str
    acts: tuple[str | None, ...]

    @property
    @abstractmethod
    def kind(self) -> str:
        """Which kernels serve it: "patterns" or "lookup"."""

    @abstractmethod
    def refuses(self, fmt: Format, act: str | None) -> str | None:
        """None, or why it cannot multiply weights of this format with these activations."""

    def _refuses_act(self, act: str | None) -> str | None:
        if act in self.acts:
            return None
        return f"the product rule {self.name} takes {' or '.join(a or 'float' for a in self.acts)} activations, not {act or 'float'}"


@dataclass(frozen=True)
class PatternProduct(Product):
    """Sums of float32 bit patterns: |x| + |w| - offset with the product's sign.

    mantissa: bits that operands are rounded to first, ties to even. offset: the pattern of 1.0, less what the rule adds. saturates: at the
    largest number of so many mantissa bits, else at infinity. terms: the most powers of two that a weight may be the sum of, each of them a
    product of its own; 0: weights are taken as they are. Operands and results below 2^-126 are zero.
    """

    mantissa: int = 23
    offset: int = 0x3F800000
    saturates: bool = True
    terms: int = 0

    @property
    def kind(self) -> str:
        return "patterns"

    def refuses(self, fmt: Format, act: str | None) -> str | None:
        reason = self._refuses_act(act)
        if reason is not None or not self.terms:
            return reason
        if fmt.block is None or fmt.element.bits > 8:
            return f"the product rule {self.name} takes codes of up to 8 bits with scales, not {fmt}"
        if fmt.zero is not None and fmt.whole_zero:
            return f"the product rule {self.name} takes no zero points: a weight less its zero point is another number"
        values = operand_values(fmt.element)
        counts = [len(powers_of_two(v)) if np.isfinite(v) else self.terms + 1 for v in values.tolist()]
        worst = int(np.argmax(counts))
        if counts[worst] > self.terms:
            few = "a power of two" if self.terms == 1 else f"a sum of {self.terms} powers of two"
            return f"the product rule {self.name} takes weights that are {few}; {fmt.element} has {float(values[worst])}"
        return None

    def term_tables(self, element: Element) -> np.ndarray | None:
        """float32[terms, codes]: every operand's powers of two, largest first, 0 where there are fewer; None: no terms."""
        if not self.terms:
            return None
        values = operand_values(element)
        tables = np.zeros((self.terms, len(values)), np.float32)
        for code, value in enumerate(values.tolist()):
            powers = powers_of_two(value)
            tables[: len(powers), code] = powers
        return tables

    def multiply(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        """float32 products of finite float32 arrays, by their bit patterns: the definition. `terms` apart: w is one of them.

        >>> from anybit.products import parse_product
        >>> parse_product("lmul").multiply(np.float32([1.5]), np.float32([1.5])).tolist()  # (1 + 0.5 + 0.5 + 1/16) carries: 2 (1 + 1/16)
        [2.125]
        """
        a, b = self._operand(x), self._operand(w)
        total = (a & 0x7FFFFFFF) + (b & 0x7FFFFFFF) - self.offset
        total = np.minimum(total, self._largest if self.saturates else INFINITE)
        zero = ((a & 0x7FFFFFFF) == 0) | ((b & 0x7FFFFFFF) == 0) | (total < SMALLEST)
        return np.where(zero, 0, total | ((a ^ b) & 0x80000000)).astype(np.uint32).view(np.float32)

    @property
    def _largest(self) -> int:
        return INFINITE - (1 << (23 - self.mantissa))

    def _operand(self, x: np.ndarray) -> np.ndarray:
        """int64 patterns, rounded to the rule's mantissa bits."""
        bits = np.asarray(x, np.float32).view(np.uint32).astype(np.int64)
        size, drop = bits & 0x7FFFFFFF, 23 - self.mantissa
        rounded = size
        if drop:
            rounded = np.minimum(((size + (1 << (drop - 1)) - 1 + ((size >> drop) & 1)) >> drop) << drop, self._largest)
        return np.where(size < SMALLEST, 0, rounded | (bits & 0x80000000))


@dataclass(frozen=True, eq=False)
class LookupProduct(Product):
    """Entries of a table by the codes of activation and weight. make(q, t): int64 entries for integers q and t that broadcast.

    An entry stands for q * t: its sums are scaled as those of int8 activations are (docs/contract.md).
    """

    make: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    entries: np.ndarray | None = None

    @property
    def kind(self) -> str:
        return "lookup"

    def refuses(self, fmt: Format, act: str | None) -> str | None:
        reason = self._refuses_act(act)
        if reason is not None:
            return reason
        if fmt.block is None or fmt.element.bits > 8 or fmt.element.table.ints is None:
            return f"the product rule {self.name} takes codes of up to 8 bits with scales, not {fmt}"
        if fmt.zero is not None or fmt.offset is not None:
            return f"the product rule {self.name} takes no zero points or offsets"
        shape = (1 << act_bits(act), 1 << fmt.element.bits)
        if self.entries is not None and self.entries.shape != shape:
            return f"the table of {self.name} is {list(self.entries.shape)}, but {act} activations and {fmt.element} need {list(shape)}"
        worst = int(np.abs(self.table(fmt.element, act)).max())
        if worst > MOST_ENTRY:
            return f"the table of {self.name} has the entry {worst}; sums over a block of 512 stay in int32 up to {MOST_ENTRY}"
        return None

    def table(self, element: Element, act: str | None) -> np.ndarray:
        """int32[2**a, 2**w], by the activation's two's complement code and the weight's code. The row -2**(a - 1) is never read."""
        if self.entries is not None:
            return self.entries
        assert self.make is not None and element.table.ints is not None
        bits = act_bits(act)
        codes = np.arange(1 << bits, dtype=np.int64)
        q = np.where(codes < 1 << (bits - 1), codes, codes - (1 << bits))
        return self.make(q[:, None], element.table.ints.astype(np.int64)[None, :]).astype(np.int32)


@dataclass(frozen=True)
class ProductRule:
    """A family of product rules. parse: the product of a text, None if it has not this form; UsageError if it contradicts itself."""

    name: str
    about: str
    form: str
    source: str
    parse: Callable[[str], Product | None]


PRODUCTS: Registry[ProductRule] = Registry("product rule", "anybit.products")

MOST_ENTRY = (2**31 - 1) // 512
ACT_BITS = {"int4": 4, "int8": 8}


def act_bits(act: str | None) -> int:
    """Bits of an activation's code."""
    return ACT_BITS[act or ""]


def parse_product(text: str) -> Product:
    """The product rule that a text names. UnknownNameError: none. UsageError: a parameter out of range, a table that cannot be read.

    >>> parse_product("lmul3").mantissa
    3
    """
    for name in PRODUCTS:
        found = PRODUCTS[name].parse(text)
        if found is not None:
            return found
    word = re.sub(r"[0-9=].*", "", text)
    forms = ", ".join(PRODUCTS[name].form for name in sorted(PRODUCTS))
    raise UnknownNameError(f"no product rule '{text}'{near_misses(word, list(PRODUCTS))}; there are {forms}")


def names_a_file(text: str) -> bool:
    """Whether a rule's text points to a file, which a checkpoint must not do."""
    return text.endswith(".npy")


def attention_product(text: str) -> PatternProduct:
    """The rule that takes the place of multiplication in q k^T and p v. UsageError: it is for weights alone."""
    rule = parse_product(text)
    if not isinstance(rule, PatternProduct) or rule.terms:
        raise UsageError(f"product rule '{text}' is for weights; attention takes lmul or lmulM")
    return rule


def number_after(text: str, name: str, least: int, most: int) -> int | None:
    """The number behind a rule's name, -1 for none, None if the text is not this rule. UsageError: out of range."""
    match = re.fullmatch(rf"{name}([0-9]*)", text)
    if match is None:
        return None
    if not match[1]:
        return -1
    number = int(match[1][:9])
    if not least <= number <= most or match[1].startswith("0"):
        raise UsageError(f"product rule '{text}': {name} takes a number from {least} to {most}")
    return number


def operand_values(element: Element) -> np.ndarray:
    """float64[codes]: what float activations are multiplied with, before the scale (docs/contract.md)."""
    table = element.table
    return table.ints.astype(np.float64) if table.kind in ("i8", "i16") and table.ints is not None else table.values.astype(np.float64)


def powers_of_two(value: float) -> list[float]:
    """The fewest signed powers of two that sum up to a finite value (its non-adjacent form), largest first.

    >>> powers_of_two(7.0), powers_of_two(-0.5), powers_of_two(0.0)
    ([8.0, -1.0], [-0.5], [])
    """
    numerator, denominator = value.as_integer_ratio()
    powers, unit = [], 1 / denominator
    while numerator:
        if numerator % 2:
            digit = 2 - numerator % 4
            powers.append(digit * unit)
            numerator -= digit
        numerator //= 2
        unit *= 2
    return powers[::-1]
