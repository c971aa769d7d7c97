"""The `quantization_config` of anybit's checkpoints, version 1: what is stored, for which tensor, in which parts (docs/checkpoint.md).

Format expressions, layout names and activation formats are strings that pass through; what they mean is decided by those who ask for
a layer. Whatever version 1 does not know is refused by name, so that no reader guesses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from anybit.errors import FileFormatError
from anybit.io.safetensors import DTYPES, bad_name, entry_nbytes
from anybit.io.strict_json import Where, shown

VERSION = 1
PART_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")

Table = tuple[float, ...] | tuple[tuple[float, ...], ...]

_ADVICE = "read it with the anybit that wrote it, or quantize the model again"
_HEX_FLOAT = re.compile(r"-?0x[01](\.[0-9a-f]+)?p[+-][0-9]{1,4}|-?inf|nan")


@dataclass(frozen=True)
class PartInfo:
    """dtype (as safetensors spells it) and shape of one stored array."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return entry_nbytes(self.dtype, self.shape)


@dataclass(frozen=True)
class StoredLayer:
    """One quantized tensor as config.json describes it; its arrays are the tensors `<name>.<part>`.

    `shape` is the logical shape, before a layout pads it. `pre`, `branches` and `post` hold JSON objects with a `kind`; a reader that does
    not know a kind must refuse the layer.
    """

    format: str
    layout: str
    shape: tuple[int, ...]
    parts: Mapping[str, PartInfo]
    act: str | None = None
    pre: tuple[dict[str, Any], ...] = ()
    branches: tuple[dict[str, Any], ...] = ()
    post: tuple[dict[str, Any], ...] = ()
    product: str | None = None
    act_scale: float | None = None
    policy: str | None = None

    @property
    def nbytes(self) -> int:
        """Stored bytes, the layout's padding included."""
        return sum(part.nbytes for part in self.parts.values())


@dataclass(frozen=True)
class Quantization:
    """The `quantization_config` of a checkpoint. `tables` holds the decoded values of elements that are not built in, by element name: one
    a code, or a tuple of them for a code that stands for several weights."""

    layers: Mapping[str, StoredLayer]
    kv_cache: dict[str, Any] | None = None
    tables: Mapping[str, Table] = field(default_factory=dict)
    provenance: tuple[dict[str, Any], ...] = ()
    policy: str | None = None
    recipe_digest: str | None = None
    attention_product: str | None = None
    version: int = VERSION


def _layer_json(layer: StoredLayer) -> dict[str, Any]:
    parts = {name: {"dtype": part.dtype, "shape": list(part.shape)} for name, part in layer.parts.items()}
    result: dict[str, Any] = {"weight": {"format": layer.format, "layout": layer.layout, "shape": list(layer.shape), "parts": parts}}
    optional = {"act": layer.act, "pre": layer.pre, "branches": layer.branches, "post": layer.post, "product": layer.product,
                "policy": layer.policy}  # fmt: skip
    if layer.act_scale is not None:
        optional["act_scale"] = float(layer.act_scale).hex()
    return result | {key: list(value) if isinstance(value, tuple) else value for key, value in optional.items() if value}


def _hex(value: float | tuple[float, ...]) -> str | list[str]:
    return [float(v).hex() for v in value] if isinstance(value, tuple) else float(value).hex()


def _parse_table(values: Any, where: Where) -> Table:
    """A list of hexadecimal floats, or of lists of them that are all of one length."""
    rows = values if isinstance(values, list) and all(isinstance(row, list) for row in values) else [values]
    if not all(isinstance(row, list) and all(isinstance(v, str) and _HEX_FLOAT.fullmatch(v) for v in row) for row in rows):
        raise FileFormatError(f"{where}: must list hexadecimal floats{where.at}; {_ADVICE}")
    if len({len(row) for row in rows}) > 1:
        raise FileFormatError(f"{where}: lists of different lengths{where.at}; {_ADVICE}")
    try:
        numbers = tuple(tuple(float.fromhex(v) for v in row) for row in rows)
    except OverflowError:
        raise FileFormatError(f"{where}: a value is out of range{where.at}; {_ADVICE}") from None
    return numbers if rows is values else numbers[0]


def quantization_json(quantization: Quantization) -> dict[str, Any]:
    """The `quantization_config` object; `parse_quantization` is its inverse."""
    result = {
        "quant_method": "anybit",
        "version": quantization.version,
        "policy": quantization.policy,
        "recipe_digest": quantization.recipe_digest,
        "kv_cache": quantization.kv_cache,
        "provenance": list(quantization.provenance),
        "tables": {name: [_hex(v) for v in values] for name, values in quantization.tables.items()},
        "layers": {name: _layer_json(layer) for name, layer in quantization.layers.items()},
    }
    return result | ({"attention_product": quantization.attention_product} if quantization.attention_product else {})


