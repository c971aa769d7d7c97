"""What the readers of quantized checkpoints share: an opened directory whose tensors are taken module by module.

A reader finds the modules that it knows by the tensors beside each other, and gives each as one coded weight; what no module took is a
dense tensor. The scheme comes from config.json, the shapes must agree with it, and anything beyond is refused by name.
"""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anybit.errors import FileFormatError
from anybit.io import strict_json
from anybit.io.coded import Coded, of_arrays
from anybit.io.foreign import Foreign, Stored
from anybit.io.hf import CONFIG, Source, open_model
from anybit.io.safetensors import TensorInfo
from anybit.io.strict_json import shown
from anybit.registry import Registry

_ABOUT = re.compile(r"""(tensor|module) ('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""")
_KEY = re.compile(r"quantization_config: (\w+)")

SCALES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
"""dtypes of scales that are formats too."""
ADVICE = "give the original model, or a checkpoint without it"


class Checkpoint:
    """An opened directory and which of its tensors have been taken."""

    def __init__(self, source: Source, config: Mapping[str, Any]) -> None:
        self.source, self.config = source, config
        self.taken: set[str] = set()
        self.stored: dict[str, Stored] = {}

    def fail(self, what: str) -> FileFormatError:
        """What is wrong; it begins with what it is about, `tensor 'NAME'`, `module 'NAME'` or `quantization_config: KEY`, whose place is
        told: of a module that of its first tensor, of a tensor that is missing the header without it."""
        if (key := _KEY.match(what)) is not None:
            at = (strict_json.where(self.source.path / CONFIG) / "quantization_config" / key[1]).at_of
        else:
            about = _ABOUT.match(what)
            kind, name = (about[1], literal_eval(about[2])) if about else ("tensor", "")
            of_module = (tensor for tensor in self.source.tensors if tensor.startswith(f"{name}."))
            at = self.source.place(next(of_module, name) if kind == "module" else name)
        return FileFormatError(f"{self.source.path}: {what}{at}; {ADVICE}")

    def info(self, name: str) -> TensorInfo | None:
        """A tensor's dtype and shape, or None; it counts as taken."""
        self.taken.add(name)
        return self.source.tensors.get(name)

    def need(self, name: str, dtypes: str | tuple[str, ...], shape: tuple[int, ...] | None = None) -> TensorInfo:
        """The same. FileFormatError: it is missing, or has another dtype or shape."""
        info, allowed = self.info(name), (dtypes,) if isinstance(dtypes, str) else dtypes
        if info is None:
            raise self.fail(f"tensor {shown(name)} is missing")
        if 0 in info.shape:
            raise self.fail(f"tensor {shown(name)} has shape {list(info.shape)}: it is empty")
        if info.dtype not in allowed:
            raise self.fail(f"tensor {shown(name)} has dtype {info.dtype}; expected {' or '.join(allowed)}")
        if shape is not None and info.shape != shape:
            raise self.fail(f"tensor {shown(name)} has shape {list(info.shape)}; expected {list(shape)}")
        return info

    def array(self, name: str) -> np.ndarray:
        """A tensor's stored bits: floats as unsigned integers of their width."""
        array, dtype = self.source.get(name)
        return array.view(f"<u{array.dtype.itemsize}") if dtype in SCALES else array

    def scale(self, name: str, shapes: tuple[tuple[int, ...], ...]) -> str:
        """The element that a tensor of scales is stored in. FileFormatError: its dtype or shape."""
        info = self.need(name, tuple(SCALES))
        if info.shape not in shapes:
            raise self.fail(f"tensor {shown(name)} has shape {list(info.shape)}; expected {' or '.join(str(list(s)) for s in shapes)}")
        return SCALES[info.dtype]

    def modules(self, suffix: str) -> list[str]:
        """The modules that have a tensor of this name."""
        return [name.removesuffix(suffix) for name in self.source.tensors if name.endswith(suffix) and name not in self.taken]

    def put(self, module: str, shape: tuple[int, ...], read: Callable[[], Coded], parts: tuple[str, ...]) -> None:
        """Adds a module's weight; `parts` are the tensors whose pages go when it has been read."""
        name = f"{module}.weight"
        if name in self.stored or (name in self.source.tensors and name not in self.taken):
            raise self.fail(f"module {shown(module)} has a plain weight beside the quantized one")

        def release() -> None:
            for part in parts:
                self.source.release(part)

        self.stored[name] = Stored(shape, read, release, self.source.place(parts[0]))

    def dense(self, name: str) -> Stored:
        """A tensor that is stored as it is."""
        info = self.source.tensors[name]

        def read() -> Coded:
            if info.dtype not in SCALES:
                raise self.fail(f"tensor {shown(name)} has dtype {info.dtype}, which no module of this checkpoint explains")
            if not info.shape or 0 in info.shape:
                raise self.fail(f"tensor {shown(name)} has shape {list(info.shape)}, which no part of a model has")
            return of_arrays(SCALES[info.dtype], info.shape, {"codes": self.array(name)})

        return Stored(info.shape, read, lambda: self.source.release(name), self.source.place(name))


