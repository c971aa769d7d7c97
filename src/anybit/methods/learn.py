"""Values learned from an array: the table of a learned element, then codes by rounding to nearest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from anybit.errors import FormatError
from anybit.formats import Element, Spec, codes_shape
from anybit.formats.elements.codebook import Codebook
from anybit.formats.vector import nearest
from anybit.methods.grids import LIMIT
from anybit.methods.kmeans import POINTS, Histogram, codebook_of_points, optimal_codebook
from anybit.methods.method import Parts
from anybit.methods.rtn import part_shapes, quantize_parts, stored_grids
from anybit.methods.scales import SCALES

GROUPS = 1 << 12, 1 << 15
"""Groups of weights that vectors are learned from: 64 for each vector of a book within these ends, taken at equal distances."""
_ROUNDS = 20
_PASSES = 3


def quantize_learned(x: np.ndarray, spec: Spec, name: str, importance: np.ndarray | None = None) -> Parts:
    """Logical parts of an array in a format whose element is learned: as `quantize_parts`, and the part "table".

    Blocks are scaled to -1 .. 1 by the rule of the policy (absmax unless it says another), as for equal steps between these ends. The table
    has the least squared error on the array's own numbers, so each block counts with its scale squared, and each number with its
    importance (float32, broadcast to x; None: all alike). FormatError: over=error.
    """
    fmt, policy = spec.format, replace(spec.policy, scale=spec.scale_rule)
    if policy.over != "saturate":
        why = f"the values of {fmt.element} are means and end before an array's extremes"
        raise FormatError(f"over={policy.over}: {why}; leave over=saturate")
    codes_shape(fmt.element, x.shape)
    if not x.size:  # nothing to learn from: any table is as good
        empty = {part: np.zeros(size, dtype) for part, (dtype, size) in part_shapes(fmt, x.shape).items()}
        return {**empty, "table": np.linspace(-1, 1, empty["table"].size, dtype=np.float32).reshape(empty["table"].shape)}
    scaled = _Scaled(x, Spec(fmt, policy), name, importance)
    table = _numbers(scaled, fmt.element) if fmt.element.dim == 1 else _vectors(scaled, fmt.element)
    element = fmt.element.bind(table)
    element.check_policy(policy.round, policy.over, policy.nonfinite)
    return {**scaled.parts, "codes": scaled.codes(Spec(fmt.with_element(element), policy)), "table": table}


class _Scaled:
    """An array over its scales, some at a time, with the weight of each number in its error. Non-finite numbers do not count."""

    def __init__(self, x: np.ndarray, spec: Spec, name: str, importance: np.ndarray | None) -> None:
        self.x, self.fmt = x, spec.format
        self.importance = np.ones((1,) * x.ndim, np.float32) if importance is None else importance
        self.importance = np.broadcast_to(self.importance, x.shape)
        entries = 1 << self.fmt.element.bits if self.fmt.element.dim == 1 else 256
        steps = Codebook("steps", (entries - 1).bit_length(), tuple(np.linspace(-1, 1, entries).tolist()))
        plain = self.fmt.with_element(steps)
        searches = self.fmt.block is not None and SCALES[spec.scale_rule].searches
        self.parts = quantize_parts(x, Spec(plain, spec.policy), name, importance if searches else None)
        self.grids = stored_grids(self.parts, plain, x.shape) if self.fmt.block is not None else None
        del self.parts["codes"]

    def codes(self, spec: Spec) -> np.ndarray:
        """Codes of a bound element over the same scales."""
        element, dim = spec.format.element, spec.format.element.dim
        out = np.empty(codes_shape(element, self.x.shape), element.code_dtype)
        if self.grids is None:
            flat, codes = self.x.reshape(-1), out.reshape(-1)
            for start in range(0, flat.size, LIMIT):
                part = np.nan_to_num(flat[start : start + LIMIT], nan=0.0, posinf=np.inf, neginf=-np.inf)
                codes[start // dim : (start + part.size) // dim] = element._codes(part, spec.policy.round, "saturate")
            return out
        for box in self.fmt.blocks[0].boxes(self.x.shape, LIMIT):
            part = np.nan_to_num(self.x[box.take].reshape(box.split), nan=0.0, posinf=np.inf, neginf=-np.inf)
            held = box.coded(dim).take
            out[held] = self.grids.encode(part, box, spec).reshape(out[held].shape)
        return out

    def walk(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(float64 numbers, weights that broadcast against them); within the last axis numbers stay neighbours."""
        if self.grids is None:
            flat = self.x.reshape(-1)
            for start in range(0, flat.size, LIMIT):
                part = flat[start : start + LIMIT].astype(np.float64)
                counts = self.importance.flat[start : start + LIMIT].astype(np.float64)
                yield np.nan_to_num(part, posinf=0, neginf=0), np.isfinite(part) * counts
            return
        for box in self.fmt.blocks[0].boxes(self.x.shape, LIMIT):
            part = self.x[box.take].reshape(box.split).astype(np.float64)
            good = np.isfinite(part)
            scale = box.spread(self.grids.divisor).astype(np.float64)
            offset = 0.0 if self.grids.offset is None else box.spread(self.grids.offset)
            with np.errstate(invalid="ignore"):
                ratio = np.where(good & np.isfinite(scale), (part - offset) / scale, 0)
            # A block counts with its scale squared; where that would leave float64's range, relative to others it is nothing.
            weight = np.where(np.isfinite(scale), np.square(scale), 0)
            yield ratio, good * weight * self.importance[box.take].reshape(box.split)


