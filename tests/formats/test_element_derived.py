"""What derives from a definition: tables for kernels, ranges, and a user's own element in a few lines."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from anybit.formats import FAMILIES, Block, Element, Family, Format, families, named_formats, parse_element
from anybit.formats.format import Level
from anybit.methods import dequantize_parts, quantize_parts

ELEMENTS = [n.name for n in named_formats() if not n.blocked]
SCALARS = [n for n in ELEMENTS if parse_element(n).dim == 1 and not parse_element(n).learned]


@pytest.mark.parametrize("name", [n for n in SCALARS if parse_element(n).bits <= 16])
def test_tables(name: str) -> None:
    """Exact kinds are exact in fractions and use the largest possible step; rounded ones are within half a step."""
    element = parse_element(name)
    table, finite = element.table, np.isfinite(element.values)
    assert table.values.dtype == np.float32 and np.array_equal(table.values, element.values, equal_nan=True)
    assert table.step == np.float32(table.step)
    if table.ints is None:
        assert table.kind == "f32" and (element.bits > 8 or element.max / 65534 > element.reach[1] / 1000)
        return
    assert table.ints.dtype == np.int32 and np.all(table.ints[~finite] == 0) and table.ints.shape == element.values.shape
    ints, values = table.ints[finite].tolist(), element.values[finite].tolist()
    if table.kind in ("i8", "i16"):
        assert all(Fraction(value) == whole * Fraction(table.step) for whole, value in zip(ints, values, strict=True))
        assert np.gcd.reduce(np.abs(table.ints)) == 1
        assert (min(ints) >= -128 and max(ints) <= 127) == (table.kind == "i8") and max(map(abs, ints)) <= 32767
    else:
        assert table.kind == "i16r" and max(map(abs, ints)) == 32767
        assert table.step == np.float32(max(element.max, -element.min) / 32767)
        half = Fraction(table.step) / 2 * (1 + Fraction(1, 1000))
        assert all(abs(Fraction(v) - t * Fraction(table.step)) <= half for t, v in zip(ints, values, strict=True))
    for array in (table.ints, table.values, element.values, element.finite):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_table_kinds() -> None:
    kinds = {
        "i8": ["int8", "int4", "uint7", "ternary", "binary", "fp4_e2m1", "fp6_e2m3", "codebook_-0.5_0.25_1", "codebook_1e-10_2e-10",
               "iq4nl", "fixed8_f6", "pot4", "pot5_k2"],
        "i16": ["posit8_es0", "pot4_nz", "bipolar8", "uint8", "fp6_e3m2", "fp7_e3m3", "fp8_e3m4", "int12"],
        "i16r": ["posit6_es1", "log6_f2", "pow4_a0.5", "nf4", "fp8_e4m3fn", "fp8_e5m2", "e8m0", "codebook_0.1_0.7_1"],
        "f32": ["bf16", "fp16", "fp32", "int16", "posit8", "posit8_es1"],
    }  # fmt: skip
    for kind, names in kinds.items():
        for name in names:
            # 1e-10 and 2e-10 are float32 numbers with one significand: the step is the first.
            assert parse_element(name).table.kind == kind, name
    assert parse_element("fp4_e2m1").table.step == 0.5 and parse_element("fp32").table.values.size == 0


def test_elements_are_values() -> None:
    """Equal and hashable by definition; canonical names read back to the same element."""
    for name in ELEMENTS:
        element = parse_element(name)
        assert (
            element.name == name == str(element) and parse_element(element.name) == element and hash(element) == hash(parse_element(name))
        )
        claiming = [family.name for family in families().values() if family.parse(name) is not None]
        assert len(claiming) == 1, claiming
    assert parse_element("fp8_e4m3") != parse_element("fp8_e4m3fn")


def test_named_figures() -> None:
    """OCP FP8, FP6, FP4 and IEEE ranges as their specifications print them."""
    figures = {
        "fp8_e4m3fn": (448, 2**-9), "fp8_e5m2": (57344, 2**-16), "fp6_e3m2": (28, 0.0625), "fp6_e2m3": (7.5, 0.125), "fp4_e2m1": (6, 0.5),
        "fp8_e4m3fnuz": (240, 2**-10), "fp8_e5m2fnuz": (57344, 2**-17), "fp16": (65504, 2**-24), "e8m0": (2.0**127, 2.0**-127),
        "bf16": (float.fromhex("0x1.fep127"), 2.0**-133), "fp32": (float(np.finfo(np.float32).max), 2.0**-149),
        "tf32": (float.fromhex("0x1.ffcp127"), 2.0**-136),
    }  # fmt: skip
    for name, (largest, smallest) in figures.items():
        element = parse_element(name)
        assert (element.max, element.smallest) == (largest, smallest), name


@dataclass(frozen=True)
class Cubes(Element):
    """A user's element: decode and nothing else."""

    def decode(self, codes: Any) -> np.ndarray:
        return np.sign(np.asarray(codes) - 7.5) * np.abs(np.asarray(codes) - 7.5) ** 3


def test_a_users_element() -> None:
    """Everything else follows: encoding in all modes, table, blocks, sizes; registered as a family it is in expressions too."""
    element = Cubes("cubes", 4)
    assert (element.max, element.has_zero, element.specials) == (7.5**3, False, {})
    x = np.linspace(-500, 500, 20_001).astype(np.float32)
    codes = element.encode(x)
    nearest = np.abs(x.astype(np.float64)[:, None] - element.values).argmin(1)
    ties = np.isclose(np.abs(x[:, None] - element.values)[np.arange(x.size), codes], np.abs(x[:, None] - element.values).min(1), rtol=1e-6)
    assert np.mean(codes == nearest) > 0.999 and ties.all()
    fmt = Format.of(element, Block("sized", (32,)), (Level(parse_element("fp16")),))
    assert str(fmt) == "cubes@32:fp16" and fmt.size_bits((2, 64)) == 512 + 64
    w = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    assert np.square(dequantize_parts(quantize_parts(w, fmt), fmt, w.shape) - w).mean() < 0.05
    FAMILIES.add("cubes", Family("cubes", "cubes", "cubes", lambda text: element if text == "cubes" else None))
    try:
        assert Format("cubes@32:fp16") == fmt
    finally:
        del FAMILIES._items["cubes"]
        from anybit.formats.family import _find

        _find.cache_clear()


def test_blocks_cover_arrays_once() -> None:
    """Boxes of any size partition the array, stay within whole blocks, and agree with the grid."""
    for text, sizes in (("tensor", ()), ("channel", ()), ("sized", (3,)), ("sized", (2, 4)), ("sized", (None, 2)), ("sized", (2, 1, 5))):
        block = Block(text, sizes)
        for shape in ((7,), (5, 9), (3, 4, 11), (1, 1), (2, 1, 3, 4)):
            for limit in (1, 6, 10**6):
                seen = np.zeros(shape, int)
                count = np.zeros(block.grid(shape), int)
                for box in block.boxes(shape, limit):
                    part = seen[box.take]
                    part += 1
                    split = np.broadcast_to(box.spread(np.arange(count.size).reshape(count.shape)), box.split).reshape(part.shape)
                    for at in np.ndindex(part.shape):
                        index = [s.start + i for s, i in zip(box.take, at, strict=True)]
                        expected = tuple(i // n for i, n in zip(index, block.on(shape), strict=True))
                        assert split[at] == np.ravel_multi_index(expected, count.shape)
                    assert part.size <= max(limit, np.prod(box.split[1::2]))
                assert np.all(seen == 1)
