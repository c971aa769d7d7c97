"""Product rules: their texts, their definitions by patterns and by real numbers, what they refuse, tables from files."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import anybit
from anybit.errors import NoKernelError, UnknownNameError, UsageError
from anybit.products import PRODUCTS, PatternProduct, parse_product
from anybit.products.product import powers_of_two
from anybit.products.table import mitchell, truncated
from anybit.reference import products as reference

F = np.float32


def floats(count: int, seed: int = 0) -> np.ndarray:
    """float32 numbers of all magnitudes, with the edges: zeros, subnormal, the largest, powers of two, carries."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 0x7F800000, count, dtype=np.uint32) | (rng.integers(0, 2, count, dtype=np.uint32) << 31)
    edges = np.array([0, -0.0, 2.0**-149, -(2.0**-127), 2.0**-126, 1, -1, 1.5, 1.9999999, 2.0**127, 3.4028235e38, 2.0**63, 2.0**-62], F)
    near = rng.uniform(1, 2, count).astype(F) * np.exp2(rng.integers(-3, 4, count)).astype(F)
    return np.concatenate([edges, patterns.view(F), near])


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal numbers, zeros of either sign counted as one: sums cannot tell them apart."""
    return a.dtype == b.dtype == F and np.array_equal(a, b)


@pytest.mark.parametrize("mantissa", [*range(1, 8), 10, 16, 22, 23])
def test_lmul_by_patterns_is_lmul_by_numbers(mantissa: int) -> None:
    """The integer addition that is published and the numbers that it means, over all pairs of edges and random numbers."""
    rule = parse_product("lmul" if mantissa == 23 else f"lmul{mantissa}")
    x, w = floats(300), floats(300, 1)
    assert isinstance(rule, PatternProduct)
    assert same(rule.multiply(x[:, None], w[None]), reference.lmul(x[:, None], w[None], mantissa))


def test_lmul_by_hand() -> None:
    """(1 + a + b + 2^-l) 2^(i + j), and one pattern less the constant 1064828928 of the paper's figure for float32."""
    rule = parse_product("lmul")
    assert isinstance(rule, PatternProduct) and rule.offset == 1064828928
    assert rule.multiply(F([1.0, 2.0, -3.0, 1.5]), F([1.0, 0.5, 0.25, 1.75])).tolist() == [1.0625, 1.0625, -0.78125, 2.625]
    assert reference.lmul(F([3, 3, 7]), F([5, 5, 7]), 3).tolist() == [15, 15, 52]
    assert reference.lmul(F([3, 7]), F([5, 7])).tolist() == [14.5, 50]


def test_mean_error_of_lmul_is_small() -> None:
    """The correction takes the bias off: over significands the mean relative error is below 1.2 %, and over 4 % without it."""
    x, w = np.meshgrid(np.linspace(1, 2, 200, endpoint=False, dtype=F), np.linspace(1, 2, 200, endpoint=False, dtype=F))
    rule = parse_product("lmul")
    assert isinstance(rule, PatternProduct)
    plain = PatternProduct("plain", (None,))
    errors = [float(np.mean(r.multiply(x, w) / (x.astype(float) * w) - 1)) for r in (rule, plain)]
    assert abs(errors[0]) < 0.012 < 0.03 < -errors[1]


def test_shift_is_multiplication_where_both_are_normal() -> None:
    rule = parse_product("shift")
    assert isinstance(rule, PatternProduct)
    x, w = floats(2000)[:, None], np.exp2(np.arange(-20, 21)).astype(F)[None] * F([[1]]) * np.where(np.arange(41) % 2, -1, 1).astype(F)
    got = rule.multiply(x, w)
    with np.errstate(over="ignore", under="ignore"):
        want = x * w
    normal = (np.abs(x) >= 2.0**-126) & (np.abs(x.astype(float) * w) >= 2.0**-126)
    assert np.isinf(want[normal]).any(), "overflow is among them"
    assert np.array_equal(got[normal].view(np.uint32), want[normal].view(np.uint32)), "infinite where multiplication is"
    assert not got[~np.broadcast_to(normal, got.shape)].any()
    assert same(got, reference.shift(x, w))


@pytest.mark.parametrize("value", [*range(-130, 131), 0.375, -0.6875, 2.0**-30, 1e-3])
def test_terms_sum_up_and_are_few(value: float) -> None:
    """Non-adjacent: no two neighbouring exponents, so none can do with fewer; the reference finds the same digits another way."""
    value = float(F(value))
    terms = powers_of_two(value)
    assert sum(map(Fraction, terms)) == Fraction(value)
    exponents = [int(np.log2(abs(t))) for t in terms]
    assert all(abs(t) == 2.0**e for t, e in zip(terms, exponents, strict=True))
    assert all(a >= b + 2 for a, b in pairwise(exponents))
    found = [float(t[0]) for t in reference.terms_of(np.array([value]), max(1, len(terms)))]
    assert found == (terms or [0.0])


def test_tables_of_whole_numbers() -> None:
    """Every pair of int8, against definitions that go bit by bit and by logarithms; Mitchell's largest error is 1/9."""
    numbers = np.arange(-128, 128)
    got = {n: truncated(numbers[:, None], numbers[None], n) for n in (1, 4, 7)}
    logs = mitchell(numbers[:, None], numbers[None])
    for i, q in enumerate(numbers.tolist()):
        for j, t in enumerate(numbers[::3].tolist()):
            assert logs[i, 3 * j] == reference.mitchell(q, t)
            assert all(got[n][i, 3 * j] == reference.truncated(q, t, n) for n in got)
    exact = numbers[:, None] * numbers[None]
    error = 1 - logs[exact != 0] / exact[exact != 0]
    assert error.min() == 0 and 0.11 < error.max() <= 1 / 9 + 1e-12
    assert mitchell(np.array([13]), np.array([9])).tolist() == [112]  # (1 + 5/8 + 1/8) 2^(3 + 3)


