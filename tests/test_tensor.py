"""QTensor, quantize and fake_quantize: against definitions written out here, and against misuse."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import anybit
from anybit.errors import AnybitError, FormatError, NoKernelError, NonFiniteError, ShapeError, UnknownNameError
from anybit.formats import Format, parse_element
from anybit.kernels.cpu import native
from anybit.tensor import QTensor, fake_quantize, quantize

FORMATS = [
    "int8@channel", "int4@32", "int4@128", "int3@128", "int2@64", "int5@32", "uint4@32+zp", "int4@32+off", "uint6@48+zp=fp16",
    "ternary@256", "binary@32", "mxfp8", "mxfp6", "mxfp4", "nvfp4", "nf4@64", "fp8_e4m3fn@tensor", "int4@16x16", "int8@tensor", "int12@32",
    "bf16", "fp16", "fp32", "fp8_e5m2",
]  # fmt: skip


def random(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# ---------------------------------------------------------------------------------------------- what quantize means
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", [(40, 100), (7,), (2, 3, 70), (1, 1), (16, 32)])
def test_fake_quantize_is_quantize_and_back(fmt: str, shape: tuple[int, ...]) -> None:
    x = random(shape)
    q = quantize(x, fmt)
    back = q.dequantize()
    assert back.shape == shape and back.dtype == np.float32 and (q.shape, q.format) == (shape, Format(fmt))
    assert np.array_equal(back, fake_quantize(x, fmt))
    again = QTensor.pack(q.format, shape, q.logical())
    assert all(np.array_equal(part, again.parts[name]) for name, part in q.parts.items())
    plain = q.to("rows")
    assert np.array_equal(plain.dequantize(), back) and plain.layout == "rows"
    if not q.format.dense:
        assert q.format.size_bits(shape) <= 8 * q.nbytes


def blocks_of(x: np.ndarray, block: int) -> list[slice]:
    return [slice(start, min(start + block, x.shape[1])) for start in range(0, x.shape[1], block)]


@pytest.mark.parametrize("k", [100, 96, 33, 31, 1])
def test_int4_with_bf16_scales_by_hand(k: int) -> None:
    """The last block may be short: its scale is that of the values it has."""
    x = random((5, k))
    x[2, :] = 0
    q = quantize(x, "int4@32")
    codes, scales = q.logical()["codes"], q.logical()["scale.0"]
    for row in range(5):
        for b, part in enumerate(blocks_of(x, 32)):
            scale = np.float32(ml_dtypes.bfloat16(np.abs(x[row, part]).max() / 7))
            if scale == 0:
                assert not codes[row, part].any()
                continue
            want = np.clip(np.rint(x[row, part] / scale), -8, 7)
            assert scales[row, b] == np.float32(scale).view(np.uint32) >> 16
            assert np.array_equal(codes[row, part], want.astype(np.int8).view(np.uint8) & 15)
            assert np.array_equal(q.dequantize()[row, part], want.astype(np.float32) * scale)
    blocks = -(-k // 32)
    assert q.format.size_bits(x.shape) == 5 * k * 4 + 5 * blocks * 16
    assert q.nbytes == 32 * blocks * 16 * 4 // 8 + blocks * 16 * 2  # one tile of 16 rows, k padded to 32
    assert q.bits_per_weight == Fraction(8 * q.nbytes, 5 * k)


@pytest.mark.parametrize("k", [64, 70])
def test_mxfp4_by_hand(k: int) -> None:
    x = random((3, k))
    got = fake_quantize(x, "mxfp4")
    for row in range(3):
        for part in blocks_of(x, 32):
            scale = np.float32(2.0 ** (np.floor(np.log2(np.abs(x[row, part]).max())) - 2))
            want = (x[row, part] / scale).clip(-6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * scale
            assert np.array_equal(got[row, part], want)


def test_nvfp4_by_hand() -> None:
    x = random((4, 40))
    got = fake_quantize(x, "nvfp4")
    tensor = np.float32(np.abs(x).max().astype(np.float64) / (6 * 448))
    for row in range(4):
        for part in blocks_of(x, 16):
            first = np.float32((np.abs(x[row, part]).max().astype(np.float64) / 6 / tensor).astype(ml_dtypes.float8_e4m3fn))
            scale = np.float32(first * tensor)
            want = (x[row, part] / scale).clip(-6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * scale
            assert np.array_equal(got[row, part], want)


@pytest.mark.parametrize("name", ["fp8_e4m3fn", "fp8_e5m2", "fp4_e2m1", "bf16", "fp16"])
def test_elements_encode_and_decode_as_ml_dtypes_does(name: str) -> None:
    kinds = {"fp8_e4m3fn": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2", "fp4_e2m1": "float4_e2m1fn", "bf16": "bfloat16"}
    dtype: Any = np.dtype(getattr(ml_dtypes, kinds[name]) if name in kinds else np.float16)
    element = anybit.Format(name).element
    x = random((500,)) * np.float32(element.max / 5)
    x = x[np.abs(x) < element.max]
    codes = element.encode(x)
    assert np.array_equal(element.decode(codes), x.astype(dtype).astype(np.float64))
    assert np.array_equal(element.encode(element.decode(codes)), codes)


def test_bits_per_weight_is_a_fraction() -> None:
    assert Format("int4@128").bits_per_weight == Fraction(4) + Fraction(16, 128)
    assert Format("nvfp4").bits_per_weight == Fraction(4) + Fraction(8, 16)
    assert Format("ternary@256").bits_per_weight == 2 + Fraction(16, 256)
    assert str(anybit.Format(str(Format("int4@128:bf16")))) == "int4@128"
    assert Format("nf4@64").element.values.shape == (16,)


# ---------------------------------------------------------------------------------------------- what a QTensor does
@pytest.mark.parametrize("fmt", FORMATS)
def test_matmul_is_the_product_with_the_dequantized_matrix(fmt: str) -> None:
    w, x = random((37, 100)), random((2, 3, 100), 1)
    q = quantize(w, fmt)
    want = x.astype(np.float64) @ q.dequantize().astype(np.float64).T
    size = np.abs(x.astype(np.float64)) @ np.abs(q.dequantize().astype(np.float64)).T + 1
    got = q.matmul(x)
    assert got.shape == (2, 3, 37) and got.dtype == np.float32
    assert np.all(np.abs(got - want) <= 100 * 2.0**-22 * size)  # 100 products, each sum and scale rounded a few times
    bias = random((37,), 2)
    assert np.array_equal(q.matmul(x, bias=bias), got + bias)
    assert np.array_equal(q.matmul(x[0, 0]), got[0, 0])
    if q.layout == "tile16x4":
        half = 0.5 * np.abs(x).max() / 127 * np.abs(q.dequantize()).sum(axis=1)
        assert np.all(np.abs(q.matmul(x, act="int8") - want) <= half + 1e-3 * size)


@pytest.mark.parametrize("fmt", ["int4@32", "bf16", "uint4@32+zp", "int12@32"])
@pytest.mark.parametrize("shape", [(0, 70), (2, 0, 70)])
def test_a_product_with_nothing_is_nothing(fmt: str, shape: tuple[int, ...]) -> None:
    q = quantize(random((20, 70)), fmt)
    for act in (None, "int8") if q.layout == "tile16x4" else (None,):
        assert q.matmul(np.zeros(shape, np.float32), act).shape == (*shape[:-1], 20)


@pytest.mark.parametrize("fmt", FORMATS)
def test_rows(fmt: str) -> None:
    q = quantize(random((37, 100)), fmt)
    ids = [36, 0, 5, 5, 17]
    assert np.array_equal(q.rows(ids), q.dequantize()[ids])
    assert q.rows([]).shape == (0, 100)
    for bad in ([37], [-1], [1.5], [[1]], ["a"], [1 << 70]):
        with pytest.raises(ShapeError, match="from 0 to 36"):
            q.rows(bad)


@pytest.mark.parametrize("fmt", [*FORMATS, "int4@24x32", "int4@48x32", "int4@32x32+zp", "int4@32:fp16@64x64", "int4@32:fp8_e4m3fn@64+off"])
def test_narrow_cuts_rows_in_place(fmt: str) -> None:
    """Every cut that is allowed gives exactly those rows; the others are refused."""
    q = quantize(random((100, 64)), fmt)
    whole, x = q.dequantize(), random((2, 64), 1)
    allowed = 0
    for start, stop in [(0, 100), (0, 16), (16, 48), (24, 48), (48, 96), (48, 100), (96, 100), (32, 64), (0, 48), (99, 100), (5, 9)]:
        try:
            part = q.narrow(start, stop)
        except ShapeError as error:
            assert "\n" not in str(error)
            continue
        allowed += 1
        assert part.shape == (stop - start, 64) and np.array_equal(part.dequantize(), whole[start:stop]), (start, stop)
        assert np.array_equal(part.matmul(x), q.matmul(x)[:, start:stop])
        assert np.shares_memory(part.parts["codes"], q.parts["codes"])
    assert allowed >= 1 and np.array_equal(q.narrow(0, 100).dequantize(), whole)
    for start, stop in [(0, 0), (-16, 16), (16, 0), (0, 116)]:
        with pytest.raises(ShapeError):
            q.narrow(start, stop)


def test_narrow_needs_a_matrix() -> None:
    with pytest.raises(ShapeError, match="matrices"):
        quantize(random((64,)), "int4@32").narrow(0, 16)


def test_parts_cannot_be_written() -> None:
    q = quantize(random((4, 64)), "int4@32")
    with pytest.raises(ValueError, match="read-only"):
        q.parts["codes"][0, 0, 0] = 1
    with pytest.raises(TypeError):
        q.parts["codes"] = q.parts["codes"]  # type: ignore[index]


# ---------------------------------------------------------------------------------------------- misuse
def refused(kind: type[AnybitError], code: int, says: str, call: Any) -> None:
    with pytest.raises(kind, match=says) as caught:
        call()
    assert caught.value.exit_code == code and "\n" not in str(caught.value)


def test_quantize_refuses() -> None:
    w = random((4, 64))
    bad = w.copy()
    bad[2, 7], bad[3, 1], bad[3, 2] = np.nan, np.inf, -np.inf
    first = r"holds 3 non-finite value\(s\), the first nan at index \[2, 7\]"
    refused(NonFiniteError, 4, f"^w {first}", lambda: quantize(bad, "int4@32", name="w"))
    refused(NonFiniteError, 4, first, lambda: fake_quantize(bad, "bf16"))
    refused(ShapeError, 2, "at least one axis", lambda: quantize(1.0, "int4@32"))
    refused(ShapeError, 2, "at least one axis", lambda: quantize(np.zeros((0, 4)), "int4@32"))
    refused(ShapeError, 2, "numbers are", lambda: quantize(["a"], "int4@32"))
    refused(ShapeError, 2, "numbers are", lambda: quantize(np.ones(4, complex), "int4@32"))
    refused(UnknownNameError, 2, "no method named 'rtm'; did you mean rtn", lambda: quantize(w, "int4@32", method="rtm"))
    refused(FormatError, 2, "no format named 'nvpf4'; did you mean nvfp4", lambda: quantize(w, "nvpf4"))
    refused(FormatError, 2, "int4@: a block expected, the expression ends at position 5", lambda: quantize(w, "int4@"))
    refused(FormatError, 2, "text such as", lambda: quantize(w, 4))  # type: ignore[arg-type]


def test_matmul_refuses() -> None:
    q = quantize(random((20, 64)), "int4@32")
    x = random((2, 64))
    refused(ShapeError, 2, "does not end in k = 64", lambda: q.matmul(x[:, :63]))
    refused(ShapeError, 2, "does not end in k = 64", lambda: q.matmul(np.float32(1)))
    refused(ShapeError, 2, "bias of shape", lambda: q.matmul(x, bias=np.zeros(19, np.float32)))
    refused(ShapeError, 2, "numbers are", lambda: q.matmul([["a"] * 64]))
    refused(ShapeError, 2, "of the weight", lambda: quantize(random((2, 3, 64)), "int4@32").matmul(x))
    refused(NoKernelError, 6, "takes activations in int3 without a block; use float or int8", lambda: q.matmul(x, act="int3"))
    refused(NoKernelError, 6, "float activations", lambda: quantize(random((20, 64)), "bf16").matmul(x, act="int8"))
    assert np.array_equal(q.matmul(x, act="float"), q.matmul(x))
    for value in (np.nan, np.inf, 1e300):
        wide = x.astype(np.float64)
        wide[1, 63] = value
        for act in (None, "int8"):
            refused(NonFiniteError, 4, "row 1", lambda wide=wide, act=act: q.matmul(wide, act))


HOSTILE_PARTS: list[tuple[str, Any, str]] = [
    ("missing", lambda p: p.pop("scale.0"), "has the parts codes, scale.0, not codes"),
    ("extra", lambda p: p.update(zero=p["codes"]), "has the parts"),
    ("short codes", lambda p: p.update(codes=p["codes"][:1]), r"part codes must be uint8\[2, 3, 256\]"),
    ("codes of another type", lambda p: p.update(codes=p["codes"].view(np.int8)), "part codes must be uint8"),
    ("flat codes", lambda p: p.update(codes=p["codes"].reshape(-1)), "part codes must be"),
    ("short scales", lambda p: p.update({"scale.0": p["scale.0"][:, :1]}), "part scale.0 must be uint16"),
    ("wide scales", lambda p: p.update({"scale.0": p["scale.0"].astype(np.uint32)}), "part scale.0 must be uint16"),
    ("empty scales", lambda p: p.update({"scale.0": p["scale.0"][:0]}), "part scale.0 must be"),
]


@pytest.mark.parametrize(("change", "says"), [case[1:] for case in HOSTILE_PARTS], ids=[case[0] for case in HOSTILE_PARTS])
def test_stored_parts_of_the_wrong_size_are_refused(change: Any, says: str) -> None:
    q = quantize(random((20, 70)), "int4@32")
    parts = dict(q.parts)
    assert np.array_equal(QTensor.from_stored(q.format, q.shape, q.layout, parts).dequantize(), q.dequantize())
    change(parts)
    refused(ShapeError, 2, says, lambda: QTensor.from_stored(q.format, q.shape, q.layout, parts))


@pytest.mark.parametrize("shape", [(), (0, 70), (20, 0), (70,), (2, 10, 70), (20, 71), (20, 32), (21 << 40, 70), (20, 70 << 50), (33, 70)])
def test_stored_parts_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    q = quantize(random((20, 70)), "int4@32")
    if shape == (20, 71):  # padding hides the difference: 71 columns lie in as many chunks and blocks
        assert QTensor.from_stored(q.format, shape, q.layout, q.parts).dequantize().shape == shape
        return
    refused(ShapeError, 2, "layout tile16x4|part ", lambda: QTensor.from_stored(q.format, shape, q.layout, q.parts))


def test_a_layout_that_cannot_hold_a_format_is_refused() -> None:
    q = quantize(random((20, 70)), "int4@32")
    for fmt, layout in [("bf16", "tile16x4"), ("int12@32", "tile16x4"), ("int4@32", "tile16x1"), ("fp8_e5m2", "tile16x4")]:
        refused(ShapeError, 2, "cannot hold", lambda fmt=fmt, layout=layout: QTensor.from_stored(Format(fmt), q.shape, layout, q.parts))
    with pytest.raises(UnknownNameError, match="no layout named 'tile16x5'; did you mean"):
        QTensor.from_stored(q.format, q.shape, "tile16x5", q.parts)


# ---------------------------------------------------------------------------------------------- the native code's own checks
def make(**changes: Any) -> Any:
    """A native int4@32 weight of 20 x 70, with some arguments replaced."""
    table = parse_element("int4").table
    assert table.ints is not None
    values = table.values
    scale: dict[str, Any] = {
        "kind": 3, "data": np.zeros(2 * 3 * 16 * 2, np.uint8), "rows": 1, "columns": 3, "whole": 1.0, "bits": 0, "mantissa": 0,
        "factor": 1.0, "has_sign": False, "table": np.empty(0, np.float32),
    }  # fmt: skip
    scale |= changes.get("scale", {})
    if isinstance(scale.get("second"), dict):
        scale["second"] = native.Scale.make(**scale["second"])
    changes.pop("scale", None)
    fields: dict[str, Any] = {
        "n": 20, "k": 70, "bits": 4, "dense": 0, "codes": np.zeros(2 * 3 * 256, np.uint8), "block": 32, "offset": None, "zero": None,
        "zero_flip": 0, "integers": table.ints, "step": 1.0, "table": values, "float_step": 1.0, "values": values,
    }  # fmt: skip
    return native.Weight.make(**{**fields, "scale": native.Scale.make(**scale), **changes})


BYTES = {"kind": 5, "bits": 8, "table": np.zeros(256, np.float32), "data": np.zeros(96, np.uint8)}
PAIRS = {**BYTES, "bits": 4, "paired": True, "data": np.zeros(64, np.uint8)}
SECOND = {
    "kind": 2, "data": np.zeros(2 * 2 * 16 * 2, np.uint8), "rows": 1, "columns": 2, "whole": 1.0, "bits": 0, "mantissa": 0, "factor": 1.0,
    "has_sign": False, "table": np.empty(0, np.float32),
}  # fmt: skip
TWO = {**BYTES, "second": SECOND, "each": 2}


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 0}, {"k": 0}, {"n": -1}, {"k": -1}, {"n": 1 << 40}, {"n": 1 << 31, "k": 1 << 31}, {"n": 1 << 62}, {"k": 1 << 62},
        {"n": 33}, {"n": 16}, {"k": 97}, {"k": 64}, {"bits": 3}, {"bits": 5}, {"bits": 0}, {"bits": 9}, {"bits": -4}, {"bits": 64},
        {"dense": 1}, {"dense": 4}, {"dense": -1}, {"dense": 2, "bits": 16}, {"dense": 1, "bits": 32},
        {"codes": np.zeros(2 * 3 * 256 - 1, np.uint8)}, {"codes": np.zeros(0, np.uint8)}, {"codes": np.zeros(2 * 3 * 256 + 1, np.uint8)},
        {"block": -1}, {"block": 16}, {"block": 64}, {"block": 1 << 62}, {"block": 0}, {"block": 1},
        {"zero": np.zeros(95, np.uint8)}, {"zero": np.zeros(0, np.uint8)}, {"integers": np.zeros(15, np.int32)},
        {"integers": np.full(16, 1 << 20, np.int32)}, {"table": np.zeros(8, np.float32)}, {"values": np.zeros(0, np.float32)},
        {"scale": {"kind": 0}}, {"scale": {"kind": 8}}, {"scale": {"kind": 1}}, {"scale": {"kind": 5}}, {"scale": {"columns": 2}},
        {"scale": {"columns": 0}}, {"scale": {"columns": 1 << 62}}, {"scale": {"rows": 2}}, {"scale": {"rows": 0}}, {"scale": {"rows": -1}},
        {"scale": {"data": np.zeros(191, np.uint8)}}, {"scale": {"data": np.zeros(0, np.uint8)}}, {"scale": {**BYTES, "bits": 0}},
        {"scale": {**BYTES, "bits": 9}}, {"scale": {**BYTES, "mantissa": -1}}, {"scale": {**BYTES, "mantissa": 24}},
        {"scale": {**BYTES, "table": np.zeros(255, np.float32)}}, {"scale": {**BYTES, "table": np.zeros(0, np.float32)}},
        {"scale": {**PAIRS, "bits": 5}}, {"scale": {**PAIRS, "data": np.zeros(48, np.uint8)}},
        {"scale": {**PAIRS, "data": np.zeros(96, np.uint8)}}, {"scale": {**PAIRS, "rows": 4}},
        {"scale": {**TWO, "each": 0}}, {"scale": {**TWO, "each": 1}}, {"scale": {**TWO, "each": 3}},
        {"scale": {**TWO, "each": -1}}, {"scale": {**TWO, "second": None}}, {"scale": {**TWO, "second": {**SECOND, "columns": 3}}},
        {"scale": {**TWO, "second": {**SECOND, "rows": 0}}}, {"scale": {**TWO, "second": {**SECOND, "data": np.zeros(127, np.uint8)}}},
    ],
    ids=str,
)  # fmt: skip
def test_native_weights_of_wrong_sizes_are_refused(changes: dict[str, Any]) -> None:
    make(), make(scale=BYTES), make(scale=PAIRS), make(scale=TWO)
    with pytest.raises(ValueError, match=r".{4}"):
        make(**changes)


ANY_BYTES = [
    "int4@32", "uint4@32+zp", "int4@32+off", "nvfp4", "mxfp8", "fp8_e5m2@32:fp8_e4m3fn", "int4@32:fp8_e4m3fnuz", "int4@32:fp8_e5m2",
    "int8@16x16", "int4@16x16:fp8_e4m3fn", "ternary@256", "nf4@64:fp32", "int4@32:fp8_e4m3fn@128",
    "uint2@16:uint4@64:fp16+off", "int4@16:fp4_e2m1@32:fp8_e5m2",
]  # fmt: skip


@pytest.mark.parametrize("isa", native.supported_isas())
@pytest.mark.parametrize("fmt", ANY_BYTES)
def test_any_bytes_are_weights(fmt: str, isa: str) -> None:
    """Codes, scales and zero points of any bits, at any address: numbers or NaN come out, nothing crashes, every path agrees."""
    before, rng = native.isa(), np.random.default_rng(5)
    made = quantize(random((37, 100)), fmt)
    parts = {}
    for name, part in made.parts.items():
        held = np.empty(part.nbytes + 1, np.uint8)[1:]  # off every alignment
        held[:] = rng.integers(0, 256, part.nbytes, dtype=np.uint8)
        if name == "zero":
            held &= 15
        parts[name] = held.view(part.dtype).reshape(part.shape)
    q = QTensor.from_stored(made.format, made.shape, made.layout, parts)
    try:
        native.set_isa(isa)
        values = q.dequantize()
        with np.errstate(all="ignore"):
            want = np.where(np.isfinite(values), values, np.nan)
            logical = QTensor.from_stored(q.format, q.shape, "rows", q.to("rows").parts).dequantize()
        assert np.array_equal(want, np.where(np.isfinite(logical), logical, np.nan), equal_nan=True)
        assert np.array_equal(q.rows([36]), values[36:], equal_nan=True)
        for act in (None, "int8"):
            assert q.matmul(np.ones((3, 100), np.float32), act).shape == (3, 37)
    finally:
        native.set_isa(before)
