"""Weights and inputs that the kernel tests share: random codes in every kind of format, awkward sizes, inputs chosen to be hard."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from anybit.formats import Block, Element, Format

SIZES = (1, 2, 7, 15, 16, 17, 31, 33, 63, 64, 65, 127)
LENGTHS = (*SIZES, 128, 255, 257, 1000)
LARGEST = 300_000  # m * n * k of a case: about 20 ms of reference

# One line a kernel property: bits, table kind, scale width, levels, zero points, offsets, block geometry.
# fmt: off
CODED = (
    "int2@32", "int3@64", "int4@128", "int5@16", "int6@channel", "int7@33", "int8@channel", "int8@32", "int8_sym@tensor", "int4@512",
    "int4@600", "int8@1000", "int4@1", "int4@100:fp32", "uint2@64", "uint4@tensor", "uint8@128", "uint4@32:fp16+zp", "uint8@64+zp",
    "int4@128+zp", "uint2@17+zp", "int8@channel+zp", "uint4@600:fp16+zp", "uint4@64:fp16+zp=fp16", "uint4@64:fp32+zp=fp32",
    "uint4@4x32+zp", "int4@32+zp=ternary", "int5@16x32:fp32+zp=int8", "uint4@32+zp=binary", "uint4@32:fp16+off", "int4@channel+off",
    "uint3@48:fp16+off", "fp4_e2m1@32:bf16+off", "uint4@700+off", "uint4@32:ufp8_e5m3+off=bf16", "int3@32:e8m0+off=fp8_e4m3fn",
    "uint4@4x32:fp16+off", "ternary@256:fp16", "ternary@64", "ternary@channel", "binary@128:fp16", "binary@20", "mxfp4", "mxfp6",
    "mxfp6_e2m3", "mxfp8", "nvfp4", "fp4_e2m1@16:ufp8_e5m3", "fp4_e2m1@channel", "fp5_e2m2@20", "fp6_e3m2@64", "fp6_e2m3@channel",
    "fp7_e3m3@64", "fp8_e4m3fn@64", "fp8_e5m2@64", "fp8_e3m4@128", "fp3_e1m1@32", "fp8_e4m3fn@128x128:fp32", "int4@16x16", "int4@8x100",
    "fp4_e2m1@40x64:fp16", "int8@allx32:fp32", "nf4@64", "nf4@channel", "codebook_-1_-0.5_0.3_0.7@64", "codebook_-7_-1_0_0.1_2_3_4_31@48",
    "codebook_-32767_0_1_32767@512", "int4@32:int8@256:fp16", "uint4@32:uint6@256:fp16+off", "int6@16:int8@64:fp16",
    "ternary@256:fp16+pack=base3", "ternary@20+pack=base3", "ternary@channel+pack=base3", "ternary@33:fp16+off+pack=base3",
    "int8@128+nest=4.2+open=4", "int8@channel+nest=2+open=2", "uint8@64+nest=6.3+open=6", "uint8@32+zp+nest=4+open=4",
    "uint8@64:fp16+zp=fp16+nest=2+open=2", "int8@16x32+zp+nest=1+open=1", "fp8_e4m3fn@64+pack=escape", "fp8_e5m2@channel+pack=escape",
    "int4@16:fp8_e4m3fn@tensor", "int4@16:fp8_e4m3fn@channel", "int4@16:uint8@128:bf16@tensor:fp32", "nf4@64:int8@4x128:fp32",
    "uint2@16:uint4@256:fp16+off", "int3@16:int6@256:fp16", "uint4@8:uint4@24:bf16+off", "nf4@33:uint3@66:fp32",
    "iq4nl@32:fp4_e2m1@96:e8m0", "int4@4x16:uint4@8x32:fp16", "int4@16:fp8_e4m3fn@64:fp8_e5m2@128:fp16",
    "ternary@20:uint4@80:fp16+pack=base3", "int2@7:nf4@14:fp16@tensor:fp32", "uint3@5:fp16+zp", "int4@16:int3@channel:fp16",
    "uint5@32:uint6@256:fp16+off", "int6@16:int8@256:fp16", "uint4@16:uint4@48:fp16+off", "int2@16:fp16", "int3@32:fp16", "int5@16:fp16",
    "int6@32:e8m0", "nf3@16:uint4@64:fp16",
)
# fmt: on
DENSE = ("bf16", "fp16", "fp32", "bf16+pack=escape")
EXPANDED = ("int12@64", "uint12@channel+off", "fp10_e5m4@32")


@dataclass(frozen=True)
class Case:
    """One product: random logical parts of a format, an input, an optional bias; everything follows from the fields."""

    expression: str
    m: int
    n: int
    k: int
    inputs: str = "normal"
    codes: str = "random"
    biased: bool = False

    def __str__(self) -> str:
        return f"{self.expression}-{self.m}x{self.n}x{self.k}-{self.inputs}-{self.codes}{'-bias' * self.biased}"

    @property
    def shape(self) -> tuple[int, int]:
        return self.n, self.k

    @cached_property
    def format(self) -> Format:
        return Format(self.expression)

    def _rng(self, what: str) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(f"{self}/{what}".encode()))

    @cached_property
    def parts(self) -> dict[str, np.ndarray]:
        """Logical parts."""
        fmt, rng = self.format, self._rng("weights")
        parts = {"codes": _codes(fmt.element, self.shape, self.codes, rng)}
        block = fmt.block
        for i, level in enumerate(fmt.levels):
            grid = _grid(block, self.shape)
            parts[f"scale.{i}"] = _positive(level.element, grid, rng, tiny=self.inputs == "tiny")
            if fmt.offset is not None:
                element = fmt.offset_element(i)
                parts[f"offset.{i}"] = element.encode(_fit(element, rng.standard_normal(grid)))
            block = level.block
        if fmt.zero is not None:
            grid = _grid(fmt.block, self.shape)
            small = fmt.zero.bits <= 8
            random = rng.integers(0, 2**fmt.zero.bits, grid) if small else fmt.zero.encode(rng.uniform(0, 15, grid).astype(np.float32))
            parts["zero"] = random.astype(fmt.zero.code_dtype)
        return parts

    @cached_property
    def x(self) -> np.ndarray:
        """float32[m, k]."""
        return make_input(self.inputs, self.m, self.k, self._rng("input"))

    @cached_property
    def bias(self) -> np.ndarray | None:
        return self._rng("bias").standard_normal(self.n).astype(np.float32) if self.biased else None


def make_input(kind: str, m: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """float32[m, k] of a kind.

    normal: magnitudes differ along k and by row. positive: sums grow. extreme: +-the largest, every q is +-127. gaps: runs of zeros and of
    values below 2^-120. tiny: results are subnormal. faint: below 2^-120, zero as int8. ties: x * 127 / amax lies as near halfway between
    integers as float32 allows. fused (with codes "fused"): c + a b where a b is a hair less than half an ulp of c.
    """
    x: np.ndarray = rng.standard_normal((m, k))
    if kind == "normal":
        x *= np.exp2(rng.integers(-3, 4, (m, 1)) + rng.integers(-3, 4, (1, k)))
    elif kind == "positive":
        x = np.abs(x) + 3
    elif kind == "extreme":
        x = np.where(rng.random((m, 1)) < 0.5, 1, np.sign(x)) * 3.7
    elif kind == "gaps":
        run = np.repeat(rng.integers(0, 3, -(-k // 16)), 16)[:k]
        x = np.where(run == 0, 0, np.where(run == 1, x * 2.0**-130, x))
    elif kind == "tiny":
        x *= 2.0**-112
    elif kind == "ties":
        unit = (2 * rng.integers(0, 2**14, (m, 1)) + 1) * 2.0**-12
        x = (rng.integers(-127, 127, (m, k)) + 0.5) * unit
        x[:, ::13] = 127 * unit
    elif kind == "faint":
        x = rng.uniform(-1, 1, (m, k)) * 2.0**-120
    elif kind == "fused":
        x[:, ::2], x[:, 1::2] = 1, 2.0**-12 * (1 + 2.0**-23)
    else:
        raise ValueError(kind)
    return x.astype(np.float32)


def _grid(block: Block | None, shape: tuple[int, int]) -> tuple[int, ...]:
    return (1, 1) if block is None else block.grid(shape)


def _fit(element: Element, x: np.ndarray) -> np.ndarray:
    """x scaled into the element's range when that is narrow or coarse."""
    return (x * (element.max / 3 if element.bits <= 8 else 1)).astype(np.float32)


