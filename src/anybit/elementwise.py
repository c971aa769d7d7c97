"""round, encode and decode of whole arrays: NumPy, torch and JAX arrays in, the same kind out.

NumPy arrays and torch tensors on the CPU run natively, without copies where they are contiguous float32; torch tensors on another device
and JAX arrays on a GPU stay there; other JAX arrays go through host memory and back to their device. Numbers are rounded once, from their
own precision.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from anybit.arrays import host_array, is_jax, is_torch, jax_like, on_cpu, on_gpu, torch_from, torch_view
from anybit.device import decode_on_device, encode_on_device, round_on_device
from anybit.errors import FormatError, ShapeError
from anybit.formats import Element, Format, Spec
from anybit.formats.stochastic import check_seed
from anybit.kernels.rounding import Rounding, rounding

_LISTED = 16
"""Bits up to which an element's values are listed."""


def round(
    x: Any, element: Element | Format | str, round: str = "nearest-even", over: str = "saturate", nonfinite: str = "error", seed: int = 0,
    out: Any = None,
) -> Any:  # fmt: skip
    """The values of x on an element's grid.

    Args:
        x: float16, bfloat16, float32, float64 (others: as float64), any shape and strides.
        element: an element, or the expression of one ("fp8_e4m3fn"); a format with blocks is served as by `fake_quantize`.
        round, over, nonfinite, seed: as in `Element.encode`; stochastic rounding (`sr24`) depends on seed and place alone.
        out: an array of x's kind, shape and dtype to write to; may be x itself. After an error its content is not defined.

    Returns: x's kind, shape and dtype. Raises: as `Element.encode`; FormatError: the element has values that x's dtype does not;
        ShapeError: out does not fit.

    >>> round(np.array([0.3, -2.6, 100.0], np.float32), "fp4_e2m1").tolist()
    [0.5, -3.0, 6.0]
    """
    fmt = None if isinstance(element, Element) else Format(element)
    if fmt is not None and fmt.block is not None:
        from anybit.tensor import fake_quantize

        return fake_quantize(x, Spec.parse(f"{fmt}+round={round}+over={over}+nonfinite={nonfinite}+seed={seed}"), out=out)
    target = element if isinstance(element, Element) else _element(element)
    policy = (round, over, nonfinite)
    target.check_policy(*policy)
    check_seed(seed)
    if is_torch(x):
        return _round_torch(x, target, policy, seed, out)
    if is_jax(x):
        if on_gpu(x):
            if not _fits(target, _float_dtype(x.dtype)):
                raise FormatError(f"{target} has values that {x.dtype} does not; give float32")
            return round_on_device(x, target, policy, seed, out)
        return jax_like(_round(np.asarray(x), target, policy, seed, None), x, out)
    return _round(host_array(x), target, policy, seed, out)


def encode(
    x: Any, element: Element | Format | str, round: str = "nearest-even", over: str = "saturate", nonfinite: str = "error", seed: int = 0,
    out: Any = None,
) -> Any:  # fmt: skip
    """The codes of x: as `round`, but unsigned integers of the element's `code_dtype` (torch: uint8, uint16 or uint32).

    >>> encode(np.array([0.3, -2.6, 100.0], np.float32), "fp4_e2m1").tolist()
    [1, 13, 7]
    """
    target, policy = _element(element), (round, over, nonfinite)
    target.check_policy(*policy)
    check_seed(seed)
    if is_torch(x):
        if not on_cpu(x):
            return encode_on_device(x, target, policy, seed, out)
        source = torch_view(x if _has_numpy_type(x) else x.float(), "x")
        return torch_from(_encode(source, target, policy, seed, None if out is None else torch_view(out, "out")), out)
    if is_jax(x):
        if on_gpu(x):
            return encode_on_device(x, target, policy, seed, out)
        return jax_like(_encode(np.asarray(x), target, policy, seed, None), x, out)
    return _encode(host_array(x), target, policy, seed, out)


