"""Stochastic rounding: up or down in proportion to the distance, by random bits that depend on nothing but a seed and a value's place.

Value i of an array (C order, counted from 0) has a word of 32 bits. Its upper half is half i % 2 (0: the lower one) of word
i % 128 // 32 of counter (c low, c high, 0, 0) of Philox4x32-10 under the key (seed low, seed high), c = 16 (i // 128) + i % 32 // 2:
sixteen counters serve 128 values, and words laid out counter by counter are halves in the order of values. The lower half is the same half
of the same word of counter (c low, c high, 1, 0). It decides about one value in 2^16, whose upper half ties: only for these is it needed.

A word's upper N bits are r. A value x lies between the neighbours `near`, on zero's side or x itself, and `far`; the
element continues by one virtual neighbour beyond each end, and a value that goes there is out of range. It goes to `far` where

    fl(r * fl(|far - near|)) < fl(|x - near|) * 2^N          fl: one rounding to float64

For grids whose steps are powers of two all of this is exact. Positive and negative values see the same bits, so negating an array negates
the result where the element is symmetric. Exact values stay.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from anybit.errors import FormatError
from anybit.formats.rounding import ROUNDS, check_choice, raise_out_of_range, stochastic_bits

if TYPE_CHECKING:
    from anybit.formats.element import Element

SEEDS = 1 << 64
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


def check_seed(seed: int) -> None:
    """Raises FormatError for anything but an integer of 64 bits."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= int(seed) < SEEDS:
        raise FormatError(f"seed={seed}: use an integer from 0 to 2^64 - 1")


def words(seed: int, start: int, count: int) -> np.ndarray:
    """uint32[count]: word i % 4 of counter i // 4 for i = start .. start + count - 1: signs and other numbers that are drawn one by one.

    >>> [hex(word) for word in words(0, 1, 2)]
    ['0xe169c58d', '0xbc57ac4c']
    """
    first, last = start // 4, -(-(start + count) // 4)
    return _philox(seed, np.arange(first, last, dtype=np.uint64)).reshape(-1)[start - 4 * first :][:count]


def drawn(seed: int, start: int, count: int, bits: int) -> np.ndarray:
    """uint32[count]: the words by which values at places start .. start + count - 1 are rounded; their upper `bits` bits count.

    >>> [hex(word) for word in drawn(0, 15, 2, 24)]
    ['0xa8b31564', '0xa964ff7f']
    """
    upper = _halves(seed, start, count, 0) << np.uint32(16)
    return upper if bits <= 16 else upper | _halves(seed, start, count, 1)


def _halves(seed: int, start: int, count: int, stream: int) -> np.ndarray:
    """uint32[count], below 2^16: halves of the words of counters (c low, c high, stream, 0), in the order of values."""
    first, last = start // 128, -(-(start + count) // 128)
    found = _philox(seed, np.arange(16 * first, 16 * last, dtype=np.uint64), stream).reshape(-1, 16, 4).swapaxes(1, 2).reshape(-1)
    halves = np.stack([found & np.uint32(0xFFFF), found >> np.uint32(16)], axis=-1)
    return halves.reshape(-1)[start - 128 * first :][:count]


def _philox(seed: int, counter: np.ndarray, stream: int = 0) -> np.ndarray:
    """uint32[n, 4] for counters (low, high, stream, 0)."""
    k0, k1 = int(seed) & 0xFFFFFFFF, int(seed) >> 32
    c0, c1 = counter & _LOW, counter >> _SHIFT
    c2, c3 = np.full_like(c0, stream), np.zeros_like(c0)
    for _ in range(10):
        a, b = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (b >> _SHIFT) ^ c1 ^ np.uint64(k0), b & _LOW, (a >> _SHIFT) ^ c3 ^ np.uint64(k1), a & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def goes_far(word: np.ndarray, bits: int, distance: np.ndarray, gap: np.ndarray | float) -> np.ndarray:
    """Whether values at float64 `distance` from `near` go to `far`, `gap` further on than `near`: the comparison above."""
    r = (word >> np.uint32(32 - bits)).astype(np.float64)
    return r * gap < distance * 2.0**bits


def stochastic_codes(element: Element, x: np.ndarray, bits: int, over: str, word: np.ndarray) -> np.ndarray:
    """Codes of a float32 or float64 array without NaN, with one random word a value; elements of at most 16 bits."""
    from anybit.formats.element import switches

    ends = switches(element, "nearest-even", over)
    below, above = element.beyond
    chain = np.r_[below, element.finite, above]
    last = len(chain) - 1
    value, negative = x.astype(np.float64), np.signbit(x)
    near = np.where(negative, np.searchsorted(chain, value, side="left"), np.searchsorted(chain, value, side="right") - 1)
    far = np.clip(np.where(negative, near - 1, near + 1), 0, last)
    near = np.clip(near, 0, last)
    with np.errstate(invalid="ignore"):  # an infinity lies beyond the last neighbour: near and far are the same
        away = goes_far(word, bits, np.abs(value - chain[near]), np.abs(chain[far] - chain[near]))
    rank = np.where(away, far, near)
    if over == "error":
        outside = (rank == 0) | (rank == last)
        if outside.any():
            raise_out_of_range(element, x, outside)
    codes = ends.codes[rank]
    if ends.minus_zero is not None:
        codes = np.where(negative & (codes == ends.plus_zero), codes.dtype.type(ends.minus_zero), codes)
    return codes


def stochastic_integral(x: np.ndarray, bits: int, word: np.ndarray) -> np.ndarray:
    """Whole numbers of x's dtype; the steps of an integer grid are 1 everywhere."""
    whole = np.trunc(x)
    away = goes_far(word, bits, np.abs(x.astype(np.float64) - whole), 1.0)
    return np.where(away, whole + np.copysign(np.ones((), x.dtype), x), whole)


def check_round(name: str) -> None:
    """Raises FormatError for an unknown rounding mode."""
    if stochastic_bits(name) is None:
        check_choice("round", name, (*ROUNDS, "sr1 .. sr32"))
