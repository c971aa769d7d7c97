"""How far a quantized model is from its reference: perplexity, KL divergence, agreement of the most likely token, with standard errors.

Standard errors are clustered by window. Tokens of one window share their context: a hard passage is hard for all of them, so that their
losses are correlated and the usual s / sqrt(tokens) would claim too much. Windows do not see each other; they are the independent
observations. With y_w the sum over window w, n_w its tokens and mean = sum(y_w) / sum(n_w), over G windows,

    se^2 = G / (G - 1) * sum_w (y_w - n_w * mean)^2 / (sum_w n_w)^2

which is the linearised variance of a ratio estimator; with windows of one token it is the usual standard error.

All models see a window before any sees the next (lockstep): the reference's logits are computed once and only one window of them is
ever held, whatever the number of models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from anybit.errors import NonFiniteError, UsageError

Floats = NDArray[np.float64]
Rows = tuple[Floats, Floats | None, NDArray[np.bool_] | None]
"""Of each scored token: negative log-likelihood, KL divergence, same most likely token; the last two None without a reference."""
RowStats = Callable[[NDArray[np.float32] | None, NDArray[np.float32], NDArray[np.int32]], Rows]


class HasLogits(Protocol):
    """A model, for what is measured here."""

    def logits(self, ids: NDArray[np.int32], /) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens with its standard error, clustered by window."""

    mean: float
    se: float


@dataclass(frozen=True)
class Accuracy:
    """One model's result. Per-window sums are kept, so that any two results over the same text can be compared as pairs."""

    nll: Floats  # float64[windows]: summed negative log-likelihood of the targets, nats
    kl: Floats | None  # float64[windows]: summed KL(reference || model), nats; None without a reference
    counts: NDArray[np.int64]  # tokens scored in each window
    windows: NDArray[np.int64]  # which windows of the text these are
    kl_p99: float | None
    same_top1: float | None

    @property
    def tokens(self) -> int:
        """Tokens scored."""
        return int(self.counts.sum())

    @property
    def perplexity(self) -> Estimate:
        """exp of the mean negative log-likelihood; its error by the delta method, perplexity * se(mean)."""
        loss = clustered(self.nll, self.counts)
        value = math.exp(loss.mean)
        return Estimate(value, value * loss.se)

    @property
    def kl_mean(self) -> Estimate | None:
        """Mean KL divergence a token, nats."""
        return None if self.kl is None else clustered(self.kl, self.counts)

    def describe(self) -> dict[str, Any]:
        """The keys of `anybit eval --json`."""
        perplexity, kl = self.perplexity, self.kl_mean
        return {
            "perplexity": perplexity.mean,
            "perplexity_se": perplexity.se,
            "kl_mean": None if kl is None else kl.mean,
            "kl_mean_se": None if kl is None else kl.se,
            "kl_p99": self.kl_p99,
            "same_top1": self.same_top1,
            "tokens": self.tokens,
        }


def clustered(sums: Floats, counts: NDArray[np.int64]) -> Estimate:
    """Ratio estimate of a mean a token and its standard error from per-window sums; the error of a single window is unknown: NaN.

    >>> clustered(np.array([0.0, 3.0]), np.array([1, 1]))
    Estimate(mean=1.5, se=1.5)
    """
    windows, tokens = len(sums), int(counts.sum())
    mean = float(sums.sum()) / tokens
    if windows < 2:
        return Estimate(mean, math.nan)
    residuals = sums - counts * mean
    return Estimate(mean, math.sqrt(windows / (windows - 1) * float(residuals @ residuals)) / tokens)


def kl_difference(a: Accuracy, b: Accuracy) -> Estimate:
    """Mean KL of `a` less that of `b` with its paired error over the windows that both saw: what the windows share cancels.

    UsageError: no reference, or no window in common.
    """
    if a.kl is None or b.kl is None:
        raise UsageError("KL divergences need a reference model; give --reference MODEL")
    in_a, in_b = _common(a, b)
    return clustered(a.kl[in_a] - b.kl[in_b], a.counts[in_a])


def perplexity_difference(a: Accuracy, b: Accuracy) -> Estimate:
    """Perplexity of `a` less that of `b` with its paired error over the windows that both saw: the delta method for both, whose residuals
    are taken together before they are squared. UsageError: no window in common."""
    in_a, in_b = _common(a, b)
    counts = a.counts[in_a]
    means = [float(nll.sum()) / int(counts.sum()) for nll in (a.nll[in_a], b.nll[in_b])]
    most = [math.exp(mean) for mean in means]
    # centred already: `clustered` subtracts a mean of zero
    residuals = most[0] * (a.nll[in_a] - counts * means[0]) - most[1] * (b.nll[in_b] - counts * means[1])
    return Estimate(most[0] - most[1], clustered(residuals, counts).se)


