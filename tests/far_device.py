"""A device that is none: tensors that say they lie elsewhere, hold their numbers here, and keep a record of what would cross to the host.

Every aten operation passes `FarDevice`. As on CUDA, operations of tensors of two places are refused (but for single numbers of the host's),
and NumPy cannot read such a tensor. What it cannot show is CUDA's own arithmetic.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

PLACE = "far:0"
_setup_privateuseone_for_python_backend("far")  # device guards and the like, which CUDA brings with itself
_SIZED = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "equal")


class Far(torch.Tensor):
    """A tensor on the device; `held` has its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Far:
        where = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made: Far = torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=PLACE, **where)  # type: ignore[attr-defined]
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of the device's record")


class FarDevice(TorchDispatchMode):
    """While it is entered, tensors can be made on `far:0`.

    scalars: how often the host waited for one number. waits: how often for the size of a result that the numbers decide. taken: numbers
    that were copied to the host otherwise. operations: all that was done on the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def forget(self) -> None:
        """Begins a new record."""
        self.scalars = self.waits = self.taken = self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), func._schema.name.removeprefix("aten::")
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        far = [t for t in tensors if isinstance(t, Far)]
        place = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        if far:
            self._note(name, args, tensors, far, place)
        if place is not None:
            kwargs["device"] = torch.device("cpu")
        found = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if func._schema.is_mutable:
            return args[0]
        there = bool(far) if place is None else place == "far"
        return tree_map(lambda t: Far(t) if isinstance(t, torch.Tensor) else t, found) if there else found

    def _note(self, name: str, args: Any, tensors: list[torch.Tensor], far: list[Far], place: str | None) -> None:
        self.operations += 1
        if name == "_local_scalar_dense":
            self.scalars += 1
        elif name == "copy_":
            self.taken += 0 if isinstance(args[0], Far) else prod(args[0].shape)
        elif place == "cpu":
            self.taken += sum(prod(t.shape) for t in far)
        else:
            assert all(t.dim() == 0 for t in tensors if not isinstance(t, Far)), f"{name} of tensors on {PLACE} and on the host"
        masked = name in ("index", "index_put", "index_put_") and any(t.dtype == torch.bool for t in tensors[1:])
        self.waits += masked or name in _SIZED


def _held(x: Any) -> Any:
    return x.held if isinstance(x, Far) else x
