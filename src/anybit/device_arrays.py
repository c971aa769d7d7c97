"""What rounding on a device asks of an array library: torch's operations and JAX's under one set of names.

Results are the library's arrays where their arguments lie; tables come from NumPy. JAX computes in 64 bits within `scope` only.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any, cast

import numpy as np

from anybit.arrays import is_torch
from anybit.errors import ShapeError


class TorchArrays:
    """torch tensors."""

    library = "torch"

    def __init__(self) -> None:
        self.xp = sys.modules["torch"]
        self.where, self.isfinite, self.isnan, self.signbit = self.xp.where, self.xp.isfinite, self.xp.isnan, self.xp.signbit
        self.frexp, self.minimum, self.maximum = self.xp.frexp, self.xp.minimum, self.xp.maximum

    def scope(self) -> AbstractContextManager[Any]:
        """In which 64-bit types may be used."""
        return nullcontext()

    def place(self, x: Any) -> str:
        """Where x lies, a key for tables and a word for messages."""
        return str(x.device)

    def table(self, values: np.ndarray, place: str) -> Any:
        """A copy of a NumPy array on a device."""
        return self.xp.from_numpy(np.array(values)).to(place)

    def cast(self, x: Any, dtype: str) -> Any:
        return x.to(getattr(self.xp, dtype))

    def name(self, x: Any) -> str:
        """The dtype's name."""
        return str(x.dtype).removeprefix("torch.")

    def is_float(self, x: Any) -> bool:
        return bool(x.is_floating_point())

    def search(self, points: Any, x: Any, right: bool) -> Any:
        """int64: how many of the ascending points lie below x, or (right) at or below it."""
        return self.xp.bucketize(x.contiguous(), points, right=right)

    def places(self, count: int, x: Any) -> Any:
        """int64[count]: 0, 1, 2 ... where x lies."""
        return self.xp.arange(count, dtype=self.xp.int64, device=x.device)

    def stack(self, arrays: list[Any]) -> Any:
        """Along a new last axis."""
        return self.xp.stack(arrays, dim=-1)

    def joined(self, arrays: list[Any]) -> Any:
        """One after the other along the first axis."""
        return self.xp.cat(arrays)

    def distinct(self, x: Any) -> tuple[Any, Any]:
        """The different rows of a matrix, and which of them each row is."""
        found, back = self.xp.unique(x, dim=0, return_inverse=True)
        return found, back.reshape(-1)

    def extremes(self, x: Any, axes: tuple[int, ...]) -> tuple[Any, Any]:
        """Least and largest over some axes."""
        return self.xp.amin(x, dim=axes), self.xp.amax(x, dim=axes)

    def padded(self, x: Any, more: list[int]) -> Any:
        """x with zeros behind each axis."""
        if not any(more):
            return x
        return self.xp.nn.functional.pad(x, [n for after in reversed(more) for n in (0, after)])

    def repeat(self, x: Any, times: int, axis: int) -> Any:
        return x.repeat_interleave(times, dim=axis)

    def full(self, shape: tuple[int, ...], value: float, dtype: str, like: Any) -> Any:
        """A new array of one value where another lies."""
        return self.xp.full(shape, value, dtype=getattr(self.xp, dtype), device=like.device)

    def bits(self, x: Any, dtype: str) -> Any:
        """The same bits as another type of the same width."""
        return x.view(getattr(self.xp, dtype))

    def replaced(self, x: Any, key: Any, values: Any) -> Any:
        """x with values at a key; x itself, changed, where the library allows it."""
        x[key] = values
        return x

    def host(self, x: Any) -> np.ndarray:
        """A copy as a NumPy array."""
        return np.array(x.detach().cpu().numpy())

    def moved(self, x: Any, like: Any) -> Any:
        """An array of any kind as a float32 or float64 one where another lies."""
        held = x if is_torch(x) else self.xp.from_numpy(np.array(x))
        return held.detach().to(like.device, self.xp.float64 if held.dtype == self.xp.float64 else self.xp.float32)

    def cholesky(self, h: Any) -> Any:
        """Lower triangular L with L L^T = h; None: h is not positive definite."""
        found, info = self.xp.linalg.cholesky_ex(h)
        return found if int(info) == 0 and bool(found.isfinite().all()) else None

    def written(self, values: Any, out: Any) -> Any:
        """values, or out after they were written to it. ShapeError: out does not fit."""
        if out is None:
            return values
        if not is_torch(out) or out.shape != values.shape or out.dtype != values.dtype or out.device != values.device:
            raise ShapeError(f"out must be a tensor like the result: {values.dtype} {list(values.shape)} on {values.device}")
        return out.copy_(values)