def _common(a: Accuracy, b: Accuracy) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the windows that both saw stand in either."""
    common, in_a, in_b = np.intersect1d(a.windows, b.windows, return_indices=True)
    if not len(common) or not np.array_equal(a.counts[in_a], b.counts[in_b]):
        raise UsageError("the two results were not measured on the same windows")
    return in_a, in_b


def row_stats_numpy(reference: NDArray[np.float32] | None, logits: NDArray[np.float32], targets: NDArray[np.int32]) -> Rows:
    """Definition in float64 of what the native kernel computes. Args: float32[t, vocab] twice, int32[t].

    Returns the negative log-likelihood of the targets under `logits`, KL(softmax(reference) || softmax(logits)) and whether both have
    the same most likely token (the first of equals); float64[t], float64[t], bool[t], nats.
    """
    q = _log_softmax(logits)
    nll = -q[np.arange(len(targets)), targets]
    if reference is None:
        return nll, None, None
    p = _log_softmax(reference)
    return nll, np.sum(np.exp(p) * (p - q), axis=1), reference.argmax(axis=1) == logits.argmax(axis=1)


def _log_softmax(logits: NDArray[np.float32]) -> Floats:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def native_row_stats(reference: NDArray[np.float32] | None, logits: NDArray[np.float32], targets: NDArray[np.int32]) -> Rows:
    """`row_stats_numpy` by the native kernel, which reads each row where it lies and keeps no float64 copy of it."""
    from anybit.kernels.cpu import native

    try:
        if reference is None:
            return np.asarray(native.row_nll(logits, targets)[0]), None, None
        _, nll, kl, expected, found = (np.asarray(part) for part in native.row_stats(reference, logits, targets))
    except ValueError as error:
        if "not finite" in str(error):
            raise NonFiniteError(f"logits: {error}") from None
        raise
    return nll, kl, expected == found


def evaluate(
    models: Mapping[str, HasLogits],
    ids: NDArray[np.int32],
    reference: HasLogits | None = None,
    window: int = 512,
    row_stats: RowStats = native_row_stats,
    progress: Callable[[int, str], None] | None = None,
    every: Mapping[str, int] | None = None,
) -> dict[str, Accuracy]:
    """Evaluates all `models` on the same windows against one `reference`.

    Args: `ids` int32[t]: window w scores targets ids[w*window + 1 ...] from inputs ids[w*window ...], so that every token but the first
    is scored once; the last window may be short. `progress(1, name)` is called after each model and window. `every` n: that model sees
    every n-th window only. A model that is the reference itself is given its logits instead of computing them twice.
    Raises: NonFiniteError when logits are not finite. UsageError when there is nothing to score.
    Memory: the logits of two models for one window; 17 bytes a token and model besides.
    """
    if window < 1 or len(ids) < 2:
        raise UsageError(f"nothing to evaluate: {len(ids)} tokens in windows of {window}")
    starts = range(0, len(ids) - 1, window)
    counts = np.array([min(window, len(ids) - 1 - start) for start in starts], dtype=np.int64)
    strides = {name: (every or {}).get(name, 1) for name in models}
    rows: dict[str, list[Rows]] = {name: [] for name in models}
    for index, start in enumerate(starts):
        inputs, targets = ids[start : start + counts[index]], ids[start + 1 : start + 1 + counts[index]]
        expected = None if reference is None else reference.logits(inputs)
        for name, model in models.items():
            if index % strides[name]:
                continue
            logits = expected if expected is not None and model is reference else model.logits(inputs)
            try:
                found = row_stats(expected, logits, targets)
            except NonFiniteError as error:
                raise NonFiniteError(f"{name}, tokens from {start}: {error}") from None
            rows[name].append(found)
            if progress is not None:
                progress(1, name)
    return {name: _accuracy(found, counts, np.arange(0, len(counts), strides[name])) for name, found in rows.items()}


def _accuracy(rows: list[Rows], counts: NDArray[np.int64], windows: NDArray[np.int64]) -> Accuracy:
    counts = counts[windows]
    nll = np.array([loss.sum() for loss, _, _ in rows])
    divergences = [kl for _, kl, _ in rows if kl is not None]
    same = [equal for _, _, equal in rows if equal is not None]
    if not divergences:
        return Accuracy(nll, None, counts, windows, None, None)
    p99 = float(np.quantile(np.concatenate(divergences), 0.99))
    return Accuracy(nll, np.array([kl.sum() for kl in divergences]), counts, windows, p99, float(np.concatenate(same).mean()))
