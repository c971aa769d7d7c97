"""Nested integers: what opening means, by two references and by every code; opened tensors and models are what they say."""

from fractions import Fraction

import numpy as np
import pytest

import anybit
from anybit.errors import FormatError
from anybit.formats import Format
from anybit.formats.elements.integer import Integer
from anybit.formats.elements.nested import Opened
from anybit.reference import grid, rational


def master(bits: int, signed: bool) -> Integer:
    return Integer(f"{'' if signed else 'u'}int{bits}", bits, signed, False)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("bits", "width"), [(bits, width) for bits in (2, 3, 4, 7, 8, 12) for width in range(1, min(bits, 9))])
def test_every_code_by_both_references(bits: int, width: int, signed: bool) -> None:
    stored = master(bits, signed)
    element = Opened.of(stored, width)
    definition = element.fields
    values = [rational.decode(definition, code) for code in range(1 << width)]
    assert [Fraction(v) for v in element.values] == values
    assert np.array_equal(grid.values(definition), element.values)
    codes = np.arange(1 << bits)
    opened = element.decode(element.cut(codes))
    assert np.array_equal(opened, grid.opened(stored.decode(codes), definition))
    assert [Fraction(v) for v in opened] == [rational.opened(Fraction(v), definition) for v in stored.decode(codes)]
    for code in codes.tolist():  # and as the paper writes it
        u = code ^ (1 << (bits - 1)) if signed else code
        cut = min((u >> (bits - width)) + (u >> (bits - width - 1) & 1), (1 << width) - 1)
        assert opened[code] == (cut << (bits - width)) - ((1 << (bits - 1)) if signed else 0)


def test_a_table_with_step_one_keeps_the_values() -> None:
    for signed in (True, False):
        for width in range(1, 8):
            element = Opened.of(master(8, signed), width, whole=True)
            assert element.table.ints is not None
            assert element.table.step == 1
            assert np.array_equal(element.table.ints, element.values)
            assert element.table.kind in ("i8", "i16")
            plain = Opened.of(master(8, signed), width).table
            assert plain.ints is not None
            assert np.array_equal(plain.ints * plain.step, element.values)


@pytest.mark.parametrize(
    "text", ["int8@64", "uint8@64:fp16+zp", "uint8@32:fp16+zp=fp16", "int8@channel+off", "int6@16x32", "int8@32:int8@128"]
)
@pytest.mark.parametrize("act", [None, "int8"])
def test_opened_tensors_are_the_definition(text: str, act: str | None) -> None:
    bits = Format(text).element.bits
    widths = list(range(bits - 1, 0, -1))
    fmt = Format(f"{text}+nest={'.'.join(map(str, widths))}")
    w = np.random.default_rng(3).standard_normal((35, 130)).astype(np.float32)
    x = np.random.default_rng(4).standard_normal((2, 130)).astype(np.float32)
    q = anybit.quantize(w, fmt)
    assert np.array_equal(q.dequantize(), anybit.quantize(w, text).dequantize()), "nesting changes no code"
    assert q.open(bits) is q
    stored = q.logical()
    from anybit.methods.rtn import dequantize_parts
    from anybit.reference.linear import matmul

    for width in widths:
        opened = q.open(width)
        assert str(opened.format) == f"{fmt}+open={width}"
        assert opened.parts["codes"].nbytes * bits == q.parts["codes"].nbytes * width, "it reads fewer bytes"
        assert opened.format.size_bits(w.shape) == fmt.size_bits(w.shape) - (bits - width) * w.size
        # The definition, on the stored scales: codes of stored integers whose low bits are gone.
        definition = Opened.of(fmt.element, width).fields  # type: ignore[arg-type]
        sliced = grid.opened(fmt.element.decode(stored["codes"]).reshape(-1), definition).reshape(w.shape)
        whole = fmt.element.encode(sliced)
        assert np.array_equal(fmt.element.decode(whole), sliced)
        assert np.array_equal(opened.dequantize(), dequantize_parts({**stored, "codes": whole}, Format(text), w.shape))
        assert np.array_equal(opened.matmul(x, act), matmul(x, opened.logical(), opened.format, w.shape, act))
        direct = anybit.quantize(w, opened.format)
        assert direct.format == opened.format
        assert all(np.array_equal(direct.parts[name], opened.parts[name]) for name in opened.parts)


def test_what_cannot_be_opened() -> None:
    w = np.eye(16, 64, dtype=np.float32)
    q = anybit.quantize(w, "int8@32+nest=4.2")
    with pytest.raises(FormatError, match=r"int8 is nested at 4, 2 and cannot be opened at 3"):
        q.open(3)
    with pytest.raises(FormatError, match=r"is opened already; open the stored tensor at 2"):
        q.open(4).open(2)
    with pytest.raises(FormatError, match=r"only nested integers can be opened"):
        anybit.quantize(w, "int8@32").open(4)
    with pytest.raises(FormatError, match=r"has no nested integers to open at 4"):
        anybit.load("pycoder-5m", open=4)
