"""Arrays on a device under NumPy's protocols, so that scale rules and grids written for NumPy run there, with the bits that NumPy gives.

Types are promoted as NumPy promotes them, and float64 sums are made in NumPy's order (pairwise along the innermost summed axis, others one
after the other; `ordered_sum`). Powers (the loss of `lpP`) are each library's own, as NumPy's are each processor's: where two scales cost
the same to the last bits of a float64, another may be taken. Nothing goes to the host unasked: `numpy.asarray` of such an array is an
error.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import groupby
from math import prod
from typing import Any

import numpy as np

from anybit.device import finite_codes, values_on_device
from anybit.device_arrays import LIBRARIES, Arrays
from anybit.formats import Element
from anybit.methods.values import Elsewhere

_LARGEST = float(np.finfo(np.float32).max)
_PAIRWISE = 128
"""Numbers up to which NumPy adds eight sums side by side; more are halved."""


class Placed(np.lib.mixins.NDArrayOperatorsMixin, Elsewhere):
    """An array of `ops`' library. Results are new arrays where it lies; of a whole array (`any()`, `max()`) they are numbers."""

    __slots__ = ("array", "ops")

    def __init__(self, ops: Arrays, array: Any) -> None:
        self.ops, self.array = ops, array

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.ops.name(self.array))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __float__(self) -> float:
        return float(self.array)

    def __int__(self) -> int:
        return int(self.array)

    def __bool__(self) -> bool:
        return bool(self.array)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError("an array on a device is not read by NumPy; take it to the host first")

    def host(self) -> np.ndarray:
        """A copy as a NumPy array."""
        return self.ops.host(self.array)

    def _made(self, array: Any) -> Placed:
        return Placed(self.ops, array)

    def operand(self, x: Any, dtype: np.dtype) -> Any:
        """The library's array of an array or number, in a dtype. Numbers become arrays on the device too: CUDA multiplies by the
        reciprocal of a divisor that is a number of the host."""
        if isinstance(x, Placed):
            return self.ops.cast(x.array, dtype.name) if x.dtype != dtype else x.array
        place, held = self.ops.place(self.array), np.asarray(x, dtype)
        return self.ops.table(held, place) if held.ndim else _scalar(self.ops.library, place, dtype.name, held.tobytes())

    # ------------------------------------------------------------------------------------------------------- protocols
    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **more: Any) -> Any:
        if method == "reduceat" and ufunc in (np.maximum, np.add):
            return self._made(_reduced_at(self.ops, ufunc, self.array, *inputs[1:], **more))
        call, out, dtype = _UFUNCS.get(ufunc.__name__), more.pop("out", None), more.pop("dtype", None)
        if method != "__call__" or call is None or more:
            return NotImplemented
        if ufunc is np.ldexp:
            kinds = [np.dtype(np.float64), np.dtype(np.int64)]
        elif dtype is not None:
            kinds = [np.dtype(dtype)] * len(inputs)
        else:
            given = tuple(type(x) if type(x) in (int, float) else np.asarray(x).dtype if _plain(x) else x.dtype for x in inputs)
            kinds = list(ufunc.resolve_dtypes((*given, *[None] * ufunc.nout)))[: len(inputs)]
        found = call(self.ops, *(self.operand(x, kind) for x, kind in zip(inputs, kinds, strict=True)))
        if isinstance(found, tuple):
            return tuple(self._made(each) for each in found)
        if out is None:
            return self._made(found)
        out[0].array = self.ops.cast(found, out[0].dtype.name)
        return out[0]

    def __array_function__(self, func: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
        call = _FUNCTIONS.get(func)
        return NotImplemented if call is None else call(self, *args, **kwargs)

    # ------------------------------------------------------------------------------------------------------- methods of NumPy's arrays
    def _key(self, key: Any) -> Any:
        """An index of the library's own."""
        keys = key if isinstance(key, tuple) else (key,)
        place = self.ops.place(self.array)
        return tuple(
            self.ops.table(k, place) if isinstance(k, np.ndarray) else k.array if isinstance(k, Placed) else k for k in keys
        )  # fmt: skip

    def __getitem__(self, key: Any) -> Placed:
        return self._made(self.array[self._key(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.array = self.ops.replaced(self.array, self._key(key), self.operand(value, self.dtype))

    def astype(self, dtype: Any, copy: bool = True) -> Placed:
        return self._made(self.ops.cast(self.array, np.dtype(dtype).name))

    def view(self, dtype: Any) -> Placed:
        """The same bits, in as many numbers."""
        return self._made(self.ops.bits(self.array, np.dtype(dtype).name))

    def reshape(self, *shape: Any) -> Placed:
        return self._made(self.array.reshape(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape))

    def any(self) -> bool:
        return bool(self.array.any())

    def all(self) -> bool:
        return bool(self.array.all())

    def min(self, axis: tuple[int, ...] | None = None, where: Any = None, initial: float = 0.0) -> Any:
        return self._extreme(0, axis, where, initial)

    def max(self, axis: tuple[int, ...] | None = None, where: Any = None, initial: float = 0.0) -> Any:
        return self._extreme(1, axis, where, initial)

    def _extreme(self, which: int, axis: tuple[int, ...] | None, where: Any, initial: float) -> Any:
        if axis is None:
            return float(self.array.max() if which else self.array.min())
        x: Any = self if where is None else np.where(where, self, initial)
        return self._made(self.ops.extremes(x.array, axis)[which])

    def sum(self, axis: int | tuple[int, ...] | None = None, dtype: Any = None) -> Any:
        """In NumPy's order and, but for a whole array of integers, in float64."""
        if axis is None:
            return int(self.ops.cast(self.array, "int64").sum())
        axes = (axis,) if isinstance(axis, int) else axis
        return self._made(ordered_sum(self.ops.cast(self.array, "float64"), tuple(i % self.ndim for i in axes)))

    # ------------------------------------------------------------------------------------------------------- elements
    def encoded(self, element: Element, round: str = "nearest-even", over: str = "saturate", word: Any = None) -> Placed:
        x = self.array if self.ops.name(self.array) in ("float32", "float64") else self.ops.cast(self.array, "float64")
        if over == "wrap":
            given: Any = self._made(x)
            found: Any = element._codes(given, round, over)
            return self._made(found.astype(np.int64).array)
        x = x.clip(-_LARGEST, _LARGEST)  # beyond float32 is beyond every element
        return self._made(finite_codes(self.ops, x, element, round, over, None if word is None else word.array))

    def decoded(self, element: Element) -> Placed:
        return self._made(values_on_device(self.ops, self.array, element))


def _plain(x: Any) -> bool:
    return not isinstance(x, Placed)


@lru_cache(maxsize=4096)
def _scalar(library: str, place: str, dtype: str, value: bytes) -> Any:
    return LIBRARIES[library]().table(np.frombuffer(value, dtype)[0].reshape(()), place)


def ordered_sum(x: Any, axes: tuple[int, ...]) -> Any:
    """Over some axes of a library's array that lies in C order: what numpy.sum gives, bit for bit."""
    kept = [n for i, n in enumerate(x.shape) if i not in axes]
    runs: list[list[int]] = []  # neighbouring axes that are summed, or kept, are one
    for i, n in enumerate(x.shape):
        if n == 1:
            continue
        if runs and runs[-1][0] == (i in axes):
            runs[-1][1] *= n
        else:
            runs.append([int(i in axes), n])
    x = x.reshape([n for _, n in runs])
    if runs and runs[-1][0]:
        x = _pairwise(x)
        runs.pop()
    while any(summed for summed, _ in runs):  # outer axes one after the other, the first one slowest
        last = max(i for i, (summed, _) in enumerate(runs) if summed)
        outer = [i for i, (summed, _) in enumerate(runs[:last]) if summed]
        if outer:
            x = x.swapaxes(outer[-1] + 1, last) if last == outer[-1] + 2 else x
            first = outer[-1]
            x = x.reshape([*x.shape[:first], x.shape[first] * x.shape[first + 1], *x.shape[first + 2 :]])
            runs[first : last + 1] = [[1, runs[first][1] * runs[last][1]], runs[first + 1]]
            continue
        total = x[(slice(None),) * last + (0,)]
        for i in range(1, x.shape[last]):
            total = total + x[(slice(None),) * last + (i,)]
        x = total
        runs.pop(last)
    return x.reshape(kept)


def _reduced_at(ops: Arrays, ufunc: np.ufunc, x: Any, starts: np.ndarray, axis: int) -> Any:
    """`ufunc.reduceat` of numpy.maximum or numpy.add, bit for bit: NumPy adds the pairwise sum of a run's other numbers to its first."""
    x, pieces, start = x.swapaxes(0, axis), [], 0
    for length, runs in groupby(np.diff(np.r_[starts, x.shape[0]]).tolist()):
        count = len(list(runs))
        part = x[start : start + count * length].reshape([count, length, prod(x.shape[1:])])
        start += count * length
        if ufunc is np.maximum:
            part = ops.extremes(part, (1,))[1]
        else:
            part = part[:, 0] if length == 1 else part[:, 0] + _pairwise(part[:, 1:].swapaxes(1, 2))
        pieces.append(part.reshape([count, *x.shape[1:]]))
    return ops.joined(pieces).swapaxes(0, axis)


def _pairwise(x: Any) -> Any:
    """Over the last axis."""
    n = x.shape[-1]
    if n < 8:
        total, done = x[..., 0], 1
    elif n <= _PAIRWISE:
        done = n // 8 * 8
        split = x[..., :done].reshape([*x.shape[:-1], n // 8, 8])
        r = split[..., 0, :]
        for i in range(1, n // 8):
            r = r + split[..., i, :]
        r = r[..., 0::2] + r[..., 1::2]
        r = r[..., 0::2] + r[..., 1::2]
        total = r[..., 0] + r[..., 1]
    else:
        half = n // 2 - n // 2 % 8
        if 2 * half == n:
            both = _pairwise(x.reshape([*x.shape[:-1], 2, half]))
            return both[..., 0] + both[..., 1]
        return _pairwise(x[..., :half]) + _pairwise(x[..., half:])
    for i in range(done, n):
        total = total + x[..., i]
    return total


def _ldexp(ops: Arrays, x: Any, exponent: Any) -> Any:
    """In two steps, neither of which leaves float64 but by the result."""
    half = exponent // 2
    for each in (half, exponent - half):
        x = x * ops.bits((each.clip(-1022, 1023) + 1023) << 52, "float64")
    return x


_UFUNCS: dict[str, Callable[..., Any]] = {
    "add": lambda _, a, b: a + b, "subtract": lambda _, a, b: a - b, "multiply": lambda _, a, b: a * b, "divide": lambda _, a, b: a / b,
    "negative": lambda _, a: -a, "absolute": lambda _, a: abs(a), "square": lambda _, a: a * a, "power": lambda _, a, b: a**b,
    "sqrt": lambda ops, a: ops.xp.sqrt(a), "rint": lambda ops, a: ops.xp.round(a), "ceil": lambda ops, a: ops.xp.ceil(a),
    "floor": lambda ops, a: ops.xp.floor(a), "trunc": lambda ops, a: ops.xp.trunc(a), "fmod": lambda ops, a, b: ops.xp.fmod(a, b),
    "copysign": lambda ops, a, b: ops.xp.copysign(a, b), "frexp": lambda ops, a: tuple(ops.frexp(a)), "ldexp": _ldexp,
    "maximum": lambda ops, a, b: ops.maximum(a, b), "minimum": lambda ops, a, b: ops.minimum(a, b),
    "isfinite": lambda ops, a: ops.isfinite(a),
    "isnan": lambda ops, a: ops.isnan(a), "isinf": lambda ops, a: ops.xp.isinf(a), "signbit": lambda ops, a: ops.signbit(a),
    "less": lambda _, a, b: a < b, "less_equal": lambda _, a, b: a <= b, "greater": lambda _, a, b: a > b,
    "greater_equal": lambda _, a, b: a >= b, "equal": lambda _, a, b: a == b, "not_equal": lambda _, a, b: a != b,
    "bitwise_and": lambda _, a, b: a & b, "bitwise_or": lambda _, a, b: a | b, "invert": lambda _, a: ~a,
    "right_shift": lambda _, a, b: a >> b, "floor_divide": lambda _, a, b: a // b,
}  # fmt: skip


def _where(like: Placed, condition: Any, a: Any, b: Any) -> Placed:
    dtype = np.result_type(*(x if type(x) in (int, float) else x.dtype if isinstance(x, Placed) else np.asarray(x).dtype for x in (a, b)))
    chosen = like.operand(condition, np.dtype(bool))
    return Placed(like.ops, like.ops.where(chosen, like.operand(a, dtype), like.operand(b, dtype)))


def _full_like(like: Placed, x: Placed, value: float, dtype: Any = None, shape: Any = None) -> Placed:
    size, value = x.shape if shape is None else tuple(shape), np.asarray(value).item()
    held = np.dtype(x.dtype if dtype is None else dtype)
    return Placed(x.ops, x.ops.full(size, value, held.name, x.array))


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.where: _where,
    np.clip: lambda like, x, low, high: np.minimum(np.maximum(x, low), high),
    np.full_like: _full_like,
    np.zeros_like: lambda like, x, dtype=None, shape=None: _full_like(like, x, 0, dtype, shape),
    np.any: lambda like, x: x.any(),
    np.all: lambda like, x: x.all(),
    np.argmax: lambda like, x: int((like.ops.cast(x.array, "int64") if x.dtype == bool else x.array).reshape(-1).argmax()),
    np.broadcast_to: lambda like, x, shape: Placed(like.ops, like.ops.xp.broadcast_to(x.array, tuple(shape))),
}
