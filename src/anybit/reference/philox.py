"""Philox4x32-10: random numbers as a pure function of (key, counter)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U32 = npt.NDArray[np.uint32]

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def philox(counter: npt.ArrayLike, key: npt.ArrayLike) -> U32:
    """Four random words for each counter.

    Args: counter uint32[..., 4], key uint32[..., 2], broadcast against each other without their last axis.
    Returns: uint32[..., 4].
    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011; known answers of Random123.

    >>> [hex(word) for word in philox([0, 0, 0, 0], [0, 0])]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c = np.asarray(counter, np.uint32).astype(np.uint64)
    k = np.asarray(key, np.uint32).astype(np.uint64)
    c0, c1, c2, c3 = (c[..., i] for i in range(4))
    k0, k1 = k[..., 0], k[..., 1]
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(ROUNDS):
        product0, product1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (product1 >> shift) ^ c1 ^ k0, product1 & low, (product0 >> shift) ^ c3 ^ k1, product0 & low
        k0, k1 = (k0 + np.uint64(WEYL[0])) & low, (k1 + np.uint64(WEYL[1])) & low
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1).astype(np.uint32)


def uniform(seed: int, position: int) -> float:
    """The number that draws the token at a position: in [0, 1), a multiple of 2^-53.

    Words a, b of counter (position low, position high, 0, 0) under the key (seed low, seed high): ((a >> 5) 2^26 + (b >> 6)) 2^-53.
    """
    low = 0xFFFFFFFF
    a, b = philox([position & low, position >> 32, 0, 0], [seed & low, seed >> 32])[:2].tolist()
    return ((a >> 5) * 2.0**26 + (b >> 6)) * 2.0**-53
