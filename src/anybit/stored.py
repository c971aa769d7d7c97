"""Weights between files and memory: dense tensors to float32 or to a kernel's layout, quantized layers over their mapped parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anybit.around import describe_around, read_around
from anybit.cache import CacheSpec
from anybit.errors import FileFormatError, FormatError, NoKernelError, NonFiniteError, ShapeError, UnknownNameError, UsageError
from anybit.formats import Element, Format, Spec, brought_along, listed, parse_element
from anybit.io.checkpoint import QuantizedEntry
from anybit.io.hf import CONFIG, Source
from anybit.io.quantization import PartInfo, StoredLayer, Table
from anybit.io.strict_json import shown, where
from anybit.layouts import LAYOUTS, default_layout
from anybit.linear import ActSpec, Linear, Transform
from anybit.methods import METHODS, SCALES
from anybit.products import Product, attention_product, names_a_file, parse_product
from anybit.tensor import QTensor

BUNDLED = "pycoder-5m"
KEEP = r"embed_tokens|lm_head"
"""Weights that quantizing leaves as they are unless told otherwise: embeddings and head."""

DENSE_FORMATS = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}
_EXPONENT = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}
_STORED = {1: "U8", 2: "U16", 4: "U32"}
_CHUNK = 1 << 20


def resolve(path: str | Path) -> Path:
    """A model's path; the name of the bundled model stands for where it lies."""
    return Path(__file__).parent / "data" / BUNDLED if str(path) == BUNDLED else Path(path)


def chosen_names(names: Mapping[str, Any], keep: str | None) -> list[str]:
    """The names that `keep` does not match. UsageError: it is no regular expression, or matches all of them."""
    try:
        pattern = re.compile(keep) if keep else None
    except re.error as error:
        raise UsageError(f"keep='{keep}' is no regular expression: {error}") from None
    chosen = [name for name in names if not (pattern and pattern.search(name))]
    if not chosen:
        raise UsageError(f"keep='{keep}' matches every matrix: nothing is left to quantize")
    return chosen


def check_request(fmt: Format | Spec | str, act: str | None, method: str, product: str | None = None) -> tuple[Spec, ActSpec | None]:
    """What quantizing is asked for, refused before work starts. FormatError, UnknownNameError, UsageError, NoKernelError."""
    spec = Spec.parse(fmt)
    spec.check()
    METHODS[method]
    if spec.format.block is not None and SCALES[spec.scale_rule].weighted:
        raise FormatError(f"scale={spec.scale_rule} needs importance, and no method measures it for a model yet; use scale=mse")
    act_spec = ActSpec.named(act)
    check_kernel(spec.format, default_layout(spec.format, (16, 32)), act_spec, None if product is None else parse_product(product))
    return spec, act_spec


def check_kernel(fmt: Format, layout: str, act: ActSpec | None, rule: Product | None = None) -> None:
    """NoKernelError: no native kernel runs weights of this format with these activations and this product rule."""
    from anybit.kernels import choose
    from anybit.kernels.cpu import op_spec

    name = act.kernel_name if act else None
    reason = rule.refuses(fmt, name) if rule is not None else None
    if reason is not None:
        raise NoKernelError(reason)
    choose(op_spec(fmt, layout, name, rule.kind if rule is not None else None), native=True)


# ---------------------------------------------------------------------------------------------- dense tensors
def _nowhere(name: str) -> str:
    return ""


Place = Callable[[str], str]
"""Where a tensor lies in its file, for messages: a source's `place`."""


def check_dtype(dtype: str, name: str, where: object, place: Place = _nowhere) -> None:
    """FileFormatError: a dtype that holds no weights."""
    if dtype not in DENSE_FORMATS:
        raise FileFormatError(f"{where}: tensor '{name}' has dtype {dtype}{place(name)}; weights must be {', '.join(DENSE_FORMATS)}")


def check_finite(array: np.ndarray, dtype: str, name: str, where: object, place: Place = _nowhere) -> None:
    """NonFiniteError: NaN or infinity, with the first index and the count. Reads the stored bits once, a piece at a time."""
    flat = array.reshape(-1).view(np.dtype(f"<u{array.dtype.itemsize}"))
    mask = flat.dtype.type(_EXPONENT[dtype])
    count, first = 0, None
    for start in range(0, flat.size, _CHUNK):
        bad = (flat[start : start + _CHUNK] & mask) == mask
        if bad.any():
            first = start + int(np.argmax(bad)) if first is None else first
            count += int(bad.sum())
    if first is not None:
        index = [int(i) for i in np.unravel_index(first, array.shape)]
        value = float(float32_of(array.reshape(-1)[first : first + 1], dtype, name, where)[0])
        raise NonFiniteError(
            f"{where}: tensor '{name}' holds {count} non-finite value(s), the first {value} at index {index}{place(name)}; "
            "the file is damaged or its training diverged: fetch the model again"
        )


