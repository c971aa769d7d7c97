"""Run as a program: operators whose operands end, or begin, at a page that may not be touched. A kernel that reads too far dies."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np
from cases import CODED, DENSE, Case, spread

from anybit.formats import Spec, parse_element
from anybit.kernels import cpu
from anybit.kernels.rounding import rounding
from anybit.methods.round_trip import round_trip
from anybit.reference import linear
from anybit.tensor import QTensor

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE = mmap.PAGESIZE
_KEPT: list[mmap.mmap] = []


def guarded(array: np.ndarray, at_end: bool) -> np.ndarray:
    """A copy whose last byte is the last, or whose first is the first, before or after a protected page."""
    size = -(-max(array.nbytes, 1) // PAGE) * PAGE
    memory = mmap.mmap(-1, size + 2 * PAGE)
    _KEPT.append(memory)
    whole = np.frombuffer(memory, np.uint8)
    address = whole.ctypes.data
    for page in (address, address + PAGE + size):
        if _LIBC.mprotect(page, PAGE, 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    start = PAGE + size - array.nbytes if at_end else PAGE
    view = whole[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def check(case: Case, at_end: bool) -> None:
    packed = QTensor.pack(case.format, case.shape, case.parts)
    parts = {name: guarded(part, at_end) for name, part in packed.parts.items()}
    weight = QTensor.from_stored(case.format, case.shape, packed.layout, parts)
    x = guarded(case.x, at_end)
    bias = None if case.bias is None else guarded(case.bias, at_end)
    for act in (None, "int8") if case.format.block is not None else (None,):
        want = linear.matmul(case.x, case.parts, case.format, case.shape, act, case.bias)
        got = weight.matmul(x, act, bias)
        if not np.array_equal(got.view(np.uint32), want.view(np.uint32)):
            raise AssertionError(f"{case} {act}")
    weight.dequantize()
    weight.rows(guarded(np.array([case.n - 1, 0]), at_end))


def pack_between_pages() -> None:
    """Packing of every width, from and to rows and tiles, and lossless codes, at either end of a page."""
    native, rng = cpu.native, np.random.default_rng(0)
    for k in (1, 7, 8, 19, 20, 21, 31, 32, 33, 64, 100):
        for at_end in (True, False):
            for bits in range(9):  # 0: five trits a byte
                codes = rng.integers(0, 1 << bits if bits else 3, (17, k)).astype(np.uint8)
                stored = np.asarray(native.pack_tiles(guarded(codes, at_end), bits)).reshape(-1)
                assert np.array_equal(native.unpack_tiles(guarded(stored, at_end), bits, 17, k), codes)
                if bits:
                    rows = np.asarray(native.pack_rows(guarded(codes, at_end), bits))
                    assert np.array_equal(native.unpack_rows(guarded(rows, at_end), bits, k), codes)
            patterns = (rng.standard_normal(k * 16).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
            for item, plain in ((2, patterns.view(np.uint8)), (1, patterns.astype(np.uint8))):
                lossless, index = native.escape_encode(guarded(plain, at_end), item, k * 16)
                parts = guarded(np.asarray(lossless), at_end), guarded(np.asarray(index), at_end)
                assert np.array_equal(np.asarray(native.escape_decode(*parts, item, k * 16, k * 16)).view(np.uint8), plain)
            _KEPT.clear()


def check_rounding(n: int, at_end: bool) -> None:
    """Round trips, codes and blocks of n numbers, every path, to nearest and stochastic."""
    x = guarded(np.linspace(-3, 3, n, dtype=np.float32), at_end)
    out = guarded(np.zeros(n, np.float32), at_end)
    for name in ("fp8_e4m3fn", "bf16", "nf4", "posit8", "e8m0", "int16"):
        element = parse_element(name)
        codes = guarded(np.zeros(n, element.code_dtype), at_end)
        for mode in ("nearest-even", "zero", "sr24"):
            plan = rounding(element, mode, "saturate", "error")
            if plan is None:
                raise AssertionError(name)
            plan.values(x, out)
            plan.codes(x, codes)
            plan.decode(codes, out)
    for text in ("mxfp4", "nvfp4+round=sr24", "int4@7:fp16", "int8@channel"):
        if not round_trip(x, Spec.parse(text), out):
            raise AssertionError(text)


def main() -> None:
    for isa in cpu.native.supported_isas():
        cpu.use_isa(isa)
        for n in (1, 2, 7, 15, 16, 17, 31, 33, 65, 1000, 2049):
            for at_end in (True, False):
                check_rounding(n, at_end)
                _KEPT.clear()
        for expression in (*CODED, *DENSE):
            for case in spread(expression, 2):
                for at_end in (True, False):
                    check(case, at_end)
                    _KEPT.clear()
        ops = cpu.native
        for n in (1, 15, 16, 17, 33, 64):
            for at_end in (True, False):
                row = guarded(np.linspace(-3, 3, n, dtype=np.float32), at_end)
                ops.op_exp(row)
                ops.op_swiglu(row, row)
                ops.op_rmsnorm(row[None], row, 1e-5)
                ops.row_nll(row[None], guarded(np.zeros(1, np.int32), at_end))
                table = ops.op_rope_table(guarded(np.arange(3), at_end), row, 1.0)
                ops.op_rotate(guarded(np.ones((3, 2 * n), np.float32), at_end), *(guarded(t, at_end) for t in table))
                cube = guarded(np.ones((2, 5, n), np.float32), at_end)
                ops.op_attention(cube, cube, cube, guarded(np.arange(5), at_end), 0)
        pack_between_pages()
    print("no access outside the operands")


if __name__ == "__main__":
    sys.exit(main())
