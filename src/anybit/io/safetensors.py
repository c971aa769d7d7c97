"""The safetensors container: a strict, memory-mapped reader. `safetensors_writer` is its other half.

Layout: u64 little-endian n; n bytes of JSON header {name: {dtype, shape, data_offsets: [begin, end]}}; the data, where the tensors lie
back to back without holes. The reader checks all of that before it touches a tensor, and refuses more than the format's own rules do:
duplicate keys, names with `..`, NUL or control characters, sizes that wrap.

The writer starts every tensor at a multiple of 64 bytes. The container forbids holes, so a gap is filled by a tensor named
`__pad__.<i>` (U8, zeros, at most 63 bytes); this reader hides them, others see a harmless extra tensor.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anybit.errors import FileFormatError, ShapeError
from anybit.io.strict_json import DECODER, refuse, scanstring, shown

MAX_HEADER = 100_000_000  # the format's own limit
MAX_TENSORS = 1 << 17
MAX_DIMS = 32  # NumPy 1.26's limit
MAX_NAME = 1024
MAX_ENTRY = 4096  # bytes of one entry's JSON: 32 dimensions of 20 digits fit six times
MAX_METADATA = 1 << 16
ALIGN = 64
PAD = "__pad__."

DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        **{f"F{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
        **{f"I{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
        **{f"U{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
        # NumPy has no such types: their raw bits
        "BF16": np.dtype("<u2"),
        **dict.fromkeys(("BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), np.dtype("u1")),
    }
)

_SPACE = re.compile(r"[ \t\n\r]*")
_INT = "(?:0|[1-9][0-9]{0,17})"
# what nearly every writer writes; anything else takes the general decoder, four times slower
_PLAIN = re.compile(rf'\{{"dtype":"([A-Z0-9_]+)","shape":\[((?:{_INT}(?:,{_INT})*)?)\],"data_offsets":\[({_INT}),({_INT})\]\}}')
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_FRESH = "the file is damaged or was not written by a safetensors library; fetch or write it again"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: dtype as the file spells it, `offset` in bytes from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: Path
    offset: int


def entry_nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor. Raises: ShapeError: a dtype that the container does not have, or a negative dimension."""
    if dtype not in DTYPES:
        raise ShapeError(f"dtype '{dtype}' is none of {' '.join(DTYPES)}")
    if any(n < 0 for n in shape):
        raise ShapeError(f"negative dimension in {shape}")
    return math.prod(shape) * DTYPES[dtype].itemsize


def bad_name(name: str) -> str | None:
    """Why a tensor must not be called so, or None."""
    if not name:
        return "an empty name"
    if len(name) > MAX_NAME:
        return f"a name of {len(name)} characters"
    if _CONTROL.search(name):
        return "a control character in the name"
    if ".." in name or name.startswith(("/", "\\")):
        return "a name that looks like a path"
    return None


def _entry(value: object) -> tuple[str, tuple[int, ...], int, int] | str:
    """A header entry as (dtype, shape, begin, end), or what is wrong with it. Everything that arithmetic could wrap is bounded here."""
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        return "needs exactly the keys dtype, shape and data_offsets"
    dtype, shape, span = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"unknown dtype {shown(dtype, 40)} (known: {' '.join(DTYPES)})"
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        return "shape is no list of non-negative integers"
    if len(shape) > MAX_DIMS:
        return f"{len(shape)} dimensions, {MAX_DIMS} at most"
    if not isinstance(span, list) or len(span) != 2 or not all(type(n) is int and n >= 0 for n in span):
        return "data_offsets is no pair of non-negative integers"
    itemsize = DTYPES[dtype].itemsize
    if math.prod(n for n in shape if n) * itemsize >= 1 << 63:
        return "the product of the dimensions exceeds 2**63 bytes"
    begin, end = span
    nbytes = math.prod(shape) * itemsize
    if end - begin != nbytes:
        return f"data_offsets span {end - begin} bytes, dtype and shape need {nbytes}"
    return dtype, tuple(shape), begin, end


def _filler(name: str, info: TensorInfo) -> bool:
    return name.startswith(PAD) and info.dtype == "U8" and len(info.shape) == 1 and info.nbytes < ALIGN


