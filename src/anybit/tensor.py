"""QTensor: an array stored in a number format; quantize and fake_quantize."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from inspect import signature
from math import lcm, prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from anybit.arrays import host_array, is_jax, is_torch, jax_like, on_cpu, on_gpu, torch_from, torch_view
from anybit.errors import FormatError, ShapeError, UsageError
from anybit.formats import Format, Spec, bound
from anybit.formats.element import as_real
from anybit.layouts import LAYOUTS, default_layout, rows_owned

if TYPE_CHECKING:
    from anybit.kernels import Kernel, Prepare


def _read_only(parts: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    views = {}
    for name, part in parts.items():
        view = part.view()
        view.flags.writeable = False
        views[name] = view
    return MappingProxyType(views)


@dataclass(frozen=True, eq=False)
class QTensor:
    """An array in a number format: format, logical shape, layout, and stored parts ("codes", "scale.0", "zero", "offset.0" ..., "table"),
    read-only.

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
        """Over stored parts, in place (those of an older version are brought up to date).

        ShapeError: a part is missing, extra, or of another shape or dtype than the layout needs.
        """
        reason = LAYOUTS[layout].accepts(fmt, shape)
        if reason is not None or not shape or min(shape) < 1:
            raise ShapeError(f"layout {layout} cannot hold {fmt} of shape {list(shape)}: {reason or 'every axis needs at least one value'}")
        expected = LAYOUTS[layout].parts(fmt, shape)
        if expected.keys() != parts.keys():
            raise ShapeError(f"{fmt} in layout {layout} has the parts {', '.join(expected)}, not {', '.join(parts)}")
        parts = LAYOUTS[layout].renew(fmt, shape, parts)
        LAYOUTS[layout].check(fmt, shape, parts)
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

    def grids(self) -> Mapping[str, np.ndarray]:
        """Scales, offsets, zero points and learned values on their block grids, without the codes."""
        return LAYOUTS[self.layout].grids(self.format, self.shape, self.parts)

    def to(self, layout: str) -> QTensor:
        """The same codes in another layout."""
        return self if layout == self.layout else QTensor.pack(self.format, self.shape, self.logical(), layout)

    def open(self, width: int) -> QTensor:
        """Nested integers opened at one of their widths, in that many bits: a copy that reads fewer bytes. At their own width: itself.

        FormatError: they do not nest there, or are opened already (a slice of a slice would round twice).
        """
        fmt = self.format.open(width)
        if fmt == self.format:
            return self
        if self.format.opened is not None:
            raise FormatError(f"{self.format} is opened already; open the stored tensor at {width}")
        logical = self.logical()
        return QTensor.pack(fmt, self.shape, {**logical, "codes": fmt.cut(logical["codes"])})

    def narrow(self, start: int, stop: int) -> QTensor:
        """Rows [start, stop) of a matrix, in place. ShapeError: a cut inside a tile, or inside rows that share a scale."""
        if len(self.shape) != 2:
            raise ShapeError(f"rows are cut from matrices, not from arrays of shape {list(self.shape)}")
        rows, outputs = self.shape[0], LAYOUTS[self.layout].tile[0]
        unit = lcm(outputs, *(size for size in rows_owned(self.format, self.shape).values() if size < rows))
        if not 0 <= start < stop <= rows or start % unit or (stop % unit and stop != rows):
            raise ShapeError(f"rows {start} to {stop} of {rows}: cut at multiples of {unit}")
        shape = (stop - start, self.shape[1])
        parts = LAYOUTS[self.layout].cut(self.format, self.shape, self.parts, start, stop)
        return QTensor.from_stored(self.format, shape, self.layout, parts)

    @cached_property
    def bound(self) -> Format:
        """The format with the values that the codes of this very array mean; the same as `format` but for learned elements."""
        return bound(self.format, self.parts)

    @cached_property
    def native(self) -> Any:
        """The native weight that multiplies float activations, made on first use; its `kind` says which integer path serves it."""
        from anybit.kernels import choose
        from anybit.kernels.cpu import op_spec

        return self.prepared(choose(op_spec(self.format, self.layout, None), native=True).kernel)

    def prepared(self, kernel: Kernel) -> Any:
        """The native weight as a native kernel takes it, made on first use. ShapeError: the tensor is no matrix."""
        if len(self.shape) != 2:
            raise ShapeError(f"matmul needs a matrix, not an array of shape {list(self.shape)}")
        if kernel.prepare is None:
            return self.native
        if kernel.prepare not in self._prepared:
            self._prepared[kernel.prepare] = kernel.prepare(self)
        return self._prepared[kernel.prepare]

    @cached_property
    def _prepared(self) -> dict[Prepare, Any]:
        return {}

    def expanded(self) -> np.ndarray:
        """As `dequantize`, without a native weight."""
        from anybit.methods.rtn import dequantize_parts

        return dequantize_parts(self.logical(), self.format, self.shape)

    def dequantize(self) -> np.ndarray:
        """float32, the tensor's shape: the value of every code times its scale, rounded once a product (docs/contract.md)."""
        if len(self.shape) == 2 and self.layout != "rows":  # which no kernel reads as they lie
            return np.asarray(self.native.rows())
        return self.expanded()

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


