"""Learned codebooks: lists of numbers, or additive books of vectors, that each array brings along."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

import numpy as np

from anybit.errors import FormatError
from anybit.formats.element import Element
from anybit.formats.family import FAMILIES, Family
from anybit.formats.learned import checked_table
from anybit.formats.table import Table
from anybit.formats.vector import SIZES, Vector, half_norms, nearest

_FORM = re.compile(r"vq([0-9]{1,3})d([0-9]{1,3})(_k([0-9]{1,3}))?")
_EXHAUSTIVE, _BEAM, _ROUNDS, _SCORES = 12, 8, 2, 1 << 21


def _unbound(name: str) -> NoReturn:
    raise FormatError(f"the values of {name} are learned from each array: quantize one, and its QTensor's `bound` format has them")


def _ends() -> tuple[np.ndarray, np.ndarray]:
    """What is known of a learned element before it is bound: blocks are scaled to -1 .. 1."""
    return np.array([-1.0, 1.0]), np.empty(0, np.uint8)


@dataclass(frozen=True)
class KMeans(Element):
    """`kmeansN`: 2^N numbers, learned for each array (part "table", float32[2^N], ascending) by optimal weighted 1-D k-means.

    Blocks are scaled so that their largest magnitude is 1. Codes of repeated entries, where an array has fewer different values, are not
    given by encoding. Before it is bound it has no values, and -1 to 1 as its range.
    """

    @property
    def table_shape(self) -> tuple[int, ...]:
        return (1 << self.bits,)

    def bind(self, table: np.ndarray) -> Element:
        own = checked_table(self.name, table, self.table_shape)
        return BoundCodebook(self.name, self.bits, own.tobytes(), own)

    def decode(self, codes: Any) -> np.ndarray:
        _unbound(self.name)

    @property
    def fields(self) -> dict[str, Any]:
        return {"family": "learned", "bits": self.bits}

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        return _ends()

    @property
    def specials(self) -> dict[str, int]:
        return {}

    @cached_property
    def table(self) -> Table:
        return Table("i16r", None, 1.0, np.empty(0, np.float32))


@dataclass(frozen=True)
class BoundCodebook(Element):
    """A `KMeans` with the numbers of one array."""

    digest: bytes = field(repr=False)
    learned_values: np.ndarray = field(compare=False, repr=False)

    @property
    def fields(self) -> dict[str, Any]:
        return {"family": "codebook", "bits": self.bits, "entries": self.learned_values.tolist()}

    @property
    def reach(self) -> tuple[float, float]:
        return 1.0, 1.0

    def decode(self, codes: Any) -> np.ndarray:
        return self.learned_values.astype(np.float64)[self._checked(codes)]


@dataclass(frozen=True)
class Additive(Vector):
    """`vqNdD_kK`: the sum of K learned vectors of D weights, each from a book of 2^N (part "table", float32[K 2^N, D], book after book).

    A code is the K indices of N bits, the first book's lowest. Blocks are scaled so that their largest magnitude is 1. Sums are float64.
    Source: additive quantization, Babenko and Lempitsky 2014; residual k-means as its start.
    """

    books: int

    @property
    def table_shape(self) -> tuple[int, ...]:
        return (self.books << (self.bits // self.books), self.dim)

    def bind(self, table: np.ndarray) -> Element:
        assert self.table_shape is not None
        own = checked_table(self.name, table, self.table_shape)
        return BoundAdditive(self.name, self.bits, self.weights, self.books, own.tobytes(), own)

    def decode(self, codes: Any) -> np.ndarray:
        _unbound(self.name)

    @property
    def fields(self) -> dict[str, Any]:
        return {"family": "learned", "bits": self.bits, "dim": self.dim}

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        return _ends()

    @cached_property
    def table(self) -> Table:
        return Table("f32", None, 1.0, np.empty(0, np.float32))


@dataclass(frozen=True)
class BoundAdditive(Vector):
    """An `Additive` with the books of one array.

    Encoding is exact for one book and for codes of up to 12 bits; beyond, it goes from book to book with the 8 sums that leave least of
    each group, then twice around, each index anew against the others.
    """

    books: int
    digest: bytes = field(repr=False)
    learned_values: np.ndarray = field(compare=False, repr=False)

    @cached_property
    def _books(self) -> np.ndarray:
        """float64[K, 2^N, D]."""
        return self.learned_values.astype(np.float64).reshape(self.books, -1, self.dim)

    @property
    def fields(self) -> dict[str, Any]:
        return {"family": "additive", "bits": self.bits, "dim": self.dim, "books": self._books.tolist()}

    @property
    def reach(self) -> tuple[float, float]:
        return 1.0, 1.0

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        if self.bits <= _EXHAUSTIVE:
            return super()._sorted
        # Of longer codes only the ends of the sums: 2^32 sums are no list.
        low, high = (ends.sum(axis=0) for ends in (self._books.min(axis=1), self._books.max(axis=1)))
        return np.unique([low.min(), high.max()]), np.empty(0, self.code_dtype)

    def decode(self, codes: Any) -> np.ndarray:
        c = self._checked(codes)
        width = self.bits // self.books
        total = np.zeros((*c.shape, self.dim))
        for i, book in enumerate(self._books):
            total += book[(c >> (i * width)) & ((1 << width) - 1)]
        return total

    def _nearest(self, groups: np.ndarray) -> np.ndarray:
        if self.books == 1:
            return nearest(self._books[0], groups)
        if self.bits <= _EXHAUSTIVE:
            return nearest(self.values, groups)
        step = max(1, _SCORES // (_BEAM << (self.bits // self.books)))
        return np.concatenate([self._beam(groups[i : i + step]) for i in range(0, len(groups), step)])

    def _beam(self, groups: np.ndarray) -> np.ndarray:
        """Codes by the sums of the first books that leave least, several for each group, then each index anew against the others."""
        count, width = len(groups), self.bits // self.books
        left, chosen = groups[:, None], np.zeros((count, 1, 0), np.int64)
        for book in self._books:
            # What is left, less its own length: the same for all vectors of the book, but not for all that came before.
            error = np.square(left).sum(axis=2)[..., None] - 2 * (left @ book.T - half_norms(book))
            flat = error.reshape(count, -1)
            kept = np.argpartition(flat, min(_BEAM, flat.shape[1]) - 1, axis=1)[:, :_BEAM]
            before, index = np.divmod(kept, len(book))
            left = np.take_along_axis(left, before[..., None], 1) - book[index]
            chosen = np.concatenate([np.take_along_axis(chosen, before[..., None], 1), index[..., None]], axis=2)
        rows, best = np.arange(count), np.square(left).sum(axis=2).argmin(axis=1)
        left, indices = left[rows, best], chosen[rows, best].T
        for _ in range(_ROUNDS):
            for i, book in enumerate(self._books):
                left = left + book[indices[i]]
                indices[i] = nearest(book, left)
                left = left - book[indices[i]]
        return np.bitwise_or.reduce(indices << (np.arange(self.books) * width)[:, None], axis=0)


def parse(text: str) -> Element | None:
    digits = text.removeprefix("kmeans")
    if digits != text and digits.isdigit() and len(digits) < 4:
        if digits not in {"1", "2", "3", "4", "5", "6", "7", "8"}:
            raise FormatError(f"learned codebooks have 1 to 8 bits, not {digits}")
        return KMeans(text, int(digits))
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    width, dim, books = int(found[1]), int(found[2]), int(found[4] or 1)
    if not (1 <= width <= 12 and dim in SIZES and 1 <= books <= 4 and width * books <= 32):
        raise FormatError("learned vectors have indices of 1 to 12 bits for 2, 4 or 8 weights and up to 4 books, 32 bits together")
    return Additive(f"vq{width}d{dim}" + (f"_k{books}" if books > 1 else ""), width * books, dim, books)


FAMILIES.add(
    "learned codebook",
    Family(
        "learned codebook",
        "values learned for each array and stored beside its codes: numbers, or sums of vectors of 2, 4 or 8 weights",
        "kmeansN with N up to 8; vqNdD, vqNdD_kK with N bits an index, D weights, K books",
        parse,
        {
            "kmeans2": "4 learned numbers",
            "kmeans3": "8 learned numbers",
            "kmeans4": "16 learned numbers",
            "vq8d4": "2 bits a weight: 256 learned vectors of 4",
            "vq8d8_k2": "2 bits a weight: sums of two learned vectors of 8, from 256 each",
        },
    ),
)
