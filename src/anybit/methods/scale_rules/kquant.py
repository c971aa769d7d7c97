"""kquant: scale and offset of a block found together, as the K-quants of llama.cpp need them."""

from __future__ import annotations

import numpy as np

from anybit.errors import FormatError
from anybit.methods.scales import Range, scale_rule

_TURNS = 3
# What a 6-bit scale of a scale can move by: the stored neighbours of the best scale.
_NEAR = (1.0, 0.98, 1.02, 0.96, 1.04)


def _kept(error: np.ndarray, least: np.ndarray, new: tuple[np.ndarray, ...], old: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """`new` where its error is less, else `old`."""
    better = error < least
    return tuple(np.where(better, a, b) for a, b in zip(new, old, strict=True))


def _over(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """x / scale, zero where the scale has vanished; an overflow saturates when it is rounded."""
    return x / np.where(scale == 0, np.float32(np.inf), scale)


def _float32(x: np.ndarray) -> np.ndarray:
    """As float32, held within its range."""
    end = np.finfo(np.float32).max
    with np.errstate(under="ignore"):
        return np.clip(x, -end, end).astype(np.float32)


def _pair(r: Range, scale: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The weighted squared error at (scale, offset), and the pair that is best for the codes chosen there."""

    def terms(x: np.ndarray, w: np.ndarray, s: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, ...]:
        t = r.rounded(_over(x - m, s)).astype(np.float64)
        x = x.astype(np.float64)
        wt, wx = (t, x) if w.ndim == 0 else (w * t, w * x)
        return w, wt, wx, wt * t, wt * x, wx * x

    s, m = _float32(scale), _float32(offset)
    one, t, x, tt, tx, xx = r.seen("kquant").sums(terms, s, m)
    s, m = s.astype(np.float64), m.astype(np.float64)
    error = xx - 2 * (s * tx + m * x - s * m * t) + s * s * tt + m * m * one
    determinant = one * tt - t * t
    solvable = determinant > 1e-9 * one * tt
    divisor = np.where(solvable, determinant, 1.0)
    return error, np.where(solvable, (one * tx - t * x) / divisor, scale), np.where(solvable, (tt * x - t * tx) / divisor, offset)


def _single(r: Range, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weighted squared error at a scale, and the scale that is best for the codes chosen there."""

    def terms(x: np.ndarray, w: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, ...]:
        t = r.rounded(_over(x, s)).astype(np.float64)
        wt = t if w.ndim == 0 else w * t
        return wt * t, wt * x

    s = _float32(scale)
    tt, tx = r.seen("kquant").sums(terms, s)
    # But for the sum of squares, which no scale changes.
    error = s.astype(np.float64) * (s * tt - 2 * tx)
    return error, np.where(tx * scale > 0, tx / np.where(tt > 0, tt, 1.0), scale)


def _offsets(r: Range) -> np.ndarray:
    """The offset of the best of ten starting scales, from 0.7 to 1.05 of the block's width over the element's, each improved in turns."""
    element = r.element
    width = (r.high - r.low) / (element.max - element.min)
    scale, offset = width, r.low - element.min * width
    least = np.full(r.low.shape, np.inf)
    for step in np.linspace(0.7, 1.05, 10):
        s, m = width * step, (r.low + r.high) / 2 - (element.min + element.max) / 2 * width * step
        error, s, m = _pair(r, s, m)
        scale, offset = _kept(error, least, (s, m), (scale, offset))
        least = np.minimum(error, least)
    for _ in range(_TURNS):
        error, s, m = _pair(r, scale, offset)
        scale, offset = _kept(error, least * (1 + 1e-12), (s, m), (scale, offset))
        least = np.minimum(error, least)
    return offset


@scale_rule("kquant", offsets=_offsets, searches=True)
def kquant(r: Range) -> list[np.ndarray]:
    """Least squares for scale and offset in turns with rounding, each block by itself; then scales anew against the stored offset.

    Without an offset, scales only: from starts around absmax's and, where the scale has a sign, the mirrored ones too. Importance weighs
    the errors. Source: what the K-quants of llama.cpp (ggml-quants, make_qkx2_quants and make_qx_quants) search for. Differs: the pairs
    start from the block's middle and are improved in turns, any element can be coded, and near scales are tried as they will be stored.
    FormatError: zero points.
    """
    if r.power_of_two:
        raise FormatError("scale=kquant fits scales finer than powers of two; use mse")
    base = r.largest / ((r.most - r.bottom) / 2 if r.bottom < 0 else r.most)
    scale, least = base, np.full(base.shape, np.inf)
    # Mirrored blocks differ only where the element's two sides do.
    signs = (1.0, -1.0) if r.scale.signed and r.bottom < 0 and not np.array_equal(r.element.finite, -r.element.finite[::-1]) else (1.0,)
    for step in np.linspace(0.7, 1.1, 9):
        for sign in signs:
            error, s = _single(r, base * step * sign)
            (scale,) = _kept(error, least, (s,), (scale,))
            least = np.minimum(error, least)
    for _ in range(_TURNS):
        error, s = _single(r, scale)
        (scale,) = _kept(error, least * (1 + 1e-12), (s,), (scale,))
        least = np.minimum(error, least)
    return [scale * near for near in _NEAR]