def quantize(
    w: Any, fmt: Format | Spec | str, method: str = "rtn", name: str = "array", importance: Any = None, xtx: Any = None
) -> QTensor:  # fmt: skip
    """Stores an array in a number format.

    Args: w, real array, torch tensor or JAX array, the last axis is the reduction axis; fmt, a format, a spec, or the text of one
        ("int4@128", "mxfp4+scale=mse"); method, how codes are chosen: "rtn", to nearest, or "gptq"; name, for messages; importance, what an
        error of each value weighs, [k] or w's shape, for methods and scale rules that look at errors ("int4@128+scale=wmse"); xtx, for
        gptq, float32[k, k], X^T X of the layer's inputs.
    Returns: a tensor in host memory; of an array on a GPU, codes are chosen there.
    Raises: NonFiniteError: NaN or Inf in w (first index and count). FormatError: the expression, or a scale that its element cannot hold;
        on a GPU, a format, policy or method that runs on the CPU only. ShapeError: an empty or 0-d array, or importance or xtx of another
        shape. UsageError: a method that takes no importance or no xtx, or lacks it.
    """
    spec = Spec.parse(fmt)
    array = w if _elsewhere(w) else _host(w)
    if len(array.shape) == 0 or 0 in array.shape:
        raise ShapeError(f"{name} of shape {list(array.shape)} cannot be quantized: at least one axis and one value are needed")
    return QTensor.pack(spec.format, tuple(array.shape), _parts(array, spec, method, name, importance, xtx))


def _elsewhere(x: Any) -> bool:
    """Whether an array lies on a device."""
    return (is_torch(x) and not on_cpu(x)) or (is_jax(x) and on_gpu(x))


def _host(x: Any) -> np.ndarray:
    """An array in host memory as a NumPy array, its own memory where NumPy has the type."""
    return torch_view(x.float() if str(x.dtype) == "torch.bfloat16" else x, "x") if is_torch(x) else host_array(x)


def _parts(array: Any, spec: Spec, method: str, name: str, importance: Any, xtx: Any) -> dict[str, np.ndarray]:
    """Logical parts by a method, on the host or where the array lies. UsageError: the method does not take what is given."""
    from anybit.methods import METHODS

    chosen, more = METHODS[method], {}
    for what, given, instead in (
        ("importance", importance, "use rtn with a scale rule that searches, as in int4@128+scale=wmse"),
        ("xtx", xtx, "use gptq"),
    ):  # fmt: skip
        if given is not None:
            if what not in signature(chosen).parameters:
                raise UsageError(f"method {method} takes no {what}; {instead}")
            more[what] = given
    if not _elsewhere(array):
        return chosen(array, spec, name=name, **{what: _host(given.cpu() if is_torch(given) else given) for what, given in more.items()})
    from anybit.device_blocks import quantize_on_device
    from anybit.device_gptq import gptq_on_device

    if method == "gptq":
        return gptq_on_device(array, spec, xtx, name)
    _on_device(method)
    return quantize_on_device(array, spec, name, importance)


def _on_device(method: str) -> None:
    """FormatError: a method that has no path on a device."""
    if method != "rtn":
        raise FormatError(f"method {method} runs on the CPU only; move the array there")


def fake_quantize(
    x: Any, fmt: Format | Spec | str, method: str = "rtn", out: Any = None, importance: Any = None, xtx: Any = None
) -> Any:  # fmt: skip
    """float32 values of x on the format's grid: quantized and dequantized, x's shape.

    Args: x, real array, torch tensor or JAX array; method, importance, xtx, as `quantize`; out, float32 array (or tensor) of x's shape to
        write to, which may be x. After an error its content is not defined.
    Returns: x's kind, on its device. On a GPU scales and codes are chosen there, with the CPU's bits (but for gptq, see
        `device_gptq.py`).
    Raises: as `quantize`; ShapeError: out does not fit.

    >>> fake_quantize([0.1, 0.4, 1.0], "fp4_e2m1@32:fp32").tolist()[-1]
    1.0
    """
    spec, more = Spec.parse(fmt), {"importance": importance, "xtx": xtx}
    if _elsewhere(x):
        return _fake_quantize_elsewhere(x, spec, method, out, **more)
    if is_torch(x):
        return torch_from(_fake_quantize(_host(x), spec, method, None if out is None else torch_view(out, "out"), **more), out)
    if is_jax(x):
        return jax_like(_fake_quantize(np.asarray(x), spec, method, None, **more), x, out)
    return _fake_quantize(host_array(x), spec, method, out, **more)


def _fake_quantize_elsewhere(x: Any, spec: Spec, method: str, out: Any, importance: Any, xtx: Any) -> Any:
    from anybit.device_blocks import dequantize_on_device, fake_quantize_on_device
    from anybit.methods import METHODS

    METHODS[method]
    if method == "gptq" or xtx is not None:
        return dequantize_on_device(_parts(x, spec, method, "array", importance, xtx), spec.format, x, out)
    _on_device(method)
    return fake_quantize_on_device(x, spec, out, importance)


def _fake_quantize(array: np.ndarray, spec: Spec, method: str, out: Any, importance: Any, xtx: Any) -> np.ndarray:
    from anybit.methods.round_trip import round_trip
    from anybit.methods.rtn import dequantize_parts

    fits = isinstance(out, np.ndarray) and out.shape == array.shape and out.dtype == np.float32 and out.flags.writeable
    if out is not None and not fits:
        given = f"{out.dtype}{list(out.shape)}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ShapeError(f"out must be float32{list(array.shape)} and writable, not {given}")
    if method == "rtn" and array.ndim and array.size and importance is None:
        spec.check()
        own = out is None or not (out.flags.c_contiguous and out.flags.aligned and out.dtype.isnative) or np.may_share_memory(out, array)
        target: np.ndarray = np.empty(array.shape, np.float32) if own else out
        if round_trip(as_real(array), spec, target):
            if out is None or not own:
                return target
            out[...] = target
            return np.asarray(out)
    values = dequantize_parts(_parts(array, spec, method, "array", importance, xtx), spec.format, array.shape)
    if out is None:
        return values
    out[...] = values
    return np.asarray(out)
