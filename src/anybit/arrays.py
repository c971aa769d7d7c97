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
    """Whether a torch tensor lies in host memory."""
    return str(x.device.type) == "cpu"


def on_gpu(x: Any) -> bool:
    """Whether a JAX array lies on GPUs alone, where its numbers keep their subnormals and float64 is at hand."""
    return all(device.platform in ("gpu", "cuda", "rocm") for device in x.devices())


def torch_view(x: Any, name: str) -> np.ndarray:
    """A CPU tensor's memory as a NumPy array. ShapeError: no tensor on the CPU, or of a type that NumPy does not have."""
    if not is_torch(x) or not on_cpu(x):
        raise ShapeError(f"{name} must be a torch tensor on the CPU, not {type(x).__name__}")
    if str(x.dtype) == "torch.bfloat16":
        raise ShapeError(f"{name} is bfloat16, which NumPy does not have")
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
