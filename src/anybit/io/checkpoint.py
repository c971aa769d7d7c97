"""anybit's own checkpoint, version 1: a Hugging Face directory whose config.json carries a `quantization_config` (docs/checkpoint.md).

Everything here is about where bytes lie. Format expressions, layout names and activation formats are strings that pass through; what
they mean is decided by those who ask for a layer. Whatever version 1 does not know is refused by name, so that no reader guesses.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from anybit.errors import DoesNotFitError, FileFormatError, ShapeError
from anybit.io.safetensors import DTYPES, bad_name
from anybit.io.safetensors_writer import Entry, entry_nbytes, raw, write_safetensors
from anybit.io.save import atomic_directory, create, write_all
from anybit.io.strict_json import shown

VERSION = 1
SHARD_BYTES = 5_000_000_000

_PART = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")
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

    @property
    def nbytes(self) -> int:
        """Stored bytes, the layout's padding included."""
        return sum(part.nbytes for part in self.parts.values())


@dataclass(frozen=True)
class QuantizedEntry:
    """A quantized tensor to be saved: what is known beforehand, and the call that makes its arrays or buffers, one for each part."""

    stored: StoredLayer
    produce: Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class Quantization:
    """The `quantization_config` of a checkpoint. `tables` holds the decoded values of elements that are not built in, by element name."""

    layers: Mapping[str, StoredLayer]
    kv_cache: dict[str, Any] | None = None
    tables: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    provenance: tuple[dict[str, Any], ...] = ()
    policy: str | None = None
    recipe_digest: str | None = None
    version: int = VERSION


def _layer_json(layer: StoredLayer) -> dict[str, Any]:
    parts = {name: {"dtype": part.dtype, "shape": list(part.shape)} for name, part in layer.parts.items()}
    result: dict[str, Any] = {"weight": {"format": layer.format, "layout": layer.layout, "shape": list(layer.shape), "parts": parts}}
    optional = {"act": layer.act, "pre": layer.pre, "branches": layer.branches, "post": layer.post, "product": layer.product}
    return result | {key: list(value) if isinstance(value, tuple) else value for key, value in optional.items() if value}


def quantization_json(quantization: Quantization) -> dict[str, Any]:
    """The `quantization_config` object; `parse_quantization` is its inverse."""
    return {
        "quant_method": "anybit",
        "version": quantization.version,
        "policy": quantization.policy,
        "recipe_digest": quantization.recipe_digest,
        "kv_cache": quantization.kv_cache,
        "provenance": list(quantization.provenance),
        "tables": {name: [float(v).hex() for v in values] for name, values in quantization.tables.items()},
        "layers": {name: _layer_json(layer) for name, layer in quantization.layers.items()},
    }