def _numbers(scaled: _Scaled, element: Element) -> np.ndarray:
    """float32[2**bits]: optimal numbers, ascending; the last repeats where there are fewer."""
    entries = 1 << element.bits
    if scaled.x.size <= POINTS:
        pieces = [(r.reshape(-1), np.broadcast_to(w, r.shape).reshape(-1)) for r, w in scaled.walk()]
        values, weights = np.concatenate([r for r, _ in pieces]), np.concatenate([w for _, w in pieces])
        found = optimal_codebook(values, entries, weights if weights.max() > 0 else None)
    else:
        low = min(float(r.min()) for r, _ in scaled.walk())
        high = max(float(r.max()) for r, _ in scaled.walk())
        counted = Histogram(low, high)
        for r, w in scaled.walk():
            counted.add(r, w)
        points, weights = counted.points()
        found = codebook_of_points(points, weights, entries) if points.size else np.zeros(1)
    table = np.unique(found.astype(np.float32))
    if table.size == 1:
        table = np.r_[table, np.float32(table[0] + 1)]
    return np.r_[table, np.full(entries - table.size, table[-1])].astype(np.float32)


def _vectors(scaled: _Scaled, element: Element) -> np.ndarray:
    """float32 books: residual k-means, then every book in turn against the others."""
    assert element.table_shape is not None
    rows, dim = element.table_shape
    width = next(n for n in range(1, 13) if (rows >> n) << n == rows and element.bits * (1 << n) == n * rows)
    count = scaled.x.size // dim
    step, at = -(-count // min(max(64 << width, GROUPS[0]), GROUPS[1])), 0
    groups, weights = [], []
    for r, w in scaled.walk():
        g, v = r.reshape(-1, dim), np.broadcast_to(w, r.shape).reshape(-1, dim).min(axis=1)
        groups.append(g[-at % step :: step])
        weights.append(v[-at % step :: step])
        at += len(g)
    x, w = np.concatenate(groups), np.concatenate(weights)
    w = w / w.max() if w.max() > 0 else np.ones_like(w)
    books = [np.zeros((1 << width, dim)) for _ in range(rows >> width)]
    chosen = [np.zeros(len(x), np.int64) for _ in books]
    left = x
    for i in range(len(books)):
        books[i], chosen[i] = lloyd(left, w, 1 << width, seed=i)
        left = left - books[i][chosen[i]]
    for _ in range(_PASSES if len(books) > 1 else 0):
        for i, book in enumerate(books):
            left = left + book[chosen[i]]
            chosen[i] = nearest(book, left)
            books[i] = _means(left, w, chosen[i], book)
            left = left - books[i][chosen[i]]
    table = np.concatenate(books).astype(np.float32)
    if (table == table[0, 0]).all():  # one number everywhere, zero mostly: a table holds more
        table[-1] += 1
    return table


def lloyd(x: np.ndarray, w: np.ndarray, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """k vectors with a locally least weighted squared error, and each row's own.

    Args: x, float64[m, dim]; w, float64[m], not negative; seed, which rows are the start.
    Returns: float64[k, dim], rows of zeros where there are fewer different rows of x; int64[m]. The same on every machine.
    """
    rows = np.unique(x[w > 0], axis=0)
    book = np.zeros((k, x.shape[1]))
    if len(rows) <= k:
        book[: len(rows)] = rows
        return book, nearest(book, x)
    book[:] = rows[np.random.default_rng(seed).choice(len(rows), k, replace=False)]
    chosen = nearest(book, x)
    for _ in range(_ROUNDS):
        book = _means(x, w, chosen, book)
        empty = np.flatnonzero(np.bincount(chosen, w, k) == 0)
        if empty.size:  # to the rows that are worst served
            error = w * np.square(x - book[chosen]).sum(axis=1)
            book[empty] = x[np.argsort(-error, kind="stable")[: empty.size]]
        before, chosen = chosen, nearest(book, x)
        if np.array_equal(before, chosen):
            break
    return _means(x, w, chosen, book), chosen


def _means(x: np.ndarray, w: np.ndarray, chosen: np.ndarray, book: np.ndarray) -> np.ndarray:
    """The weighted mean of the rows that chose each vector; the vector itself where none did."""
    total = np.bincount(chosen, w, len(book))
    sums = np.stack([np.bincount(chosen, w * x[:, i], len(book)) for i in range(x.shape[1])], axis=1)
    return np.where(total[:, None] > 0, sums / np.where(total > 0, total, 1)[:, None], book)
