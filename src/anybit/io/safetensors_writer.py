"""Writes safetensors files tensor by tensor: the header, and so every size and offset, is known before any data is made."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anybit.errors import ShapeError
from anybit.io.output import digested
from anybit.io.safetensors import ALIGN, MAX_HEADER, PAD, bad_name, entry_nbytes

Entry = tuple[str, str, tuple[int, ...]]  # name, dtype, shape


@dataclass(frozen=True)
class Written:
    """What a finished file holds: its length in bytes and the hexadecimal SHA-256 of all of them."""

    size: int
    sha256: str


def plan(entries: Sequence[Entry], metadata: dict[str, str] | None = None, align: int = ALIGN) -> tuple[bytes, list[int], int]:
    """The file's head (length field and header), the zero bytes that follow each entry, and the file's size.

    Entries keep their order. Where one would start off the alignment, a filler tensor goes before it; none goes after the last.
    Raises: ShapeError: a bad name, a name twice, an unknown dtype, a header over the format's limit.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    gaps: list[int] = []
    here = 0
    for index, (name, dtype, shape) in enumerate(entries):
        reason = bad_name(name)
        if reason is None and (name in header or name == "__metadata__" or name.startswith(PAD)):
            reason = "a name that is taken"
        if reason is not None:
            raise ShapeError(f"tensor {name!r}: {reason}; rename it")
        nbytes = entry_nbytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [here, here + nbytes]}
        here += nbytes
        gap = -here % align if index + 1 < len(entries) else 0
        if gap:
            header[f"{PAD}{index}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [here, here + gap]}
        gaps.append(gap)
        here += gap
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % align)
    if len(text) > MAX_HEADER:
        raise ShapeError(f"a header of {len(text)} bytes exceeds the format's {MAX_HEADER}; write more than one file")
    return len(text).to_bytes(8, "little") + text, gaps, 8 + len(text) + here


def raw(data: Any) -> memoryview:
    """The bytes of a buffer or array, in C order, without a copy where it is contiguous and little-endian."""
    if isinstance(data, np.ndarray):
        flat = np.ascontiguousarray(data).reshape(-1)
        if flat.dtype.byteorder == ">":
            flat = flat.astype(flat.dtype.newbyteorder("<"))
        return flat.view(np.uint8).data
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")


def write_safetensors(
    path: str | os.PathLike[str],
    entries: Sequence[Entry],
    data: Iterable[tuple[str, Any]],
    metadata: dict[str, str] | None = None,
    align: int = ALIGN,
    passing: bool = False,
) -> Written:
    """Writes a file whose tensors come one after another.

    Args: entries, (name, dtype, shape) of all tensors in their order in the file; data, (name, buffer or array) pairs in the same order,
        where a tensor may come as several pairs in a row; it is pulled as the file grows, so it may compute what it yields; passing, as
        of `io.output.Output`.
    Returns: size and SHA-256. The bytes depend on the arguments alone.
    Raises: ShapeError: data that do not match the entries. OutputError: the file exists or the disk fails.
    Cost: one pass; holds what `data` holds and nothing more.
    """
    head, gaps, size = plan(entries, metadata, align)
    with digested(path, passing) as file:
        file.write(head)
        source = iter(data)
        for (name, dtype, shape), gap in zip(entries, gaps, strict=True):
            left = entry_nbytes(dtype, shape)
            while left:
                came = _next(source)
                if came is None:
                    raise ShapeError(f"tensor '{name}': the data ended {left} bytes early")
                if came[0] != name:
                    raise ShapeError(f"tensor '{name}': data of '{came[0]}' came while {left} bytes were missing")
                if came[1].nbytes > left:
                    raise ShapeError(f"tensor '{name}': {came[1].nbytes - left} bytes more than {dtype} {list(shape)} holds")
                left -= came[1].nbytes
                file.write(came[1])
                came = None  # freed before the next is made
            file.write(bytes(gap))
        if _next(source) is not None:
            raise ShapeError("data came after the last tensor was complete")
    return Written(size, file.sha256)


def _next(source: Iterator[tuple[str, Any]]) -> tuple[str, memoryview] | None:
    """The next pair that holds any bytes. A function, so that no variable keeps the last one alive while the next is made."""
    while True:
        pair = next(source, None)
        if pair is None:
            return None
        view = raw(pair[1])
        if view.nbytes:
            return pair[0], view
        del pair, view
