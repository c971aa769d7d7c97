"""Saves anybit's own checkpoint: a Hugging Face directory whose config.json carries a `quantization_config` (docs/checkpoint.md)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anybit.errors import DoesNotFitError, ShapeError
from anybit.io.ahead import ahead
from anybit.io.foreign import Sidecar
from anybit.io.output import create
from anybit.io.quantization import PART_NAME, Quantization, StoredLayer, Table, quantization_json
from anybit.io.safetensors import ALIGN, DTYPES, entry_nbytes
from anybit.io.safetensors_writer import Entry, raw, write_safetensors
from anybit.io.save import atomic_directory

SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class QuantizedEntry:
    """A quantized tensor to be saved: what is known beforehand, and the call that makes its arrays or buffers, one for each part."""

    stored: StoredLayer
    produce: Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class Item:
    """One tensor with all its arrays, never split over two files: `produce` gives them in the order of `entries`, whole or by rows."""

    name: str
    entries: list[Entry]
    produce: Callable[[], Iterable[tuple[str, Any]]]

    @property
    def nbytes(self) -> int:
        return sum(entry_nbytes(dtype, shape) for _, dtype, shape in self.entries)


def _quantized_item(name: str, entry: QuantizedEntry) -> Item:
    parts = entry.stored.parts
    if any(PART_NAME.fullmatch(part) is None for part in parts):
        raise ShapeError(f"tensor '{name}': part names are lower-case words joined by dots, not {list(parts)}")
    entries = [(f"{name}.{part}", info.dtype, info.shape) for part, info in parts.items()]

    def produce() -> Iterator[tuple[str, Any]]:
        made = dict(entry.produce())
        if made.keys() != parts.keys():
            raise ShapeError(f"tensor '{name}': parts {list(parts)} were announced, {[*made]} came")
        for part, announced in zip(parts, entries, strict=True):
            yield _checked(announced, made.pop(part))

    return Item(name, entries, produce)


def _dense_item(name: str, dtype: str, array: Any) -> Item:
    entry = (name, dtype, tuple(np.shape(array)))
    return Item(name, [entry], lambda: [_checked(entry, array)])


def _checked(entry: Entry, data: Any) -> tuple[str, Any]:
    """An array with its name. ShapeError: another shape or width than was announced."""
    name, dtype, shape = entry
    if isinstance(data, np.ndarray) and (data.shape != shape or data.dtype.itemsize != DTYPES[dtype].itemsize):
        raise ShapeError(f"tensor '{name}': {data.dtype}{list(data.shape)} came for {dtype}{list(shape)}")
    return name, data


def _shards(items: Iterable[Item], limit: int) -> list[list[Item]]:
    groups: list[list[Item]] = [[]]
    room = limit
    for item in items:
        if groups[-1] and item.nbytes > room:
            groups.append([])
            room = limit
        groups[-1].append(item)
        room -= item.nbytes
    return groups


_DEPTH = 4
"""Pieces that are made before they are written: the arrays of one tensor, where a target makes it as a whole."""


def _pieces(items: Sequence[Item]) -> Generator[tuple[str, memoryview], None, None]:
    """(array name, bytes) of one item after another, each let go as soon as the next is asked for."""
    for item in items:
        for name, data in item.produce():
            view = raw(data)
            del data
            if view.nbytes:
                yield name, view
            del view


def _stream(
    items: Sequence[Item], on_written: Callable[[str], None] | None, exported: bool
) -> Generator[tuple[str, Any], None, None]:  # fmt: skip
    """The same (where it is exported, some pieces are made while those before are written); calls `on_written` after an item's last."""
    left = 0
    names = iter(items)
    with closing(_pieces(items)) as pieces, closing(ahead(pieces, _DEPTH) if exported else pieces) as coming:
        for name, view in coming:
            while not left:
                item = next(names)
                left = item.nbytes
            size = view.nbytes
            yield name, view
            del view
            left -= size
            if not left and on_written is not None:
                on_written(item.name)


