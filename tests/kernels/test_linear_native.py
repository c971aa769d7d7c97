"""The native product equals the reference bit for bit: instruction sets, threads, awkward sizes, every kind of format."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from cases import CODED, DENSE, EXPANDED, WITNESSES, Case, spread

from anybit.errors import NoKernelError, NonFiniteError
from anybit.formats import Format
from anybit.kernels import cpu, weights
from anybit.linear import run_matmul
from anybit.methods.rtn import dequantize_parts
from anybit.reference import linear
from anybit.tensor import QTensor

ISAS = tuple(cpu.native.supported_isas())
THREADS = (1, 2)
POISON = 0x80  # glibc fills fresh memory with the complement, 0x7f: every float is 3.4e38


@pytest.fixture(autouse=True)
def poisoned_memory_and_settings_restored() -> Iterator[None]:
    """What malloc hands out is filled with huge numbers, so that an output that a kernel forgets is seen."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    before, threads = cpu.isa(), cpu.native.threads()
    if mallopt is not None:
        mallopt(-6, POISON)
    yield
    if mallopt is not None:
        mallopt(-6, 0)
    cpu.use_isa(before)
    cpu.set_threads(threads)


def acts(case: Case) -> tuple[str | None, ...]:
    fmt = case.format
    return (None,) if fmt.block is None or fmt.element.bits > 8 or fmt.element.table.kind == "f32" else (None, "int8")


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype == np.float32 and np.array_equal(a.view(np.uint32), b.view(np.uint32))


