"""Lossless codes: every pattern comes back, sizes are what is stored, blocks stand alone, and a damaged stream is one error and no more."""

from math import prod

import numpy as np
import pytest

import anybit
from anybit.errors import AnybitError, ShapeError
from anybit.formats import Format
from anybit.kernels import cpu
from anybit.layouts.escape import BLOCK, ENTRY
from anybit.native import native
from anybit.reference.packing import PLANES
from anybit.tensor import QTensor

BF16 = Format("bf16+pack=escape")


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """bf16 patterns of normal numbers."""
    return (np.random.default_rng(seed).standard_normal(shape, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def decode(codes: np.ndarray, index: np.ndarray, item: int, count: int, run: int) -> np.ndarray:
    """Blocks from the layout's description, a code at a time."""
    out: list[int] = []
    low_bits = 8 if item == 2 else 4
    for block, entry in enumerate(index):
        begin, escapes, width = int.from_bytes(entry[:6].tobytes(), "little"), int(entry[6]) + 256 * int(entry[7]), int(entry[8])
        per_run = -(-run // BLOCK)
        size = min(BLOCK, run - block % per_run * BLOCK)
        if width == 0:
            out += codes[begin : begin + size * item].view(f"<u{item}").tolist()
            continue
        chunks = -(-size // 512)
        step = 64 * (width + low_bits)
        tail = codes[begin + chunks * step :][:escapes].tolist()
        for i in range(chunks * 512):
            chunk = codes[begin + i // 512 * step :][:step]

            def read(offset: int, bits: int, i: int = i, chunk: np.ndarray = chunk) -> int:
                group, byte, code, low = i % 512 // 64, i % 64, 0, 0
                for plane in PLANES[bits]:
                    vector, field = divmod(group, 8 // plane)
                    code |= (int(chunk[offset + 64 * vector + byte]) >> field * plane & ((1 << plane) - 1)) << low
                    low, offset = low + plane, offset + 64 * plane
                return code

            rank, low = read(0, width), read(64 * width, low_bits)
            symbol = tail.pop(0) if rank == (1 << width) - 1 else int(entry[9 + rank])
            value = (low >> 7) << 15 | symbol << 7 | (low & 127) if item == 2 else (low >> 3) << 7 | symbol << 3 | (low & 7)
            if i < size:
                out.append(value)
        assert not tail
    assert len(out) == count
    return np.array(out, f"<u{item}")


@pytest.mark.parametrize("item", [1, 2])
@pytest.mark.parametrize("count", [1, 15, 512, 513, 4095, 4096, 4097, 9000])
def test_the_bytes_are_as_described(isa: str, item: int, count: int) -> None:
    rng = np.random.default_rng(count)
    patterns = normal((count,)) if item == 2 else (rng.standard_normal(count) * 20).astype(np.int8).view(np.uint8)
    codes, index = native.escape_encode(patterns.view(np.uint8), item, count)
    assert index.shape == (-(-count // BLOCK), ENTRY)
    assert np.array_equal(decode(np.asarray(codes), np.asarray(index), item, count, count), patterns)
    assert np.array_equal(native.escape_decode(codes, index, item, count, count), patterns)


def test_instruction_sets_write_the_same_bytes() -> None:
    patterns, made = normal((10_000,)), []
    before = cpu.isa()
    for isa in native.supported_isas():
        cpu.use_isa(isa)
        made.append([np.asarray(part).tobytes() for part in native.escape_encode(patterns.view(np.uint8), 2, 10_000)])
    cpu.use_isa(before)
    assert all(each == made[0] for each in made)


def test_all_patterns_with_nan_payloads(isa: str) -> None:
    for fmt, patterns in ((BF16, np.arange(65536, dtype=np.uint16)), (Format("fp8_e4m3fn+pack=escape"), np.arange(256, dtype=np.uint8))):
        for shape in ((patterns.size,), (16, patterns.size // 16), (1, patterns.size), (2, 2, patterns.size // 4)):
            q = QTensor.pack(fmt, shape, {"codes": patterns.reshape(shape)})
            assert q.layout == "escape"
            assert np.array_equal(q.logical()["codes"].reshape(-1), patterns)
    q = QTensor.dense(np.arange(65536, dtype=np.uint16).reshape(32, 2048), BF16)
    want = (np.arange(65536, dtype=np.uint32) << 16).reshape(32, 2048)
    assert np.array_equal(q.dequantize().view(np.uint32), want)


@pytest.mark.parametrize("width", range(5))
def test_every_width_is_used_and_comes_back(isa: str, width: int) -> None:
    """Exponents so spread that ranks of this many bits are cheapest."""
    rng = np.random.default_rng(width)
    spread = {0: 256, 1: 1, 2: 3, 3: 7, 4: 15}[width]
    exponents, rest = rng.integers(100, 100 + spread, 8192) % 256, rng.integers(0, 256, 8192)
    patterns = ((rest & 128) << 8 | exponents << 7 | (rest & 127)).astype(np.uint16)
    codes, index = native.escape_encode(patterns.view(np.uint8), 2, 8192)
    assert np.asarray(index)[:, 8].tolist() == [width, width]
    assert np.array_equal(native.escape_decode(codes, index, 2, 8192, 8192), patterns)


def test_sizes() -> None:
    """Normal numbers: 11 bits, and a byte for the 2.4 % beyond the seven most frequent exponents. Noise: 24 bytes a block."""
    q = QTensor.dense(normal((256, 4096)), BF16)
    assert 0.69 < q.nbytes / (2 * q.size) < 0.71
    noise = QTensor.dense(np.random.default_rng(0).integers(0, 65536, (64, 1024)).astype(np.uint16), BF16)
    assert noise.nbytes == 2 * noise.size + ENTRY * noise.size // BLOCK
    assert 8 * noise.nbytes == BF16.size_bits((64, 1024))
    constant = QTensor.dense(np.zeros((16, 4096), np.uint16), BF16)
    assert constant.nbytes == constant.size // 8 * 9 + ENTRY * 16


@pytest.mark.parametrize("shape", [(1, 1), (17, 33), (16, 256), (40, 600), (3, 5, 70), (5,)])
@pytest.mark.parametrize(
    "text", ["bf16+pack=escape", "fp8_e4m3fn+pack=escape", "fp8_e5m2@32+pack=escape", "fp8_e4m3fn@16x16:fp32+pack=escape"]
)
def test_values_are_those_without_packing(text: str, shape: tuple[int, ...]) -> None:
    w = np.random.default_rng(prod(shape)).standard_normal(shape).astype(np.float32)
    q, plain = anybit.quantize(w, text), anybit.quantize(w, Format(text).plain)
    assert q.layout == "escape"
    assert q.nbytes == sum(part.nbytes for part in q.parts.values())
    assert np.array_equal(q.dequantize(), plain.dequantize())
    if len(shape) == 2:
        x = np.random.default_rng(1).standard_normal((3, shape[1])).astype(np.float32)
        assert np.array_equal(q.matmul(x), plain.matmul(x))
        assert np.array_equal(q.rows([shape[0] - 1, 0]), plain.rows([shape[0] - 1, 0]))


@pytest.mark.parametrize("text", ["bf16+pack=escape", "fp8_e4m3fn@64+pack=escape"])
def test_rows_are_cut_in_place(text: str) -> None:
    w = np.random.default_rng(0).standard_normal((100, 600)).astype(np.float32)
    q = anybit.quantize(w, text)
    for start, stop in ((0, 16), (16, 64), (96, 100), (0, 100)):
        part = q.narrow(start, stop)
        assert np.array_equal(part.dequantize(), q.dequantize()[start:stop])
        assert np.shares_memory(part.parts["codes"], q.parts["codes"])
    with pytest.raises(ShapeError, match="cut at multiples of 16"):
        q.narrow(8, 32)


def test_a_stream_that_lies_is_refused(isa: str) -> None:
    """Every field of the index, cut and lengthened codes, and a rank turned into an escape."""
    patterns = normal((32, 600))
    q = QTensor.dense(patterns, BF16)
    codes, index = q.parts["codes"], q.parts["index"]

    def attempt(new_codes: np.ndarray, new_index: np.ndarray) -> str:
        parts = {"codes": new_codes, "index": new_index}
        with pytest.raises(ShapeError) as found:
            QTensor.from_stored(BF16, q.shape, "escape", parts)
        with pytest.raises(ShapeError):
            _ = QTensor(BF16, q.shape, "escape", parts).native
        with pytest.raises(ShapeError):
            QTensor(BF16, q.shape, "escape", parts).logical()
        return str(found.value)

    def changed(block: int, byte: int, value: int) -> np.ndarray:
        new = index.copy()
        new[block, byte] = value
        return new

    assert "does not begin where the block before it ends" in attempt(codes, changed(1, 0, int(index[1, 0]) ^ 1))
    assert "does not begin" in attempt(codes, changed(2, 5, 255))
    assert "width beyond 4" in attempt(codes, changed(0, 8, 5))
    assert "begin" in attempt(codes, changed(0, 8, 4))
    assert "more escapes than codes" in attempt(codes, changed(3, 7, 255))
    assert "block" in attempt(codes, changed(len(index) - 1, 8, 0))
    assert "begin" in attempt(codes, changed(0, 6, int(index[0, 6]) ^ 1))
    assert "ends beyond the stored bytes" in attempt(codes[:-1], index)
    assert "bytes after their last block" in attempt(np.append(codes, np.uint8(0)), index)
    flipped = codes.copy()
    flipped[0] |= 3
    flipped[128] |= 1  # rank 7, unless it was
    if (codes[0] & 3) + 4 * (codes[128] & 1) != 7:
        assert "block 0 of the lossless codes has another number of escapes" in attempt(flipped, index)


def test_random_damage_is_refused_or_decodes() -> None:
    rng = np.random.default_rng(5)
    q = QTensor.dense(normal((32, 300)), BF16)
    x = np.zeros((1, 300), np.float32)
    refused = 0
    for _ in range(300):
        parts = {name: part.copy() for name, part in q.parts.items()}
        part = parts["index" if rng.random() < 0.7 else "codes"].reshape(-1)
        part[rng.integers(0, part.size, 3)] = rng.integers(0, 256, 3)
        try:
            QTensor.from_stored(BF16, q.shape, "escape", parts).matmul(x)
        except AnybitError:
            refused += 1
    assert 100 < refused < 300


def test_only_floats_of_8_and_16_bits() -> None:
    for text in ("int8@32+pack=escape", "fp16+pack=escape", "fp4_e2m1@32+pack=escape", "fp32+pack=escape"):
        with pytest.raises(AnybitError, match="packs exponents of bf16 and of signed 8-bit floats"):
            Format(text)
