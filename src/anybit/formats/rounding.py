"""How a real number becomes one of finitely many: rounding modes, overflow and non-finite policies, and exact switch points.

An element is seen as its sorted finite values plus one virtual neighbour beyond each end. Between two neighbours a < b lies one switch
point: the smallest float64 that goes to b. It is computed with exact fractions once, so encoding is a search and never rounds twice.
Where the nearest modes have their tie is the element's word (`Element.ties`); over=wrap is arithmetic on whole numbers and no search.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from anybit.errors import FormatError, near_misses

if TYPE_CHECKING:
    from anybit.formats.element import Element

ROUNDS = ("nearest-even", "nearest-away", "nearest-zero", "zero", "up", "down", "odd")
OVERS = ("saturate", "inf", "nan", "error", "wrap")
NONFINITES = ("error", "propagate", "saturate")
# Large enough for the indices that numpy makes of a chunk, small enough for the second-level cache.
CHUNK = 1 << 17
_TABLE_FROM = 1 << 13
_STOCHASTIC = re.compile(r"sr([1-9]|[12][0-9]|3[0-2])?")


def stochastic_bits(mode: str) -> int | None:
    """The number of random bits of a stochastic mode, `sr1` to `sr32` (`sr` is sr24); None for any other name.

    >>> stochastic_bits("sr8"), stochastic_bits("sr"), stochastic_bits("zero")
    (8, 24, None)
    """
    found = _STOCHASTIC.fullmatch(mode) if isinstance(mode, str) else None
    if found is None:
        return None
    return int(found[1] or 24)


def check_choice(what: str, name: str, allowed: tuple[str, ...]) -> None:
    """Raises FormatError with the allowed names if `name` is none of them."""
    if name not in allowed:
        raise FormatError(f"{what}={name}: use one of {', '.join(allowed)}{near_misses(name, allowed)}")


def round_integral(x: np.ndarray, mode: str) -> np.ndarray:
    """Rounds to whole numbers, exactly; returns a new array of x's dtype. Parity is the number's own."""
    if mode == "nearest-even":
        return np.rint(x)
    if mode == "up":
        return np.ceil(x)
    if mode == "down":
        return np.floor(x)
    whole = np.trunc(x)
    if mode == "zero":
        return whole
    # x - trunc(x) is exact. An infinity has no fraction, only the difference of two infinities.
    with np.errstate(invalid="ignore"):
        rest = np.abs(x - whole)
    if mode == "nearest-away":
        away = rest >= 0.5
    elif mode == "nearest-zero":
        away = rest > 0.5
    else:
        with np.errstate(invalid="ignore"):
            away = (rest > 0) & (np.fmod(whole, 2) == 0)
    return np.where(away, whole + np.copysign(np.ones((), x.dtype), x), whole)


def _goes_up(a: float, b: float, code_a: int, code_b: int, mode: str) -> bool:
    """Whether the exact middle between a and b goes to b, for the nearest modes."""
    if mode != "nearest-even" and abs(a) != abs(b):
        return (abs(b) > abs(a)) == (mode == "nearest-away")
    if (code_a & 1) != (code_b & 1):
        return code_b & 1 == 0
    return code_b < code_a


def switch_point(a: float, b: float, code_a: int, code_b: int, mode: str, tie: Fraction) -> float:
    """The smallest float64 that goes to b rather than to a, for a < b, with the tie of the nearest modes in a .. b.

    Nearest ties: to the even code (two codes of one parity: the smaller); away from or toward zero by magnitude. Odd: an inexact value
    goes to the odd code. Zero: toward zero; across a gap without zero, to the neighbour of x's sign (0 counts as positive).
    A tie that is a or b itself leaves the whole gap to the other one: a value stays what it is.
    """
    above_a = float(np.nextafter(a, np.inf))
    if mode == "down":
        return b
    if mode == "up":
        return above_a
    if mode == "zero":
        if a < 0 < b:
            return 0.0
        return b if a >= 0 else above_a
    if mode == "odd":
        to_b = (code_b & 1 == 1) if (code_a & 1) != (code_b & 1) else code_b < code_a
        return above_a if to_b else b
    if tie == a:
        return above_a
    if tie == b:
        return b
    middle = float(tie)
    if Fraction(middle) == tie:
        return middle if _goes_up(a, b, code_a, code_b, mode) else float(np.nextafter(middle, np.inf))
    return middle if Fraction(middle) > tie else float(np.nextafter(middle, np.inf))


def switch_points(chain: np.ndarray, codes: np.ndarray, mode: str, ties: Callable[[], tuple[Fraction, ...]] | None) -> np.ndarray:
    """float64[n - 1]: `switch_point` of every gap of float64[n] chain, whose codes are int64[n].

    `ties` gives those of the nearest modes; None: they are the exact middles, without fractions. A sum of two float64 has an error
    that is a float64 too (Knuth, The Art of Computer Programming, vol. 2, 4.2.2, theorem B): its sign says on which side of the middle
    the rounded one lies.
    """
    a, b, code_a, code_b = chain[:-1], chain[1:], codes[:-1], codes[1:]
    above_a = np.nextafter(a, np.inf)
    by_code = np.where((code_a ^ code_b) & 1 == 1, code_b & 1 == (mode == "odd"), code_b < code_a)
    if mode in ("down", "up"):
        return b.copy() if mode == "down" else above_a
    if mode == "zero":
        return np.where((a < 0) & (b > 0), 0.0, np.where(a >= 0, b, above_a))
    if mode == "odd":
        return np.where(by_code, above_a, b)
    with np.errstate(over="ignore", invalid="ignore"):
        total = a + b
        part = total - a
        error = (a - (total - part)) + (b - part)
    if ties is not None or not np.all(np.isfinite(error) & ((total == 0) | (np.abs(total) >= 2.0**-1000))):
        found = ties() if ties is not None else tuple((Fraction(u) + Fraction(v)) / 2 for u, v in zip(a.tolist(), b.tolist(), strict=True))
        gaps = zip(a.tolist(), b.tolist(), code_a.tolist(), code_b.tolist(), found, strict=True)
        return np.array([switch_point(u, v, m, n, mode, tie) for u, v, m, n, tie in gaps], np.float64)
    middle = total / 2
    low, high = np.abs(a), np.abs(b)
    up = by_code if mode == "nearest-even" else np.where(low == high, by_code, (high > low) == (mode == "nearest-away"))
    return np.where((error < 0) | ((error == 0) & up), middle, np.nextafter(middle, np.inf))


class Switches:
    """One element under one rounding and one overflow policy: float32 or float64 in, codes out.

    `points[i]` is the smallest float64 of rank i + 1, `points32[i]` the smallest float32; rank 0 is below the range, rank r in 1..n the
    r-th finite value, rank n + 1 above it.
    Large float32 arrays go through a table over the upper 16 bits; only the few values whose bucket holds a switch point are searched.
    """

    def __init__(self, element: Element, mode: str, over: str) -> None:
        assert over != "wrap", "wrapping is the element's own arithmetic"
        self.element, self.over = element, over
        values, codes = element.finite, element.finite_codes
        below, above = element.beyond
        # A virtual neighbour counts as the next code: of the other parity.
        parity = np.r_[int(codes[0]) ^ 1, codes.astype(np.int64), int(codes[-1]) ^ 1]
        ties = None if element.ties_are_middles else lambda: element.ties
        self.points = switch_points(np.r_[below, values, above], parity, mode, ties)
        special = element.specials
        ends = [int(codes[0]), int(codes[-1])]
        if over == "inf":
            ends = [special.get("-inf", ends[0]), special["inf"]]
        elif over == "nan":
            ends = [special["nan"]] * 2
        self.codes = np.array([ends[0], *codes.tolist(), ends[1]], dtype=element.code_dtype)
        self.minus_zero = special.get("-0")
        self.plus_zero = int(codes[np.searchsorted(values, 0.0)]) if element.has_zero else -1
        self._table: np.ndarray | None = None
        with np.errstate(over="ignore", under="ignore"):
            as32 = self.points.astype(np.float32)
        self.points32 = np.where(as32.astype(np.float64) < self.points, np.nextafter(as32, np.float32(np.inf)), as32)

    def search(self, x: np.ndarray) -> np.ndarray:
        """Codes of any float32 or float64 array; an infinity counts as a value out of range."""
        rank = np.searchsorted(self.points32 if x.dtype == np.float32 else self.points, x, side="right")
        if self.over == "error":
            outside = (rank == 0) | (rank == len(self.codes) - 1)
            if outside.any():
                raise_out_of_range(self.element, x, outside)
        codes = self.codes[rank]
        if self.minus_zero is not None:
            codes = np.where(np.signbit(x) & (codes == self.plus_zero), self.codes.dtype.type(self.minus_zero), codes)
        return codes

    def _bucket_table(self) -> np.ndarray:
        """uint16[65536]: the code of every float32 with these upper 16 bits, or 65535 where they differ or are not finite."""
        if self._table is None:
            first = np.arange(1 << 16, dtype=np.uint32) << 16
            last = first | np.uint32(0xFFFF)
            low, high = first.view(np.float32), last.view(np.float32)
            points = self.points32
            rank_low, rank_high = np.searchsorted(points, low, side="right"), np.searchsorted(points, high, side="right")
            sure = (rank_low == rank_high) & np.isfinite(low) & np.isfinite(high)
            table = np.full(1 << 16, 0xFFFF, dtype=np.uint16)
            codes = self.codes[rank_low].astype(np.uint16)
            if self.minus_zero is not None:
                codes = np.where(np.signbit(low) & (codes == self.plus_zero), np.uint16(self.minus_zero), codes)
            table[sure] = codes[sure]
            self._table = table
        return self._table

    def encode(self, x: np.ndarray) -> np.ndarray:
        """The same as search, faster for large float32 arrays of elements of at most 8 bits."""
        if x.dtype != np.float32 or x.size < _TABLE_FROM or self.codes.dtype != np.uint8 or self.over == "error":
            return self.search(x)  # an error names places in x: nothing may be looked up apart
        flat = np.ascontiguousarray(x).reshape(-1)
        out = np.empty(flat.shape, dtype=np.uint8)
        table = self._bucket_table()
        for start in range(0, flat.size, CHUNK):
            part = flat[start : start + CHUNK]
            found = table[part.view(np.uint16)[_HIGH_HALF::2]]
            out[start : start + CHUNK] = found
            unsure = np.flatnonzero(found == 0xFFFF)
            if unsure.size:
                out[start + unsure] = self.search(part[unsure])
        return out.reshape(x.shape)


_HIGH_HALF = 1 if np.little_endian else 0


class OutOfRangeError(FormatError):
    """over=error met a value that the element cannot hold: `value` is the first."""

    value = float("nan")


def raise_out_of_range(element: Element, x: np.ndarray, outside: np.ndarray) -> NoReturn:
    """Raises OutOfRangeError naming the first value that does not fit, its index and how many there are."""
    index = np.unravel_index(int(np.argmax(outside)), outside.shape)
    place = f" at index ({', '.join(map(str, map(int, index)))})" if index else ""
    error = OutOfRangeError(
        f"{int(outside.sum())} value(s) outside {element.name}'s range {element.min:g} to {element.max:g},"
        f" the first {float(x[index]):g}{place}; use over=saturate to clip"
    )
    error.value = float(x[index])
    raise error
