"""Optimal one-dimensional codebooks: against all ways to cut, against Lloyd's algorithm, and reduced data within the stated bound."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from anybit.errors import ShapeError, UsageError
from anybit.methods.kmeans import POINTS, Histogram, codebook_of_points, optimal_codebook


def error_of(x: np.ndarray, w: np.ndarray, book: np.ndarray) -> float:
    return float((w * np.square(x[:, None] - book).min(axis=1)).sum())


def least_of_all_cuts(x: np.ndarray, w: np.ndarray, k: int) -> float:
    """By trying every way to cut the sorted values into k runs."""
    order = np.argsort(x, kind="stable")
    x, w = x[order], w[order]

    def run(first: int, end: int) -> float:
        if not w[first:end].sum():
            return 0.0
        mean = np.average(x[first:end], weights=w[first:end])
        return float((w[first:end] * (x[first:end] - mean) ** 2).sum())

    best = np.inf
    for cuts in combinations(range(1, len(x)), min(k, len(x)) - 1):
        edges = [0, *cuts, len(x)]
        best = min(best, sum(run(a, b) for a, b in pairwise(edges)))
    return best


@pytest.mark.parametrize("seed", range(40))
def test_no_cut_is_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(1, 12)), int(rng.integers(1, 6))
    x = rng.standard_t(2, n) if seed % 2 else rng.integers(-4, 5, n).astype(float)
    x = x * 10.0 ** rng.integers(-6, 7) + rng.integers(-1, 2) * 100
    w = rng.exponential(size=n) * rng.integers(0, 2, n) + (seed % 3 == 0)
    if not w.any():
        w[0] = 1
    book = optimal_codebook(x, k, w)
    assert len(book) <= k and np.all(np.diff(book) > 0)
    best = least_of_all_cuts(x, w, k)
    assert error_of(x, w, book) <= best * (1 + 1e-9) + 1e-12 * float((w * x * x).sum())
    assert error_of(x, w, book) >= best * (1 - 1e-9) - 1e-12 * float((w * x * x).sum())


def test_weights_are_repetitions() -> None:
    x = np.random.default_rng(0).standard_normal(60)
    w = np.random.default_rng(1).integers(1, 5, 60)
    assert np.allclose(optimal_codebook(x, 7, w), optimal_codebook(np.repeat(x, w), 7), rtol=1e-12)
    assert not np.allclose(optimal_codebook(x, 7), optimal_codebook(x, 7, w), rtol=1e-3)


def test_never_worse_than_lloyd() -> None:
    """On a thousand points, from many starts; and fixed points of Lloyd's step: every entry is the mean of what is nearest to it."""
    x = np.random.default_rng(0).laplace(size=1000)
    book = optimal_codebook(x, 16)
    near = np.abs(x[:, None] - book).argmin(axis=1)
    assert np.allclose([x[near == i].mean() for i in range(16)], book, rtol=1e-9)
    for seed in range(10):
        other = np.random.default_rng(seed).choice(x, 16, replace=False)
        for _ in range(50):
            near = np.abs(x[:, None] - other).argmin(axis=1)
            other = np.array([x[near == i].mean() if (near == i).any() else other[i] for i in range(16)])
        assert error_of(x, np.ones(1000), book) <= error_of(x, np.ones(1000), other)


def test_known_quantizers() -> None:
    """The optimal quantizers of a normal source: Max 1960, IRE Trans. Inform. Theory 6, table I."""
    x = np.random.default_rng(0).standard_normal(400_000)
    for k, outer, error in ((2, 0.7980, 0.3634), (4, 1.510, 0.1175), (8, 2.152, 0.03454), (16, 2.733, 0.009497)):
        book = optimal_codebook(x, k)
        assert abs(book[-1] - outer) < 0.02 * outer and abs(book[0] + outer) < 0.02 * outer
        # 400,000 samples: the error's own standard error is below 0.4 %
        assert abs(np.square(x - book[np.searchsorted((book[1:] + book[:-1]) / 2, x)]).mean() / error - 1) < 0.012


def test_reduced_data_within_the_bound() -> None:
    """Many values in few bins: the codebook of the bins costs at most the stated bound more than the exact one."""
    rng = np.random.default_rng(3)
    x = np.sort(np.unique(rng.standard_t(4, 3000)))
    w = rng.exponential(size=len(x))
    for k, bins in ((4, 200), (9, 1000), (16, 2000)):
        exact = codebook_of_points(x, w, k)
        counted = Histogram(x[0], x[-1], bins)
        for part in np.array_split(np.arange(len(x)), 7):
            counted.add(x[part], w[part])
        rough = codebook_of_points(*counted.points(), k)
        assert np.isclose(counted.points()[1].sum(), w.sum())

        at = np.minimum((((exact[1:] + exact[:-1]) / 2 - x[0]) / counted.width).astype(int), bins - 1)
        bound = float((2 * counted.width * np.diff(exact) * counted.weight[at]).sum())
        excess = error_of(x, w, rough) - error_of(x, w, exact)
        assert -1e-9 < excess <= bound < error_of(x, w, exact) / 2, "and the bound says something"


def test_long_data() -> None:
    """More values than points: as good as the exact codebook of a part of them, and quick to state."""
    x = np.random.default_rng(0).standard_normal(20 * POINTS)
    book = optimal_codebook(x, 8)
    part = optimal_codebook(x[:POINTS], 8)
    assert error_of(x, np.ones(x.size), book) <= error_of(x, np.ones(x.size), part)


def test_edges() -> None:
    assert optimal_codebook(np.array([3.0, 3.0]), 4).tolist() == [3.0]
    assert optimal_codebook(np.array([1, 2, 3]), 1).tolist() == [2.0]
    assert optimal_codebook(np.arange(6.0), 2, np.array([1, 1, 1, 0, 0, 0])).tolist() in ([0.5, 2.0], [0.0, 1.5])
    for x, k, w in (([], 2, None), ([1.0], 2, [1.0, 2.0])):
        with pytest.raises(ShapeError, match="one weight each"):
            optimal_codebook(np.array(x), k, None if w is None else np.array(w))
    for k, w in ((0, [1.0]), (1, [-1.0]), (1, [0.0]), (1, [np.nan])):
        with pytest.raises(UsageError, match="a codebook needs k of at least 1"):
            optimal_codebook(np.array([1.0]), k, np.array(w))
