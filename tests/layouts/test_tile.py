"""The tile layouts against their written definition, code by code."""

import numpy as np
import pytest

from anybit.errors import ShapeError
from anybit.formats import Format
from anybit.layouts import LAYOUTS, default_layout, geometry
from anybit.layouts.rows import pack_rows, unpack_rows
from anybit.layouts.tile import pack_codes, unpack_codes
from anybit.reference.packing import PLANES
from anybit.tensor import QTensor

SIZES = [(1, 1), (2, 7), (15, 31), (16, 32), (17, 33), (31, 64), (33, 127), (300, 5)]


def stored_code(stored: np.ndarray, bits: int, o: int, k: int) -> int:
    """The code of output o at k, found by the layout's definition in the module's first lines."""
    chunk, inside = divmod(k, 32)
    code = low = at = 0
    for width in PLANES[bits]:
        per_vector = 32 // width
        vector, rest = divmod(inside, per_vector)
        field, j = divmod(rest, 4)
        byte = int(stored[o // 16, chunk, 64 * (at + vector) + 4 * (o % 16) + j])
        code |= (byte >> (field * width) & ((1 << width) - 1)) << low
        low, at = low + width, at + width
    return code


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", SIZES)
def test_codes_lie_where_the_layout_says(bits: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 1 << bits, shape).astype(np.uint8)
    stored = pack_codes(codes, bits)
    n, k = shape
    assert stored.shape == (-(-n // 16), -(-k // 32), 64 * bits)
    for o, i in zip(rng.integers(0, n, 200), rng.integers(0, k, 200), strict=True):
        assert stored_code(stored, bits, int(o), int(i)) == codes[o, i]
    assert np.array_equal(unpack_codes(stored, bits, shape), codes)


def test_padding_is_zero() -> None:
    stored = pack_codes(np.full((1, 1), 255, np.uint8), 8)
    assert stored[0, 0, 0] == 255
    assert stored.sum() == 255


@pytest.mark.parametrize("bits", range(1, 17))
def test_rows_are_a_stream_of_bits(bits: int) -> None:
    rng = np.random.default_rng(bits)
    for k in [*range(1, 67), 255, 1024, 1025]:
        codes = rng.integers(0, 1 << bits, (3, k)).astype(np.uint16)
        stored = pack_rows(codes, bits)
        whole = int.from_bytes(stored[1].tobytes(), "little")
        assert [whole >> (i * bits) & ((1 << bits) - 1) for i in range(k)] == codes[1].tolist()
        assert np.array_equal(unpack_rows(stored, bits, k, np.dtype(np.uint16)), codes)


FORMATS = [
    "int4@32", "int8@channel", "nvfp4", "int5@7+zp", "uint4@32:fp16+off", "fp8_e4m3fn@128x128:fp32", "int2@32x1:fp16+off",
    "int8_sym@tensor", "bf16", "fp32",
    "uint2@16:uint4@256:fp16+off", "uint4@32:uint6@64:fp16+off", "uint4@7:fp16+zp=uint3", "int4@4x16:uint4@4x32:fp16",
]  # fmt: skip


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("shape", [(17, 100), (1, 33), (64, 128)])
def test_parts_announced_are_parts_made_and_nothing_is_lost(text: str, shape: tuple[int, int]) -> None:
    from anybit.formats import Spec
    from anybit.methods import METHODS

    fmt = Format(text)
    w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    logical = METHODS["rtn"](w, Spec(fmt))
    for name in (default_layout(fmt, shape), "rows"):
        layout = LAYOUTS[name]
        stored = layout.pack(fmt, shape, logical)
        assert {part: (array.dtype, array.shape) for part, array in stored.items()} == layout.parts(fmt, shape)
        back = layout.unpack(fmt, shape, stored)
        assert back.keys() == logical.keys()
        for part, array in logical.items():
            assert np.array_equal(back[part], array), part


def test_what_a_layout_cannot_hold_is_said() -> None:
    assert "8 bits" in str(LAYOUTS["tile16x4"].accepts(Format("int12@64"), (16, 64)))
    assert "matrices" in str(LAYOUTS["tile16x4"].accepts(Format("int4@64"), (2, 16, 64)))
    assert default_layout(Format("int12@64"), (16, 64)) == "rows"
    assert geometry(Format("int8_sym@tensor"), (5, 7)).rows == 0


@pytest.mark.parametrize("k", [16, 32, 100, 257])
def test_scales_of_four_bits_lie_two_a_byte(k: int) -> None:
    fmt, shape = Format("uint2@16:uint4@64:fp16+off"), (19, k)
    rng, blocks, outer = np.random.default_rng(k), -(-k // 16), -(-k // 64)
    logical = {"codes": rng.integers(0, 4, shape).astype(np.uint8)}
    for name in ("scale", "offset"):
        logical[f"{name}.0"] = rng.integers(0, 16, (19, blocks)).astype(np.uint8)
        logical[f"{name}.1"] = rng.integers(0, 1 << 16, (19, outer)).astype(np.uint16)
    stored = LAYOUTS["tile16x4"].pack(fmt, shape, logical)
    assert stored["scale.0"].shape == stored["offset.0"].shape == (2, -(-blocks // 2), 16)
    assert stored["scale.1"].shape == stored["offset.1"].shape == (2, outer, 16)
    for name in ("scale", "offset"):
        for o in range(19):
            halves = [int(stored[f"{name}.0"][o // 16, b // 2, o % 16]) >> (4 * (b % 2)) & 15 for b in range(blocks)]
            assert halves == logical[f"{name}.0"][o].tolist()
            assert stored[f"{name}.1"][o // 16, :, o % 16].tolist() == logical[f"{name}.1"][o].tolist()
        assert not stored[f"{name}.0"][1, :, 3:].any() and (blocks % 2 == 0 or not (stored[f"{name}.0"][:, -1] >> 4).any())


@pytest.mark.parametrize("layout", ["tile16x4", "base3"])
def test_parts_of_older_versions_are_brought_up_to_date(layout: str) -> None:
    """Narrow scales were a byte each, scales of scales lay row by row."""
    expression = "ternary@20:uint4@80:fp16+off" + "+pack=base3" * (layout == "base3")
    fmt, shape = Format(expression), (21, 210)
    rng = np.random.default_rng(0)
    logical = {"codes": rng.integers(0, 3, shape).astype(np.uint8)}
    for name in ("scale", "offset"):
        logical[f"{name}.0"] = rng.integers(0, 16, (21, 11)).astype(np.uint8)
        logical[f"{name}.1"] = rng.integers(0, 1 << 15, (21, 3)).astype(np.uint16)
    want = QTensor.pack(fmt, shape, logical)
    older = dict(want.parts)
    for name in ("scale", "offset"):
        padded = np.zeros((32, 11), np.uint8)
        padded[:21] = logical[f"{name}.0"]
        older[f"{name}.0"] = np.ascontiguousarray(padded.reshape(2, 16, 11).transpose(0, 2, 1))
        older[f"{name}.1"] = logical[f"{name}.1"]
    got = QTensor.from_stored(fmt, shape, layout, older)
    assert {name: part.tobytes() for name, part in got.parts.items()} == {name: part.tobytes() for name, part in want.parts.items()}
    older["offset.0"][1, 2, 3] = 16
    with pytest.raises(ShapeError, match=r"part offset\.0 holds the code 16, but uint4 has only 16"):
        QTensor.from_stored(fmt, shape, layout, older)
    with pytest.raises(ShapeError, match=r"part scale\.1 must be uint16\[2, 3, 16\]"):
        QTensor.from_stored(fmt, shape, layout, {**want.parts, "scale.1": want.parts["scale.1"][:, :2]})