def test_mitchell_is_the_sum_of_patterns_without_correction() -> None:
    q, t = np.meshgrid(np.arange(-128, 128), np.arange(-128, 128))
    plain = PatternProduct("plain", (None,))
    assert np.array_equal(mitchell(q, t), plain.multiply(q.astype(F), t.astype(F)).astype(int))


def test_texts() -> None:
    assert {"lmul", "shift", "table"} == set(PRODUCTS)
    offsets = {"lmul1": 0x3F400000, "lmul3": 0x3F700000, "lmul4": 0x3F700000, "lmul5": 0x3F780000, "lmul23": 0x3F780000}
    for text, offset in offsets.items():
        rule = parse_product(text)
        assert isinstance(rule, PatternProduct) and (rule.name, rule.offset) == (text, offset)
    for text, message in (
        ("lmul24", "lmul takes a number from 1 to 23"), ("lmul0", "lmul takes"), ("lmul03", "lmul takes"), ("shift5", "from 1 to 4"),
        ("table", "needs a table"), ("table=", "needs a table"), ("table=Mitchell", "a table is exact"), ("table=trunc0", "a table is"),
        ("table=missing.npy", "no .npy file that can be read"), ("table=\0.npy", "no .npy file that can be read"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            parse_product(text)
    for text in ("", "lmull", "multiply", "shift-1", "LMUL", "lmul3.5"):
        with pytest.raises(UnknownNameError, match="no product rule"):
            parse_product(text)
    with pytest.raises(UnknownNameError, match=r"did you mean lmul\?; there are lmul, lmulM"):
        parse_product("lmull")


W = np.random.default_rng(0).standard_normal((20, 64)).astype(F)
X = np.random.default_rng(1).standard_normal((3, 64)).astype(F)


@pytest.mark.parametrize(
    ("fmt", "act", "product", "message"),
    [
        ("int4@32", "int8", "lmul", "lmul takes float activations, not int8"),
        ("bf16", None, "shift", "codes of up to 8 bits with scales, not bf16"),
        ("int4@32", None, "shift", "weights that are a power of two; int4 has 3"),
        ("fp4_e2m1@32", None, "shift", "fp4_e2m1 has 3"),
        ("int8@32", None, "shift2", "a sum of 2 powers of two; int8 has"),
        ("nf4@64", None, "shift4", "nf4 has"),
        ("uint2@32+zp", None, "shift2", "no zero points"),
        ("int4@32", None, "table=exact", "takes int8 or int4 activations, not float"),
        ("bf16", "int8", "table=exact", "codes of up to 8 bits with scales, not bf16"),
        ("uint4@32+zp", "int8", "table=exact", "no zero points or offsets"),
        ("uint4@32+off", "int8", "table=exact", "no zero points or offsets"),
        ("int4@32", "int4", None, "takes float or int8 activations, not int4"),
    ],
)
def test_refusals(fmt: str, act: str | None, product: str | None, message: str) -> None:
    with pytest.raises(NoKernelError, match=message):
        anybit.quantize(W, fmt).matmul(X, act, product=product)


def test_a_table_from_a_file(tmp_path: Path) -> None:
    """Any function of the two codes, int16 or int32; a changed file is read anew; wrong ones are refused."""
    rng = np.random.default_rng(2)
    path = tmp_path / "t.npy"
    q = anybit.quantize(W, "int3@32")
    for dtype in (np.int16, np.int32):
        table = rng.integers(-30000, 30000, (16, 8)).astype(dtype)
        np.save(path, table)
        want = reference.matmul(X, q.logical(), q.format, q.shape, f"table={path}", "int4", table=table)
        assert np.array_equal(q.matmul(X, "int4", product=f"table={path}"), want)
    with pytest.raises(NoKernelError, match=r"is \[16, 8\], but int4 activations and int4 need \[16, 16\]"):
        anybit.quantize(W, "int4@32").matmul(X, "int4", product=f"table={path}")
    with pytest.raises(NoKernelError, match="takes int4 activations, not int8"):
        q.matmul(X, "int8", product=f"table={path}")
    np.save(path, np.full((256, 8), 1 << 23, np.int32))
    with pytest.raises(NoKernelError, match="stay in int32 up to 4194303"):
        q.matmul(X, "int8", product=f"table={path}")
    bad = [np.zeros((16, 8)), np.zeros((16, 8), ">i4"), np.zeros((16, 7), np.int16), np.zeros(16, np.int16), np.array([{}], object)]
    for array in bad:
        np.save(path, array)
        with pytest.raises(UsageError, match=r"no int16 or int32 table|can be read"):
            parse_product(f"table={path}")
    path.write_bytes(b"\x93NUMPY\x01\x00")
    with pytest.raises(UsageError, match="can be read"):
        parse_product(f"table={path}")


def test_the_exact_table_is_the_integer_product() -> None:
    for fmt in ("int4@32", "mxfp4", "nf4@64", "int7@16", "ternary@64"):
        q = anybit.quantize(W, fmt)
        assert np.array_equal(q.matmul(X, "int8", product="table=exact"), q.matmul(X, "int8")), fmt


def test_shift_is_the_product_of_powers_of_two() -> None:
    for fmt in ("ternary@64", "fp4_e3m0@32", "fp3_e2m0@16:e8m0", "binary@20", "uint1@8+off"):
        q = anybit.quantize(W, fmt)
        assert np.array_equal(q.matmul(X, product="shift"), q.matmul(X)), fmt