def float32_of(array: np.ndarray, dtype: str, name: str, where: object, place: Place = _nowhere) -> np.ndarray:
    """float32 values of a stored dense array: a view where it is float32 already. FileFormatError: a dtype that holds no weights."""
    check_dtype(dtype, name, where, place)
    if dtype == "BF16":
        wide = np.empty(array.shape, np.uint32)
        np.left_shift(array, np.uint32(16), out=wide, dtype=np.uint32)
        return wide.view(np.float32)
    return array if array.flags.aligned and array.dtype == np.float32 else array.astype(np.float32)


def dense_tensor(array: np.ndarray, dtype: str, name: str, where: object, place: Place = _nowhere) -> QTensor:
    """A dense weight in the layout that kernels read. FileFormatError: a dtype that holds no weights. NonFiniteError."""
    check_dtype(dtype, name, where, place)
    check_finite(array, dtype, name, where, place)
    return QTensor.dense(array, DENSE_FORMATS[dtype])


# ---------------------------------------------------------------------------------------------- quantized layers
def describe_layer(
    fmt: Format, shape: tuple[int, ...], layout: str, act: ActSpec | None, made: Mapping[str, np.ndarray] | None = None,
    product: str | None = None,
) -> StoredLayer:
    """How a checkpoint describes a weight, known before the weight is made but for layouts whose sizes depend on it (`made`: its parts).

    UsageError: a product rule whose table is a file.
    """
    if product is not None and names_a_file(product):
        raise UsageError(f"product rule '{product}' is a file, which no checkpoint holds; save without it, name it to evaluate")
    sizes = LAYOUTS[layout].parts(fmt, shape) if made is None else {name: (part.dtype, part.shape) for name, part in made.items()}
    parts = {name: PartInfo(_dtype_name(dtype), size) for name, (dtype, size) in sizes.items()}
    text, scale = (None, None) if act is None else (act.text, act.scale)
    return StoredLayer(fmt.explicit, layout, shape, parts, act=text, product=product, act_scale=scale)


def _dtype_name(dtype: np.dtype) -> str:
    return "F32" if dtype.kind == "f" else "I64" if dtype.kind == "i" else _STORED[dtype.itemsize]


def entry_of(linear: Linear, bias_apart: bool = False) -> QuantizedEntry:
    """A layer that has been made, as a checkpoint stores it: weight, activations, product rule, transforms and branches.

    bias_apart: the model lists the bias as a tensor of its own; otherwise a bias is one of the layer's parts.

    UsageError: a product rule whose table is a file. NoKernelError, ShapeError: a part of it that nothing runs.
    """
    linear.check()
    weight = linear.weight
    keys, arrays = describe_around(linear)
    parts = {**weight.parts, **arrays}
    if linear.bias is not None and not bias_apart:
        parts["bias"] = np.ascontiguousarray(linear.bias, np.float32)
    stored = describe_layer(weight.format, weight.shape, weight.layout, linear.act, parts, linear.product)
    stored = replace(stored, pre=keys["pre"], branches=keys["branches"], post=keys["post"])
    return QuantizedEntry(stored, lambda: dict(parts))


def permuted_entry(weight: QTensor, order: np.ndarray) -> QuantizedEntry:
    """A weight whose column j stands for input order[j], as the layer that a checkpoint stores. ShapeError: no permutation."""
    return entry_of(Linear(weight, pre=(Transform("permute", data=order),)), bias_apart=True)


def formats_of(linear: Linear) -> list[Format]:
    """Every format that a layer names."""
    tensors = [linear.weight, *(part for branch in linear.branches for part in (branch.a, branch.b) if part is not None)]
    return [tensor.format for tensor in tensors] + ([linear.act.format] if linear.act is not None else [])


def tables_of(formats: Iterable[Format]) -> dict[str, Table]:
    """The values, by name, of every element that a reader has not built in. FormatError: an element of more than 16 bits."""
    own = {element.name: element for fmt in formats for element in fmt.elements if brought_along(element)}
    return {name: tuple(tuple(v) if isinstance(v, list) else v for v in element.values.tolist()) for name, element in own.items()}


