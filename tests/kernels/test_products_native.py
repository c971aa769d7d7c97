"""Native product rules equal the reference bit for bit: instruction sets, threads, awkward sizes, numbers beyond the usual range."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from cases import Case, spread

from anybit.errors import NonFiniteError
from anybit.kernels import KERNELS, Kernel, choose, cpu
from anybit.kernels.cpu import op_spec
from anybit.linear import run_matmul
from anybit.products import parse_product
from anybit.reference import ops
from anybit.reference import products as reference
from anybit.reference.linear import _matmul_float, operands
from anybit.tensor import QTensor

F = np.float32
ISAS = tuple(cpu.native.supported_isas())
# fmt: off
ANY = (
    "int4@32", "int8@channel", "int5@16", "nf4@64", "nvfp4", "uint4@32:fp16+zp", "uint4@32:fp16+off", "uint4@600:fp16+zp", "fp8_e5m2@64",
    "bf16", "fp16", "fp32", "int12@64",
)
POWERS = ("ternary@64", "binary@20", "fp4_e3m0@32:bf16", "fp3_e2m0@17", "fp5_e4m0@600:fp16")
CODED = (
    "int2@33", "int3@64", "int4@32", "int4@1", "int4@600", "mxfp4", "nf4@64", "int5@20", "fp6_e3m2@48", "int8@channel", "fp8_e4m3fn@32",
)
# fmt: on
LOOKUPS = ("table=mitchell", "table=trunc3")
RULES = [
    *((fmt, rule, None) for fmt in ANY for rule in ("lmul", "lmul3", "lmul4")),
    *((fmt, "shift", None) for fmt in POWERS),
    *((fmt, f"shift{terms}", None) for fmt, terms in (("int4@32", 2), ("fp4_e2m1@16:ufp8_e5m3", 2), ("int6@64", 3), ("int8@128", 4))),
    *((fmt, rule, act) for fmt in CODED for rule in LOOKUPS for act in ("int8", "int4")),
]


@pytest.fixture(autouse=True)
def settings_restored() -> Iterator[None]:
    isa, threads = cpu.isa(), cpu.native.threads()
    yield
    cpu.use_isa(isa)
    cpu.set_threads(threads)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bits; any NaN equals any NaN."""
    return a.dtype == b.dtype == F and bool(np.all((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))))


def check(case: Case, rule: str, act: str | None, x: np.ndarray | None = None) -> np.ndarray:
    """One case on every instruction set and thread count, whole and one row alone."""
    x = case.x if x is None else x
    want = reference.matmul(x, case.parts, case.format, case.shape, rule, act, case.bias)
    for isa in ISAS:
        cpu.use_isa(isa)
        weight = QTensor.pack(case.format, case.shape, case.parts)
        for threads in (1, 2):
            cpu.set_threads(threads)
            assert same(run_matmul(weight, x, act, case.bias, parse_product(rule)), want), (str(case), rule, act, isa, threads)
        one = len(x) // 2
        assert same(run_matmul(weight, x[one : one + 1], act, case.bias, parse_product(rule)), want[one : one + 1]), (str(case), rule, isa)
    return want


@pytest.mark.parametrize(("expression", "rule", "act"), RULES)
def test_equals_the_reference(expression: str, rule: str, act: str | None) -> None:
    for case in spread(expression, 7):
        check(replace(case, m=min(case.m, 33)), rule, act)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 31, 33, 127, 128, 129, 257])
@pytest.mark.parametrize(
    ("expression", "rule", "act"), [("int4@32", "lmul", None), ("ternary@7", "shift", None), ("int4@7", "table=trunc2", "int4")]
)
def test_short_rows_and_tails(expression: str, rule: str, act: str | None, k: int) -> None:
    for n in (1, 15, 16, 17, 65):
        check(Case(expression, 9, n, k), rule, act)


@pytest.mark.parametrize("rule", ["lmul", "lmul2", "lmul7"])
@pytest.mark.parametrize("dense", ["fp32", "bf16"])
def test_numbers_of_every_size(rule: str, dense: str) -> None:
    """Zeros, subnormal and huge operands; results that overflow and that vanish; in some rows and panels only."""
    case = Case(dense, 9, 33, 300, biased=True)
    rng = np.random.default_rng(3)
    sizes = np.exp2(rng.integers(-149, 128, (9, 300)).astype(float)) * rng.choice([-1, 0, 1, 1, 1], (9, 300))
    x = np.where(np.arange(9)[:, None] % 3 == 1, case.x, sizes).astype(F)
    x[4] = case.x[4] * np.where(np.arange(300) < 140, 1, 2.0**90)
    w = rng.standard_normal((33, 300)) * np.exp2(rng.integers(-140, 127, (33, 300)).astype(float)) * rng.choice([0, 1, 1], (33, 300))
    w[:, :130] = rng.standard_normal((33, 130))
    codes = case.format.element.encode(w.astype(F), over="saturate")
    large = replace(case)
    large.__dict__["parts"] = {"codes": codes}
    want = check(large, rule, None, x)
    assert np.isfinite(want).any() and (np.abs(want) > 1e38).any()