class _Cursor:
    """Walks a header whose shape is known, so that no hostile one is decoded before its parts have been checked.

    The text is the bytes decoded as Latin-1: an index is a byte's place, and a character never takes more than a byte.
    """

    def __init__(self, head: bytes, path: Path) -> None:
        self.text, self.path, self.at = head.decode("latin-1"), path, 0

    def wrong(self, field: str, index: int, what: str) -> FileFormatError:
        return refuse(self.path, field, 8 + index, what, _FRESH)

    def skip(self) -> None:
        self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]

    def accept(self, mark: str) -> bool:
        if not self.text.startswith(mark, self.at):
            return False
        self.at += 1
        self.skip()
        return True

    def expect(self, mark: str) -> None:
        if not self.accept(mark):
            raise self.wrong("header", self.at, f"{mark} expected, {shown(self.text[self.at : self.at + 1])} found")

    def string(self) -> str:
        start = self.at
        if not self.text.startswith('"', start):
            raise self.wrong("header", start, f'" expected, {shown(self.text[start : start + 1])} found')
        try:
            value, self.at = scanstring(self.text, start + 1)
            if not value.isascii():
                value = scanstring(self.text[start : self.at].encode("latin-1").decode("utf-8"), 1)[0]
        except UnicodeDecodeError as error:
            raise self.wrong("header", start + error.start, "not UTF-8 text") from None
        except json.JSONDecodeError as error:
            raise self.wrong("header", error.pos, error.msg) from None
        if not value.isascii() and _SURROGATE.search(value):
            raise self.wrong("header", start, "half of a surrogate pair is no character")
        self.skip()
        return value

    def members(self) -> Iterator[tuple[int, str]]:
        """The (index, key) pairs of the object at the cursor; the caller moves the cursor over each value."""
        self.expect("{")
        if self.accept("}"):
            return
        while True:
            start, key = self.at, self.string()
            self.expect(":")
            yield start, key
            if self.accept("}"):
                return
            self.expect(",")

    def entry(self, field: str) -> Any:
        """Decodes a tensor's entry: an object that holds no other object, so it ends at the next brace."""
        plain = _PLAIN.match(self.text, self.at, self.at + MAX_ENTRY)
        if plain is not None:
            self.at = plain.end()
            self.skip()
            shape = [int(n) for n in plain[2].split(",")] if plain[2] else []
            return {"dtype": plain[1], "shape": shape, "data_offsets": [int(plain[3]), int(plain[4])]}
        end = self.text.find("}", self.at, self.at + MAX_ENTRY) + 1
        if not end:
            raise self.wrong(field, self.at, f"its entry does not end within {MAX_ENTRY} bytes")
        try:
            value = DECODER.decode(self.text[self.at : end])
        except json.JSONDecodeError as error:
            raise self.wrong(field, self.at + error.pos, error.msg) from None
        except (ValueError, RecursionError) as error:
            raise self.wrong(field, self.at, str(error)) from None
        self.at = end
        self.skip()
        return value

    def strings(self) -> dict[str, str]:
        """Decodes `__metadata__`."""
        result: dict[str, str] = {}
        for index, key in self.members():
            if key in result or len(result) == MAX_METADATA:
                raise self.wrong("__metadata__", index, f"{shown(key)} occurs twice" if key in result else f"more than {MAX_METADATA} keys")
            result[key] = self.string()
        return result


def parse_header(head: bytes, size: int, path: Path) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """Checks a header completely.

    Args: head, the header's JSON bytes (the file's bytes from 8 on); size, the file's length in bytes; path, its name.
    Returns: the `__metadata__` strings, and the tensors in the order of their data, fillers included.
    Raises: FileFormatError naming the field and the byte.
    """
    cursor = _Cursor(head, path)
    metadata: dict[str, str] | None = None
    found: dict[str, tuple[int, str, tuple[int, ...], int, int]] = {}
    for index, key in cursor.members():
        if key == "__metadata__":
            if metadata is not None:
                raise cursor.wrong(key, index, "the key occurs twice")
            metadata = cursor.strings()
            continue
        field = f"tensor {shown(key)}"
        reason = "the name occurs twice" if key in found else bad_name(key)
        if reason is None and len(found) == MAX_TENSORS:
            reason = f"more than {MAX_TENSORS} tensors in one file"
        if reason is not None:
            raise cursor.wrong(field, index, reason)
        entry = _entry(cursor.entry(field))
        if isinstance(entry, str):
            raise cursor.wrong(field, index, entry)
        found[key] = (index, *entry)
    if cursor.at != len(cursor.text):
        raise cursor.wrong("header", cursor.at, "only white space may follow the closing brace")

    start = 8 + len(head)
    tensors: dict[str, TensorInfo] = {}
    here = 0
    for name, (index, dtype, shape, begin, end) in sorted(found.items(), key=lambda item: item[1][3:]):
        if begin != here:
            what = f"data_offsets start at {begin}, but the data before it ends at {here} (tensors may not overlap nor leave holes)"
            raise cursor.wrong(f"tensor {shown(name)}", index, what)
        if start + end > size:
            what = f"its data ends at byte {start + end}, but the file at byte {size}"
            raise refuse(path, f"tensor {shown(name)}", start + begin, what, "the file is cut short: fetch or write it again")
        tensors[name] = TensorInfo(dtype, shape, end - begin, path, start + begin)
        here = end
    if start + here != size:
        raise refuse(path, "data", start + here, f"{size - start - here} bytes after the last tensor belong to none", _FRESH)
    return metadata or {}, tensors


