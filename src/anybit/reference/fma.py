"""Exact float32 fused multiply-add in NumPy: the one operation of the numerical contract that NumPy does not have."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


def fma(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> F32:
    """a * b + c with a single rounding to nearest even, elementwise with broadcasting.

    Infinities, signed zeros, NaN and subnormal results are those of IEEE 754; the payload of a NaN is unspecified.

    How: the product of two float32 is exact in float64 (48 bits, exponents down to -298). The sum is taken with its exact error
    (Knuth's TwoSum) and rounded to odd: an inexact sum whose last bit is even moves one step toward the error. An odd last bit
    marks "there is more below", so the rounding to float32 that follows, which keeps at least 2 bits fewer in the normal range
    and fewer still among the subnormals, sees neither a false tie nor a false exact value. `float32(float64(a) * b + c)` does.

    Args: float32 arrays or scalars (anything that float32 holds exactly).
    Returns: float32, the broadcast shape.
    Source: round to odd: Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", IEEE TC 57 (2008).

    >>> float(fma(2.0**-12 * (1 + 2.0**-23), 2.0**-12 * (1 - 2.0**-23), 1.0 + 2.0**-23)) == 1.0 + 2.0**-23
    True
    """
    x, y, z = (_float32(v).astype(np.float64) for v in (a, b, c))
    with np.errstate(all="ignore"):
        product = x * y
        total = product + z
        part = total - product
        error = (product - (total - part)) + (z - part)
        bits = np.ascontiguousarray(total).view(np.int64)
        inexact = np.isfinite(total) & (error != 0) & ((bits & 1) == 0)
        away = np.where((error > 0) == (total > 0), 1, -1)
        odd = np.where(inexact, bits + away, bits).view(np.float64)
        return odd.reshape(total.shape).astype(np.float32)


def _float32(value: npt.ArrayLike) -> F32:
    """The argument as float32; a float64 array is a mistake of the caller (its rounding would not be the contract's)."""
    array: Any = np.asarray(value)
    if array.dtype == np.float64 and array.ndim:
        raise TypeError("fma takes float32 arrays, not float64")
    return array.astype(np.float32)
