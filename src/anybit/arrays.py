"""Arrays of other libraries, without importing any: who passes a tensor has imported its library."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from anybit.errors import ShapeError


def is_torch(x: Any) -> bool:
    """Whether x is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def is_jax(x: Any) -> bool:
    """Whether x is a JAX array."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(x, jax.Array)


def on_cpu(x: Any) -> bool:
    """Whether a torch tensor lies in host memory. ShapeError: its numbers do not lie side by side, are of no type that is known, or are
    nowhere."""
    if str(x.layout) != "torch.strided" or x.is_quantized:
        kind = "a quantized tensor" if x.is_quantized else str(x.layout).removeprefix("torch.")
        raise ShapeError(f"tensors are dense, not {kind}; give x.{'dequantize' if x.is_quantized else 'to_dense'}()")
    if str(x.dtype).startswith(("torch.float8", "torch.float4")):
        raise ShapeError(f"numbers are float16, bfloat16, float32, float64 or integers, not {x.dtype}; give x.float()")
    if x.device.type == "meta":
        raise ShapeError("a tensor on the device meta has no numbers")
    return str(x.device.type) == "cpu"


def host_array(x: Any) -> np.ndarray:
    """Anything but a tensor as a NumPy array, its own memory where it is one. ShapeError: lists of different lengths, masked numbers."""
    if np.ma.is_masked(x):
        raise ShapeError("the array has masked numbers, which no code can say; fill them, as x.filled(0) does")
    try:
        return np.asarray(x)
    except ValueError:
        raise ShapeError("lists of different lengths, or of something else than numbers, are no array") from None


def on_gpu(x: Any) -> bool:
    """Whether a JAX array lies on GPUs alone, where its numbers keep their subnormals and float64 is at hand."""
    return all(device.platform in ("gpu", "cuda", "rocm") for device in x.devices())


def torch_view(x: Any, name: str) -> np.ndarray:
    """A CPU tensor's memory as a NumPy array. ShapeError: no tensor on the CPU, or of a type that NumPy does not have."""
    if not is_torch(x) or not on_cpu(x):
        raise ShapeError(f"{name} must be a torch tensor on the CPU, not {type(x).__name__}")
    if str(x.dtype) == "torch.bfloat16":
        raise ShapeError(f"{name} is bfloat16, which NumPy does not have")
    if x.is_conj() or x.is_neg():
        raise ShapeError(f"{name} is a conjugated or negated view; give {name}.resolve_conj().resolve_neg()")
    return np.asarray(x.detach().numpy())


def torch_from(result: np.ndarray, out: Any) -> Any:
    """A tensor over a NumPy result, or `out` where that was written."""
    return sys.modules["torch"].from_numpy(np.asarray(result)) if out is None else out


def tensor_of(array: np.ndarray, like: Any) -> Any:
    """A copy of a NumPy array as a tensor on the device of another one."""
    return sys.modules["torch"].from_numpy(np.array(array)).to(like.device)


def host_copy(x: Any) -> np.ndarray:
    """A tensor's numbers as a NumPy array of its own, from whatever device."""
    return np.array(x.detach().cpu().numpy())


def jax_like(result: np.ndarray, x: Any, out: Any) -> Any:
    """A JAX array on x's device. ShapeError: out was given; JAX arrays cannot be written to."""
    if out is not None:
        raise ShapeError("JAX arrays cannot be written to; leave out away")
    return sys.modules["jax"].device_put(result, x.sharding)
