"""Products that are no multiplications, by the real numbers that they mean, and matrix products and attention with them.

Independent of `anybit.products`, which defines the same on bit patterns: here operands are taken apart into significand and exponent in
float64, where every step is exact.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from anybit.errors import ShapeError
from anybit.reference import ops
from anybit.reference.fma import F32, fma
from anybit.reference.linear import Step, _matmul_float, act_edges, operands, quantize_activations

LEAST = 2.0**-126
LARGEST = float(np.finfo(np.float32).max)
Integers = npt.NDArray[np.int64]


def lmul(x: F32, w: F32, mantissa: int = 23) -> F32:
    """L-Mul of arrays that broadcast: (1 + f) 2^(i + j + c) with c + f = a + b + 2^-l, c whole and 0 <= f < 1.

    x = (1 + a) 2^i and w = (1 + b) 2^j, both rounded to `mantissa` bits before (ties to even, at most the largest such number); l is
    mantissa up to 3, 3 for 4, else 4. Magnitudes below 2^-126 count as zero, of operands and of the result, which is at most the largest
    such number. A weight that is no number gives NaN.

    Source: Luo and Sun, arXiv 2410.00907, equation 1 and the addition of patterns below it.
    """
    shift = mantissa if mantissa <= 3 else 3 if mantissa == 4 else 4
    most = 2.0**128 - 2.0 ** (127 - mantissa)
    sign = np.where(np.signbit(x) != np.signbit(w), -1.0, 1.0)
    (a, i), (b, j) = _parts(_rounded(x, mantissa, most)), _parts(_rounded(w, mantissa, most))
    total = a + b + 2.0**-shift
    carry = np.floor(total)
    with np.errstate(over="ignore"):
        size = np.minimum(np.ldexp(1 + total - carry, (i + j + carry).astype(np.int64)), most)
    zero = (a < 0) | (b < 0) | (size < LEAST)
    result = np.where(zero, 0.0, sign * size)
    return np.where(np.isfinite(w), result, np.nan).astype(np.float32)


def _rounded(x: F32, mantissa: int, most: float) -> npt.NDArray[np.float64]:
    """|x| to so many mantissa bits, 0 below 2^-126 and where x is no number."""
    size = np.abs(np.where(np.isfinite(x), x, np.float32(0)).astype(np.float64))
    size = np.where(size < LEAST, 0.0, size)
    significand, exponent = np.frexp(size)
    return np.minimum(np.ldexp(np.rint(np.ldexp(significand, mantissa + 1)), exponent - mantissa - 1), most)


def _parts(size: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], Integers]:
    """a and i of (1 + a) 2^i; a is -1 for zero."""
    significand, exponent = np.frexp(size)
    return 2 * significand - 1, exponent.astype(np.int64) - 1


def shift(x: F32, w: F32) -> F32:
    """x w for powers of two w (or 0) by adding exponents: 0 if |x| or |x w| is below 2^-126, infinite beyond float32."""
    product = x.astype(np.float64) * w.astype(np.float64)
    with np.errstate(over="ignore"):
        return np.where((np.abs(x) < LEAST) | (np.abs(product) < LEAST), 0.0, product).astype(np.float32)


def terms_of(w: npt.NDArray[np.float64], count: int) -> list[F32]:
    """w as a sum of `count` signed powers of two or zeros, largest first: its non-adjacent form. ShapeError: it takes more.

    Digit i of the form of a whole number n >= 0 is bit i + 1 of 3 n less bit i + 1 of n.

    Source: Prodinger, On binary representations of integers with digits -1, 0, 1, Integers 0 (2000), A8.
    """
    unique, at = np.unique(w, return_inverse=True)
    terms = np.zeros((count, len(unique)))
    for column, value in enumerate(unique.tolist()):
        n, unit = abs(value).as_integer_ratio()
        digits = [((3 * n >> (i + 1)) & 1) - ((n >> (i + 1)) & 1) for i in range(n.bit_length() + 1)]
        powers = [math.copysign(1, value) * digit * 2.0**i / unit for i, digit in enumerate(digits) if digit][::-1]
        if len(powers) > count:
            raise ShapeError(f"{value} is no sum of {count} powers of two")
        terms[: len(powers), column] = powers
    return [term[at].reshape(w.shape).astype(np.float32) for term in terms]


@lru_cache(maxsize=1 << 17)
def mitchell(q: int, t: int) -> int:
    """Mitchell's product of two whole numbers, from the logarithms that it stands for: log2 x is i + a for x = 2^i (1 + a)."""
    if q == 0 or t == 0:
        return 0
    size = [abs(q), abs(t)]
    whole = [x.bit_length() - 1 for x in size]
    log = sum(i + x / 2**i - 1 for i, x in zip(whole, size, strict=True))  # exact: few bits
    result = 2 ** int(log) * (1 + log - int(log))
    return int(result) * (1 if (q < 0) == (t < 0) else -1)