class _Fields:
    """Takes the fields of one JSON object by name and type, and refuses what is left over."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise FileFormatError(f"{where}: an object is needed, not {shown(value, 40)}; {_ADVICE}")
        self.left, self.where = dict(value), where

    def take(self, key: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        value = self.left.pop(key, default)
        if value is ...:
            raise FileFormatError(f"{self.where}: the key '{key}' is missing; {_ADVICE}")
        if value is not default and not (isinstance(value, kind) and type(value) is not bool):
            raise FileFormatError(f"{self.where}: '{key}' is {shown(value, 40)}, which has the wrong type; {_ADVICE}")
        return value

    def kinds(self, key: str) -> tuple[dict[str, Any], ...]:
        value = self.take(key, list, [])
        if not all(isinstance(item, dict) and isinstance(item.get("kind"), str) for item in value):
            raise FileFormatError(f"{self.where}: '{key}' must list objects with a 'kind'; {_ADVICE}")
        return tuple(value)

    def shape(self, key: str) -> tuple[int, ...]:
        value = self.take(key, list)
        if len(value) > 32 or not all(type(n) is int and 0 <= n < 1 << 48 for n in value):
            raise FileFormatError(f"{self.where}: '{key}' is no shape: {shown(value, 60)}; {_ADVICE}")
        return tuple(value)

    def done(self) -> None:
        if self.left:
            known = "this anybit knows checkpoint version 1"
            raise FileFormatError(f"{self.where}: unknown key {shown(next(iter(self.left)))}; {known}: {_ADVICE}")


def _parse_layer(value: object, where: str) -> StoredLayer:
    fields = _Fields(value, where)
    weight = _Fields(fields.take("weight", dict), f"{where}.weight")
    parts = {}
    for name, item in weight.take("parts", dict).items():
        part = _Fields(item, f"{where}.weight.parts[{shown(name)}]")
        dtype, shape = part.take("dtype", str), part.shape("shape")
        if _PART.fullmatch(name) is None or dtype not in DTYPES or math.prod(n for n in shape if n) >= 1 << 60:
            raise FileFormatError(f"{part.where}: a bad part name, dtype or shape; {_ADVICE}")
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
    )
    weight.done()
    fields.done()
    return layer


def parse_quantization(value: object, where: str) -> Quantization:
    """Checks a `quantization_config` of anybit completely. `where` is its file's name in messages.

    Raises: FileFormatError: an unknown version or key (named), a missing one, or a value of the wrong type.
    """
    fields = _Fields(value, f"{where}: quantization_config")
    method, version = fields.take("quant_method", str), fields.take("version", int)
    if method != "anybit":
        raise FileFormatError(f"{fields.where}: quant_method {shown(method, 60)} is not read; give the unquantized model")
    if version != VERSION:
        raise FileFormatError(f"{fields.where}: version {version} is not known, only {VERSION}; update anybit")
    tables = {}
    for name, values in fields.take("tables", dict, {}).items():
        if not isinstance(values, list) or not all(isinstance(v, str) and _HEX_FLOAT.fullmatch(v) for v in values):
            raise FileFormatError(f"{fields.where}.tables[{shown(name)}]: must list hexadecimal floats; {_ADVICE}")
        try:
            tables[name] = tuple(float.fromhex(v) for v in values)
        except OverflowError:
            raise FileFormatError(f"{fields.where}.tables[{shown(name)}]: a value is out of range; {_ADVICE}") from None
    provenance = fields.take("provenance", list, [])
    if not all(isinstance(item, dict) for item in provenance):
        raise FileFormatError(f"{fields.where}: 'provenance' must list objects; {_ADVICE}")
    layers = {}
    for name, layer in fields.take("layers", dict).items():
        reason = bad_name(name)
        if reason is not None:
            raise FileFormatError(f"{fields.where}.layers: {reason}: {shown(name)}; {_ADVICE}")
        layers[name] = _parse_layer(layer, f"{fields.where}.layers[{shown(name)}]")
    result = Quantization(
        layers=MappingProxyType(layers),
        kv_cache=fields.take("kv_cache", dict, None),
        tables=MappingProxyType(tables),
        provenance=tuple(provenance),
        policy=fields.take("policy", str, None),
        recipe_digest=fields.take("recipe_digest", str, None),
    )
    fields.done()
    return result


@dataclass(frozen=True)
class _Item:
    """One tensor with all its arrays: never split over two files."""

    name: str
    entries: list[Entry]
    produce: Callable[[], dict[str, Any]]

    @property
    def nbytes(self) -> int:
        return sum(entry_nbytes(dtype, shape) for _, dtype, shape in self.entries)


def _quantized_item(name: str, entry: QuantizedEntry) -> _Item:
    parts = entry.stored.parts
    if any(_PART.fullmatch(part) is None for part in parts):
        raise ShapeError(f"tensor '{name}': part names are lower-case words joined by dots, not {list(parts)}")

    def produce() -> dict[str, Any]:
        made = {f"{name}.{part}": data for part, data in entry.produce().items()}
        if made.keys() != {f"{name}.{part}" for part in parts}:
            raise ShapeError(f"tensor '{name}': parts {list(parts)} were announced, {list(made)} came")
        return made

    return _Item(name, [(f"{name}.{part}", info.dtype, info.shape) for part, info in parts.items()], produce)


def _dense_item(name: str, dtype: str, array: Any) -> _Item:
    return _Item(name, [(name, dtype, tuple(np.shape(array)))], lambda: {name: array})


def _shards(items: Iterable[_Item], limit: int) -> list[list[_Item]]:
    groups: list[list[_Item]] = [[]]
    room = limit
    for item in items:
        if groups[-1] and item.nbytes > room:
            groups.append([])
            room = limit
        groups[-1].append(item)
        room -= item.nbytes
    return groups


def _stream(items: Sequence[_Item], on_written: Callable[[str], None] | None) -> Iterator[tuple[str, Any]]:
    """Makes one item at a time and lets each array go as soon as it is written."""
    for item in items:
        made = item.produce()
        for name, dtype, shape in item.entries:
            data = made.pop(name)
            if isinstance(data, np.ndarray) and (data.shape != shape or data.dtype.itemsize != DTYPES[dtype].itemsize):
                raise ShapeError(f"tensor '{name}': {data.dtype}{list(data.shape)} came for {dtype}{list(shape)}")
            view = raw(data)
            del data
            yield name, view
            del view
        if on_written is not None:
            on_written(item.name)


def _pretty(value: Any, levels: int, indent: str = "") -> str:
    """JSON with one line for each field of the outer `levels` objects and for each whole value below them."""
    if not (levels and isinstance(value, dict) and value):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    inner = indent + "  "
    lines = (f"{inner}{json.dumps(key, ensure_ascii=False)}: {_pretty(item, levels - 1, inner)}" for key, item in value.items())
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def save_checkpoint(
    target: str | Path,
    config: Mapping[str, Any],
    quantized: Iterable[tuple[str, QuantizedEntry]],
    dense: Iterable[tuple[str, str, Any]],
    files: Iterable[Path] = (),
    *,
    kv_cache: dict[str, Any] | None = None,
    tables: Mapping[str, Sequence[float]] | None = None,
    provenance: Sequence[dict[str, Any]] = (),
    policy: str | None = None,
    recipe_digest: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    on_written: Callable[[str], None] | None = None,
) -> int:
    """Writes a checkpoint, all of it or nothing, one tensor at a time.

    Args: config, the model's config.json (a `quantization_config` in it is replaced); quantized, (tensor name, entry); dense, (tensor name,
        dtype as safetensors spells it, array), which keep their names and bytes; files, copied beside (tokenizer, generation_config);
        shard_bytes, the most that one file holds unless a single tensor is larger; on_written(name), called after each tensor.
    Returns: bytes of the safetensors files.
    Raises: OutputError: target exists, disk fails. DoesNotFitError: too little space, found before work starts. ShapeError: data that do
        not match what was announced.
    Cost: holds the arrays of one quantized tensor.
    """
    target = Path(target)
    entries = list(quantized)
    items = [*(_quantized_item(name, entry) for name, entry in entries), *(_dense_item(*item) for item in dense)]
    names = [name for item in items for name in {item.name, *(entry[0] for entry in item.entries)}]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ShapeError(f"tensor '{twice}' would be stored twice")
    described = Quantization(
        layers={name: entry.stored for name, entry in entries},
        kv_cache=kv_cache,
        tables={name: tuple(values) for name, values in (tables or {}).items()},
        provenance=tuple(provenance),
        policy=policy,
        recipe_digest=recipe_digest,
    )
    text = _pretty({**config, "quantization_config": quantization_json(described)}, levels=3) + "\n"
    groups = _shards(items, shard_bytes)
    digests: dict[str, str] = {}
    weight_map: dict[str, str] = {}
    total = 0
    with atomic_directory(target, digests) as temp:
        _check_space(target, sum(item.nbytes for item in items))
        for number, group in enumerate(groups, 1):
            file = "model.safetensors" if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
            listed = [entry for item in group for entry in item.entries]
            written = write_safetensors(temp / file, listed, _stream(group, on_written), {"format": "pt"})
            digests[file] = written.sha256
            total += written.size
            weight_map |= dict.fromkeys((name for name, _, _ in listed), file)
        if len(groups) > 1:
            index = {"metadata": {"total_size": sum(item.nbytes for item in items)}, "weight_map": weight_map}
            _put(temp / "model.safetensors.index.json", json.dumps(index, indent=1, ensure_ascii=False).encode() + b"\n")
        _put(temp / "config.json", text.encode())
        for path in files:
            _put(temp / path.name, path.read_bytes())
    return total


def _put(path: Path, data: bytes) -> None:
    with create(path) as fd:
        write_all(fd, data, path)


def _check_space(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.absolute().parent).free
    if free < needed:
        raise DoesNotFitError(f"{target} needs {needed} bytes, but only {free} are free there; free some space or choose another place")