def test_shift_beyond_float32() -> None:
    case = Case("fp5_e4m0@32:bf16", 4, 17, 70, biased=False)
    x = case.x.copy()
    x[0] = 2.0**126
    x[1, 5], x[2, 7], x[2, 8] = 2.0**-130, 2.0**-126, 0
    want = check(case, "shift", None, x)
    assert not np.isfinite(want[0]).all() and np.isfinite(want[1:]).all()


def test_weights_that_are_no_numbers() -> None:
    case = Case("fp8_e5m2@32", 3, 256, 40)
    parts = {**case.parts, "codes": np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None], (256, 40)).copy()}
    other = replace(case)
    other.__dict__["parts"] = parts
    x = case.x.copy()
    x[1] = 0
    want = check(other, "lmul", None, x)
    assert np.array_equal(~np.isfinite(want[0]), ~np.isfinite(case.format.element.values)), "no rule hides them"


@pytest.mark.parametrize(("expression", "k"), [("int4@512", 4096), ("int8@512", 2048), ("int4@1000", 3000)])
def test_extreme_codes_do_not_overflow(expression: str, k: int) -> None:
    for act, codes in (("int8", "lowest"), ("int4", "ends"), ("int8", "highest")):
        check(Case(expression, 2, 17, k, "extreme", codes), "table=exact", act)


@pytest.mark.parametrize(("rule", "act"), [("lmul", None), ("table=mitchell", "int4")])
def test_rows_do_not_see_the_batch(rule: str, act: str | None) -> None:
    case = Case("int4@32", 64, 33, 200, "normal")
    x = case.x.copy()
    x[5], x[6] = 0, x[6] * F(2.0**100)
    for isa in ISAS:
        cpu.use_isa(isa)
        weight = QTensor.pack(case.format, case.shape, case.parts)
        whole = run_matmul(weight, x, act, None, parse_product(rule))
        for size in (1, 3, 7, 8, 31):
            chunks = [run_matmul(weight, x[i : i + size], act, None, parse_product(rule)) for i in range(0, 64, size)]
            assert same(np.concatenate(chunks), whole), (isa, size)


def test_many_rows_and_tiles() -> None:
    check(Case("int4@128", 515, 3, 130), "lmul3", None)
    check(Case("int4@128", 515, 3, 130), "table=mitchell", "int4")
    check(Case("int2@32", 2, 1030, 64), "shift2", None)
    check(Case("bf16", 1, 1041, 64), "lmul", None)


@pytest.mark.parametrize(("rule", "act"), [("lmul", None), ("lmul3", None), ("table=exact", "int4")])
def test_non_finite_input_is_an_error(rule: str, act: str | None) -> None:
    case = Case("int4@32", 3, 5, 77)
    for bad in (np.nan, np.inf):
        x = case.x.copy()
        x[1, 75] = bad
        with pytest.raises(NonFiniteError, match="row 1"):
            run_matmul(QTensor.pack(case.format, case.shape, case.parts), x, act, None, parse_product(rule))


# ------------------------------------------------------------------------------------------------ attention
@pytest.mark.parametrize("rule", ["lmul", "lmul3"])
@pytest.mark.parametrize("window", [None, 65])
@pytest.mark.parametrize(("length", "dim"), [(1, 16), (63, 8), (65, 33), (600, 24)])
def test_attention(length: int, dim: int, window: int | None, rule: str) -> None:
    from anybit.kernels.product import native_product

    rng = np.random.default_rng(length)
    q = (rng.standard_normal((6, 5, dim)) * 3).astype(F)
    k, v = (rng.standard_normal((2, length, dim)).astype(F) for _ in range(2))
    k[0, 0, :3], v[0, 0, :3] = (0, 2.0**-140, 2.0**90), 0
    positions = np.sort(rng.integers(0, length, 5))
    positions[-1] = length - 1
    want = reference.attention(q, k, v, positions, rule, window)
    assert not same(want, ops.attention(q, k, v, positions, window))
    for isa in ISAS:
        cpu.use_isa(isa)
        product = native_product(parse_product(rule), None, None)
        assert same(np.asarray(cpu.native.op_attention(q, k, v, positions, window or 0, product)), want), isa


# ------------------------------------------------------------------------------------------------ dispatch
def test_kernels_that_do_not_know_a_product_refuse_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from anybit.formats import Format

    monkeypatch.setattr(KERNELS, "_items", {name: KERNELS[name] for name in KERNELS})
    KERNELS.add("linear_eager", Kernel("linear_eager", 99, lambda spec: None, lambda: "any", "takes everything", lambda w, x, act, bias: x))
    for fmt, layout, act, product, kernel in (
        ("int4@32", "tile16x4", None, "patterns", "linear_patterns"), ("bf16", "tile16x1", None, "patterns", "linear_patterns"),
        ("int4@32", "tile16x4", "int4", "lookup", "linear_lookup"), ("int4@32", "tile16x4", None, None, "linear_eager"),
    ):  # fmt: skip
        choice = choose(op_spec(Format(fmt), layout, act, product))
        assert choice.kernel.name == kernel
        if product:
            assert all(choice.others[name] == f"it knows no product rules of {product}" for name in ("linear_eager", "linear_tile16x4"))
        else:
            assert choice.others["linear_patterns"] == "it is for product rules of patterns"


