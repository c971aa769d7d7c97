"""Every tensor type on random blocks, NaN and infinite scales among them: the values are gguf-py's, bit for bit but for the sign of zeros.

Q1_0 and Q2_0, which gguf-py does not decode, are held to loops over their definition.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_file import File, Tensor

from anybit.formats import Format
from anybit.io import gguf
from anybit.io.coded import Blocks, Coded
from anybit.io.gguf import lattice
from anybit.io.gguf.kind import KINDS, Kind
from anybit.io.packed import packed
from anybit.native import native
from anybit.tensor import QTensor

BLOCKS = 1000
PLAIN = {"F32": "<f4", "F16": "<f2", "BF16": None, "F64": "<f8", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
UNKNOWN = ("Q1_0", "Q2_0")  # to gguf-py 0.19
ROWS = 40


def random_blocks(kind: Kind, seed: int = 0, count: int = BLOCKS) -> np.ndarray:
    """structured[ROWS, blocks]: random bytes that the type can mean something by."""
    rng = np.random.default_rng(seed)
    per_row = -(-count // ROWS)
    blocks = np.frombuffer(rng.bytes(ROWS * per_row * kind.dtype.itemsize), kind.dtype).reshape(ROWS, per_row).copy()
    if kind.name == "MXFP4":
        blocks["e"] %= 255
    if kind.name == "NVFP4":
        blocks["d"] &= 127
    if kind.name == "F64":
        blocks["v"] = rng.standard_normal(blocks.shape).astype(np.float32)
    if kind.name in ("I32", "I64"):
        blocks["v"] = rng.integers(-(1 << 24), (1 << 24) + 1, blocks.shape)
    return blocks


def read(path: Path, kind: Kind, blocks: np.ndarray, order: str = "<") -> QTensor:
    tensor = Tensor("w", (blocks.shape[1] * kind.weights, ROWS), kind.code, blocks.tobytes())
    path.write_bytes(File((), (tensor,), order=order).bytes())
    with gguf.open(path) as file:
        return file["w"]


def oracle(kind: Kind, blocks: np.ndarray) -> np.ndarray:
    if kind.name in UNKNOWN:
        return by_hand(kind, blocks)
    if PLAIN.get(kind.name):
        return np.asarray(blocks["v"]).view(PLAIN[kind.name]).astype(np.float32)
    gguf_py = pytest.importorskip("gguf")
    rows = blocks.view(np.uint8).reshape(ROWS, -1)
    with np.errstate(all="ignore"):
        return gguf_py.dequantize(rows, gguf_py.GGMLQuantizationType[kind.name])


def by_hand(kind: Kind, blocks: np.ndarray) -> np.ndarray:
    """ggml's dequantize_row_q1_0 and dequantize_row_q2_0, one weight at a time."""
    out = []
    for block in blocks.reshape(-1):
        d = float(np.uint16(block["d"]).view(np.float16))
        for byte in block["qs"]:
            for j in range(8 if kind.name == "Q1_0" else 4):
                out.append(d * (2 * (int(byte) >> j & 1) - 1) if kind.name == "Q1_0" else d * ((int(byte) >> 2 * j & 3) - 1))
    return np.array(out, np.float32).reshape(ROWS, -1)


