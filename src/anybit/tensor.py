"""QTensor: an array stored in a number format; quantize and fake_quantize."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import lcm, prod
from types import MappingProxyType
from typing import Any

import numpy as np

from anybit.errors import ShapeError
from anybit.formats import Format, Spec
from anybit.layouts import LAYOUTS, default_layout, geometry
from anybit.layouts.tile import Tile16x1


def _read_only(parts: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    views = {}
    for name, part in parts.items():
        view = part.view()
        view.flags.writeable = False
        views[name] = view
    return MappingProxyType(views)


class _Grids(Mapping[str, np.ndarray]):
    """Scales, offsets and zero points of a tile16x4 matrix on their block grids, each untiled when it is asked for.

    Kernels read nearly all formats' scales as they lie; untiling them all would read and copy every scale of a model that is loaded.
    """

    def __init__(self, tensor: QTensor) -> None:
        rows = tensor.shape[0]
        self._parts, self._rows = tensor.parts, rows
        self._per_row = geometry(tensor.format, (rows, tensor.shape[1])).rows == 1

    def __getitem__(self, name: str) -> np.ndarray:
        part = self._parts[name]
        return part.transpose(0, 2, 1).reshape(-1, part.shape[1])[: self._rows] if self._per_row and part.ndim == 3 else part

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._parts if name != "codes")

    def __len__(self) -> int:
        return len(self._parts) - 1


@dataclass(frozen=True, eq=False)
class QTensor:
    """An array in a number format: format, logical shape, layout, and stored parts ("codes", "scale.0", "zero", "offset.0" ...), read-only.

    >>> import anybit, numpy as np
    >>> q = anybit.quantize(np.eye(4, 64, dtype=np.float32), "int4@32")
    >>> q.shape, q.layout, q.nbytes
    ((4, 64), 'tile16x4', 576)
    """

    format: Format
    shape: tuple[int, ...]
    layout: str
    parts: Mapping[str, np.ndarray]

    @classmethod
    def pack(cls, fmt: Format, shape: tuple[int, ...], logical: Mapping[str, np.ndarray], layout: str | None = None) -> QTensor:
        """From logical parts (see `anybit.methods.rtn`), in the layout that kernels want or the one named."""
        name = layout or default_layout(fmt, shape)
        reason = LAYOUTS[name].accepts(fmt, shape)
        if reason is not None:
            raise ShapeError(f"layout {name} cannot hold {fmt} of shape {list(shape)}: {reason}")
        return cls(fmt, shape, name, _read_only(LAYOUTS[name].pack(fmt, shape, logical)))

    @classmethod
    def from_stored(cls, fmt: Format, shape: tuple[int, ...], layout: str, parts: Mapping[str, np.ndarray]) -> QTensor:
        """Over stored parts, in place. ShapeError: a part is missing, extra, or of another shape or dtype than the layout needs."""
        reason = LAYOUTS[layout].accepts(fmt, shape)
        if reason is not None or not shape or min(shape) < 1:
            raise ShapeError(f"layout {layout} cannot hold {fmt} of shape {list(shape)}: {reason or 'every axis needs at least one value'}")
        expected = LAYOUTS[layout].parts(fmt, shape)
        if expected.keys() != parts.keys():
            raise ShapeError(f"{fmt} in layout {layout} has the parts {', '.join(expected)}, not {', '.join(parts)}")
        for name, (dtype, size) in expected.items():
            if parts[name].dtype != dtype or parts[name].shape != size:
                raise ShapeError(f"part {name} must be {dtype}{list(size)}, not {parts[name].dtype}{list(parts[name].shape)}")
        return cls(fmt, shape, layout, _read_only(parts))

    @classmethod
    def dense(cls, array: np.ndarray, fmt: Format | str = "fp32") -> QTensor:
        """Dense weights from their bit patterns: float32, float16, or bfloat16 as uint16."""
        fmt = Format(fmt) if isinstance(fmt, str) else fmt
        return cls.pack(fmt, array.shape, {"codes": array.view(fmt.element.code_dtype)})

    @property
    def nbytes(self) -> int:
        """Stored bytes, padding included."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def bits_per_weight(self) -> Fraction:
        """Stored bits a weight, padding included."""
        return Fraction(8 * self.nbytes, self.size)

    def logical(self) -> dict[str, np.ndarray]:
        """Codes in the tensor's own order and scales on their block grids."""
        return LAYOUTS[self.layout].unpack(self.format, self.shape, self.parts)

    def to(self, layout: str) -> QTensor:
        """The same codes in another layout."""
        return self if layout == self.layout else QTensor.pack(self.format, self.shape, self.logical(), layout)

    def narrow(self, start: int, stop: int) -> QTensor:
        """Rows [start, stop) of a matrix, in place. ShapeError: a cut inside a tile, or inside rows that share a scale."""
        if len(self.shape) != 2:
            raise ShapeError(f"rows are cut from matrices, not from arrays of shape {list(self.shape)}")
        rows, outputs = self.shape[0], LAYOUTS[self.layout].tile[0]
        owned = {name: size for name, size in self._rows_owned().items() if size < rows}
        unit = lcm(outputs, *owned.values())
        if not 0 <= start < stop <= rows or start % unit or (stop % unit and stop != rows):
            raise ShapeError(f"rows {start} to {stop} of {rows}: cut at multiples of {unit}")
        shape = (stop - start, self.shape[1])
        parts = {}
        for name, (_, size) in LAYOUTS[self.layout].parts(self.format, shape).items():
            part = self.parts[name]
            tiled = name == "codes" or (self.layout == "tile16x4" and part.ndim == 3)
            first = start // (outputs if tiled else owned.get(name, rows))
            parts[name] = part[first : first + size[0]]
        return QTensor.from_stored(self.format, shape, self.layout, parts)

    def _rows_owned(self) -> dict[str, int]:
        """How many rows of the matrix one row of each grid of scales, offsets or zero points serves."""
        owned, block = {}, self.format.block
        for i, level in enumerate(self.format.levels):
            assert block is not None
            owned[f"scale.{i}"] = owned[f"offset.{i}"] = block.on(self.shape)[0]
            block = level.block
        return owned | {"zero": owned["scale.0"]} if owned else owned

    @cached_property
    def native(self) -> Any:
        """The native weight over the stored parts, made on first use; its `kind` says which integer path serves it."""
        from anybit.kernels import cpu

        if len(self.shape) != 2:
            raise ShapeError(f"matmul needs a matrix, not an array of shape {list(self.shape)}")
        shape = (self.shape[0], self.shape[1])
        if self.layout == "tile16x4":
            return cpu.coded_weight(self.format, shape, self.parts, _Grids(self))
        if self.layout == "tile16x1":
            return cpu.dense_weight(self.format.element.name, shape, self.parts["codes"])
        if default_layout(self.format, self.shape) != "rows":
            return self.to(default_layout(self.format, self.shape)).native
        from anybit.methods.rtn import dequantize_parts

        expanded = dequantize_parts(self.logical(), self.format, self.shape)
        return cpu.dense_weight("fp32", shape, Tile16x1().pack(Format("fp32"), shape, {"codes": expanded.view(np.uint32)})["codes"])

    def dequantize(self) -> np.ndarray:
        """float32, the tensor's shape: the value of every code times its scale, rounded once a product (docs/contract.md)."""
        if len(self.shape) == 2 and self.layout != "rows":
            return np.asarray(self.native.rows())
        from anybit.methods.rtn import dequantize_parts

        return dequantize_parts(self.logical(), self.format, self.shape)

    def rows(self, ids: Any) -> np.ndarray:
        """float32[len(ids), k]: the values of some rows (an embedding look-up). ShapeError: ids are no list of this matrix's rows."""
        array = np.asarray(ids)
        if array.ndim != 1 or (array.size and (array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= self.shape[0])):
            given = f"{array.dtype}{list(array.shape)} {_range(array)}".rstrip()
            raise ShapeError(f"rows are a list of integers from 0 to {self.shape[0] - 1}, not {given}")
        return np.asarray(self.native.rows(np.ascontiguousarray(array, dtype=np.int64)))

    def matmul(self, x: Any, act: str | None = None, bias: np.ndarray | None = None, product: str | None = None) -> np.ndarray:
        """x times this matrix transposed.

        Args: x, float32[..., k]; act, None for float activations or "int8" for dynamic int8 activations a block; bias, float32[n];
            product, a rule in the place of multiplication (docs/products.md), such as "lmul".
        Returns: float32[..., n], the same bits for every batch, thread count and instruction set.
        Raises: ShapeError: x does not end in k; NonFiniteError: x holds NaN or Inf; NoKernelError: no kernel for this format and act.
        """
        from anybit.linear import run_matmul
        from anybit.products import parse_product

        return run_matmul(self, x, act, bias, None if product is None else parse_product(product))

    def __repr__(self) -> str:
        return f"QTensor({self.format}, shape={list(self.shape)}, layout={self.layout}, {self.nbytes} bytes)"