class JaxArrays:
    """JAX arrays."""

    library = "jax"

    def __init__(self) -> None:
        self.jax = sys.modules["jax"]
        self.xp = self.jax.numpy
        self.where, self.isfinite, self.isnan, self.signbit = self.xp.where, self.xp.isfinite, self.xp.isnan, self.xp.signbit
        self.frexp, self.minimum, self.maximum = self.xp.frexp, self.xp.minimum, self.xp.maximum

    def scope(self) -> AbstractContextManager[Any]:
        found = self.jax.enable_x64(True) if hasattr(self.jax, "enable_x64") else import_module("jax.experimental").enable_x64()
        return cast(AbstractContextManager[Any], found)

    def place(self, x: Any) -> str:
        return " ".join(sorted({device.platform for device in x.devices()}))

    def table(self, values: np.ndarray, place: str) -> Any:
        """Not committed to a device: it follows the arrays that it meets."""
        return self.xp.asarray(values)

    def cast(self, x: Any, dtype: str) -> Any:
        return x.astype(dtype)

    def name(self, x: Any) -> str:
        return str(x.dtype)

    def is_float(self, x: Any) -> bool:
        return bool(self.xp.issubdtype(x.dtype, self.xp.floating))

    def search(self, points: Any, x: Any, right: bool) -> Any:
        side = "right" if right else "left"
        return self.xp.searchsorted(self._ordered(points), self._ordered(x), side=side).astype("int64")

    def _ordered(self, x: Any) -> Any:
        """Integers in the order of floats, one for both zeros: XLA may take subnormals for zero where it compares floats."""
        bits = self.jax.lax.bitcast_convert_type(x, f"int{8 * x.dtype.itemsize}")
        return self.xp.where(bits < 0, -(bits & self.xp.iinfo(bits.dtype).max), bits)

    def places(self, count: int, x: Any) -> Any:
        return self.xp.arange(count, dtype="int64")

    def stack(self, arrays: list[Any]) -> Any:
        return self.xp.stack(arrays, axis=-1)

    def joined(self, arrays: list[Any]) -> Any:
        return self.xp.concatenate(arrays)

    def distinct(self, x: Any) -> tuple[Any, Any]:
        found, back = self.xp.unique(x, axis=0, return_inverse=True)
        return found, back.reshape(-1)

    def extremes(self, x: Any, axes: tuple[int, ...]) -> tuple[Any, Any]:
        return x.min(axis=axes), x.max(axis=axes)

    def padded(self, x: Any, more: list[int]) -> Any:
        return self.xp.pad(x, [(0, after) for after in more])

    def repeat(self, x: Any, times: int, axis: int) -> Any:
        return self.xp.repeat(x, times, axis=axis)

    def full(self, shape: tuple[int, ...], value: float, dtype: str, like: Any) -> Any:
        return self.xp.full(shape, value, dtype=dtype, device=like.sharding)

    def bits(self, x: Any, dtype: str) -> Any:
        return self.jax.lax.bitcast_convert_type(x, dtype)

    def replaced(self, x: Any, key: Any, values: Any) -> Any:
        return x.at[key].set(values)

    def host(self, x: Any) -> np.ndarray:
        return np.array(x)

    def moved(self, x: Any, like: Any) -> Any:
        held = self.xp.asarray(np.asarray(x))
        return self.jax.device_put(held.astype("float64" if held.dtype == "float64" else "float32"), like.sharding)

    def cholesky(self, h: Any) -> Any:
        found = self.xp.linalg.cholesky(h)
        return found if bool(self.xp.isfinite(found).all()) else None

    def written(self, values: Any, out: Any) -> Any:
        if out is not None:
            raise ShapeError("JAX arrays cannot be written to; leave out away")
        return values


Arrays = TorchArrays | JaxArrays
LIBRARIES: dict[str, type[TorchArrays] | type[JaxArrays]] = {"torch": TorchArrays, "jax": JaxArrays}


def arrays_of(x: Any) -> Arrays:
    """The operations for an array's library."""
    return TorchArrays() if is_torch(x) else JaxArrays()