def stored_linear(source: Source, name: str, layer: StoredLayer, elements: Mapping[str, Element], bias: np.ndarray | None) -> Linear:
    """A quantized layer over its mapped parts, checked as a whole. `elements`: those that the checkpoint brings along.

    FileFormatError: what this anybit cannot run as meant.
    """
    where = f"{source.path}: layer '{name}'"
    if layer.product is not None and names_a_file(layer.product):
        what = f"its product rule '{layer.product}' is a file, which no checkpoint may name{source.place(name)}"
        raise FileFormatError(f"{where}: {what}; save the model again")
    keys = {"pre": layer.pre, "branches": layer.branches, "post": layer.post}
    try:
        parts: Mapping[str, np.ndarray] = source.parts(name)
        fields: dict[str, Any] = {}
        if any(keys.values()) or any("." in part and part.split(".")[0] in keys for part in parts):
            rows, columns = layer.shape if len(layer.shape) == 2 else (1, 1)
            fields, parts = read_around(keys, parts, (rows, columns), elements)
        if bias is None and "bias" in parts:
            bias, parts = _own_bias(dict(parts), layer.shape)
        weight = QTensor.from_stored(Format.parse(layer.format, elements), layer.shape, layer.layout, parts)
        act = ActSpec.named(layer.act, layer.act_scale)
        linear = Linear(weight, bias, act=act, product=layer.product, **fields)
        tensors = [weight, *(part for branch in linear.branches for part in (branch.a, branch.b) if part is not None)]
        for tensor in tensors:
            LAYOUTS[tensor.layout].check_scales(tensor.format, tensor.shape, tensor.parts)
            _ = tensor.bound  # a table of learned values is looked at now, not when the layer runs
        linear.check()
    except (FormatError, ShapeError, UnknownNameError, UsageError, NoKernelError) as error:
        raise FileFormatError(f"{where}: {error}{source.place(name)}; save the model again") from None
    return linear


def _own_bias(parts: dict[str, np.ndarray], shape: tuple[int, ...]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A bias among a layer's parts, and the others. ShapeError: it is no finite number for each output."""
    bias = parts.pop("bias")
    if bias.dtype != np.float32 or bias.shape != shape[:1] or not np.isfinite(bias).all():
        raise ShapeError(f"part bias must be float32[{shape[0]}], finite, not {bias.dtype}{list(bias.shape)}")
    return bias, parts


def _quantization_key(source: Source, *keys: str) -> str:
    return replace(where(source.path / CONFIG), keys=("quantization_config", *keys)).at_of


def brought_elements(source: Source) -> dict[str, Element]:
    """The elements that are not known here but listed by the checkpoint; nothing is registered, they serve this checkpoint alone.

    FileFormatError: a table that is no element's, or one that says something else than an element that is known here.
    """
    found: dict[str, Element] = {}
    for name, values in source.quantization.tables.items() if source.quantization else ():
        table = f"{source.path}: quantization_config: tables[{shown(name)}]"
        try:
            known: Element | None = parse_element(name)
        except FormatError:
            known = None
        if known is not None and not _same_values(known, np.array(values, np.float64)):
            what = f"{known.name} has other values here{_quantization_key(source, 'tables', name)}"
            raise FileFormatError(f"{table}: {what}; rename it where it was made, and save the model again")
        if known is None:
            try:
                found[name] = listed(name, values)
            except FormatError as error:
                at = _quantization_key(source, "tables", name)
                raise FileFormatError(f"{table}: {error}{at}; save the model again") from None
    return found


def stored_attention(source: Source) -> str | None:
    """The product rule of attention. FileFormatError: none that this anybit knows, or one that is for weights."""
    rule = source.quantization.attention_product if source.quantization else None
    if rule is not None:
        try:
            attention_product(rule)
        except (UnknownNameError, UsageError) as error:
            at = _quantization_key(source, "attention_product")
            raise FileFormatError(f"{source.path}: quantization_config: attention_product: {error}{at}; update anybit") from None
    return rule


def stored_cache(source: Source) -> CacheSpec | None:
    """The formats of keys and values. FileFormatError: this anybit does not hold them so."""
    fields = source.quantization.kv_cache if source.quantization else None
    if not fields:
        return None
    try:
        extra, missing = set(fields) - {"k", "v", "stage", "sinks", "window"}, {"k", "v", "stage"} - set(fields)
        if extra or missing or not all(value is None or type(value) in (str, int) for value in fields.values()):
            raise UsageError(f"has the keys {', '.join(sorted(fields))}, not k, v, stage (each a text or null), sinks and window if any")
        return CacheSpec.of(fields)
    except (FormatError, NoKernelError, UsageError, UnknownNameError) as error:
        at = _quantization_key(source, "kv_cache")
        raise FileFormatError(f"{source.path}: quantization_config: 'kv_cache': {error}{at}; update anybit") from None


def _same_values(element: Element, values: np.ndarray) -> bool:
    """Whether an element has just these values, NaN and the sign of zero included."""
    if element.learned or element.bits > 16 or element.values.shape != values.shape:
        return False
    numbers = ~np.isnan(values)
    same = np.array_equal(element.values, values, equal_nan=True)
    return same and np.array_equal(np.signbit(element.values[numbers]), np.signbit(values[numbers]))