# ------------------------------------------------------------------------------------------------ mutants
def carried(total: np.ndarray) -> np.ndarray:
    return np.clip(total, 0, 0x7F7FFFFF)


def bits(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, F).view(np.uint32).astype(np.int64)


def patterns(
    x: np.ndarray, w: np.ndarray, offset: int = 0x3F780000, sign: bool = True, zero: bool = True, wrap: bool = False
) -> np.ndarray:  # fmt: skip
    """L-Mul with one thing wrong."""
    a, b = bits(x) & 0x7FFFFFFF, bits(w) & 0x7FFFFFFF
    total = a + b - offset
    small = total < 0x00800000
    if zero:
        small |= (a < 0x00800000) | (b < 0x00800000)
    total = total & 0x7FFFFFFF if wrap else carried(total)
    return np.where(small, 0, total | ((bits(x) ^ bits(w)) & 0x80000000 if sign else 0)).astype(np.uint32).view(F)


def truncated(x: np.ndarray) -> np.ndarray:
    near = x.astype(F)
    return np.where(np.abs(near) > np.abs(x), np.nextafter(near, F(0)), near)


def no_carry(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The formula over real numbers where the sum of fractions reaches 1."""
    (a, i), (b, j) = (np.frexp(np.abs(v.astype(float))) for v in (x, w))
    return (np.sign(x) * np.sign(w) * np.ldexp(2 * a + 2 * b - 1 + 1 / 16, i + j - 2)).astype(F)


MUTANTS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "multiplication": lambda x, w, p: p + x * w,
    "offset term missing": lambda x, w, p: p + patterns(x, w, 0x3F800000),
    "offset of three bits": lambda x, w, p: p + patterns(x, w, 0x3F700000),
    "offset added, not subtracted": lambda x, w, p: p + patterns(x, w, 0x3F880000),
    "zero operands are patterns": lambda x, w, p: p + patterns(x, w, zero=False),
    "signs ignored": lambda x, w, p: p + patterns(x, w, sign=False),
    "overflow wraps": lambda x, w, p: p + patterns(x, w, wrap=True),
    "no carry into the exponent": lambda x, w, p: p + no_carry(x, w),
    "three mantissa bits": lambda x, w, p: p + reference.lmul(x, w, 3),
    "result subtracted": lambda x, w, p: p - reference.lmul(x, w),
    "sum rounded toward zero": lambda x, w, p: truncated(p.astype(float) + reference.lmul(x, w)),
    "underflow kept": lambda x, w, p: p + np.where(patterns(x, w) == 0, F(2.0**-127), patterns(x, w)),
}


def witnesses() -> list[tuple[Case, np.ndarray]]:
    """Cases that `test_equals_the_reference` and `test_numbers_of_every_size` hold native code to, or their like."""
    normal, huge, gaps = Case("int4@32", 3, 18, 131), Case("fp32", 2, 17, 40), Case("int4@32", 3, 18, 131, "gaps")
    huge.__dict__["parts"] = {"codes": (huge.parts["codes"].view(F) * F(2.0**70)).view(np.uint32)}
    tiny = Case("fp32", 2, 17, 40, "tiny")
    return [(normal, normal.x), (huge, huge.x * F(2.0**60)), (gaps, gaps.x), (tiny, tiny.x * F(2.0**-14))]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_told(mutant: str) -> None:
    with np.errstate(all="ignore"):
        for case, x in witnesses():
            w = operands(case.parts, case.format, case.shape)
            if not same(_matmul_float(x, w, MUTANTS[mutant]), reference.matmul(x, case.parts, case.format, case.shape, "lmul")):
                return
    pytest.fail(f"no case tells '{mutant}' from the rule")


def test_witnesses_are_right() -> None:
    for case, x in witnesses():
        check(case, "lmul", None, x)


@pytest.mark.parametrize("mutant", ["neighbouring row", "transposed", "unsigned code", "exact", "last code left out"])
def test_mutants_of_lookups_are_told(mutant: str) -> None:
    """A table in which each entry is its own: whoever reads another one is seen."""
    case = Case("int4@32", 3, 18, 130)
    table = np.random.default_rng(5).permutation(256).reshape(16, 16) - 100
    changed = {
        "neighbouring row": np.roll(table, 1, axis=0), "transposed": table.T, "unsigned code": table[np.arange(16) ^ 8],
        "exact": np.multiply.outer(np.arange(16), np.arange(16)), "last code left out": np.where(np.arange(16) == 15, 0, table),
    }[mutant]  # fmt: skip
    right, wrong = (reference.matmul(case.x, case.parts, case.format, case.shape, "table=x", "int4", table=t) for t in (table, changed))
    assert not same(right, wrong)
    rule = parse_product("table=exact")
    own = type(rule)("own", ("int4",), entries=table.astype(np.int32))
    for isa in ISAS:
        cpu.use_isa(isa)
        assert same(run_matmul(QTensor.pack(case.format, case.shape, case.parts), case.x, "int4", None, own), right), isa
