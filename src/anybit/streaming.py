"""Quantizes a stored model into a new checkpoint, one matrix at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from anybit.errors import UsageError
from anybit.formats import Format, Spec
from anybit.io.checkpoint import QuantizedEntry, save_checkpoint
from anybit.io.hf import CONFIG, Source, open_model
from anybit.layouts import default_layout
from anybit.methods import METHODS
from anybit.models import describe
from anybit.models.spec import TensorSpec
from anybit.stored import (
    DENSE_FORMATS,
    KEEP,
    check_dtype,
    check_finite,
    check_request,
    chosen_names,
    dense_tensor,
    describe_layer,
    float32_of,
    resolve,
)  # fmt: skip
from anybit.tensor import QTensor


def quantize_file(
    path: str | Path, out: str | Path, fmt: Format | Spec | str, keep: str | None = KEEP, act: str | None = None, method: str = "rtn",
    progress: Callable[[int, int, str], None] | None = None, product: str | None = None,
) -> int:  # fmt: skip
    """Quantizes a stored model into a new checkpoint, tensor by tensor. Gives its safetensors bytes.

    Arguments and errors as `Model.quantize` and `load`; OutputError: `out` exists or cannot be written (nothing is left half written).
    Cost: the float32 values and the codes of the largest matrix; the source's pages are given back as soon as they are read.
    """
    spec, act_spec = check_request(fmt, act, method, product)
    source = open_model(resolve(path))
    where = source.path
    if source.quantization is not None:
        raise UsageError(f"{path} is quantized already; give the original model")
    model = describe(source.config, str(source.path / CONFIG))
    model.check_tensors({name: source.tensors[name].shape for name in source.dense}, str(where))
    for tensor in model.tensors:
        check_dtype(source.tensors[tensor.name].dtype, tensor.name, where)
    matrices = {tensor.name: tensor for tensor in model.tensors if tensor.role not in ("norm", "bias")}
    chosen = set(chosen_names(matrices, keep))
    act_name = act_spec.kernel_name if act_spec else None
    entries = [
        _entry(source, tensor, spec if name in chosen else None, act_name if name in chosen else None, method, product)
        for name, tensor in matrices.items()
    ]
    plain = []
    for tensor in model.tensors:
        if tensor.role in ("norm", "bias"):
            array, dtype = source.get(tensor.name)
            check_finite(array, dtype, tensor.name, where)
            plain.append((tensor.name, dtype, array))
    written = 0

    def on_written(name: str) -> None:
        nonlocal written
        written += 1
        if progress and name in matrices:
            progress(written, len(matrices), name)

    return save_checkpoint(out, source.config, entries, plain, source.sidecars, policy=str(spec.policy) or None, on_written=on_written)


def _entry(
    source: Source, tensor: TensorSpec, spec: Spec | None, act: str | None, method: str, product: str | None
) -> tuple[str, QuantizedEntry]:
    """A matrix of the new checkpoint, made when its turn comes. spec None: it stays dense."""
    name, where = tensor.name, source.path
    fmt = spec.format if spec else Format(DENSE_FORMATS[source.tensors[name].dtype])
    stored = describe_layer(fmt, tensor.shape, default_layout(fmt, tensor.shape), act, product if spec else None)

    def produce() -> dict[str, np.ndarray]:
        array, dtype = source.get(name)
        if spec is None:
            made = dense_tensor(array, dtype, name, where)
        else:
            values = float32_of(array, dtype, name, where)
            source.release(name)  # float32 files are read through the map: their pages come and go again
            made = QTensor.pack(fmt, tensor.shape, METHODS[method](values, spec, name=f"{where}: tensor '{name}'"))
        source.release(name)
        return dict(made.parts)

    return name, QuantizedEntry(stored, produce)
