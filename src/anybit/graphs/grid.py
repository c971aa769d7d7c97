"""Uniform grids of activations, and real factors as integers b / 2^c: where floats end and integers begin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from anybit.errors import NonFiniteError, UsageError

SCHEMES = ("affine", "symmetric")
LARGEST_SHIFT = 62


@dataclass(frozen=True)
class ActGrid:
    """value = (q - zero) * scale for whole numbers q from low to high."""

    scale: float
    zero: int
    low: int
    high: int

    @classmethod
    def of(cls, low: float, high: float, bits: int, scheme: str = "affine") -> ActGrid:
        """The grid of 2 to 16 bits for numbers from low to high, which is widened to hold 0.

        affine: q from 0 to 2^bits - 1, scale = (high - low) / (2^bits - 1), zero = -low / scale to nearest (ties to even);
        symmetric: q from -m to m, m = 2^(bits - 1) - 1, zero = 0, scale = max(|low|, |high|) / m. A range of nothing but 0 has scale 1.

        >>> ActGrid.of(-1.0, 3.0, 4)
        ActGrid(scale=0.26666666666666666, zero=4, low=0, high=15)
        """
        if scheme not in SCHEMES:
            raise UsageError(f"no scheme '{scheme}' of activations; use affine or symmetric")
        if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 16:
            raise UsageError(f"activations of {bits!r} bits; use 2 to 16")
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise UsageError(f"a range from {low} to {high}; give finite numbers, the lower first")
        low, high = min(low, 0.0), max(high, 0.0)
        if scheme == "symmetric":
            most = (1 << (bits - 1)) - 1
            return cls(max(-low, high) / most or 1.0, 0, -most, most)
        most = (1 << bits) - 1
        scale = (high - low) / most or 1.0
        return cls(scale, round(-low / scale), 0, most)

    @property
    def bits(self) -> int:
        """Bits of a stored q."""
        return (self.high - self.low).bit_length()

    @property
    def dtype(self) -> np.dtype:
        """The smallest integer type that holds q."""
        return smallest(self.low, self.high)

    def encode(self, x: Any) -> np.ndarray:
        """clip(rne(x / scale) + zero), in float64, as integers of `dtype`. NonFiniteError: NaN or infinity."""
        x = np.asarray(x, np.float64)
        if not np.isfinite(x).all():
            raise NonFiniteError(f"numbers to encode hold {int((~np.isfinite(x)).sum())} non-finite value(s); remove them")
        return np.clip(np.rint(x / self.scale) + self.zero, self.low, self.high).astype(self.dtype)

    def decode(self, q: np.ndarray) -> np.ndarray:
        """float32 values of integers."""
        return ((np.asarray(q, np.float64) - self.zero) * self.scale).astype(np.float32)


def smallest(low: int, high: int) -> np.dtype:
    """The smallest integer type that holds low to high; unsigned if low is not negative."""
    kinds = ("u1", "u2", "u4") if low >= 0 else ("i1", "i2", "i4")
    return next(np.dtype(kind) for kind in kinds if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)


def dyadic(factor: float) -> tuple[int, int]:
    """Whole numbers (b, c) with b / 2^c next to a positive factor: 2^30 <= b < 2^31 and 0 <= c <= 62, below 2^-32 a smaller b.

    The relative error is at most 2^-31 (half a step of b), from 2^-32 on. UsageError: a factor of 2^31 or more, or none that is positive.

    Source: HAWQ-V3, arXiv 2011.10680 (dyadic numbers).

    >>> dyadic(0.75), dyadic(2.0**-40)
    ((1610612736, 31), (4194304, 62))
    """
    if not 0 < factor < 2.0**31:
        raise UsageError(f"a factor of {factor:g} between two scales has no dyadic number; it must be positive and below 2^31")
    c = min(31 - math.frexp(factor)[1], LARGEST_SHIFT)
    b = round(math.ldexp(factor, c))
    return (b >> 1, c - 1) if b == 1 << 31 and c else (min(b, (1 << 31) - 1), c)