class _Fields:
    """Takes the fields of one JSON object by name and type, and refuses what is left over."""

    def __init__(self, value: object, where: Where) -> None:
        if not isinstance(value, dict):
            raise FileFormatError(f"{where}: an object is needed, not {shown(value, 40)}{where.at}; {_ADVICE}")
        self.left, self.where = dict(value), where

    def take(self, key: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        value = self.left.pop(key, default)
        if value is ...:
            raise FileFormatError(f"{self.where}: the key '{key}' is missing{self.where.at}; {_ADVICE}")
        if value is not default and not (isinstance(value, kind) and type(value) is not bool):
            what = f"'{key}' is {shown(value, 40)}, which has the wrong type"
            raise FileFormatError(f"{self.where}: {what}{(self.where / key).at}; {_ADVICE}")
        return value

    def kinds(self, key: str) -> tuple[dict[str, Any], ...]:
        value = self.take(key, list, [])
        if not all(isinstance(item, dict) and isinstance(item.get("kind"), str) for item in value):
            raise FileFormatError(f"{self.where}: '{key}' must list objects with a 'kind'{(self.where / key).at}; {_ADVICE}")
        return tuple(value)

    def shape(self, key: str) -> tuple[int, ...]:
        value = self.take(key, list)
        if len(value) > 32 or not all(type(n) is int and 0 <= n < 1 << 48 for n in value):
            raise FileFormatError(f"{self.where}: '{key}' is no shape: {shown(value, 60)}{(self.where / key).at}; {_ADVICE}")
        return tuple(value)

    def scale(self, key: str) -> float | None:
        """A positive float32 number as a hexadecimal float, or None."""
        text = self.take(key, str, None)
        if text is None:
            return None
        value = float.fromhex(text) if _HEX_FLOAT.fullmatch(text) else math.nan
        if not 2.0**-126 <= value < 2.0**127:
            raise FileFormatError(f"{self.where}: '{key}' is no scale: {shown(text, 60)}; {_ADVICE}")
        return value

    def done(self) -> None:
        if self.left:
            key, known = next(iter(self.left)), "this anybit knows checkpoint version 1"
            raise FileFormatError(f"{self.where}: unknown key {shown(key)}{(self.where / key).at}; {known}: {_ADVICE}")


def _parse_layer(value: object, where: Where) -> StoredLayer:
    fields = _Fields(value, where)
    weight = _Fields(fields.take("weight", dict), where / "weight")
    parts = {}
    for name, item in weight.take("parts", dict).items():
        part = _Fields(item, weight.where / "parts" / name)
        dtype, shape = part.take("dtype", str), part.shape("shape")
        if PART_NAME.fullmatch(name) is None or dtype not in DTYPES or math.prod(n for n in shape if n) >= 1 << 60:
            raise FileFormatError(f"{part.where}: a bad part name, dtype or shape{part.where.at}; {_ADVICE}")
        part.done()
        parts[name] = PartInfo(dtype, shape)
    layer = StoredLayer(
        format=weight.take("format", str),
        layout=weight.take("layout", str),
        shape=weight.shape("shape"),
        parts=MappingProxyType(parts),
        act=fields.take("act", str, None),
        pre=fields.kinds("pre"),
        branches=fields.kinds("branches"),
        post=fields.kinds("post"),
        product=fields.take("product", str, None),
        act_scale=fields.scale("act_scale"),
        policy=fields.take("policy", str, None),
    )
    weight.done()
    fields.done()
    return layer


def parse_quantization(value: object, where: Where | str) -> Quantization:
    """Checks a `quantization_config` of anybit completely. `where` is its file, or only that file's name in messages.

    Raises: FileFormatError: an unknown version or key (named), a missing one, or a value of the wrong type.
    """
    place = (Where(where) if isinstance(where, str) else where) / "quantization_config"
    fields = _Fields(value, place)
    method = fields.take("quant_method", str)
    if method != "anybit":
        at = (place / "quant_method").at
        raise FileFormatError(f"{fields.where}: quant_method {shown(method, 60)} is not read{at}; give the unquantized model")
    version = fields.take("version", int)
    if version != VERSION:
        raise FileFormatError(f"{fields.where}: version {version} is not known, only {VERSION}{(place / 'version').at}; update anybit")
    tables = {}
    for name, values in fields.take("tables", dict, {}).items():
        tables[name] = _parse_table(values, place / "tables" / name)
    provenance = fields.take("provenance", list, [])
    if not all(isinstance(item, dict) for item in provenance):
        raise FileFormatError(f"{fields.where}: 'provenance' must list objects{(place / 'provenance').at}; {_ADVICE}")
    layers = {}
    for name, layer in fields.take("layers", dict).items():
        reason = bad_name(name)
        if reason is not None:
            raise FileFormatError(f"{place / 'layers'}: {reason}: {shown(name)}{(place / 'layers' / name).at}; {_ADVICE}")
        layers[name] = _parse_layer(layer, place / "layers" / name)
    result = Quantization(
        layers=MappingProxyType(layers),
        kv_cache=fields.take("kv_cache", dict, None),
        tables=MappingProxyType(tables),
        provenance=tuple(provenance),
        policy=fields.take("policy", str, None),
        recipe_digest=fields.take("recipe_digest", str, None),
        attention_product=fields.take("attention_product", str, None),
    )
    fields.done()
    return result
