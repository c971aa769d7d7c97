"""Products: the reference within its bound of rational arithmetic, and every native kernel bit for bit the reference."""

from __future__ import annotations

from fractions import Fraction
from functools import partial

import numpy as np

from anybit.formats import Format
from anybit.kernels import cpu
from anybit.reference import linear
from anybit.reference.exact import exact_matmul
from anybit.selftest.check import Check, Step, WrongError
from anybit.tensor import QTensor, quantize

# One a property that kernels look at: bits, table, scale, levels, zero points, offsets, block shape, dense.
FORMATS = (
    "int8@channel", "int4@32", "int3@128", "int2@64", "ternary@256", "binary@128", "uint4@32+zp", "uint4@32:fp16+off", "uint8@64+zp",
    "uint4@64:fp16+zp=fp16", "int5@16", "int6@100", "int7@33", "mxfp4", "mxfp6", "mxfp8", "nvfp4", "fp4_e2m1@16:ufp8_e5m3", "nf4@64",
    "fp8_e5m2@64", "fp8_e4m3fn@16x32:fp32", "q4_k", "q6_k", "int4@600", "int12@64", "bf16", "fp16", "fp32",
)  # fmt: skip
SHAPES = ((3, 18, 131), (1, 16, 64), (2, 33, 257), (5, 7, 1000), (17, 17, 33), (4, 31, 96))


def _case(name: str, turn: int, small: bool = False) -> tuple[QTensor, dict[str, np.ndarray], np.ndarray]:
    """A stored weight, its logical parts, and an input."""
    m, n, k = (2, 5, 65) if small else SHAPES[turn % len(SHAPES)]
    rng = np.random.default_rng(turn)
    weight = quantize(rng.standard_normal((n, k)).astype(np.float32), name)
    x = (rng.standard_normal((m, k)) * np.exp2(rng.integers(-3, 4, (m, 1)))).astype(np.float32)
    return weight, weight.logical(), x


def _acts(fmt: Format) -> tuple[str | None, ...]:
    return (None,) if fmt.block is None or fmt.element.bits > 8 else (None, "int8")


def exact_step(name: str, turn: int) -> int:
    """The reference product lies within the derived bound of exact fractions."""
    weight, parts, x = _case(name, turn, small=True)
    w = linear.operands(parts, weight.format, (weight.shape[0], weight.shape[1]))
    compared = 0
    for act in _acts(weight.format):
        exact, bound = exact_matmul(x, w, act)
        got = linear.matmul_operands(x, w, act)
        for i, j in np.ndindex(got.shape):
            if abs(Fraction(float(got[i, j])) - exact[i][j]) > bound[i][j]:
                raise WrongError(f"activations {act or 'float'}: output [{i}, {j}] is {float(got[i, j])!r}, exactly {float(exact[i][j])!r}")
        compared += got.size
    return compared


def native_step(name: str, turn: int, isa: str) -> int:
    """Native kernels of one instruction set: products with one and two threads, row by row, and dequantized weights."""
    weight, parts, x = _case(name, turn)
    shape = (weight.shape[0], weight.shape[1])
    before, threads, compared = cpu.isa(), int(cpu.native.threads()), 0
    try:
        cpu.use_isa(isa)
        for act in _acts(weight.format):
            want = linear.matmul(x, parts, weight.format, shape, act)
            for count in (1, 2):
                cpu.set_threads(count)
                fresh = QTensor.from_stored(weight.format, weight.shape, weight.layout, weight.parts)
                _equal(fresh.matmul(x, act), want, f"activations {act or 'float'}, {count} thread(s)")
                _equal(fresh.matmul(x[-1:], act), want[-1:], f"activations {act or 'float'}, the last row alone")
                compared += want.size + want.shape[1]
            if act is None:
                _equal(fresh.dequantize(), linear.dequantize(parts, weight.format, shape), "dequantized weights")
                compared += weight.size
    finally:
        cpu.use_isa(before)
        cpu.set_threads(threads)
    return compared


def _equal(got: np.ndarray, want: np.ndarray, what: str) -> None:
    good = got.view(np.uint32) == want.view(np.uint32)
    if not good.all():
        index = tuple(int(i) for i in np.argwhere(~good)[0])
        count = int(good.size - np.count_nonzero(good))
        raise WrongError(f"{what}: {list(index)} is {float(got[index])!r}, not {float(want[index])!r}; {count} of {good.size} differ")


def product_checks() -> list[Check]:
    """The reference against fractions, then each instruction set of this machine against the reference."""
    exact = [Step(name, partial(exact_step, name, i), 25) for i, name in enumerate(FORMATS)]
    checks = [Check("product", "the reference product within its derived bound of exact fractions", exact)]
    for isa in cpu.native.supported_isas():
        steps = [Step(name, partial(native_step, name, i + turn, isa), 25) for turn in range(3) for i, name in enumerate(FORMATS)]
        checks.append(Check(f"kernels {isa}", "native products and dequantized weights: the reference's bits, 1 and 2 threads", steps))
    return checks