def write_items(
    folder: Path, items: Sequence[Item], shard_bytes: int = SHARD_BYTES, on_written: Callable[[str], None] | None = None,
    exported: bool = False,
) -> tuple[dict[str, str], int]:  # fmt: skip
    """Writes tensors as safetensors, in several files with an index where one would exceed `shard_bytes`.

    `exported`: for other tools. No filler tensors lie between others, which they take for unknown weights; tensors are made while others
    are written, so that some pieces more are held; and the files do not stay in the system's memory (`io.output`).
    Returns: SHA-256 by file name, and the bytes of all files. Raises: OutputError, ShapeError: as `save_checkpoint`.
    """
    groups = _shards(items, shard_bytes)
    digests: dict[str, str] = {}
    weight_map: dict[str, str] = {}
    total = 0
    for number, group in enumerate(groups, 1):
        file = "model.safetensors" if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        listed = [entry for item in group for entry in item.entries]
        with closing(_stream(group, on_written, exported)) as data:
            written = write_safetensors(folder / file, listed, data, {"format": "pt"}, 1 if exported else ALIGN, exported)
        digests[file] = written.sha256
        total += written.size
        weight_map |= dict.fromkeys((name for name, _, _ in listed), file)
    if len(groups) > 1:
        index = {"metadata": {"total_size": sum(item.nbytes for item in items)}, "weight_map": weight_map}
        put(folder / "model.safetensors.index.json", json.dumps(index, indent=1, ensure_ascii=False).encode() + b"\n")
    return digests, total


def pretty(value: Any, levels: int, indent: str = "") -> str:
    """JSON with one line for each field of the outer `levels` objects and for each whole value below them."""
    if not (levels and isinstance(value, dict) and value):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    inner = indent + "  "
    lines = (f"{inner}{json.dumps(key, ensure_ascii=False)}: {pretty(item, levels - 1, inner)}" for key, item in value.items())
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def save_checkpoint(
    target: str | Path,
    config: Mapping[str, Any],
    quantized: Iterable[tuple[str, QuantizedEntry]],
    dense: Iterable[tuple[str, str, Any]],
    files: Iterable[Sidecar] = (),
    *,
    kv_cache: dict[str, Any] | None = None,
    tables: Mapping[str, Table] | None = None,
    provenance: Sequence[dict[str, Any]] = (),
    policy: str | None = None,
    recipe_digest: str | None = None,
    attention_product: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    on_written: Callable[[str], None] | None = None,
) -> int:
    """Writes a checkpoint, all of it or nothing, one tensor at a time.

    Args: config, the model's config.json (a `quantization_config` in it is replaced); quantized, (tensor name, entry); dense, (tensor name,
        dtype as safetensors spells it, array), which keep their names and bytes; files, copied beside (tokenizer, generation_config);
        tables, the values of elements that are not built in, by name; attention_product, the rule in q k^T and p v; shard_bytes, the
        most that one file holds unless a single tensor is larger; on_written(name), called after each tensor.
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
        tables=dict(tables or {}),
        provenance=tuple(provenance),
        policy=policy,
        recipe_digest=recipe_digest,
        attention_product=attention_product,
    )
    text = pretty({**config, "quantization_config": quantization_json(described)}, levels=3) + "\n"
    digests: dict[str, str] = {}
    with atomic_directory(target, digests) as temp:
        check_space(target, sum(item.nbytes for item in items))
        written, total = write_items(temp, items, shard_bytes, on_written)
        digests |= written
        put(temp / "config.json", text.encode())
        for path in files:
            put(temp / path.name, path.read_bytes())
    return total


def put(path: Path, data: bytes) -> None:
    """Writes a small file. OutputError: it exists, or the disk fails."""
    with create(path) as file:
        file.write(data)


def check_space(target: Path, needed: int) -> None:
    """DoesNotFitError: fewer bytes are free where `target` is to lie."""
    free = shutil.disk_usage(target.absolute().parent).free
    if free < needed:
        raise DoesNotFitError(f"{target} needs {needed} bytes, but only {free} are free there; free some space or choose another place")
