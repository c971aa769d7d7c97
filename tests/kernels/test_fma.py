"""The NumPy fma against libm's fmaf, which is exact, bit for bit."""

from __future__ import annotations

import ctypes
import ctypes.util

import numpy as np
import numpy.typing as npt
import pytest

from anybit.reference.fma import fma

_LIBM = ctypes.CDLL(ctypes.util.find_library("m") or "libm.so.6")
_LIBM.fmaf.restype = ctypes.c_float
_LIBM.fmaf.argtypes = [ctypes.c_float] * 3

N = 20_000
SPECIAL = np.array(
    [0, 1, 2, 3, 0.5, 2.0**-126, 2.0**-149, 3 * 2.0**-149, 2.0**-127, 2.0**127, 3.4028235e38, 1 + 2.0**-23, 1 - 2.0**-24, np.inf, np.nan],
    np.float32,
)


def check(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> None:
    x, y, z = (np.ascontiguousarray(v, np.float32).ravel() for v in np.broadcast_arrays(a, b, c))
    want = np.array([_LIBM.fmaf(*v) for v in zip(x.tolist(), y.tolist(), z.tolist(), strict=True)], np.float32)
    got = fma(x, y, z)
    same = (got.view(np.uint32) == want.view(np.uint32)) | (np.isnan(got) & np.isnan(want))
    wrong = np.flatnonzero(~same)[:3]
    assert same.all(), [(x[i], y[i], z[i], got[i], want[i]) for i in wrong]


def random_floats(rng: np.random.Generator, n: int, low: int, high: int) -> np.ndarray:
    """Any mantissa and sign, binary exponent in low .. high."""
    return np.ldexp(rng.choice([-1, 1], n) * rng.integers(2**23, 2**24, n), rng.integers(low, high, n) - 23).astype(np.float32)


def test_special_values_in_every_combination() -> None:
    values = np.concatenate([SPECIAL, -SPECIAL])
    check(values[:, None, None], values[None, :, None], values[None, None, :])


@pytest.mark.parametrize("spread", [1, 30, 60])
def test_random(spread: int) -> None:
    rng = np.random.default_rng(spread)
    check(*(random_floats(rng, N, -spread, spread) for _ in range(3)))


def test_addend_far_above_or_below_the_product() -> None:
    rng = np.random.default_rng(1)
    a, b = random_floats(rng, N, -3, 3), random_floats(rng, N, -3, 3)
    check(a, b, np.ldexp(random_floats(rng, N, 0, 1), rng.integers(-60, 60, N)).astype(np.float32))


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_ties_that_the_product_breaks(offset: int) -> None:
    """The product is half an ulp of c, less or more by one unit in its own last place: double rounding gets these wrong."""
    rng = np.random.default_rng(2)
    c = random_floats(rng, N, 0, 1)
    half = np.float32(2.0**-12)
    check(half * np.float32(1 + offset * 2.0**-23), half, c)
    check(half * np.float32(1 + 2.0**-23), half * np.float32(1 - 2.0**-23), c)
    check(half * np.float32(1 + 2.0**-23), -half * np.float32(1 - 2.0**-23), c)


def test_subnormal_results() -> None:
    """Products around the smallest subnormals, ties included, with and without an addend."""
    rng = np.random.default_rng(3)
    a, b = random_floats(rng, N, -80, -60), random_floats(rng, N, -85, -60)
    for c in (np.zeros(N, np.float32), random_floats(rng, N, -149, -126), random_floats(rng, N, -130, -120)):
        check(a, b, c)
    tie = np.float32(2.0**-75)  # squared: half of the smallest subnormal
    c = (rng.integers(0, 2**23, N) * 2.0**-149).astype(np.float32)
    for factor in (1, 1 + 2.0**-23, 1 - 2.0**-24):
        check(tie, tie * np.float32(factor), c)
        check(tie, -tie * np.float32(factor), c)


def test_cancellation_and_overflow() -> None:
    rng = np.random.default_rng(4)
    a, b = random_floats(rng, N, -10, 10), random_floats(rng, N, -10, 10)
    check(a, b, -(a * b))
    huge = random_floats(rng, N, 62, 65)
    check(huge, huge[::-1], random_floats(rng, N, 100, 127))


def test_the_plain_way_fails_where_this_one_does_not() -> None:
    """The test data above can tell a double rounding: float32(float64(a) * b + c) is wrong on it."""
    a, b, c = np.float32(2.0**-12 * (1 + 2.0**-23)), np.float32(2.0**-12 * (1 - 2.0**-23)), np.float32(1 + 2.0**-23)
    assert np.float32(np.float64(a) * np.float64(b) + np.float64(c)) != fma(a, b, c)


def test_refuses_float64() -> None:
    with pytest.raises(TypeError, match="float64"):
        fma(np.ones(2), np.ones(2, np.float32), np.ones(2, np.float32))