class SafeFile:
    """A safetensors file, mapped read-only. Opening parses the header and maps; no tensor is read before it is used.

    `tensors` maps names to TensorInfo in the order of the data; `metadata` is the header's `__metadata__`; `size` the file's bytes,
    `padding` those of its fillers. As with every map, cutting the file short while it is in use ends the process: replace files by
    renaming, as `io.save` does.
    Raises: FileFormatError on opening: anything that the format or this module's limits forbid.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # NONBLOCK: opening a pipe must not wait for a writer
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise FileFormatError(f"{self.path}: cannot be opened: {reason}; check the path and its permissions") from None
        try:
            self.metadata, everything = self._open(fd)
        except OSError as error:
            raise FileFormatError(f"{self.path}: cannot be read: {error.strerror}; check the disk and the file") from None
        finally:
            os.close(fd)
        shown_ones = {name: info for name, info in everything.items() if not _filler(name, info)}
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(shown_ones)
        self.padding = sum(info.nbytes for info in everything.values()) - sum(info.nbytes for info in shown_ones.values())

    def _open(self, fd: int) -> tuple[dict[str, str], dict[str, TensorInfo]]:
        status = os.fstat(fd)
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            raise FileFormatError(f"{self.path}: not a regular file; give a .safetensors file")
        if self.size < 10:
            raise refuse(self.path, "header length", 0, f"the file has only {self.size} bytes", "it is cut short: fetch or write it again")
        length = int.from_bytes(os.pread(fd, 8, 0), "little")
        if length > MAX_HEADER:
            raise refuse(self.path, "header length", 0, f"{length} exceeds the format's limit of {MAX_HEADER}", _FRESH)
        if length > self.size - 8:
            what = f"{length} bytes of header, but the file has only {self.size - 8} after it"
            raise refuse(self.path, "header length", 0, what, "it is cut short: fetch or write it again")
        head = os.pread(fd, length, 8)
        if len(head) != length:
            raise refuse(self.path, "header", 8 + len(head), "the file shrank while being read", "open it when its writer is done")
        result = parse_header(head, self.size, self.path)
        self._map: mmap.mmap | None = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
        return result

    def _mapped(self) -> mmap.mmap:
        if self._map is None:
            raise ValueError(f"{self.path} is closed")
        return self._map

    def info(self, name: str) -> TensorInfo:
        """One tensor's place. Raises: FileFormatError: no such tensor."""
        try:
            return self.tensors[name]
        except KeyError:
            raise FileFormatError(f"{self.path}: no tensor {shown(name)}; `anybit inspect` lists what the file holds") from None

    def place(self, name: str) -> str:
        """For messages: ` (at byte 4096 of model.safetensors)`, where a tensor begins; of one that is not there, the header without it."""
        info = self.tensors.get(name)
        where = "not in the header at byte 8" if info is None else f"at byte {info.offset}"
        return f" ({where} of {self.path.name})"

    def tensor(self, name: str) -> NDArray[Any]:
        """A read-only view of a tensor's bytes in the map: no copy. BF16 comes as uint16, BOOL and 8-bit floats as uint8: raw bits.

        Files by other writers may place a tensor at any byte; then `view.flags.aligned` is False. The view keeps the map alive.
        """
        info = self.info(name)
        dtype = DTYPES[info.dtype]
        return np.frombuffer(self._mapped(), dtype, info.nbytes // dtype.itemsize, info.offset).reshape(info.shape)

    def release(self, name: str) -> None:
        """Gives a tensor's resident pages back to the system; a later read fetches them again. Whole pages, rounded outward."""
        info = self.info(name)
        if info.nbytes and self._map is not None:
            start = info.offset - info.offset % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, start, info.offset + info.nbytes - start)

    def close(self) -> None:
        """Drops the map. Views that are still alive keep the memory mapped until they go."""
        held, self._map = self._map, None
        if held is not None:
            try:
                held.close()
            except BufferError:
                return  # a view is alive: the map goes with it

    def __enter__(self) -> SafeFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
