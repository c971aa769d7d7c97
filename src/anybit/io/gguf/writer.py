"""Writes GGUF version 3, little endian: the header, and so every size and offset, is known before any data is made."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anybit.errors import ShapeError
from anybit.io.gguf.container import MAX_AXES, MAX_NAME, NAMES
from anybit.io.gguf.kind import Kind
from anybit.io.safetensors import bad_name
from anybit.io.safetensors_writer import raw

ALIGN = 32
LLAMA_NAME = 63
"""What llama.cpp takes for a tensor's name, in bytes."""
_FORMATS = {
    "u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f", "bool": "?", "u64": "Q", "i64": "q", "f64": "d",
}  # fmt: skip
_DTYPES = {"u32": "<u4", "i32": "<i4", "f32": "<f4"}


@dataclass(frozen=True)
class Value:
    """A field's value with its type: one of `container.NAMES` but "arr", with `array` a list of them."""

    kind: str
    value: Any
    array: bool = False


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: its shape has the last axis innermost, which holds whole blocks of its type."""

    name: str
    kind: Kind
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its blocks."""
        return math.prod(self.shape) // self.kind.weights * self.kind.dtype.itemsize


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _field(key: str, value: Value) -> bytes:
    code = NAMES.index(value.kind)
    items = value.value if value.array else [value.value]
    if value.kind == "str":
        data = b"".join(_text(item) for item in items)
    elif value.array and value.kind in _DTYPES:
        data = np.asarray(items).astype(_DTYPES[value.kind]).tobytes()
    else:
        data = struct.pack(f"<{len(items)}{_FORMATS[value.kind]}", *items)
    head = struct.pack("<IIQ", NAMES.index("arr"), code, len(items)) if value.array else struct.pack("<I", code)
    return _text(key) + head + data


def header(fields: Mapping[str, Value], entries: Sequence[Entry]) -> bytes:
    """Everything before the tensors' data, padded. ShapeError: a name that is taken or no name, a shape that no block fits."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(entries), len(fields))]
    parts += [_field(key, value) for key, value in fields.items()]
    names: set[str] = set()
    offset = 0
    for entry in entries:
        reason = "the name occurs twice" if entry.name in names else bad_name(entry.name)
        size = len(entry.name.encode())
        if reason is None and size > LLAMA_NAME:
            reason = f"{size} bytes, {LLAMA_NAME} at most"
        if reason is None and (not 1 <= len(entry.shape) <= MAX_AXES or min(entry.shape) < 1 or entry.shape[-1] % entry.kind.weights):
            reason = f"the shape {list(entry.shape)} is none of {entry.kind.name}, whose blocks hold {entry.kind.weights}"
        if reason is not None:
            raise ShapeError(f"tensor {entry.name[:MAX_NAME]!r}: {reason}")
        names.add(entry.name)
        parts += [_text(entry.name), struct.pack(f"<I{len(entry.shape)}Q", len(entry.shape), *reversed(entry.shape))]
        parts.append(struct.pack("<IQ", entry.kind.code, offset))
        offset += -(-entry.nbytes // ALIGN) * ALIGN
    head = b"".join(parts)
    return head + bytes(-len(head) % ALIGN)


def write_gguf(
    put: Callable[[Any], None], fields: Mapping[str, Value], entries: Sequence[Entry], data: Iterable[tuple[str, Any]]
) -> int:  # fmt: skip
    """Writes a file; gives its length.

    Args: put, takes the bytes one after another; data, (name, array) pairs in the order of `entries`, where a tensor may come as several
        pairs in a row; it is pulled as the file grows.
    Raises: ShapeError: as `header`, or data that do not match the entries. Cost: holds what `data` holds.
    """
    head = header(fields, entries)
    put(head)
    size = len(head)
    source = iter(data)
    for entry in entries:
        left = entry.nbytes
        while left:
            name, array = next(source, ("", b""))
            view = raw(array)
            if name != entry.name or not 0 < view.nbytes <= left:
                raise ShapeError(f"tensor '{entry.name}': {view.nbytes} bytes of '{name}' came while {left} were missing")
            put(view)
            left -= view.nbytes
        gap = -entry.nbytes % ALIGN
        put(bytes(gap))
        size += entry.nbytes + gap
    if next(source, None) is not None:
        raise ShapeError("data came after the last tensor was complete")
    return size