@lru_cache(maxsize=1 << 17)
def truncated(q: int, t: int, columns: int) -> int:
    """The product of magnitudes without the partial products of the lowest columns, bit by bit, with the product's sign."""
    a, b = abs(q), abs(t)
    pairs = ((i, j) for i in range(a.bit_length()) for j in range(b.bit_length()))
    total = sum(1 << (i + j) for i, j in pairs if i + j >= columns and a >> i & 1 and b >> j & 1)
    return total if (q < 0) == (t < 0) else -total


def _step(rule: str) -> Callable[[F32], list[F32]] | None:
    """How weights fall into terms; None: they do not."""
    match = re.fullmatch(r"shift([1-4]?)", rule)
    return (lambda w: terms_of(w.astype(np.float64), int(match[1] or 1))) if match else None


def step_of(rule: str) -> Step:
    """One product and one addition: fl(p + product), for shift rules one of each a power of two."""
    split = _step(rule)
    if split is not None:

        def add_terms(x: F32, w: F32, p: F32) -> F32:
            for term in split(w):
                p = p + shift(x, term)
            return p

        return add_terms
    match = re.fullmatch(r"lmul([0-9]*)", rule)
    if match is None:
        raise ShapeError(f"'{rule}' is no rule for float activations")
    mantissa = int(match[1] or 23)
    return lambda x, w, p: p + lmul(x, w, mantissa)


def entry_of(rule: str, table: Any = None) -> Callable[[int, int, int, int], int]:
    """entry(q, code, t, bits): what stands for q t; code and t of the weight, bits of the activation."""
    name = rule.removeprefix("table=")
    if table is not None:
        return lambda q, code, t, bits: int(table[q % 2**bits, code])
    if name == "exact":
        return lambda q, code, t, bits: q * t
    if name == "mitchell":
        return lambda q, code, t, bits: mitchell(q, t)
    columns = int(name.removeprefix("trunc"))
    return lambda q, code, t, bits: truncated(q, t, columns)


def matmul(
    x: F32, parts: dict[str, Any], fmt: Any, shape: tuple[int, int], rule: str, act: str | None = None, bias: F32 | None = None, table: Any
    = None
) -> F32:  # fmt: skip
    """As `anybit.reference.linear.matmul`, by a product rule; `table`: of a rule that has one, int[2**a, 2**w]."""
    w = operands(parts, fmt, shape)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if rule.startswith("table"):
            y = _matmul_lookup(x, parts["codes"], w, fmt.element.bits, entry_of(rule, table), {"int8": 8, "int4": 4}[act or ""])
        else:
            y = _matmul_float(x, w, step_of(rule))
        return y if bias is None else y + bias


def _matmul_lookup(x: F32, codes: Any, w: Any, width: int, entry: Callable[[int, int, int, int], int], bits: int) -> F32:
    k, edges = x.shape[1], act_edges(x.shape[1], w.block)
    most = 2 ** (bits - 1) - 1
    q, s, _ = quantize_activations(x, edges, most)
    ints = np.zeros(1 << width, np.int64)
    ints[codes.reshape(-1)] = w.t.reshape(-1)
    table = np.array([[entry(i, c, int(ints[c]), bits) for c in range(1 << width)] for i in range(-most, most + 1)], np.int64)
    acc = np.zeros((x.shape[0], codes.shape[0]), np.float32)
    for a, (first, last) in enumerate(pairwise(edges)):
        dot = np.zeros(acc.shape, np.int64)
        for i in range(first, min(last, k)):
            dot += table[q[:, i, None].astype(np.int64) + most, codes[None, :, i]]
        acc = fma(dot.astype(np.float32), s[:, a, None] * w.sw[None, :, first // w.block], acc)
    return acc


def attention(q: F32, k: F32, v: F32, positions: npt.NDArray[np.int64], rule: str, window: int | None = None) -> F32:
    """As `anybit.reference.ops.attention`, with the products q k and p v by an L-Mul rule."""
    return ops.attention(q, k, v, positions, window, step_of(rule))
