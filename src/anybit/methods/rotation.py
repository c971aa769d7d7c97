"""Orthogonal matrices for rotations that are folded into weights, in float64; the same for a seed on every machine but for last digits."""

from __future__ import annotations

import numpy as np

from anybit.formats.stochastic import words


def hadamard_matrix(n: int) -> np.ndarray:
    """float64[n, n]: Sylvester's Hadamard matrix over sqrt(n), n a power of two."""
    made = np.ones((1, 1))
    while len(made) < n:
        made = np.block([[made, made], [made, -made]])
    return made / np.sqrt(n)


def signs(n: int, seed: int) -> np.ndarray:
    """float64[n] of 1 and -1, drawn by Philox."""
    return np.where(words(seed, 0, n) >> np.uint32(31), -1.0, 1.0)


def orthogonal(n: int, seed: int) -> np.ndarray:
    """float64[n, n], uniform among the orthogonal matrices: Q of a Gaussian matrix, with R's diagonal positive."""
    drawn = (words(seed, 0, 2 * n * n).astype(np.float64) + 0.5) / 2.0**32
    gauss = np.sqrt(-2 * np.log(drawn[: n * n])) * np.cos(2 * np.pi * drawn[n * n :])
    q, r = np.linalg.qr(gauss.reshape(n, n))
    return np.asarray(q * np.sign(r.diagonal()))


def random_hadamard(n: int, seed: int) -> np.ndarray:
    """float64[n, n]: random signs, then the Hadamard matrix of the largest power of two in n, crossed with a random orthogonal matrix of
    what is left (QuaRot crosses with a tabled Hadamard matrix there). Every row has all of n in it."""
    odd = n // (n & -n)
    turned = np.kron(hadamard_matrix(n & -n), orthogonal(odd, seed + 1)) if odd > 1 else hadamard_matrix(n)
    return signs(n, seed)[:, None] * turned
