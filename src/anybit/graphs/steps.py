"""Operations of an integer-only network: integers in, integers out, without a float and without a division.

Activations are stored as q in the smallest integer type; x = q - zero. Sums are int32, which cannot overflow (`IntegerNetwork`
proves it for every input). Between two scales stands a dyadic number b / 2^c:

    requantize(a) = clip(((a * b + (2^c >> 1)) >> c) + zero, low, high)

in int64, >> rounding down: floor(a b / 2^c + 1/2), ties upward. b and c are one number, or one a channel.

Source: HAWQ-V3, arXiv 2011.10680.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from anybit.graphs.grid import smallest
from anybit.graphs.windows import convolve, windows
from anybit.models.operators import Pair

ACC = np.int32
WIDE = np.int64


def scaled(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """floor(a b / 2^c + 1/2) in int64; a [n, channels, ...] has |a| < 2^31, b and c are int64 [channels] or [1]."""
    shape = (len(b), *[1] * (a.ndim - 2))
    half = (1 << c) >> 1
    return (a.astype(WIDE) * b.reshape(shape) + half.reshape(shape)) >> c.reshape(shape)


@dataclass(frozen=True, eq=False)
class Clip:
    """The end of a step: clip(a + zero, low, high), in the smallest type that holds low to high."""

    zero: int
    low: int
    high: int

    def __call__(self, a: np.ndarray) -> np.ndarray:
        return np.clip(a + self.zero, self.low, self.high).astype(smallest(self.low, self.high))


@dataclass(frozen=True, eq=False)
class Requantize(Clip):
    """From int32 sums to stored activations, as in the module; b, c int64 [channels] or [1]."""

    b: np.ndarray
    c: np.ndarray

    def __call__(self, a: np.ndarray) -> np.ndarray:
        return super().__call__(scaled(a, self.b, self.c))


@dataclass(frozen=True, eq=False)
class IntegerStep:
    """Base: the name of its result, the names of its inputs, and their zero points."""

    name: str
    inputs: tuple[str, ...]
    zeros: tuple[int, ...]

    def run(self, *q: np.ndarray) -> np.ndarray:
        """The result for integer inputs [n, ...]."""
        raise NotImplementedError

    @property
    def plain(self) -> dict[str, Any]:
        """Everything as Python numbers, lists and names, for the reference."""
        found: dict[str, Any] = {"kind": type(self).__name__}
        for field in fields(self):
            found[field.name] = _plain(getattr(self, field.name))
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Clip):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value.tolist() if isinstance(value, np.ndarray) else value


def _centred(q: np.ndarray, zero: int) -> np.ndarray:
    return q.astype(ACC) - ACC(zero)


@dataclass(frozen=True, eq=False)
class Convolve(IntegerStep):
    """sum of weight * x, zeros around x, plus bias; weight int8 or int16 [channels, in / groups, kernel], bias int32 [channels].

    Without `out` the result is the int32 sums themselves, for a residual addition.
    """

    weight: np.ndarray
    bias: np.ndarray
    stride: Pair
    padding: Pair
    groups: int
    out: Requantize | None

    def sums(self, q: np.ndarray) -> np.ndarray:
        """int32 [n, channels, rows, columns]."""
        found = convolve(_centred(q, self.zeros[0]), self.weight.astype(ACC), self.stride, self.padding, self.groups)
        return found + self.bias[:, None, None]

    def run(self, *q: np.ndarray) -> np.ndarray:
        return self.sums(q[0]) if self.out is None else self.out(self.sums(q[0]))


@dataclass(frozen=True, eq=False)
class Multiply(IntegerStep):
    """The sums of a dense layer, weight int8 or int16 [features, in], bias int32 [features]; otherwise as `Convolve`."""

    weight: np.ndarray
    bias: np.ndarray
    out: Requantize | None

    def sums(self, q: np.ndarray) -> np.ndarray:
        """int32 [n, features]."""
        return _centred(q, self.zeros[0]) @ self.weight.astype(ACC).T + self.bias

    def run(self, *q: np.ndarray) -> np.ndarray:
        return self.sums(q[0]) if self.out is None else self.out(self.sums(q[0]))


@dataclass(frozen=True, eq=False)
class Sum(IntegerStep):
    """A residual addition: both inputs times a dyadic number of their own, rounded, and added in int32."""

    b: tuple[np.ndarray, np.ndarray]
    c: tuple[np.ndarray, np.ndarray]
    out: Clip

    def run(self, *q: np.ndarray) -> np.ndarray:
        left, right = (scaled(_centred(q[i], self.zeros[i]), self.b[i], self.c[i]).astype(ACC) for i in (0, 1))
        return self.out(left + right)


@dataclass(frozen=True, eq=False)
class Average(IntegerStep):
    """The sum of a window, zeros around x; the division by the window's size is part of the dyadic number."""

    kernel: Pair
    stride: Pair
    padding: Pair
    out: Requantize

    def run(self, *q: np.ndarray) -> np.ndarray:
        found = windows(_centred(q[0], self.zeros[0]), self.kernel, self.stride, self.padding)
        return self.out(found.sum(axis=(4, 5), dtype=ACC))


@dataclass(frozen=True, eq=False)
class Maximum(IntegerStep):
    """The largest q of a window; order is that of the values, so nothing is rescaled."""

    kernel: Pair
    stride: Pair
    padding: Pair

    def run(self, *q: np.ndarray) -> np.ndarray:
        least = int(np.iinfo(q[0].dtype).min)
        return windows(q[0], self.kernel, self.stride, self.padding, least).max(axis=(4, 5))


@dataclass(frozen=True, eq=False)
class Positive(IntegerStep):
    """max(q, zero): a ReLU on stored activations."""

    def run(self, *q: np.ndarray) -> np.ndarray:
        return np.maximum(q[0], q[0].dtype.type(self.zeros[0]))


@dataclass(frozen=True, eq=False)
class Reshape(IntegerStep):
    """[n, channels, height, width] to [n, features]."""

    def run(self, *q: np.ndarray) -> np.ndarray:
        return q[0].reshape(len(q[0]), -1)


@dataclass(frozen=True, eq=False)
class Rescale(IntegerStep):
    """Stored activations on another grid: a layer of fewer bits than its input is stored with."""

    out: Requantize

    def run(self, *q: np.ndarray) -> np.ndarray:
        return self.out(_centred(q[0], self.zeros[0]))