def decode(codes: Any, element: Element | Format | str, out: Any = None) -> Any:
    """float32 values of codes, the codes' shape and kind. FormatError: codes that the element does not have.

    >>> decode(np.array([1, 13, 7], np.uint8), "fp4_e2m1").tolist()
    [0.5, -3.0, 6.0]
    """
    target = _element(element)
    if is_torch(codes):
        if not on_cpu(codes):
            return decode_on_device(codes, target, out)
        return torch_from(_decode(torch_view(codes, "codes"), target, None if out is None else torch_view(out, "out")), out)
    if is_jax(codes):
        if on_gpu(codes):
            return decode_on_device(codes, target, out)
        return jax_like(_decode(np.asarray(codes), target, None), codes, out)
    return _decode(host_array(codes), target, out)


def _element(element: Element | Format | str) -> Element:
    if isinstance(element, Element):
        return element
    fmt = Format(element)
    if fmt.block is not None:
        raise FormatError(f"{fmt} has scales beside its codes; use quantize, or the element alone: {fmt.element}")
    return fmt.element


@lru_cache(maxsize=256)
def _fits(element: Element, dtype: np.dtype) -> bool:
    """Whether every value of an element is one of a floating-point type."""
    if dtype.itemsize >= 4:
        return True
    if element.bits > _LISTED:
        return False
    with np.errstate(over="ignore"):
        return bool(np.array_equal(element.finite.astype(dtype).astype(np.float64), element.finite))


def _has_numpy_type(x: Any) -> bool:
    return str(x.dtype) != "torch.bfloat16"


def _check_torch(x: Any, element: Element) -> None:
    """Raises FormatError where a tensor's dtype lacks values of the element."""
    name = str(x.dtype).removeprefix("torch.")
    if name == "float16":
        fits = _fits(element, np.dtype(np.float16))
    else:
        fits = name != "bfloat16" or (element.bits <= _LISTED and not np.any(_patterns(element) & 0xFFFF))
    if not fits:
        raise FormatError(f"{element} has values that {name} does not; give float32")


def _patterns(element: Element) -> np.ndarray:
    return element.finite.astype(np.float32).view(np.uint32)


def _round_torch(x: Any, element: Element, policy: tuple[str, str, str], seed: int, out: Any) -> Any:
    there = not on_cpu(x)
    _check_torch(x, element)
    if there:
        return round_on_device(x, element, policy, seed, out)
    if not _has_numpy_type(x):
        return _copied(torch_from(_round(torch_view(x.float(), "x"), element, policy, seed, None), None).to(x.dtype), out)
    return torch_from(_round(torch_view(x, "x"), element, policy, seed, None if out is None else torch_view(out, "out")), out)


def _copied(values: Any, out: Any) -> Any:
    """A tensor, or out with its numbers. ShapeError: out does not fit."""
    if out is None:
        return values
    if not is_torch(out) or out.shape != values.shape or out.dtype != values.dtype or not on_cpu(out):
        raise ShapeError(f"out must be a tensor on the CPU of {values.dtype} {list(values.shape)}")
    return out.copy_(values)


def _check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raises ShapeError unless out is a writable array of this shape and dtype."""
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != dtype:
        given = f"{out.dtype}{list(out.shape)}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ShapeError(f"out must be {dtype}{list(shape)}, not {given}")
    if not out.flags.writeable:
        raise ShapeError("out is read-only; give an array that can be written")


def _flat32(x: np.ndarray) -> np.ndarray | None:
    """x as a contiguous float32 array of one axis, its own memory where that is one already; None: it is wider, or no floats."""
    if x.dtype.itemsize > 4 or not (x.dtype.kind == "f" or x.dtype.name.startswith(("bfloat16", "float8", "float6", "float4"))):
        return None
    return np.require(x, np.float32, ["C_CONTIGUOUS", "ALIGNED"]).reshape(-1)


def _writable(out: np.ndarray | None, x: np.ndarray, dtype: Any) -> np.ndarray:
    """Contiguous memory for results: out's own where the native module can write there, else new."""
    usable = out is not None and out.dtype == dtype and out.dtype.isnative and out.flags.c_contiguous and out.flags.aligned
    if out is not None and usable and not _crosses(x, out):
        return out.reshape(-1)
    return np.empty(x.size, dtype)


