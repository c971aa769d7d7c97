"""kquant: scale and offset of a block found together, as the K-quants of llama.cpp need them."""

from __future__ import annotations

import numpy as np

from anybit.errors import FormatError
from anybit.formats import Element
from anybit.methods.scales import Range, scale_rule

_TURNS = 3
# What a scale may move by where it is stored by itself.
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
    """The pair that is best for the codes chosen at (scale, offset), and its weighted squared error with these codes, before the pair."""

    def terms(x: np.ndarray, w: np.ndarray, s: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, ...]:
        t = r.rounded(_over(x - m, s)).astype(np.float64)
        x = x.astype(np.float64)
        wt, wx = (t, x) if w.ndim == 0 else (w * t, w * x)
        return w, wt, wx, wt * t, wt * x, wx * x

    s, m = _float32(scale), _float32(offset)
    one, t, x, tt, tx, xx = r.sums("kquant", "pairs", terms, s, m)
    s, m = s.astype(np.float64), m.astype(np.float64)
    determinant = one * tt - t * t
    solvable = determinant > 1e-9 * one * tt
    divisor = np.where(solvable, determinant, 1.0)
    s = np.where(solvable, (one * tx - t * x) / divisor, s)
    m = np.where(solvable, (tt * x - t * tx) / divisor, m)
    return xx - 2 * (s * tx + m * x - s * m * t) + s * s * tt + m * m * one, s, m


def _single(r: Range, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scale that is best for the codes chosen at one, and its weighted squared error with these codes, before the scale."""

    def terms(x: np.ndarray, w: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, ...]:
        t = r.rounded(_over(x, s)).astype(np.float64)
        wt = t if w.ndim == 0 else w * t
        return wt * t, wt * x

    s = _float32(scale)
    tt, tx = r.sums("kquant", "scales", terms, s)
    s = np.where(tx * scale > 0, tx / np.where(tt > 0, tt, 1.0), s.astype(np.float64))
    return s * (s * tt - 2 * tx), s  # but for the sum of squares, which no scale changes


def _fine(element: Element, count: int) -> np.ndarray:
    """Multiples of a block's full width that move its end by tenths of a step, up to `count` each way: codes fall differently at each."""
    steps = element.max - element.min if element.min < 0 else element.max
    return 1 / (1 + 0.1 * np.arange(-count, count + 1) / steps)


def _offsets(r: Range) -> np.ndarray:
    """The offset of the best of 29 starts: ten scales from 0.7 to 1.05 of the block's width over the element's around its middle, and 19
    near 1 from its least value; improved in turns."""
    element = r.element
    width = (r.high - r.low) / (element.max - element.min)
    scale, offset = width, r.low - element.min * width
    least = np.full(r.low.shape, np.inf)
    middle = [(step, 0.5) for step in np.linspace(0.7, 1.05, 10)]
    for step, at in [*middle, *((step, 0.0) for step in _fine(element, 9))]:
        # the value at this share of the block's width stays where it is
        s, m = width * step, r.low + at * (r.high - r.low) - (element.min + at * (element.max - element.min)) * width * step
        error, s, m = _pair(r, s, m)
        scale, offset = _kept(error, least, (s, m), (scale, offset))
        least = np.minimum(error, least)
    for _ in range(_TURNS):
        error, s, m = _pair(r, scale, offset)
        scale, offset = _kept(error, least * (1 + 1e-12), (s, m), (scale, offset))
        least = np.minimum(error, least)
    return offset


def _stiffness(r: Range, scale: np.ndarray | None) -> np.ndarray:
    """The sum of importance, times the square of the codes' values for a scale."""

    def ones(x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, ...]:
        return (w,)

    def squares(x: np.ndarray, w: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, ...]:
        t = r.rounded(_over(x, s)).astype(np.float64)
        return (w * t * t,)

    return r.seen("kquant").sums(ones)[0] if scale is None else r.sums("kquant", "scales", squares, _float32(scale))[0]


@scale_rule("kquant", offsets=_offsets, stiffness=_stiffness, searches=True)
def kquant(r: Range) -> list[np.ndarray]:
    """Least squares for scale and offset in turns with rounding, each block by itself; then scales anew against the stored offset. Scales
    of scales are fitted to what errors of scales cost, and the stored neighbours of scale and offset are tried together.

    Without an offset, scales only: from starts around absmax's and, where the scale has a sign, the mirrored ones too. Importance weighs
    the errors. Source: what the K-quants of llama.cpp (ggml-quants, make_qkx2_quants and make_qx_quants) search for. Differs: the pairs
    start from the block's middle and are improved in turns, any element can be coded, and neighbours are tried as they will be stored.
    FormatError: zero points.
    """
    if r.power_of_two:
        raise FormatError("scale=kquant fits scales finer than powers of two; use mse")
    base = r.largest / ((r.most - r.bottom) / 2 if r.bottom < 0 else r.most)
    scale, least = base, np.full(base.shape, np.inf)
    # Mirrored blocks differ only where the element's two sides do.
    signs = (1.0, -1.0) if r.scale.signed and r.bottom < 0 and not np.array_equal(r.element.finite, -r.element.finite[::-1]) else (1.0,)
    for step in (*np.linspace(0.7, 1.1, 9), *_fine(r.element, 9)):
        for sign in signs:
            error, s = _single(r, base * step * sign)
            (scale,) = _kept(error, least, (s,), (scale,))
            least = np.minimum(error, least)
    for _ in range(_TURNS):
        error, s = _single(r, scale)
        (scale,) = _kept(error, least * (1 + 1e-12), (s,), (scale,))
        least = np.minimum(error, least)
    return [scale * near for near in _NEAR]
