"""Stochastic rounding: up or down in proportion to the distance, by random bits that depend on nothing but a seed and a value's place.

Sixteen counters of Philox4x32-10, (c low, c high, 0, 0) under the key (seed low, seed high), serve sixteen values by their words 0, the
next sixteen by their words 1, and so on: value i of an array (C order, counted from 0) has word i % 16P // 16 of counter
c = 16 (i // 16P) + i % 16. Modes of 25 bits and more have P = 4. Those of up to 24 use the upper 24 bits of each word, and what is left
over makes a fifth one, P = 5: w4 = w0 << 24 ^ w1 << 16 ^ w2 << 8. The lowest bytes of w0, w1 and w2 are in nothing else, so its upper 24
bits are as random as the others' whatever those are.

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
    ['0xa2e87675', '0xe169c58d']
    """
    pieces = 5 if bits <= 24 else 4
    group = 16 * pieces
    first, last = start // group, -(-(start + count) // group)
    found = _philox(seed, np.arange(16 * first, 16 * last, dtype=np.uint64))
    if pieces == 5:
        fifth = found[:, 0] << np.uint32(24) ^ found[:, 1] << np.uint32(16) ^ found[:, 2] << np.uint32(8)
        found = np.column_stack([found, fifth])
    return found.reshape(-1, 16, pieces).swapaxes(1, 2).reshape(-1)[start - group * first :][:count]


def _philox(seed: int, counter: np.ndarray) -> np.ndarray:
    """uint32[n, 4] for counters (low, high, 0, 0)."""
    k0, k1 = int(seed) & 0xFFFFFFFF, int(seed) >> 32
    c0, c1 = counter & _LOW, counter >> _SHIFT
    c2, c3 = np.zeros_like(c0), np.zeros_like(c0)
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
