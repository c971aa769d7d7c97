"""Format: what the codes of an array mean: an element, the blocks that share scales, the scales' own formats, zero points, offsets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, prod
from typing import Any

import numpy as np

from anybit.errors import FormatError, ShapeError
from anybit.formats.block import Block
from anybit.formats.element import Element
from anybit.formats.packing import PACKINGS


@dataclass(frozen=True)
class Level:
    """Scales of one level: their element, and the block in which the next level scales them (None: the last level)."""

    element: Element
    block: Block | None = None

    def __str__(self) -> str:
        return self.element.name + (f"@{self.block}" if self.block else "")


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Format:
    """value = element * s0 * s1 ...; with a zero point (element - z) * s; with an offset element * s + m.

    Args of the constructor: an expression (see docs/expressions.md), or a Format.
    Fields: `levels` has defaults filled in and is empty without a block; `zero` and `offset` are the elements of zero points and of
        first-level offsets, or None; `nested` are the widths at which stored integers may be opened, `opened` the one at which they are
        (then `element` is that of the opened codes), or None; `pack` is "" or the name of a packing.
    Formats are equal when they mean the same: spelling out a default changes nothing. FormatError: no such format.

    >>> fmt = Format("int4@128")
    >>> str(fmt), fmt.explicit, fmt.bits_per_weight, fmt == Format("int4@128:bf16")
    ('int4@128', 'int4@128:bf16', Fraction(33, 8), True)
    """

    element: Element
    block: Block | None
    levels: tuple[Level, ...]
    zero: Element | None
    offset: Element | None
    nested: tuple[int, ...]
    opened: int | None
    pack: str

    def __init__(self, expression: str | Format) -> None:
        if not isinstance(expression, Format):
            from anybit.formats.parse import parse_format

            expression = parse_format(expression)
        self.__dict__.update({name: expression.__dict__[name] for name in _FIELDS})

    @classmethod
    def of(
        cls,
        element: Element,
        block: Block | None = None,
        levels: tuple[Level, ...] = (),
        zero: Element | None = None,
        offset: Element | None = None,
        pack: str = "",
        nested: tuple[int, ...] = (),
        opened: int | None = None,
    ) -> Format:
        """A format from its parts, with the checks and defaults of the expression. FormatError: parts that do not go together."""
        fmt = cls.__new__(cls)
        if block is not None:
            levels = levels or (Level(default_scale(block)),)
            if levels[-1].block is not None:
                levels = (*levels, Level(default_scale(None)))
        fmt.__dict__.update(element=element, block=block, levels=levels, zero=zero, offset=offset, nested=nested, opened=opened, pack=pack)
        _check(fmt)
        if opened is not None:
            fmt.__dict__["element"] = _nested().open_element(element, opened, zero is not None)
        return fmt

    @classmethod
    def parse(cls, expression: str, elements: Mapping[str, Element]) -> Format:
        """A format with elements beside those that are known, such as a checkpoint's own. FormatError: no such format."""
        from anybit.formats.parse import parse_format

        return parse_format(expression, elements)

    @property
    def elements(self) -> tuple[Element, ...]:
        """Every element: of codes, scales, zero points, offsets."""
        return (self.element, *(level.element for level in self.levels), *(e for e in (self.zero, self.offset) if e is not None))

    def cut(self, codes: np.ndarray) -> np.ndarray:
        """Codes of this opened format from those of `stored`, same shape."""
        opened: np.ndarray = _nested().open_element(self._master, self.opened, False).cut(codes)
        return opened

    @property
    def stored(self) -> Format:
        """The format before opening: what `opened` codes were cut from. Itself if it is not opened."""
        return self.open(None)

    def open(self, width: int | None) -> Format:
        """The same nested integers opened at a width; at their own, or None: as they are stored. FormatError: they do not nest there.

        >>> Format("int8@128+nest=4.2").open(4)
        Format('int8@128+nest=4.2+open=4')
        """
        opened = None if width == self._master.bits else width
        return Format.of(self._master, self.block, self.levels, self.zero, self.offset, self.pack, self.nested, opened)

    @property
    def explicit(self) -> str:
        """The expression with every default written out, as checkpoints store it."""
        text = self._master.name
        if self.block is not None:
            text += f"@{self.block}" + "".join(f":{level}" for level in self.levels)
        text += f"+zp={self.zero}" if self.zero else ""
        text += f"+off={self.offset}" if self.offset else ""
        return text + self._storage

    @property
    def _master(self) -> Element:
        """The element that the expression names."""
        return getattr(self.element, "master", self.element) if self.opened is not None else self.element

    @property
    def _storage(self) -> str:
        """The options of nesting and packing."""
        text = f"+nest={'.'.join(map(str, self.nested))}" if self.nested else ""
        text += f"+open={self.opened}" if self.opened is not None else ""
        return text + (f"+pack={self.pack}" if self.pack else "")

    def __str__(self) -> str:
        """The shortest expression: no aliases, no defaults."""
        levels = list(self.levels)
        if levels and levels[-1] == Level(default_scale(self.block if len(levels) == 1 else None)):
            levels.pop()
        text = self._master.name
        if self.block is not None:
            text += f"@{self.block}" + "".join(f":{level}" for level in levels)
        if self.zero:
            text += "+zp" + ("" if self.zero == self._master else f"={self.zero}")
        if self.offset:
            text += "+off" + ("" if self.offset == self.levels[0].element else f"={self.offset}")
        return text + self._storage

    def __repr__(self) -> str:
        return f"Format('{self}')"

    def __eq__(self, other: Any) -> bool:
        return self.explicit == other.explicit if isinstance(other, Format) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.explicit)

    def with_element(self, element: Element) -> Format:
        """The same format with another element: a learned one with its values."""
        fmt = Format.__new__(Format)
        fmt.__dict__.update({name: self.__dict__[name] for name in _FIELDS} | {"element": element})
        return fmt

    @property
    def alias(self) -> str | None:
        """The built-in name of this format (mxfp4), if it has one."""
        return _alias(self)

    @property
    def dense(self) -> bool:
        """Whether values are stored one by one in more than 8 bits, as in bf16, fp16 and fp32: no block, no scale."""
        return self.block is None and self.element.bits > 8 * self.element.dim

    @property
    def whole_zero(self) -> bool:
        """Whether zero points are whole numbers that fit a byte: kernels take them off integer sums, others run as offsets -z * s."""
        if self.zero is None or self.zero.bits > 8:
            return False
        low, high, values = self.zero.min, self.zero.max, self.zero.values
        return bool(np.array_equal(values, np.rint(values))) and low >= -128 and high <= (127 if low < 0 else 255)

    @property
    def blocks(self) -> list[Block]:
        """The block of each level, counted in weights: the format's, then that of each level but the last. Empty without a block.

        >>> [str(block) for block in Format("nvfp4").blocks]
        ['16', 'tensor']
        """
        return [] if self.block is None else [self.block, *(level.block for level in self.levels if level.block is not None)]

    def grids(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The shape of the scales of each level for an array of a shape.

        >>> Format("nvfp4").grids((2, 40))
        [(2, 3), (1, 1)]
        """
        return [block.grid(shape) for block in self.blocks]

    def size_bits(self, shape: tuple[int, ...]) -> int:
        """The exact number of bits of codes, scales, zero points, offsets and learned values of an array, without padding.

        With pack=escape it is a bound, reached by data without a pattern: what is stored is known after encoding (`QTensor.nbytes`).

        >>> Format("nvfp4").size_bits((4096, 4096)) - 4096 * 4096 * 9 // 2
        32
        """
        if any(n < 0 for n in shape) or not shape:
            raise ShapeError(f"a shape has at least one axis and no negative sizes, not {tuple(shape)}")
        shape = tuple(int(n) for n in shape)
        total = ceil(prod(shape) * self._code_bits) + 32 * prod(self.element.table_shape or (0,))
        return total + sum(prod(grid) * self._block_bits(i) for i, grid in enumerate(self.grids(shape)))

    @property
    def bits_per_weight(self) -> Fraction:
        """The limit of size_bits / weights for large arrays (whole-axis and whole-tensor scales cost nothing in the limit)."""
        total = self._code_bits
        for i, block in enumerate(self.blocks):
            total += block.per_weight * self._block_bits(i)
        return total

    @property
    def _code_bits(self) -> Fraction:
        """Bits of a weight's code; of one with a packing at most."""
        return PACKINGS[self.pack].bits(self.element) if self.pack else Fraction(self.element.bits, self.element.dim)

    @property
    def plain(self) -> Format:
        """The same without a packing."""
        return Format.of(self.element, self.block, self.levels, self.zero, self.offset) if self.pack else self

    def _block_bits(self, level: int) -> int:
        """Bits that each block of a level costs: its scale, and its zero point or offset."""
        bits = self.levels[level].element.bits
        if level == 0:
            return bits + (self.zero.bits if self.zero else 0) + (self.offset.bits if self.offset else 0)
        return bits * (2 if self.offset else 1)

    def offset_element(self, level: int) -> Element:
        """The element of the offsets of a level."""
        assert self.offset is not None
        return self.offset if level == 0 else self.levels[level].element


_FIELDS = ("element", "block", "levels", "zero", "offset", "nested", "opened", "pack")
_ALIASES: dict[str, str] = {}


def _alias(fmt: Format) -> str | None:
    from anybit.formats.named import ALIASES

    if not _ALIASES:
        _ALIASES.update({Format(text).explicit: name for name, (text, _) in ALIASES.items()})
    return _ALIASES.get(fmt.explicit)


def default_scale(block: Block | None) -> Element:
    """bf16 for blocks of a size, float32 for tensor, channel and token and for the scales of scales (None)."""
    from anybit.formats.family import parse_element

    return parse_element("bf16" if block is not None and block.kind == "sized" else "fp32")


def _nested() -> Any:
    """What nesting means; families register in the order of their folder, so none is imported with this module."""
    from anybit.formats.elements import nested

    return nested


def _check(fmt: Format) -> None:
    """Raises FormatError for parts that do not go together."""
    element, block = fmt.element, fmt.block
    if block is None and (fmt.levels or fmt.zero or fmt.offset):
        raise FormatError("scales, zero points and offsets belong to blocks; write one, as in int4@128 or int8@channel")
    for i, level in enumerate(fmt.levels):
        if i + 1 < len(fmt.levels) and level.block is None:
            raise FormatError(f"the scales {level.element} have a scale but no block for it; write {level.element}@tensor or another block")
        if not level.element.max > 0:
            raise FormatError(f"{level.element} has no positive value to scale with")
        if level.block is not None:
            assert block is not None
            if not level.block.holds(block):
                raise FormatError(f"a block of {level.block} does not hold whole blocks of {block}; each size must be a multiple of it")
            block = level.block
    size = fmt.block.size if fmt.block is not None else None
    if size is not None and size % element.dim:
        low = size // element.dim * element.dim
        near = f"{low} or {low + element.dim}" if low else f"{element.dim}"
        raise FormatError(f"{element} codes {element.dim} weights of a row together, and a block of {fmt.block} cuts them; use {near}")
    if fmt.zero is not None and (element.dim > 1 or element.learned or element.fields["family"] != "integer"):
        raise FormatError(f"zero points need integer codes, and {element} is none; use +off")
    for stored in fmt.elements[1:]:
        if stored.dim > 1 or stored.learned:
            why = f"codes {stored.dim} numbers together" if stored.dim > 1 else "is learned from the weights"
            raise FormatError(f"scales, zero points and offsets are stored one by one, and {stored} {why}; use another element for them")
    if fmt.offset is not None:
        last = fmt.offset_element(len(fmt.levels) - 1)
        if not last.signed or not all(fmt.offset_element(i).has_zero for i in range(len(fmt.levels))):
            raise FormatError(f"offsets need zero and a sign, which {last} cannot store; write +off=bf16 or other scales")
    if fmt.nested or fmt.opened is not None:
        _nested().check_nested(element, fmt.nested, fmt.opened, fmt.zero)
    if fmt.nested and fmt.block is None:
        raise FormatError("nested integers need a block, as in int8@128+nest=4")
    reason = PACKINGS[fmt.pack].refuses(element) if fmt.pack else None
    if reason is not None:
        raise FormatError(reason)
