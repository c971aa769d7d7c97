"""The native packers against the NumPy ones: every width and length, every instruction set, misaligned codes, dirty memory."""


import numpy as np
import pytest

from anybit.layouts.rows import pack_rows, unpack_rows
from anybit.layouts.tile import pack_codes, unpack_codes
from anybit.native import native
from anybit.reference import packing

ISAS = native.supported_isas()


def misaligned(array: np.ndarray, by: int) -> np.ndarray:
    """A copy whose first byte lies `by` bytes after a multiple of 64, between bytes that no code may leak from."""
    room = np.full(array.nbytes + 192, 0xFF, np.uint8)
    start = -room.ctypes.data % 64 + by
    view = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def dirty(nbytes: int) -> None:
    """Leaves memory behind that is full of ones, for the next allocation of this size to find."""
    np.full(max(nbytes, 1), 0xFF, np.uint8)


@pytest.mark.parametrize("bits", range(1, 17))
def test_rows_of_every_length(isa: str, bits: int) -> None:
    rng = np.random.default_rng(bits)
    dtype = np.dtype(np.uint8 if bits <= 8 else np.uint16)
    for k in range(1026):
        codes = misaligned(rng.integers(0, 1 << bits, (2, k)).astype(dtype), dtype.itemsize * (k % 7))
        want = packing.pack_rows(codes, bits)
        dirty(want.nbytes)
        got = pack_rows(codes, bits)
        assert np.array_equal(got, want), k
        dirty(codes.nbytes)
        assert np.array_equal(unpack_rows(misaligned(want, k % 5), bits, k, dtype), codes), k


@pytest.mark.parametrize("bits", (19, 31, 32))
def test_rows_of_wide_codes(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 2, 37)).astype(np.uint32)
    assert np.array_equal(pack_rows(codes, bits), packing.pack_rows(codes, bits))
    assert np.array_equal(unpack_rows(pack_rows(codes, bits), bits, 37, np.dtype(np.uint32)), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_tiles_of_every_length(isa: str, bits: int) -> None:
    rng = np.random.default_rng(bits)
    for k in [*range(1, 131), *range(131 + bits, 1026, 29), 1024, 1025]:
        n = (1, 15, 16, 17, 33)[k % 5]
        codes = misaligned(rng.integers(0, 1 << bits, (n, k)).astype(np.uint8), k % 7)
        want = packing.pack_tiles(codes, bits)
        dirty(want.nbytes)
        assert np.array_equal(pack_codes(codes, bits), want), k
        dirty(codes.nbytes)
        assert np.array_equal(unpack_codes(misaligned(want, k % 5), bits, (n, k)), codes), k


def test_a_strided_and_a_read_only_array() -> None:
    codes = np.random.default_rng(0).integers(0, 16, (40, 70)).astype(np.uint8)
    codes.flags.writeable = False
    assert np.array_equal(pack_codes(codes[::2, ::3], 4), packing.pack_tiles(codes[::2, ::3], 4))
    assert np.array_equal(pack_rows(codes.T, 4), packing.pack_rows(codes.T, 4))


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        (lambda: native.pack_tiles(np.zeros((2, 2), np.uint8), 9), "bits must be 1 to 8"),
        (lambda: native.unpack_tiles(np.zeros(63, np.uint8), 1, 16, 32), "byte count differs"),
        (lambda: native.unpack_tiles(np.zeros(64, np.uint8), 1, 1 << 40, 32), "n and k must be"),
        (lambda: native.pack_rows(np.zeros((2, 2), np.uint8), 9), "bits must be"),
        (lambda: native.unpack_rows(np.zeros((2, 2), np.uint8), 3, 9), "byte count differs"),
        (lambda: native.unpack_rows(np.zeros((2, 2), np.uint8), 33, 1), "bits must be 1 to 32"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(call: object, wrong: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=wrong):
        call()