def check(case: Case) -> None:
    """One case on every instruction set and thread count, whole and row by row."""
    for act in acts(case):
        want = linear.matmul(case.x, case.parts, case.format, case.shape, act, case.bias)
        for isa in ISAS:
            cpu.use_isa(isa)
            weight = QTensor.pack(case.format, case.shape, case.parts)
            for threads in THREADS:
                cpu.set_threads(threads)
                got = run_matmul(weight, case.x, act, case.bias)
                if not same(got, want):
                    wrong = np.argwhere(got.view(np.uint32) != want.view(np.uint32))
                    i, j = wrong[0]
                    raise AssertionError(
                        f"{case} act={act} isa={isa} threads={threads}: {len(wrong)} of {want.size} differ,"
                        f" first [{i}, {j}] {float(got[i, j]).hex()} wanted {float(want[i, j]).hex()}"
                    )
            some = case.x[case.m // 2 :][:1]
            assert same(run_matmul(weight, some, act, case.bias), want[case.m // 2 :][:1]), (str(case), act, isa, "one row")


@pytest.mark.parametrize("expression", [*CODED, *DENSE, *EXPANDED])
def test_equals_the_reference(expression: str) -> None:
    for case in spread(expression, 9):
        check(case)


@pytest.mark.parametrize("case", WITNESSES, ids=str)
def test_equals_the_reference_where_mutants_do_not(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 31, 32, 33])
def test_every_width_and_short_rows(bits: int, k: int) -> None:
    """Each combination of bit planes, k around the layout's 4 and 32, n around its 16."""
    for n in (1, 15, 16, 17, 33):
        check(Case(f"uint{bits}@32", 2, n, k))


@pytest.mark.parametrize(
    "element",
    ["e8m0", "fp8_e4m3fn", "fp8_e4m3fnuz", "fp8_e5m2", "ufp8_e5m3", "fp6_e3m2", "int8", "uint6", "ternary", "nf4", "fp16", "bf16"],
)
def test_every_scale_code(element: str) -> None:
    """Each finite code of a scale element, subnormal, zero and negative ones among them, as the scale of one row and as a shared one."""
    for block in ("4", "16x4"):
        one = Format(f"int4@{block}:{element}")
        values = one.levels[0].element.decode(np.arange(2 ** one.levels[0].element.bits))
        codes = np.flatnonzero(np.isfinite(values)).astype(one.levels[0].element.code_dtype)
        if block != "4":
            codes = codes[:: 1 + len(codes) // 512]
        rows, columns = (len(codes), 1) if block == "4" else (16, len(codes))
        case = Case(f"int4@{block}:{element}", 2, rows, 4 * columns, "positive")
        parts = case.parts | {"scale.0": codes.reshape(-1, columns)}
        for act in acts(case):
            want = linear.matmul(case.x, parts, case.format, case.shape, act)
            for isa in ISAS:
                cpu.use_isa(isa)
                got = run_matmul(QTensor.pack(case.format, case.shape, parts), case.x, act, None)
                finite = np.isfinite(want)  # large scales overflow to infinity, and infinities may cancel to NaN
                assert same(got[finite], want[finite]) and not np.isfinite(got[~finite]).any(), (element, block, act, isa)


LONG = (
    Case("int4@32", 1, 17, 4100),
    Case("int4@33", 2, 17, 4101),  # no block ends where a chunk does: panels are cut by length
    Case("int7@96", 5, 3, 2080),
    Case("fp6_e3m2@500", 3, 16, 3001),
    Case("uint4@700:fp16+zp", 2, 5, 2801),
    Case("nf4@64", 7, 3, 2050),
    Case("bf16", 7, 3, 2049),
    Case("int4@128", 515, 3, 130),  # more rows than share a decoded panel
    Case("fp16", 514, 2, 65),
    Case("int2@32", 2, 1030, 64),  # many tiles: several tasks a thread
    Case("int8@channel", 1, 2049, 33),
    Case("bf16", 1, 1041, 64),
)


@pytest.mark.parametrize("case", LONG, ids=str)
def test_long(case: Case) -> None:
    check(case)


# Scales of scales: each block of 256 in itself, a last one that is short, more rows than a group.
TWO_LEVELS = (
    "uint4@32:uint6@256:fp16+off", "uint2@16:uint4@256:fp16+off", "int3@16:int6@256:fp16", "int6@16:int8@256:fp16",
    "nf4@64:fp4_e2m1@256:bf16",
)  # fmt: skip


@pytest.mark.parametrize("expression", TWO_LEVELS)
def test_scales_of_scales(expression: str) -> None:
    for m, n, k in ((1, 37, 768), (4, 37, 768), (128, 21, 768), (1, 70, 1040), (3, 33, 272)):
        check(Case(expression, m, n, k, "normal"))


@pytest.mark.parametrize("element", ["fp32", "fp16", "bf16", "e8m0", "fp8_e4m3fn", "fp8_e5m2", "int8", "uint6", "nf4", "fp16@channel:fp16"])
def test_every_second_level_is_read_in_place(element: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its own width, with a third for the whole tensor or without; more levels are collapsed, which `_collapsed` would show."""
    more = "@" in element
    if not more:
        monkeypatch.setattr(weights, "_collapsed", lambda *_: pytest.fail("scales were expanded"))
    for block in ("16",) if more else ("16", "4x16"):
        for whole in ("", "@tensor:fp32"):
            outer = element if more and not whole else element.split("@")[0] + whole
            check(Case(f"uint4@{block}:int5@{'4x' * (block != '16')}48:{outer}", 2, 19, 200))


# fmt: off
STREAMED = (
    "binary@64", "bipolar2@32", "bipolar3@64", "bipolar4@128", "int2@16", "int3@32", "int4@128", "nvfp4", "nf4@64",
    "codebook_-1_-0.5_0_0.5_1@32", "int5@32", "uint5@64", "int6@16", "int7@channel", "uint7@32", "int8@32", "uint8@128",
    "uint4@32:fp16+zp", "int8@64+zp", "uint8@64+zp", "uint4@16:fp16+off", "fp6_e3m2@32", "fp5_e2m2@64", "fp7_e3m3@32",
    "fp8_e4m3fn@64", "fp8_e5m2@128x128:fp32", "posit8@32", "dyn8@64", "int4@48", "bf16", "fp16", "fp32",
    "ternary@256:fp16+pack=base3", "ternary@48+pack=base3", "uint3@16+zp", "int5@64+zp", "uint6@48+zp", "fp8_e3m4@32", "fp8_e4m3fnuz@16",
    "pot7@32", "posit7_es1@32", "log5_f1@32", "log6_f2@16", "log7_f3@64", "log8_f3@32",
)
HOW = (
    ("int4@128", "in registers, more by panels", "in registers, more by panels"),
    ("int4@33", "by panels: blocks begin inside a chunk", "by panels: blocks begin inside half"),
    ("ternary@18+pack=base3", "by panels: blocks begin inside a group", "by panels: blocks begin inside half"),
    ("bf16+pack=escape", "", "by panels: codes share bytes"),
    ("fp32", "", "by panels: stored floats"),
)
# fmt: on


@pytest.mark.parametrize("expression", STREAMED)
def test_few_rows_of_many_tiles(expression: str) -> None:
    """Stored bits go to products in registers: one and two rows with float activations over four tiles, more rows over one."""
    for m, n, k in ((1, 64, 64), (1, 130, 48), (1, 65, 291), (2, 98, 291), (3, 33, 291), (5, 20, 80), (8, 17, 336)):
        check(Case(expression, m, n, k, "normal", biased=bool(n % 2)))


@pytest.mark.parametrize(("expression", "integer", "floating"), HOW)
def test_how_few_rows_run_is_said(expression: str, integer: str, floating: str) -> None:
    case = Case(expression, 1, 17, 99)
    for isa in ISAS:
        cpu.use_isa(isa)
        native = QTensor.pack(case.format, case.shape, case.parts).native
        assert (floating if isa != "generic" else "by panels: plain C++") in native.how(0)
        if integer:
            assert (integer if isa != "generic" else "by panels: plain C++") in native.how(1)


@pytest.mark.parametrize("codes", ["lowest", "highest", "ends"])
@pytest.mark.parametrize(
    ("expression", "k"),
    [
        ("int8@channel", 131_072),
        ("uint8@channel", 131_072),
        ("uint8@512:fp16+zp", 131_072),
        ("int8@512", 2_048),
        ("int7@512", 2_048),
        ("fp6_e2m3@512", 2_048),
        ("codebook_-32767_0_1_32767@512", 131_072),
        ("codebook_0_1_100_255@512", 2_048),
        ("fp8_e5m2@512", 2_048),
        ("binary@512", 2_048),
        ("ternary@channel", 131_072),
    ],
)
def test_extreme_codes_do_not_overflow(expression: str, k: int, codes: str) -> None:
    """q is +-127 throughout and codes are the ends of the table, up to k = 131,072; only int8 activations, where sums are integers."""
    case = Case(expression, 2, 17, k, "extreme", codes)
    want = linear.matmul(case.x, case.parts, case.format, case.shape, "int8")
    for isa in ISAS:
        cpu.use_isa(isa)
        assert same(run_matmul(QTensor.pack(case.format, case.shape, case.parts), case.x, "int8", None), want), (str(case), isa)


@pytest.mark.parametrize("expression", ["int4@32", "uint4@600:fp16+zp", "nf4@64", "uint4@32:fp16+off", "bf16"])
def test_rows_do_not_see_the_batch_or_the_chunk(expression: str) -> None:
    """The result of a row is the same alone, in any batch at any place, and beside rows that are huge or zero."""
    case = Case(expression, 64, 33, 200, "normal")
    x = case.x.copy()
    x[5], x[6] = 0, x[6] * np.float32(2.0**60)
    for isa, act in product(ISAS, acts(case)):
        cpu.use_isa(isa)
        weight = QTensor.pack(case.format, case.shape, case.parts)
        whole = run_matmul(weight, x, act, None)
        for size in (1, 2, 3, 5, 7, 11, 16, 31):
            chunks = [run_matmul(weight, x[i : i + size], act, None) for i in range(0, 64, size)]
            assert same(np.concatenate(chunks), whole), (isa, act, size)
        order = np.random.default_rng(0).permutation(64)
        assert same(run_matmul(weight, x[order], act, None), whole[order])


@pytest.mark.parametrize("expression", [*CODED, *DENSE, *EXPANDED])
def test_dequantized_values(expression: str) -> None:
    """`dequantize` and the methods' way back give the contract's values."""
    for case in spread(expression, 3):
        want = linear.dequantize(case.parts, case.format, case.shape)
        assert same(dequantize_parts(case.parts, case.format, case.shape), want)
        for isa in ISAS:
            cpu.use_isa(isa)
            assert same(QTensor.pack(case.format, case.shape, case.parts).dequantize(), want), (str(case), isa)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("expression", ["int4@32", "uint4@32:fp16+off", "bf16"])
def test_non_finite_input_is_an_error_wherever_it_stands(expression: str, bad: float) -> None:
    case = Case(expression, 3, 5, 77)
    for isa, act, k in product(ISAS, acts(case), (0, 15, 16, 63, 64, 75, 76)):
        cpu.use_isa(isa)
        x = case.x.copy()
        x[1, k] = bad
        with pytest.raises(NonFiniteError, match="row 1"):
            run_matmul(QTensor.pack(case.format, case.shape, case.parts), x, act, None)


def test_codes_without_a_number() -> None:
    """Codes that mean NaN or infinity count as 0 with int8 activations; float activations see what they mean."""
    case = Case("fp8_e5m2@32", 2, 256, 33)
    parts = dict(case.parts)
    parts["codes"] = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None], (256, 33)).copy()
    for isa, act in product(ISAS, (None, "int8")):
        cpu.use_isa(isa)
        want = linear.matmul(case.x, parts, case.format, case.shape, act)
        got = run_matmul(QTensor.pack(case.format, case.shape, parts), case.x, act, None)
        number = np.isfinite(want)
        assert np.array_equal(number, np.isfinite(got)) and same(got[number], want[number])
        assert number.all() == (act == "int8")


def test_flush_to_zero_set_by_others_changes_nothing() -> None:
    """Another library may set flush to zero in this thread: results, subnormal ones included, stay."""
    torch = pytest.importorskip("torch")
    case = Case("int8@channel:fp32", 3, 17, 65, "tiny")
    want = {act: linear.matmul(case.x, case.parts, case.format, case.shape, act) for act in acts(case)}
    assert all((np.abs(y[y != 0]) < 2.0**-126).any() for y in want.values())
    weight = QTensor.pack(case.format, case.shape, case.parts)
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine cannot flush")
    try:
        got = {act: run_matmul(weight, case.x, act, None) for act in want}
    finally:
        torch.set_flush_denormal(False)
    assert all(same(got[act], want[act]) for act in want)


@pytest.mark.parametrize("expression", ["bf16", "int12@64"])
def test_no_integer_path_is_said(expression: str) -> None:
    case = Case(expression, 1, 2, 64)
    with pytest.raises(NoKernelError, match="float activations"):
        run_matmul(QTensor.pack(case.format, case.shape, case.parts), case.x, "int8", None)
