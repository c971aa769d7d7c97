import math

import numpy as np
import pytest
from numpy.typing import NDArray

from anybit.errors import NonFiniteError, UsageError
from anybit.measure.accuracy import (
    Accuracy,
    clustered,
    evaluate,
    kl_difference,
    native_row_stats,
    perplexity_difference,
    row_stats_numpy,
)  # fmt: skip

VOCAB = 11


class Fake:
    """Logits that depend on the token and on its position in the window, so that a wrong window shows."""

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        rng = np.random.default_rng(seed)
        self.table = (scale * rng.standard_normal((VOCAB, VOCAB))).astype(np.float32)
        self.drift = (0.1 * rng.standard_normal((64, VOCAB))).astype(np.float32)
        self.calls: list[int] = []

    def logits(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        self.calls.append(len(ids))
        return self.table[ids] + self.drift[: len(ids)]


def brute(model: Fake, reference: Fake, ids: list[int], window: int) -> list[tuple[int, float, float, bool]]:
    """(window, nll, kl, same) of every scored token, one scalar at a time with math.fsum."""
    rows = []
    for target_at in range(1, len(ids)):
        number, position = divmod(target_at - 1, window)
        token = ids[target_at - 1]
        found = [(model.table[token, v] + model.drift[position, v]).item() for v in range(VOCAB)]
        wanted = [(reference.table[token, v] + reference.drift[position, v]).item() for v in range(VOCAB)]
        q = [math.exp(v) / math.fsum(map(math.exp, found)) for v in found]
        p = [math.exp(v) / math.fsum(map(math.exp, wanted)) for v in wanted]
        kl = math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        rows.append((number, -math.log(q[ids[target_at]]), kl, found.index(max(found)) == wanted.index(max(wanted))))
    return rows


def jackknife_like(rows: list[tuple[int, float]]) -> tuple[float, float]:
    """Mean and clustered error by the definition: residuals summed inside windows, windows as observations."""
    mean = math.fsum(value for _, value in rows) / len(rows)
    windows = sorted({number for number, _ in rows})
    sums = [math.fsum(value - mean for number, value in rows if number == w) for w in windows]
    g = len(windows)
    return mean, math.sqrt(g / (g - 1) * math.fsum(s * s for s in sums)) / len(rows)


@pytest.fixture(scope="module")
def ids() -> NDArray[np.int32]:
    return np.random.default_rng(5).integers(0, VOCAB, 60).astype(np.int32)


@pytest.mark.parametrize("window", [7, 20, 59])
def test_against_brute_force(ids: NDArray[np.int32], window: int) -> None:
    model, reference = Fake(1, 1.5), Fake(2)
    found = evaluate({"m": model}, ids, reference, window, row_stats_numpy)["m"]
    rows = brute(model, reference, ids.tolist(), window)
    assert found.tokens == len(rows) == 59
    loss = math.fsum(row[1] for row in rows) / len(rows)
    assert found.perplexity.mean == pytest.approx(math.exp(loss), rel=1e-9)
    assert found.kl_mean is not None
    assert found.kl_mean.mean == pytest.approx(math.fsum(row[2] for row in rows) / len(rows), rel=1e-9)
    assert found.kl_p99 == pytest.approx(float(np.quantile([row[2] for row in rows], 0.99)), rel=1e-9)
    assert found.same_top1 == pytest.approx(sum(row[3] for row in rows) / len(rows))
    if window < 59:
        assert found.kl_mean.se == pytest.approx(jackknife_like([(row[0], row[2]) for row in rows])[1], rel=1e-9)
        expected = math.exp(loss) * jackknife_like([(row[0], row[1]) for row in rows])[1]
        assert found.perplexity.se == pytest.approx(expected, rel=1e-9)
    else:
        assert math.isnan(found.kl_mean.se)


def test_paired_difference_against_brute_force(ids: NDArray[np.int32]) -> None:
    a, b, reference = Fake(1, 1.2), Fake(3, 1.3), Fake(2)
    found = evaluate({"a": a, "b": b}, ids, reference, 8, row_stats_numpy)
    rows_a, rows_b = (brute(model, reference, ids.tolist(), 8) for model in (a, b))
    mean, se = jackknife_like([(x[0], x[2] - y[2]) for x, y in zip(rows_a, rows_b, strict=True)])
    difference = kl_difference(found["a"], found["b"])
    assert difference.mean == pytest.approx(mean, rel=1e-9)
    assert difference.se == pytest.approx(se, rel=1e-9)


def test_paired_difference_of_perplexities() -> None:
    """Against leaving out one window at a time; and a loss that is the same much larger everywhere differs by a known factor."""
    rng = np.random.default_rng(4)
    counts = np.full(300, 16, np.int64)
    shared = rng.standard_normal(300) * 8
    a, b = (Accuracy(16 * level + shared + rng.standard_normal(300), None, counts, np.arange(300), None, None) for level in (1.3, 1.2))

    def difference(kept: NDArray[np.bool_]) -> float:
        return float(np.exp(a.nll[kept].sum() / counts[kept].sum()) - np.exp(b.nll[kept].sum() / counts[kept].sum()))

    found, every = perplexity_difference(a, b), np.ones(300, bool)
    left_out = np.array([difference(every & (np.arange(300) != i)) for i in range(300)])
    assert found.mean == pytest.approx(difference(every), rel=1e-12)
    assert found.se == pytest.approx(math.sqrt(299 / 300 * np.square(left_out - left_out.mean()).sum()), rel=0.02)  # of order 1 / windows
    assert found.se < 0.5 * math.hypot(a.perplexity.se, b.perplexity.se), "what the windows share cancels"
    moved = Accuracy(a.nll + 0.25 * counts, None, counts, a.windows, None, None)
    found = perplexity_difference(moved, a)
    assert found.mean == pytest.approx(math.expm1(0.25) * a.perplexity.mean, rel=1e-9)
    assert found.se == pytest.approx(math.expm1(0.25) * a.perplexity.se, rel=1e-9)


def test_windows_of_one_token_give_the_usual_standard_error() -> None:
    values = np.random.default_rng(0).standard_normal(200)
    found = clustered(values, np.ones(200, dtype=np.int64))
    assert found.se == pytest.approx(values.std(ddof=1) / math.sqrt(200), rel=1e-12)


def test_the_error_covers_the_truth_when_windows_are_correlated() -> None:
    # Each window shares an offset as large as the noise: the naive error would be 4 times too small and cover about a third.
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        values = rng.standard_normal((40, 1)) + rng.standard_normal((40, 16))
        found = clustered(values.sum(axis=1), np.full(40, 16))
        covered += abs(found.mean) < 2 * found.se
    assert 0.90 <= covered / 400 <= 0.99  # 0.95 expected; the binomial error is 0.011


def test_reference_is_computed_once_a_window_and_not_again_for_itself(ids: NDArray[np.int32]) -> None:
    reference, other = Fake(2), Fake(1)
    steps: list[str] = []
    found = evaluate({"self": reference, "other": other}, ids, reference, 25, row_stats_numpy, lambda n, name: steps.append(name))
    assert reference.calls == [25, 25, 9]
    assert other.calls == [25, 25, 9]
    assert steps == ["self", "other"] * 3
    assert found["self"].kl_mean is not None
    assert found["self"].kl_mean.mean == 0.0
    assert found["self"].same_top1 == 1.0


def test_without_a_reference_there_is_perplexity_only(ids: NDArray[np.int32]) -> None:
    found = evaluate({"m": Fake(1)}, ids, None, 16, row_stats_numpy)["m"].describe()
    assert found["kl_mean"] is found["kl_mean_se"] is found["kl_p99"] is found["same_top1"] is None
    assert found["perplexity"] > 1
    assert list(found) == ["perplexity", "perplexity_se", "kl_mean", "kl_mean_se", "kl_p99", "same_top1", "tokens"]


def test_what_cannot_be_evaluated(ids: NDArray[np.int32]) -> None:
    with pytest.raises(UsageError, match="nothing to evaluate"):
        evaluate({"m": Fake(1)}, ids[:1], None, 16, row_stats_numpy)
    one = result(windows=[0, 1])
    with pytest.raises(UsageError, match="same windows"):
        kl_difference(one, result(windows=[2, 3]))
    with pytest.raises(UsageError, match="reference"):
        kl_difference(one, Accuracy(np.ones(2), None, np.array([2, 2]), np.arange(2), None, None))


def result(windows: list[int]) -> Accuracy:
    return Accuracy(np.ones(2), np.ones(2), np.array([2, 2]), np.array(windows), 0.1, 1.0)


def test_a_model_may_see_every_third_window_only(ids: NDArray[np.int32]) -> None:
    dense, sparse, reference = Fake(1), Fake(3), Fake(2)
    found = evaluate({"dense": dense, "sparse": sparse}, ids, reference, 8, row_stats_numpy, every={"sparse": 3})
    assert sparse.calls == [8, 8, 8]
    assert found["sparse"].windows.tolist() == [0, 3, 6]
    assert found["sparse"].tokens == 24
    rows_a, rows_b = ([row for row in brute(m, reference, ids.tolist(), 8) if row[0] % 3 == 0] for m in (sparse, dense))
    mean, se = jackknife_like([(x[0], x[2] - y[2]) for x, y in zip(rows_a, rows_b, strict=True)])
    difference = kl_difference(found["sparse"], found["dense"])
    assert (difference.mean, difference.se) == (pytest.approx(mean, rel=1e-9), pytest.approx(se, rel=1e-9))


def test_the_native_kernel_computes_the_same() -> None:
    rng = np.random.default_rng(3)
    reference = (4 * rng.standard_normal((37, 1003))).astype(np.float32)
    logits = (reference + 0.3 * rng.standard_normal((37, 1003))).astype(np.float32)
    targets = rng.integers(0, 1003, 37).astype(np.int32)
    for expected, found in zip(row_stats_numpy(reference, logits, targets), native_row_stats(reference, logits, targets), strict=True):
        # The kernel's exp is float32-accurate: a part in 2^-20 of the loss, and of the KL's terms, which are of order 1 here.
        assert np.allclose(np.asarray(found, np.float64), np.asarray(expected, np.float64), rtol=2e-6, atol=2e-6)
    alone = native_row_stats(None, logits, targets)
    assert np.allclose(alone[0], row_stats_numpy(None, logits, targets)[0], rtol=2e-6)
    assert alone[1] is None


def test_logits_that_are_not_finite_name_model_and_window(ids: NDArray[np.int32]) -> None:
    broken = Fake(1)
    broken.drift[2] = np.nan
    with pytest.raises(NonFiniteError, match=r"broken, tokens from 0: logits: row 2 holds a value that is not finite"):
        evaluate({"broken": broken}, ids, Fake(2), 16)
