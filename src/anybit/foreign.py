"""Weights of other tools' containers as they run here: every tensor keeps its codes and scales."""

from __future__ import annotations

from math import prod

import numpy as np

from anybit.errors import FileFormatError, NoKernelError, NonFiniteError
from anybit.formats import Element
from anybit.io.coded import Coded
from anybit.io.foreign import Foreign, Stored
from anybit.io.packed import packed
from anybit.linear import Linear, Transform, check_kernel
from anybit.models import PLAIN, ModelSpec
from anybit.stored import DENSE_FORMATS, check_finite, dense_tensor, float32_of
from anybit.tensor import QTensor

_SOME = 1 << 17
"""Codes that are looked at together, so that they stay in a cache."""
_DTYPES = {name: dtype for dtype, name in DENSE_FORMATS.items()}


def foreign_weights(source: Foreign, spec: ModelSpec) -> tuple[dict[str, Linear | np.ndarray], dict[str, tuple[str, np.ndarray]]]:
    """(weights, plain) of a model, as `Model` holds them, tensor by tensor; pages are given back behind.

    Raises: FileFormatError: a tensor is missing, of another shape than the description's, or of a kind that cannot be represented exactly.
        NonFiniteError: NaN or infinity in a dense tensor or in scales (tensor, index, count).
    """
    check_foreign(source, spec)
    weights: dict[str, Linear | np.ndarray] = {}
    plain: dict[str, tuple[str, np.ndarray]] = {}
    biases: dict[str, np.ndarray] = {}
    for tensor in spec.tensors:
        if tensor.role in PLAIN:
            dtype, array = plain[tensor.name] = plain_tensor(source, tensor.name)
            values = float32_of(array, dtype, tensor.name, source.path, source.place)
            if tensor.role == "bias":
                biases[tensor.module] = values
            else:
                weights[tensor.name] = values
    matrices = [tensor for tensor in spec.tensors if tensor.role not in PLAIN]
    for tensor in sorted(matrices, key=lambda tensor: -prod(tensor.shape)):  # the largest while little else is in memory
        weights[tensor.name] = coded_linear(source, tensor.name, biases.get(tensor.module))
    first = [name for name in weights if name not in {tensor.name for tensor in matrices}]
    return {name: weights[name] for name in (*first, *(tensor.name for tensor in matrices))}, plain


def check_foreign(source: Foreign, spec: ModelSpec) -> None:
    """FileFormatError: a tensor is missing, of another shape, or has no place, but for biases of zeros (AutoGPTQ adds them)."""
    known = {tensor.name for tensor in spec.tensors}
    idle = {name for name in source.tensors.keys() - known if name.endswith(".bias") and not plain_tensor(source, name)[1].any()}
    shapes = {name: stored.shape for name, stored in source.tensors.items() if name not in idle}
    spec.check_tensors(shapes, str(source.path), source.place)


def plain_tensor(source: Foreign, name: str) -> tuple[str, np.ndarray]:
    """(dtype, array) of a norm, a bias or a router, copied out of the file. FileFormatError: it is quantized. NonFiniteError."""
    stored = source.tensors[name]
    coded = stored.read()
    if coded.format not in _DTYPES:
        what = f"is stored as {coded.format}{source.place(name)}"
        raise FileFormatError(f"{source.path}: tensor '{name}' {what}; norms, biases and routers must be {', '.join(_DTYPES)}")
    dtype = _DTYPES[coded.format]
    codes = np.array(coded.rows(0, stored.shape[0])["codes"])
    check_finite(codes, dtype, name, source.path, source.place)
    stored.release()
    return dtype, codes.view(np.float32) if dtype == "F32" else codes.view(np.float16) if dtype == "F16" else codes


def coded_linear(source: Foreign, name: str, bias: np.ndarray | None = None) -> Linear:
    """A matrix as it runs: where its columns stand for inputs in another order, it permutes them. FileFormatError, NonFiniteError: see
    `foreign_weights`."""
    coded = source.tensors[name].read()
    pre = () if coded.order is None else (Transform("permute", data=coded.order),)
    return Linear(coded_tensor(source, name, coded), bias, pre)


def coded_tensor(source: Foreign, name: str, coded: Coded | None = None) -> QTensor:
    """A matrix with the container's codes and scales; `coded`: what its `read` gave. FileFormatError, NonFiniteError: see
    `foreign_weights`."""
    stored: Stored = source.tensors[name]
    coded = stored.read() if coded is None else coded
    if coded.format in _DTYPES:
        weight = dense_tensor(coded.rows(0, stored.shape[0])["codes"], _DTYPES[coded.format], name, source.path, source.place)
    else:
        weight = packed(coded)
        _check_numbers(weight, name, source)
    try:
        check_kernel(weight, None, native=True)
    except NoKernelError as error:
        raise FileFormatError(f"{source.path}: tensor '{name}': {error}{source.place(name)}; convert the original model again") from None
    stored.release()
    return weight


def _check_numbers(weight: QTensor, name: str, source: Foreign) -> None:
    """NonFiniteError: a code, a scale or an offset that is NaN or infinite."""
    fmt = weight.format
    for part, codes in weight.parts.items():
        kind, _, level = part.partition(".")
        if kind == "zero":
            continue  # whole numbers
        element = fmt.element if kind == "codes" else fmt.levels[int(level)].element if kind == "scale" else fmt.offset_element(int(level))
        bad = _non_finite(element, codes)
        if bad:
            what = f"{bad} non-finite value(s) in part {part}{source.place(name)}"
            raise NonFiniteError(f"{source.path}: tensor '{name}' holds {what}; the file is damaged: fetch the model again")


def _non_finite(element: Element, codes: np.ndarray) -> int:
    """How many of these codes stand for NaN or an infinity."""
    if element.bits > 16:
        return int((~np.isfinite(element.decode(codes))).sum())
    special = ~np.isfinite(element.values)
    if element.bits < 8 or not special.any():  # narrower codes do not fill their bytes, and have no specials
        return 0
    edges = np.flatnonzero(np.diff(special, prepend=False, append=False)).reshape(-1, 2)  # runs of codes: two of most floats
    flat, found = codes.reshape(-1), 0
    for at in range(0, flat.size, _SOME):
        for first, end in edges:
            found += int(np.count_nonzero(flat[at : at + _SOME] - flat.dtype.type(first) < end - first))
    return found