def _codes(element: Element, shape: tuple[int, int], kind: str, rng: np.random.Generator) -> np.ndarray:
    """random: any finite code. lowest, highest: one value everywhere, the sum as large as it gets. ends: both, at random."""
    if kind == "fused":
        return np.where(np.arange(shape[1]) % 2, 2.0**-12 * (1 - 2.0**-23), 1 + 2.0**-23).astype(np.float32).view(np.uint32) + np.zeros(
            shape, np.uint32
        )
    if element.bits > 16:
        return rng.standard_normal(shape).astype(np.float32).view(np.uint32)
    values = element.values
    finite = np.flatnonzero(np.isfinite(values))
    low, high = finite[np.argmin(values[finite])], finite[np.argmax(values[finite])]
    if element.bits > 8 and element.name in DENSE:
        return element.encode(rng.standard_normal(shape).astype(np.float32))
    choice = {"random": finite, "lowest": np.array([low]), "highest": np.array([high]), "ends": np.array([low, high])}[kind]
    return rng.choice(choice, shape).astype(element.code_dtype)


def _positive(element: Element, grid: tuple[int, ...], rng: np.random.Generator, tiny: bool) -> np.ndarray:
    """Codes of random scales: mostly positive numbers near 1, negative ones too where the element has them."""
    if element.bits <= 8 and element.max < 1024:
        usable = np.flatnonzero(np.isfinite(element.values) & (element.values != 0))
        return rng.choice(usable, grid).astype(element.code_dtype)
    x = np.exp2(rng.uniform(-3, 3, grid) - (28 if tiny and element.bits > 8 else 0))
    if element.signed:
        x *= rng.choice([1, 1, -1], grid)
    return element.encode(x.astype(np.float32))