def input_order(checkpoint: Checkpoint, name: str, k: int, size: int) -> np.ndarray | None:
    """int64[k] that brings the inputs of each group together, from the tensor of the inputs' groups; None: they lie so already, or there is
    no such tensor. FileFormatError: groups that are not whole."""
    if checkpoint.info(name) is None:
        return None
    checkpoint.need(name, ("I32", "I64"), (k,))
    groups = checkpoint.array(name).astype(np.int64)
    wanted = np.arange(k) // size
    if np.array_equal(groups, wanted):
        return None
    order = np.argsort(groups, kind="stable")
    if not np.array_equal(groups[order], wanted):
        raise checkpoint.fail(f"tensor {shown(name)} gives no {size} inputs to each group, which no blocks along a row express")
    return order


CONTAINERS: Registry[Callable[[Checkpoint], None]] = Registry("quantized checkpoint", "anybit.io.containers")
"""By `quant_method`: what takes the modules of a checkpoint."""


def open_quantized(path: Path, config: Mapping[str, Any]) -> Foreign | None:
    """Opens a directory that another tool quantized; None: there is no reader for its quant_method.

    Raises: FileFormatError: damaged, or a scheme that cannot be represented exactly (named).
    """
    quantization = config["quantization_config"]
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if not isinstance(method, str) or method not in CONTAINERS:
        return None
    source = open_model(path, foreign=True)
    checkpoint = Checkpoint(source, quantization)
    CONTAINERS[method](checkpoint)
    if not checkpoint.stored:
        at = source.field(("quantization_config", "quant_method"))
        what = f"quantization_config says {shown(method)}, but no module is quantized that way{at}"
        raise FileFormatError(f"{path / CONFIG}: {what}; {ADVICE}")
    dense = {name: checkpoint.dense(name) for name in source.tensors if name not in checkpoint.taken}
    plain = {key: value for key, value in source.config.items() if key != "quantization_config"}

    def field(keys: Sequence[str]) -> str:
        return replace(strict_json.where(path / CONFIG), keys=tuple(keys)).at_of

    return Foreign(
        path, method, plain, checkpoint.stored | dense, source.sidecars, source.eos, source.close, field, source.place("")
    )  # fmt: skip


def integer(checkpoint: Checkpoint, config: Mapping[str, Any], key: str, allowed: tuple[int, ...] | range) -> int:
    """A whole number of a configuration. FileFormatError: it is missing or not allowed."""
    value = config.get(key)
    if type(value) is not int or value not in allowed:
        listed = f"{allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) else ", ".join(map(str, allowed))
        raise checkpoint.fail(f"quantization_config: {key} is {shown(value, 40)}; expected {listed}")
    return value
