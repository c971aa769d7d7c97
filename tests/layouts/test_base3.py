"""Five trits a byte: against its definition, every byte, every length; sizes; products are those of the two-bit layout."""

import numpy as np
import pytest

import anybit
from anybit.errors import ShapeError
from anybit.formats import Format
from anybit.kernels import cpu
from anybit.layouts import LAYOUTS
from anybit.native import native
from anybit.reference.packing import pack_trits, unpack_trits
from anybit.tensor import QTensor

FORMAT = Format("ternary@256:fp16+pack=base3")


def codes_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)


def test_the_reference_is_its_definition() -> None:
    numbers = np.arange(243)
    digits = np.stack([numbers // 3**i % 3 for i in (4, 3, 2, 1, 0)], axis=-1).astype(np.uint8)
    stored = pack_trits(digits)
    assert stored[:, 0].tolist() == [-(-int(n) * 256 // 243) for n in numbers]
    assert np.array_equal(unpack_trits(stored, 5), digits)
    assert unpack_trits(np.arange(256, dtype=np.uint8)[:, None], 5).max() == 2


@pytest.mark.parametrize("isa", native.supported_isas())
def test_all_bytes_and_lengths(isa: str) -> None:
    before = cpu.isa()
    cpu.use_isa(isa)
    try:
        stored = np.resize(np.arange(256, dtype=np.uint8), (4, 64)).reshape(1, 4, 64)
        codes = np.asarray(native.unpack_tiles(stored.reshape(-1), 0, 16, 80))
        for o, k in np.ndindex(16, 80):  # as the layout's first lines say
            byte = stored[0, k // 20, 4 * o + k % 4]
            assert codes[o, k] == unpack_trits(np.array([byte]), 5)[k % 20 // 4], (o, k)
        for k in [*range(1, 64), 99, 100, 101, 1024, 1025]:
            n = (1, 15, 16, 17)[k % 4]
            codes = codes_of((n, k), k)
            packed = np.asarray(native.pack_tiles(codes, 0))
            assert packed.shape == (-(-n // 16), -(-k // 20), 64)
            assert np.array_equal(native.unpack_tiles(packed.reshape(-1), 0, n, k), codes)
            for o in (0, n - 1):  # byte by byte against the definition
                first = np.zeros((packed.shape[1], 5, 4), np.uint8)
                first.reshape(-1)[:k] = codes[o]
                want = pack_trits(first.transpose(0, 2, 1))[..., 0]
                assert np.array_equal(packed[o // 16, :, 4 * (o % 16) : 4 * (o % 16) + 4], want)
    finally:
        cpu.use_isa(before)


@pytest.mark.parametrize("shape", [(3,), (320,), (2, 3, 7), (4, 5, 65), (1, 1, 1, 1)])
def test_other_shapes_are_rows_of_bytes(shape: tuple[int, ...]) -> None:
    codes = codes_of(shape)
    q = QTensor.pack(FORMAT, shape, {"codes": codes, "scale.0": np.ones((*shape[:-1], -(-shape[-1] // 256)), np.uint16)})
    assert q.layout == "base3"
    assert np.array_equal(q.parts["codes"], pack_trits(codes))
    assert np.array_equal(q.logical()["codes"], codes)


def test_the_code_that_means_the_same_is_stored_as_the_other() -> None:
    packed = np.asarray(native.pack_tiles(np.full((1, 20), 3, np.uint8), 0))
    assert np.array_equal(native.unpack_tiles(packed.reshape(-1), 0, 1, 20), np.full((1, 20), 2))


def test_stored_bits_are_the_announced_ones() -> None:
    w = np.random.default_rng(0).standard_normal((64, 1280)).astype(np.float32)
    q = anybit.quantize(w, FORMAT)
    assert q.layout == "base3"
    assert 8 * q.nbytes == FORMAT.size_bits(w.shape)
    assert q.parts["codes"].nbytes * 5 == w.size
    two_bits = anybit.quantize(w, FORMAT.plain)
    assert np.array_equal(q.dequantize(), two_bits.dequantize())
    half = q.narrow(16, 48)
    assert np.array_equal(half.dequantize(), q.dequantize()[16:48])


def test_other_layouts_refuse_it() -> None:
    q = anybit.quantize(np.eye(16, 40, dtype=np.float32), FORMAT)
    for layout in ("rows", "tile16x4"):
        with pytest.raises(ShapeError, match="the format says pack=base3"):
            q.to(layout)
    assert LAYOUTS["base3"].accepts(FORMAT.plain, (16, 40)) is not None