def spread(expression: str, count: int, lengths: tuple[int, ...] = LENGTHS) -> list[Case]:
    """Cases of one format: awkward sizes, each input kind in turn, chosen by the expression's own random numbers."""
    rng = np.random.default_rng(zlib.crc32(expression.encode()))
    kinds = ("normal", "positive", "extreme", "gaps", "tiny", "ties", "faint")
    cases = []
    for i in range(count):
        while True:
            m, n, k = (int(rng.choice(v)) for v in (SIZES, SIZES, lengths[-6:] if i % 3 == 0 else lengths))
            if m * n * k <= LARGEST:
                break
        cases.append(Case(expression, m, n, k, kinds[(i + zlib.crc32(expression.encode())) % len(kinds)], biased=bool(rng.integers(0, 2))))
    return cases


# Between them these tell every mutant of mutants.py: two levels, zero points, offsets, rounded tables, long and odd blocks, tails.
WITNESSES = (
    Case("int4@32", 3, 18, 131, "normal", biased=True),
    Case("uint4@32:fp16+zp", 3, 18, 131, "normal", biased=True),
    Case("uint4@32:fp16+off", 3, 18, 131, "normal", biased=True),
    Case("uint4@512:fp16+zp", 2, 17, 700, "positive"),
    Case("int8@channel:fp32", 2, 17, 300, "tiny"),
    Case("int8@channel:fp32", 2, 17, 300, "extreme", "ends"),
    Case("int4@600:fp32", 2, 17, 1000, "normal"),
    Case("nvfp4", 3, 18, 131, "ties"),
    Case("nf4@64", 3, 18, 131, "gaps"),
    Case("uint4@16:uint6@64:fp16+off", 3, 18, 131, "positive"),
    Case("codebook_-32767_0_1_32767@512", 2, 17, 700, "positive", "ends"),
    Case("fp32", 2, 17, 300, "tiny"),
    Case("fp32", 2, 17, 2, "fused", "fused"),
    Case("int4@32", 3, 18, 131, "faint"),
    Case("int8@128", 3, 18, 1000, "ties"),
    Case("codebook_-32767_0_1_32767@33:fp32", 2, 17, 700, "positive"),
)
