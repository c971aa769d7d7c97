"""Quantizes a stored model into a new checkpoint, one matrix at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from anybit.errors import UsageError
from anybit.foreign import check_foreign, coded_linear, coded_tensor, plain_tensor
from anybit.formats import Format, Spec
from anybit.io.checkpoint import QuantizedEntry, save_checkpoint
from anybit.io.foreign import Foreign, Sidecar, open_foreign
from anybit.io.hf import CONFIG, Source, open_model
from anybit.layouts import default_layout, sizes_known
from anybit.linear import ActSpec
from anybit.methods import METHODS
from anybit.models import PLAIN, describe
from anybit.models.spec import TensorSpec
from anybit.products import attention_product
from anybit.stored import (
    DENSE_FORMATS,
    KEEP,
    check_dtype,
    check_finite,
    check_request,
    chosen_names,
    dense_tensor,
    describe_layer,
    entry_of,
    float32_of,
    resolve,
    tables_of,
)  # fmt: skip
from anybit.tensor import QTensor

Progress = Callable[[int, int, str], None]


def quantize_file(
    path: str | Path, out: str | Path, fmt: Format | Spec | str, keep: str | None = KEEP, act: str | None = None, method: str = "rtn",
    progress: Progress | None = None, product: str | None = None, attention: str | None = None, files: Sequence[Sidecar] = (),
) -> int:  # fmt: skip
    """Quantizes a stored model into a new checkpoint, tensor by tensor. Gives its safetensors bytes. `files` are written beside.

    Arguments and errors as `Model.quantize` and `load`; attention, a product rule for q k^T and p v. OutputError: `out` exists or cannot be
    written (nothing is left half written).
    Cost: the float32 values and the codes of the largest matrix; the source's pages are given back as soon as they are read.
    """
    spec, act_spec = check_request(fmt, act, method, product)
    if attention is not None:
        attention_product(attention)
    foreign = open_foreign(resolve(path))
    if foreign is not None:
        return _quantize_foreign(foreign, out, spec, keep, act_spec, method, progress, product, attention, files)
    source = open_model(resolve(path))
    where, place = source.path, source.place
    if source.quantization is not None:
        raise UsageError(f"{path} is quantized already; give the original model")
    model = describe(source.config, str(source.path / CONFIG), source.field)
    model.check_tensors({name: source.tensors[name].shape for name in source.dense}, str(where), place)
    for tensor in model.tensors:
        check_dtype(source.tensors[tensor.name].dtype, tensor.name, where, place)
    matrices = {tensor.name: tensor for tensor in model.tensors if tensor.role not in PLAIN}
    chosen = set(chosen_names(matrices, keep))
    entries = [
        _entry(source, tensor, spec if name in chosen else None, act_spec if name in chosen else None, method, product)
        for name, tensor in matrices.items()
    ]
    plain = []
    for tensor in model.tensors:
        if tensor.role in PLAIN:
            array, dtype = source.get(tensor.name)
            check_finite(array, dtype, tensor.name, where, place)
            plain.append((tensor.name, dtype, array.copy()))  # a view of some kilobytes may keep a large page in memory
            source.release(tensor.name)
    return save_checkpoint(
        out, source.config, entries, plain, (*source.sidecars, *files), tables=tables_of([spec.format]), policy=spec.policy_text,
        attention_product=attention, on_written=_counted(progress, matrices),
    )  # fmt: skip


def _counted(progress: Progress | None, matrices: Mapping[str, TensorSpec]) -> Callable[[str], None]:
    """Turns the names of tensors that have been written into progress."""
    written = 0

    def on_written(name: str) -> None:
        nonlocal written
        written += 1
        if progress and name in matrices:
            progress(written, len(matrices), name)

    return on_written


def _entry(
    source: Source, tensor: TensorSpec, spec: Spec | None, act: ActSpec | None, method: str, product: str | None
) -> tuple[str, QuantizedEntry]:
    """A matrix of the new checkpoint, made when its turn comes. spec None: it stays dense."""
    name, where = tensor.name, source.path
    fmt = spec.format if spec else Format(DENSE_FORMATS[source.tensors[name].dtype])
    layout = default_layout(fmt, tensor.shape)

    def produce() -> dict[str, np.ndarray]:
        array, dtype = source.get(name)
        if spec is None:
            made = dense_tensor(array, dtype, name, where, source.place)
        else:
            values = float32_of(array, dtype, name, where)
            source.release(name)  # float32 files are read through the map: their pages come and go again
            made = QTensor.pack(fmt, tensor.shape, METHODS[method](values, spec.for_tensor(name), name=f"{where}: tensor '{name}'"))
        source.release(name)
        return dict(made.parts)

    # Sizes that depend on the data are found by making the weight twice: the file's header comes before its data.
    made = None if sizes_known(fmt, tensor.shape, layout) else produce()
    return name, QuantizedEntry(describe_layer(fmt, tensor.shape, layout, act, made, product if spec else None), produce)


def _quantize_foreign(
    source: Foreign, out: str | Path, spec: Spec, keep: str | None, act: ActSpec | None, method: str, progress: Progress | None,
    product: str | None, attention: str | None, files: Sequence[Sidecar] = (),
) -> int:  # fmt: skip
    """The same for another tool's container: dense matrices are quantized, those that `keep` names keep their codes."""
    model = describe(source.config, str(source.path), source.field)
    check_foreign(source, model)
    matrices = {tensor.name: tensor for tensor in model.tensors if tensor.role not in PLAIN}
    chosen = set(chosen_names(matrices, keep))
    entries = []
    mixed = any(name not in chosen and not Format(source.tensors[name].read().format).dense for name in matrices)
    for name, tensor in matrices.items():
        held = Format(source.tensors[name].read().format)
        if name in chosen and not held.dense:
            raise UsageError(f"{source.path}: tensor '{name}' is quantized already ({held}); give the original model, or keep it")
        one = (spec, act, method, product) if name in chosen else (None, None, method, None)
        name, entry = _foreign_entry(source, tensor, held, *one)
        if mixed and name in chosen:  # others were quantized by other rules, which are not known
            entry = replace(entry, stored=replace(entry.stored, policy=spec.policy_text))
        entries.append((name, entry))
    plain = [(tensor.name, *plain_tensor(source, tensor.name)) for tensor in model.tensors if tensor.role in PLAIN]
    return save_checkpoint(
        out, source.config, entries, plain, (*source.sidecars, *files), tables=tables_of([spec.format]),
        policy=None if mixed else spec.policy_text, attention_product=attention, on_written=_counted(progress, matrices),
    )  # fmt: skip


def _foreign_entry(
    source: Foreign, tensor: TensorSpec, held: Format, spec: Spec | None, act: ActSpec | None, method: str, product: str | None
) -> tuple[str, QuantizedEntry]:
    """A matrix of the new checkpoint, made when its turn comes. spec None: it keeps its codes, in the format `held`."""
    fmt = spec.format if spec else held
    layout = default_layout(fmt, tensor.shape)
    if source.tensors[tensor.name].read().order is not None:  # a layer with a permutation: described by making it once
        kept = entry_of(coded_linear(source, tensor.name)).stored
        return tensor.name, QuantizedEntry(kept, lambda: entry_of(coded_linear(source, tensor.name)).produce())

    def produce() -> dict[str, np.ndarray]:
        made = coded_tensor(source, tensor.name)
        if spec is not None:
            parts = METHODS[method](made.dequantize(), spec.for_tensor(tensor.name), name=f"{source.path}: tensor '{tensor.name}'")
            made = QTensor.pack(fmt, tensor.shape, parts)
        return dict(made.parts)

    made = None if sizes_known(fmt, tensor.shape, layout) else produce()
    return tensor.name, QuantizedEntry(describe_layer(fmt, tensor.shape, layout, act, made, product if spec else None), produce)
