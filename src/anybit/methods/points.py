"""Rounding to lists of points: GGUF's IQ1 to IQ3, whose codes name 4 or 8 weights together.

The error of a block, the sum of w (x - s q)^2, is least at s = A / B for given points q, with A the sum of w x q and B of w q^2; for a
given s it is least at the point of largest w x q - s/2 w q^2, which a matrix product finds among all of a list. Both in turns:

1. each block by itself: from several scales, points and the scale that is best for them;
2. d of a super-block: of some float16 numbers the one whose odd multiples cost the blocks' scales least, B weighing their squared errors;
3. the odd multiple of each block and its neighbours, with the points of each, by their error;
4. d in closed form for these points, and points for it, where that is better;
5. d a little larger: least squares give values that are too small, by the share of the error in the squares (`_UNBIASED`).

An error weighs the importance of its channel times sqrt(2 m + x^2), m the mean square of the super-block, as in llama.cpp's searches.

Where the number of signs of a group must be even and is not, the weight that loses least turns its sign, or the next one does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from anybit.errors import FormatError, NonFiniteError, ShapeError
from anybit.formats import Format
from anybit.formats.element import as_real
from anybit.formats.points import SHIFT, Points
from anybit.methods.method import Parts
from anybit.methods.rtn import part_shapes

_CHUNK = 64
"""Super-blocks that are worked on together."""
_SCORES = 1 << 18
"""Scores of groups against points that are held at a time: 1 MB."""
_OUTER = np.linspace(0.7, 1.5, 33)
"""d that are tried: these times the one that brings the largest scale to the largest multiple."""
_NEAR = (0, -1, 1)
_TURNS = 1
_UNBIASED, _MOST = 0.75, 0.5
"""How much of the error's share in the squares is added to d (1: until the values' projection on x is as long as x), and the share from
which nothing is: where points are that far off (an outlier among numbers that should be zero), a larger d makes them worse."""
_LARGEST = 65504.0


def starts_of(points: Points) -> np.ndarray:
    """First scales of a block, over its root mean square by that of the list. The more magnitudes there are, the more scales are each the
    best of their neighbourhood; of points with signs, whose lists are long and costly, hardly any."""
    return np.array([0.95, 1.25]) if points.signs == "shift" else np.geomspace(0.75, 1.6, len(points.numbers) + 1)


class Search:
    """A list as matrices, and the best of its points."""

    def __init__(self, points: Points) -> None:
        self.points = points
        self.table = np.array(points.numbers, np.float32)[points.places]
        self.features = np.concatenate([self.table.T, np.square(self.table).T])
        self.starts = starts_of(points) / np.sqrt(np.square(self.table).mean())

    def best(self, wx: np.ndarray, ws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number and score of the point p with the largest sum of wx p - ws p^2 / 2; wx, ws float32[m, dim].

        Cost: 4 m dim points operations.
        """
        m, dim = wx.shape
        index, top = np.empty(m, np.intp), np.empty(m, np.float32)
        given = np.empty((m, 2 * dim), np.float32)
        given[:, :dim] = wx
        np.multiply(ws, np.float32(-0.5), out=given[:, dim:])
        step = max(1, _SCORES // len(self.table))
        held = np.empty((min(step, m), len(self.table)), np.float32)
        for start in range(0, m, step):
            part = given[start : start + step]
            found = np.matmul(part, self.features, out=held[: len(part)])
            index[start : start + step] = best = found.argmax(axis=1)
            top[start : start + step] = found[np.arange(len(part)), best]
        return index, top


@dataclass(frozen=True)
class Found:
    """Points intp[count, unit / dim] of super-blocks, what is negative (or shifted down) bool[count, unit], float64 A and B of blocks."""

    index: np.ndarray
    negative: np.ndarray
    a: np.ndarray
    b: np.ndarray

    def error(self, scale: np.ndarray) -> np.ndarray:
        """Of each block under a scale, less the sum of w x^2."""
        return scale * (scale * self.b - 2 * self.a)

    def where(self, better: np.ndarray, other: Found) -> Found:
        """`other` for the blocks [count, blocks] that are better there."""

        def chosen(one: np.ndarray, two: np.ndarray) -> np.ndarray:
            return np.where(np.repeat(better, one.shape[1] // better.shape[1], axis=1), two, one)

        return Found(
            chosen(self.index, other.index), chosen(self.negative, other.negative), np.where(better, other.a, self.a),
            np.where(better, other.b, self.b),
        )  # fmt: skip


class Blocks:
    """Some super-blocks x float32[count, unit] with weights of their errors, float32 of the same shape and positive."""

    def __init__(self, search: Search, x: np.ndarray, w: np.ndarray) -> None:
        self.search, self.points, self.w = search, search.points, w
        self.grid = (len(x), self.points.unit // self.points.block)
        w_in, x_in = (each.reshape(*self.grid, -1) for each in (w, x))
        squares = np.einsum("sbi,sbi,sbi->sb", w_in, x_in, x_in)
        self.root, self.energy = np.sqrt(squares / w_in.sum(axis=2)), squares.sum(axis=1, dtype=np.float64)
        self.negative = x < 0
        self.shifted = self.points.signs == "shift"
        y = x if self.shifted else np.abs(x)
        self.wx = w * y
        self.turned = np.empty((0, 2), np.intp)
        if self.points.signs == "even":
            groups, negative = (each.reshape(-1, self.points.group) for each in (self.wx, self.negative))
            self.odd = np.flatnonzero(np.logical_xor.reduce(negative, axis=1))
            self.turned = np.argpartition(groups[self.odd], 1, axis=1)[:, :2]
            groups[self.odd, self.turned[:, 0]] *= -1
            negative[self.odd, self.turned[:, 0]] ^= True

    def rounded(self, scale: np.ndarray, thorough: bool = False) -> Found:
        """The best points under scales [count, blocks]. Of two weights that may turn their sign, only `thorough` tries the second."""
        dim = self.points.dim
        ws = (self.w.reshape(*self.grid, -1) * scale.astype(np.float32)[..., None]).reshape(-1, dim)
        wx, negative = self.wx, self.negative
        if self.shifted:
            return self._shifted(wx.reshape(-1, dim), ws)
        index, score = self.search.best(wx.reshape(-1, dim), ws)
        if thorough and len(self.turned):
            per = self.points.group // dim
            place = (self.odd[:, None] * per + np.arange(per)).reshape(-1)
            sign = np.ones((len(self.odd), self.points.group), np.float32)
            np.put_along_axis(sign, self.turned, -1, axis=1)
            other, more = self.search.best(wx.reshape(-1, dim)[place] * sign.reshape(-1, dim), ws[place])
            better = more.reshape(-1, per).sum(axis=1) > score[place].reshape(-1, per).sum(axis=1)
            index[place] = np.where(np.repeat(better, per), other, index[place])
            wx, negative = wx.copy(), negative.copy()
            rows, columns = self.odd[better, None], self.turned[better]
            wx.reshape(-1, self.points.group)[rows, columns] *= -1
            negative.reshape(-1, self.points.group)[rows, columns] ^= True
        return self._summed(index, negative, wx, self.search.table[index])

    def _shifted(self, wx: np.ndarray, ws: np.ndarray) -> Found:
        """Both shifts t of all groups: the sum of wx (p + t) - ws (p + t)^2 / 2."""
        per, found = self.points.group // self.points.dim, []
        for shift in (np.float32(SHIFT), np.float32(-SHIFT)):
            index, score = self.search.best(wx - ws * shift, ws)
            score += shift * (wx - ws * (shift / 2)).sum(axis=1)
            found.append((index, score.reshape(-1, per).sum(axis=1)))
        (up, above), (down, below) = found
        lower = np.repeat(below > above, per)
        index = np.where(lower, down, up)
        values = self.search.table[index] + np.where(lower, np.float32(-SHIFT), np.float32(SHIFT))[:, None]
        return self._summed(index, np.repeat(lower, self.points.dim).reshape(self.w.shape), wx, values)

    def _summed(self, index: np.ndarray, negative: np.ndarray, wx: np.ndarray, values: np.ndarray) -> Found:
        q, wx, w = (each.reshape(*self.grid, -1) for each in (values, wx, self.w))
        a, b = np.einsum("sbi,sbi->sb", wx, q), np.einsum("sbi,sbi,sbi->sb", w, q, q)
        return Found(index.reshape(len(self.w), -1), negative, a.astype(np.float64), b.astype(np.float64))

    def alone(self) -> tuple[np.ndarray, np.ndarray]:
        """The best scale of each block by itself, and what the square of its error costs: float64[count, blocks] both."""
        gain, scale, stiffness = np.full(self.grid, -1.0), np.zeros(self.grid), np.ones(self.grid)
        for start in (*self.search.starts, None):
            found = self.rounded(scale if start is None else self.root * start)
            wished = np.maximum(found.a, 0) / found.b
            better = wished * found.a > gain
            gain, scale = np.where(better, wished * found.a, gain), np.where(better, wished, scale)
            stiffness = np.where(better, found.b, stiffness)
        return scale, stiffness


def _halves(d: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """float16 of d 2^exponent."""
    with np.errstate(under="ignore"):
        return np.minimum(np.ldexp(d, exponent), _LARGEST).astype(np.float16)


def _steps(wanted: np.ndarray, d: np.ndarray, steps: int) -> np.ndarray:
    """The s, up to `steps` of them, of the odd multiple (2 s + 1) d nearest to the wanted scales."""
    ratio = np.divide(wanted, d, out=np.zeros(np.broadcast_shapes(wanted.shape, d.shape)), where=d > 0)
    return np.clip(np.rint((ratio - 1) / 2), 0, steps - 1)


def _outer(wanted: np.ndarray, stiffness: np.ndarray, exponent: np.ndarray, steps: int) -> np.ndarray:
    """float16[count]: d of super-blocks from the scales that their blocks want."""
    tried = _halves(wanted.max(axis=1) / (2 * steps - 1) * _OUTER[:, None], exponent)
    least = np.broadcast_to(np.float16(2.0**-24) * np.arange(1, 4, dtype=np.float16)[:, None], (3, len(wanted)))
    tried = np.concatenate([tried, least])  # float16's last: an odd multiple of them may be nearer than nothing
    d = np.ldexp(tried.astype(np.float64), -exponent)[..., None]
    found = d * (2 * _steps(wanted, d, steps) + 1)
    cost = (stiffness * np.square(wanted - found)).sum(axis=2)
    return np.take_along_axis(tried, cost.argmin(axis=0)[None], axis=0)[0]


def _searched(
    blocks: Blocks, exponent: np.ndarray, wanted: np.ndarray, stiffness: np.ndarray
) -> tuple[Found, np.ndarray, np.ndarray]:  # fmt: skip
    """Points, s float64[count, blocks] and d float16[count] of super-blocks whose numbers were divided by 2^exponent."""
    steps = blocks.points.steps
    unit = np.ldexp(_outer(wanted, stiffness, exponent, steps).astype(np.float64), -exponent)[:, None]
    s = middle = _steps(wanted, unit, steps)
    best = blocks.rounded(unit * (2 * s + 1), True)
    for step in _NEAR[1:]:
        tried = np.clip(middle + step, 0, steps - 1)
        found = blocks.rounded(unit * (2 * tried + 1), True)
        better = found.error(unit * (2 * tried + 1)) < best.error(unit * (2 * s + 1))
        best, s = best.where(better, found), np.where(better, tried, s)
    odd = 2 * s + 1
    for _ in range(_TURNS):
        least = np.maximum((odd * best.a).sum(axis=1), 0) / (odd * odd * best.b).sum(axis=1)
        there = np.ldexp(_halves(least, exponent).astype(np.float64), -exponent)[:, None]
        found = blocks.rounded(there * odd, True)
        better = found.error(there * odd).sum(axis=1) < best.error(unit * odd).sum(axis=1)
        best = best.where(np.repeat(better[:, None], blocks.grid[1], axis=1), found)
        unit = np.where(better[:, None], there, unit)
    share = 1 + np.divide(best.error(unit * odd).sum(axis=1), blocks.energy, out=np.full(len(unit), -1.0), where=blocks.energy > 0)
    return best, s, _halves(unit[:, 0] * (1 + _UNBIASED * np.clip(np.minimum(share, _MOST - share), 0, None)), exponent)


def _weights(importance: Any, shape: tuple[int, ...], points: Points, name: str) -> np.ndarray:
    """float32[rows of units, unit], to be repeated: of mean 1, none below a millionth, so that every block has a best scale."""
    if importance is None:
        return np.ones((1, points.unit), np.float32)
    given = as_real(importance).astype(np.float64)
    if given.shape not in (shape[-1:], shape):
        raise ShapeError(f"{name}: importance is {list(shape[-1:])} or {list(shape)}, not {list(given.shape)}")
    if given.size and not (given.min() >= 0 and np.isfinite(given.max())):
        raise NonFiniteError(f"{name}: importance must be finite and not negative")
    mean = float(given.mean()) if given.size else 0.0
    even = given / mean if mean > 0 else np.ones_like(given)
    return np.maximum(even, 1e-6).astype(np.float32).reshape(-1, points.unit)


def _heavy(x: np.ndarray) -> np.ndarray:
    """float32[count, unit]: what large values weigh more than small ones; 1 where all are zero."""
    squares = np.square(x)
    mean = squares.mean(axis=1, keepdims=True)
    return np.where(mean > 0, np.sqrt(2 * mean + squares), np.float32(1))


def _checked(part: np.ndarray, first: int, k: int, name: str) -> None:
    """NonFiniteError: NaN or infinity in rows of units, `first` the number of the first one."""
    bad = ~np.isfinite(part)
    if bad.any():
        row, column = divmod((first * part.shape[1]) + int(np.argmax(bad)), k)
        raise NonFiniteError(
            f"{name} holds non-finite values, the first {float(part.reshape(-1)[np.argmax(bad)])} at row {row}, column {column}; repair it"
        )


def quantize_to_points(w: Any, fmt: Format, points: Points, importance: Any = None, name: str = "array") -> Parts:
    """Codes from a list of points, and scales, chosen for the weighted squared error as the module describes.

    Args: w, float32[..., k] (also float16, bfloat16, float64); fmt, the format whose codes the list is of; importance: what an error of
        each value weighs, [k] or w's shape, not negative; name: what errors call the array.
    Returns: the logical parts of `fmt`.
    Raises: ShapeError: k is no multiple of the list's unit, or importance does not fit; NonFiniteError: NaN or infinity; FormatError:
        numbers so large that float16 does not hold d.
    Source: the types are llama.cpp's (pull requests 4773, 4897, 5320, 5453, 5676). Differs: all points are compared, not neighbours of a
        rounded group; d and its multiples are chosen by the errors that they leave; d is larger by what it lost (RaBitQ, arXiv 2405.12497,
        divides by the projection for the same reason), not by a constant of the type. Cost: `Search.best` of all weights ten times or so.
    """
    x = as_real(w)
    if x.ndim < 1 or x.shape[-1] % points.unit:
        raise ShapeError(f"{name}: rows of {x.shape[-1] if x.ndim else 1} are no whole blocks of {points.unit}, as {points.name} has them")
    parts = {part: np.zeros(size, dtype) for part, (dtype, size) in part_shapes(fmt, x.shape).items()}
    weights, k = _weights(importance, x.shape, points, name), x.shape[-1]
    x = x.reshape(-1, points.unit)
    codes, scales, outer = parts["codes"].reshape(x.shape), parts["scale.0"].reshape(len(x), -1), parts["scale.1"].reshape(-1)
    search = Search(points)
    for start in range(0, len(x), _CHUNK):
        take = slice(start, start + _CHUNK)
        part = x[take].astype(np.float64)
        _checked(part, start, k, name)
        exponent = np.frexp(np.abs(part).max(axis=1))[1].astype(np.int64)
        part = np.ldexp(part, -exponent[:, None]).astype(np.float32)
        blocks = Blocks(search, part, weights[np.arange(start, start + len(part)) % len(weights)] * _heavy(part))
        wanted, stiffness = blocks.alone()
        most = np.ldexp(wanted.max(axis=1) / (2 * points.steps - 1), exponent)
        if most.max() > _LARGEST:
            row, column = divmod((start + int(most.argmax())) * points.unit, k)
            raise FormatError(
                f"{name}: {points.unit} values from row {row}, column {column} need the scale {most.max():.6g}, and fp16 ends at"
                f" {_LARGEST:.0f}; divide the array"
            )
        found, s, outer_codes = _searched(blocks, exponent, wanted, stiffness)
        codes[take] = points.codes(found.index, found.negative)
        scales[take], outer[take] = 2 * s + 1, outer_codes.view(np.uint16)
    return parts