def _crosses(x: np.ndarray, out: np.ndarray) -> bool:
    """Whether out shares memory with x in any other way than being it."""
    same = x.dtype == out.dtype and x.ctypes.data == out.ctypes.data and x.strides == out.strides
    return not same and np.may_share_memory(x, out)


def _plan(x: np.ndarray, element: Element, policy: tuple[str, str, str]) -> tuple[Rounding | None, np.ndarray | None]:
    flat = _flat32(x)
    return (None, None) if flat is None else (rounding(element, *policy), flat)


def _round(x: np.ndarray, element: Element, policy: tuple[str, str, str], seed: int, out: Any) -> np.ndarray:
    dtype = _float_dtype(x.dtype)
    if out is not None:
        _check_out(out, x.shape, dtype)
    if not _fits(element, dtype):
        raise FormatError(f"{element} has values that {dtype} does not; give float32")
    plan, flat = _plan(x, element, policy)
    if plan is None or flat is None:
        values = element.decode(element.encode(x, *policy, seed=seed))
        return _into(out, values.astype(dtype).reshape(x.shape))
    target = _writable(out, x, np.float32)
    bad, _, outside, _ = plan.values(flat, target, seed)
    if bad or outside:
        element.encode(x, *policy, seed=seed)  # raises; in place, what is wrong was left as it was
        raise AssertionError("native rounding refuses what encode accepts")
    if out is not None and target.ctypes.data == out.ctypes.data:
        return out
    return _into(out, target.reshape(x.shape).astype(dtype, copy=False))


def _encode(x: np.ndarray, element: Element, policy: tuple[str, str, str], seed: int, out: Any) -> np.ndarray:
    if out is not None:
        _check_out(out, x.shape, element.code_dtype)
    plan, flat = _plan(x, element, policy)
    if plan is None or flat is None:
        return _into(out, element.encode(x, *policy, seed=seed))
    target = _writable(out, x, element.code_dtype)
    bad, _, outside, _ = plan.codes(flat, target, seed)
    if bad or outside:
        element.encode(x, *policy, seed=seed)
        raise AssertionError("native rounding refuses what encode accepts")
    if out is not None and target.ctypes.data == out.ctypes.data:
        return out
    return _into(out, target.reshape(x.shape))


def _decode(codes: np.ndarray, element: Element, out: Any) -> np.ndarray:
    if out is not None:
        _check_out(out, codes.shape, np.dtype(np.float32))
    plan = rounding(element, "nearest-even", "saturate", "error") if codes.dtype == element.code_dtype and codes.dtype.isnative else None
    if plan is None:
        return _into(out, element.decode(codes).astype(np.float32))
    flat = np.require(codes, None, ["C_CONTIGUOUS", "ALIGNED"]).reshape(-1)
    target = _writable(out, codes, np.float32)
    if not plan.decode(flat, target):
        element.decode(codes)
        raise AssertionError("native decoding refuses what decode accepts")
    if out is not None and target.ctypes.data == out.ctypes.data:
        return out
    return _into(out, target.reshape(codes.shape))


def _into(out: Any, values: np.ndarray) -> np.ndarray:
    if out is None:
        return values
    out[...] = values
    return out


def _float_dtype(dtype: np.dtype) -> np.dtype:
    """What values are given in: the numbers' own type, float64 for what is no float."""
    return dtype.newbyteorder("=") if _is_float(dtype) else np.dtype(np.float64)


def _is_float(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"