def _range(array: np.ndarray) -> str:
    return f"from {array.min()} to {array.max()}" if array.size and array.dtype.kind in "iuf" else ""


def quantize(w: Any, fmt: Format | Spec | str, method: str = "rtn", name: str = "array") -> QTensor:
    """Stores an array in a number format.

    Args: w, real array, the last axis is the reduction axis; fmt, a format, a spec, or the text of one ("int4@128", "mxfp4+scale=mse");
        method, how codes are chosen; name, for messages.
    Raises: NonFiniteError: NaN or Inf in w (first index and count). FormatError: the expression. ShapeError: an empty or 0-d array.
    """
    from anybit.methods import METHODS

    spec = Spec.parse(fmt)
    array = np.asarray(w)
    if array.ndim == 0 or array.size == 0:
        raise ShapeError(f"{name} of shape {list(array.shape)} cannot be quantized: at least one axis and one value are needed")
    return QTensor.pack(spec.format, array.shape, METHODS[method](array, spec, name=name))


def fake_quantize(x: Any, fmt: Format | Spec | str, method: str = "rtn") -> np.ndarray:
    """float32 values of x on the format's grid: quantized and dequantized, x's shape.

    >>> fake_quantize([0.1, 0.4, 1.0], "fp4_e2m1@32:fp32").tolist()[-1]
    1.0
    """
    from anybit.methods import METHODS
    from anybit.methods.rtn import dequantize_parts

    spec = Spec.parse(fmt)
    array = np.asarray(x)
    return dequantize_parts(METHODS[method](array, spec), spec.format, array.shape)
