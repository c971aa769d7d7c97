"""The same values in another format: codes by their values, blocks cut into smaller ones, scales in another element. Nothing is rounded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anybit.formats import Element, Format
from anybit.io.targets.target import Held, Parts

_FLOATS = {"fp32": np.float32, "fp16": np.float16}
_WIDTHS = {"fp32": (24, 128), "bf16": (8, 128), "fp16": (11, 16)}  # bits of precision, highest exponent


class NoFit(ValueError):
    """A format or a tensor that another format does not hold exactly; the message is the reason."""


def decode_floats(codes: np.ndarray, element: Element) -> np.ndarray:
    """float32 values of codes of up to 32 bits whose values float32 holds."""
    if element.name == "bf16":
        return (codes.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if element.name in _FLOATS:
        return codes.view(_FLOATS[element.name]).astype(np.float32)
    return element.decode(codes).astype(np.float32)


def encode_floats(values: np.ndarray, element: Element) -> np.ndarray:
    """Codes of float32 values in fp32, fp16 or bf16. NoFit: a value that it does not hold exactly."""
    values = np.ascontiguousarray(values, np.float32)
    if element.name == "bf16":
        bits = values.view(np.uint32)
        codes, exact = (bits >> np.uint32(16)).astype(np.uint16), (bits & np.uint32(0xFFFF)) == 0
    elif element.name == "fp16":
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float16)
        codes, exact = narrow.view(np.uint16), narrow.astype(np.float32) == values
    else:
        return values.view(np.uint32)
    if not exact.all():
        index = np.unravel_index(int(np.argmin(exact)), values.shape)
        raise NoFit(f"the scale {values[index]} is not exact in {element.name}")
    return codes


def _wider(source: Element, target: Element) -> bool:
    """Whether a float element holds every value of another: no data need to be looked at."""
    (bits, top), (more, higher) = _WIDTHS[source.name], _WIDTHS[target.name]
    return bits <= more and top <= higher


def _lut(source: Element, target: Element, shift: float, to: float, what: str) -> np.ndarray | None:
    """For each code of `source` that of the same value (after a shift) in `target`; None where codes stay. NoFit."""
    if source.name == target.name and shift == to:
        return None
    if source.bits > 8 or target.bits > 8 or source.dim > 1 or target.dim > 1 or source.learned or target.learned:
        raise NoFit(f"{what} in {source} are not among those of {target}")
    values, there = source.values - shift, target.values - to
    found = np.zeros(256, np.uint8)
    for code, value in enumerate(values):
        match = np.flatnonzero(there == value)
        same_sign = match[np.signbit(there[match]) == np.signbit(value)]
        if not np.isfinite(value):
            continue  # no stored tensor holds it
        if not match.size:
            raise NoFit(f"{what} in {source} are not all among those of {target}: {value + shift:g} is missing")
        found[code] = same_sign[0] if same_sign.size else match[0]
    identity = np.array_equal(found[: len(values)], np.arange(len(values)))
    return None if identity else found


@dataclass(frozen=True)
class Fit:
    """How tensors of one format are written in another.

    `look` says that data decide: `check` reads a tensor's scales.
    """

    source: Format
    target: Format
    codes: np.ndarray | None
    zeros: np.ndarray | None
    look: bool

    def parts(self, parts: Parts, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Logical parts of some rows (of this shape) in the target's format. NoFit: a scale that its element does not hold."""
        codes = parts["codes"]
        made = {"codes": codes if self.codes is None else self.codes[codes]}
        return made | self.grids(parts, shape)

    def grids(self, parts: Parts, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """The same for scales, zero points and offsets alone."""
        made = {}
        for level, (inner, outer) in enumerate(zip(self.target.blocks, self.source.blocks, strict=True)):
            owners = outer.owners(inner, shape)
            same = inner.grid(shape) == outer.grid(shape)
            names = [(f"scale.{level}", self.source.levels[level].element, self.target.levels[level].element)]
            if self.source.offset is not None:
                names.append((f"offset.{level}", self.source.offset_element(level), self.target.offset_element(level)))
            for name, here, there in names:
                part = parts[name].reshape(outer.grid(shape))
                if here.name != there.name:
                    part = _converted(part, here, there)
                made[name] = part if same else part[np.ix_(*owners)]
            if level == 0 and self.source.zero is not None:
                part = parts["zero"].reshape(outer.grid(shape))
                part = part if self.zeros is None else self.zeros[part]
                made["zero"] = part if same else part[np.ix_(*owners)]
        return made

    def check(self, held: Held) -> None:
        """NoFit: the tensor holds a scale that the target does not hold exactly."""
        if self.look:
            self.grids(held.grids(), held.shape)


def same_codes(source: Format, target: Format) -> None:
    """NoFit: codes of a format whose values are not among another's."""
    shift, to = (0.0, 0.0) if source.zero is None else (float(source.element.min), float(target.element.min))
    _lut(source.element, target.element, shift, to, "codes")


def _converted(part: np.ndarray, here: Element, there: Element) -> np.ndarray:
    if (here.name, there.name) == ("bf16", "fp16"):
        made = _half_codes(part)
        if made is not None:
            return made
    if there.name in _WIDTHS:
        return encode_floats(decode_floats(part, here), there)
    lut = _lut(here, there, 0.0, 0.0, "scales")
    return part if lut is None else lut[part]


def _half_codes(codes: np.ndarray) -> np.ndarray | None:
    """float16 codes of bfloat16 ones by moving the exponent, ten times as fast as by their values; None: one is no normal number there."""
    magnitudes = codes & np.uint16(0x7FFF)
    if not magnitudes.size or magnitudes.min() < 113 << 7 or magnitudes.max() >= 143 << 7:  # 2^-14 and 2^16, bias 127
        return None
    magnitudes <<= np.uint16(3)  # 7 digits to 10; what leaves at the top comes back with the bias of 15
    magnitudes -= np.uint16((127 - 15 << 10) & 0xFFFF)
    magnitudes |= codes & np.uint16(0x8000)
    return magnitudes


def fit(source: Format, target: Format, shape: tuple[int, ...]) -> Fit:
    """How a tensor of a shape is written in another format with every value the same (the sign of zero aside).

    NoFit, with the reason: an element, a block, levels of scales, zero points or offsets that the target does not have.
    """
    source, target = source.plain, target.plain
    if (source.block is None) != (target.block is None) or len(source.levels) != len(target.levels):
        raise NoFit(f"{len(source.levels)} level(s) of scales are not {len(target.levels)}")
    if (source.zero is None) != (target.zero is None):
        raise NoFit("zero points" if source.zero is not None else "no zero points")
    if (source.offset is None) != (target.offset is None):
        raise NoFit("offsets" if source.offset is not None else "no offsets")
    shift, to = (0.0, 0.0) if source.zero is None else (float(source.element.min), float(target.element.min))
    codes = _lut(source.element, target.element, shift, to, "codes")
    zeros = None
    if source.zero is not None and target.zero is not None:
        zeros = _lut(source.zero, target.zero, shift, to, "zero points")
    look = False
    for outer, inner in zip(source.blocks, target.blocks, strict=True):
        sizes = list(zip(shape, outer.on(shape), inner.on(shape), strict=True))
        if any(o % i and o < n for n, o, i in sizes):
            raise NoFit(f"blocks of {outer} are not cut into blocks of {inner}")
    pairs = [(a.element, b.element) for a, b in zip(source.levels, target.levels, strict=True)]
    if source.offset is not None:
        pairs += [(source.offset_element(i), target.offset_element(i)) for i in range(len(source.levels))]
    for here, there in pairs:
        if here.name == there.name:
            continue
        if there.name not in _WIDTHS:
            _lut(here, there, 0.0, 0.0, "scales")
        elif here.name not in _WIDTHS:
            if here.bits > 8:
                raise NoFit(f"scales in {here} are not {there}")
            look = True
        elif not _wider(here, there):
            look = True
    return Fit(source, target, codes, zeros, look)