@pytest.mark.parametrize("name", list(KINDS))
def test_values(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    blocks = random_blocks(kind)
    tensor = read(tmp_path / "a", kind, blocks)
    want = oracle(kind, blocks)
    with np.errstate(all="ignore"):
        got = tensor.dequantize()
    assert got.dtype == want.dtype == np.float32 and got.shape == want.shape
    assert np.array_equal(np.isnan(got), np.isnan(want))
    differ = (got.view(np.uint32) != want.view(np.uint32)) & ~np.isnan(want)
    # e2m1 has a -0 where ggml's table of doubled integers has 0
    assert (got[differ] == 0).all() and (want[differ] == 0).all() and (not differ.any() or name in ("MXFP4", "NVFP4"))
    if name.startswith(("Q", "IQ", "TQ1")):
        assert np.isnan(want).any(), "scales that are no numbers were among them"


@pytest.mark.parametrize("isa", native.supported_isas())
@pytest.mark.parametrize("name", [name for name in KINDS if KINDS[name].fields])
def test_native_tiling_is_the_conversion(name: str, isa: str) -> None:
    """Codes and numbers that native code moves by their places are those of the conversion, in any order of rows."""
    kind, before = KINDS[name], native.isa()
    assert kind.fields is not None
    blocks = random_blocks(kind, 2)
    logical = kind.convert(blocks)
    fmt, shape = Format(kind.format_of(blocks)), (ROWS, blocks.shape[1] * kind.weights)
    data = blocks.view(np.uint8).reshape(ROWS, -1)
    planes, numbers = kind.fields.plane_table(kind.dtype), kind.fields.numbers(kind.dtype)
    whole = Blocks(data, kind.dtype.itemsize, kind.weights, planes, kind.fields.flip, numbers, kind.fields.finish)
    orders = (None, np.arange(ROWS)[::-1].copy(), np.array([7]), np.random.default_rng(0).integers(0, ROWS, 21))
    grids = {part: array if array.shape == (1, 1) else array.reshape(ROWS, -1) for part, array in logical.items()}
    try:
        native.set_isa(isa)
        for order in orders:
            count = ROWS if order is None else len(order)
            taken = {part: array if order is None or len(array) == 1 else array[order] for part, array in grids.items()}
            want = QTensor.pack(fmt, (count, shape[1]), taken)
            coded = Coded(str(fmt), (count, shape[1]), lambda *_: pytest.fail("rows were asked for"), replace(whole, order=order))
            got = packed(coded)
            assert got.layout == want.layout == "tile16x4" and got.parts.keys() == want.parts.keys()
            assert all(np.array_equal(got.parts[part], want.parts[part]) for part in want.parts), order
    finally:
        native.set_isa(before)


def test_types_that_files_are_full_of_are_tiled_natively() -> None:
    slow = {name for name in KINDS if not KINDS[name].fields} - PLAIN.keys()
    assert slow == {"TQ1_0", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"}


PLANES = np.array([[2, 4, 16, 0]])
TERMS = np.array([[[0, 0, 8, 0], [1, 0, 8, 8]]])


@pytest.mark.parametrize(
    "wrong",
    [
        {"bytes": 0}, {"bytes": 17}, {"weights": 16}, {"weights": 48}, {"weights": 512}, {"bits": 3}, {"bits": 9}, {"flip": 16},
        {"flip": -1}, {"fields": np.add(PLANES, [1, 0, 0, 0])}, {"fields": np.subtract(PLANES, [3, 0, 0, 0])},
        {"fields": np.add(PLANES, [0, 4, 0, 0])}, {"fields": np.add(PLANES, [0, -1, 0, 0])}, {"fields": np.add(PLANES, [0, 0, 16, 0])},
        {"fields": np.subtract(PLANES, [0, 0, 16, 0])}, {"fields": np.add(PLANES, [0, 0, 0, 1])}, {"fields": PLANES[:, :3].copy()},
        {"fields": np.array([[2, 8, 4, 0]]), "data": np.zeros((3, 34), np.uint8), "bytes": 34, "bits": 8}, {"fields": PLANES[:0]},
        {"order": np.array([-1])}, {"order": np.array([3])},
    ],
    ids=str,
)  # fmt: skip
def test_blocks_of_wrong_sizes_are_refused(wrong: dict[str, Any]) -> None:
    fields = {"data": np.zeros((3, 36), np.uint8), "bytes": 18, "weights": 32, "fields": PLANES, "flip": 8, "bits": 4, "parts": []}
    native.block_tiles(**fields)
    with pytest.raises(ValueError, match=r".{4}"):
        native.block_tiles(**fields | wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        (TERMS, 0, 3, False), (TERMS, 0, 1, False), (TERMS, 0, 2, True), (TERMS, 1 << 16, 2, False), (TERMS, -1, 2, False),
        (np.add(TERMS, [17, 0, 0, 0]), 0, 2, False),
        (np.subtract(TERMS, [1, 0, 0, 0]), 0, 2, False), (np.add(TERMS, [0, 1, 0, 0]), 0, 2, False),
        (np.add(TERMS, [0, 0, 1, 0]), 0, 2, False),
        (np.add(TERMS, [0, 0, 0, 1]), 0, 2, False), (np.subtract(TERMS, [0, 0, 0, 1]), 0, 2, False),
        (TERMS[..., :3].copy(), 0, 2, False), (TERMS[:0], 0, 2, False), (TERMS[:, :1] - [0, 0, 4, 0], 16, 1, True),
    ],
    ids=str,
)  # fmt: skip
def test_numbers_of_wrong_sizes_are_refused(wrong: tuple[Any, ...]) -> None:
    fields = {"data": np.zeros((3, 36), np.uint8), "bytes": 18, "weights": 32, "fields": PLANES, "flip": 8, "bits": 4}
    native.block_tiles(**fields, parts=[(TERMS, 0, 2, False), (TERMS[:, :1] - [0, 0, 4, 0], 15, 1, True)])
    with pytest.raises(ValueError, match=r".{4}"):
        native.block_tiles(**fields, parts=[wrong])


@pytest.mark.parametrize("name", list(KINDS))
def test_big_endian(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    blocks = random_blocks(kind, 1, 120)
    little = read(tmp_path / "a", kind, blocks)
    swapped = read(tmp_path / "b", kind, blocks.astype(kind.dtype.newbyteorder(">")), ">")
    assert little.format == swapped.format
    assert all(np.array_equal(little.parts[part], swapped.parts[part]) for part in little.parts)


@pytest.mark.parametrize("name", list(KINDS))
def test_sizes_and_bits(name: str) -> None:
    """A block's bytes are what ggml's table says; formats store as many bits, but for what is named here."""
    kind = KINDS[name]
    gguf_py = pytest.importorskip("gguf")
    if name != "Q2_0":
        assert gguf_py.GGML_QUANT_SIZES[gguf_py.GGMLQuantizationType[name]] == (kind.weights, kind.dtype.itemsize)
        assert gguf_py.GGMLQuantizationType[name] == kind.code
    # the file counts trits five to a byte and names several weights at once; every weight here has a code of its own
    stored = {"F64": 32, "I64": 32, "TQ1_0": 2 + 16 / 256, "IQ1_S": 3 + 4 / 32 + 1 / 16, "IQ1_M": 3 + 4 / 16 + 1 / 16}
    stored |= {"IQ2_XXS": 3 + 5 / 32 + 1 / 16, "IQ2_XS": 3 + 5 / 16 + 1 / 16, "IQ2_S": 3 + 5 / 16 + 1 / 16}
    stored |= {"IQ3_XXS": 4 + 5 / 32 + 1 / 16, "IQ3_S": 4 + 5 / 32 + 1 / 16}
    assert float(Format(kind.format).bits_per_weight) == stored.get(name, 8 * kind.dtype.itemsize / kind.weights), kind.format


def test_points_are_those_that_are_published() -> None:
    """Every entry of ggml's tables, as gguf-py repeats them."""
    gguf_py = pytest.importorskip("gguf.quants")
    magnitudes = {"IQ2": (8, 25, 43), "IQ3_XXS": (4, 12, 20, 28, 36, 44, 52, 62), "IQ3_S": (1, 3, 5, 7, 9, 11, 13, 15), "IQ1": (-1, 0, 1)}
    for name in ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S"):
        table = getattr(gguf_py, name)
        table.init_grid()
        ours = lattice.points(name.replace("IQ1_S", "IQ1"))
        values = np.array(magnitudes.get(name) or magnitudes[name[:3]])
        assert np.array_equal(values[ours], table.grid.reshape(ours.shape))


def test_ternary_that_uses_its_fourth_code(tmp_path: Path) -> None:
    kind = KINDS["TQ2_0"]
    blocks = random_blocks(kind)
    assert str(read(tmp_path / "a", kind, blocks).format) == "codebook_-1_0_1_2@256:fp16"
    blocks["qs"] = 0x12
    blocks["d"] = struct.unpack("<H", np.float16(0.5).tobytes())[0]
    tensor = read(tmp_path / "b", kind, blocks)
    assert str(tensor.format) == "ternary@256:fp16"
    assert sorted(np.unique(tensor.dequantize()).tolist()) == [-0.5, 0, 0.5]


@pytest.mark.parametrize("rows", [1, 15, 255, 256, 257, 1000])
@pytest.mark.parametrize(
    "fmt", ["int4@32:fp16", "fp4_e2m1@16:fp8_e4m3fn@tensor:fp32", "uint4@32:uint6@256:fp16+off", "fp16", "int8@channel"]
)
def test_packed_in_pieces_is_packed_at_once(monkeypatch: pytest.MonkeyPatch, rows: int, fmt: str) -> None:
    import anybit
    from anybit.io import packed as module

    w = np.random.default_rng(rows).standard_normal((rows, 512), np.float32)
    whole = anybit.quantize(w, fmt) if fmt != "fp16" else QTensor.dense(w.astype(np.float16), "fp16")
    logical = whole.logical()

    def cut(start: int, stop: int) -> dict[str, np.ndarray]:
        return {name: part if part.shape[0] == 1 else part[start:stop] for name, part in logical.items()}

    monkeypatch.setattr(module, "SLAB", 1 << 17)
    again = packed(Coded(whole.format.explicit, whole.shape, cut))
    assert again.layout == whole.layout
    assert all(np.array_equal(again.parts[part], whole.parts[part]) for part in whole.parts)


def test_the_page_lists_every_type() -> None:
    """Each type's format and its bits in the file, as docs/interchange.md has them."""
    page = (Path(__file__).parents[2] / "docs" / "interchange.md").read_text().split("\n## Writing\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| ")]
    listed = {name: (row[1], bits) for row in rows for name, bits in zip(row[0].split(", "), row[-1].split(", "), strict=False)}
    for name in KINDS:
        kind = KINDS[name]
        text, bits = listed[name]
        assert float(bits) == 8 * kind.dtype.itemsize / kind.weights, name
        assert f"`{kind.format}`" in text or text.startswith(("a list of", "the same with")), name
        if text.startswith("a list of"):
            assert text.startswith(f"a list of {len(Format(kind.format).element.entries)} values"), name
