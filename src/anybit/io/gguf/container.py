"""The GGUF container, versions 2 and 3, little and big endian: a strict, memory-mapped reader.

Layout: "GGUF"; u32 version; u64 tensors; u64 fields; the fields (string key, u32 type, value); the tensors (string name, u32 axes, u64
sizes with the innermost first, u32 type, u64 offset); the data, from the next multiple of `general.alignment` (32 without that field).
A string is a u64 length and UTF-8 bytes; an array a u32 type, a u64 count and the values.

Everything is checked before it is used or allocated for: counts and lengths against the bytes that are left, products of sizes before they
could wrap, places of tensors against the file and each other. Arrays inside arrays are refused: no writer makes them, and depth is what
readers have been crashed with. Long arrays are decoded when they are asked for.

Source: the GGUF specification in ggml's docs/gguf.md. Differs: names as in `bad_name`; duplicate keys and names, overlapping tensors and
more than 4 axes are errors.
"""

from __future__ import annotations

import math
import mmap
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anybit.errors import FileFormatError
from anybit.io.gguf.kind import Kind, kind_of
from anybit.io.safetensors import bad_name
from anybit.io.strict_json import refuse, shown

MAX_FIELDS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_KEY = 1 << 16  # bytes, the specification's limit
MAX_NAME = 256
MAX_AXES = 4
MAX_WEIGHTS = 1 << 48
SMALL = 1 << 12  # longer arrays are decoded when asked for

_DAMAGED = "the file is damaged or hostile; fetch or convert it again"
_SCALARS = {0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 7: "u1", 10: "u8", 11: "i8", 12: "f8"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_FIELDS = 24  # after magic, version and both counts
NAMES = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "arr", "u64", "i64", "f64")


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a file. `shape` has the last axis innermost, as NumPy writes it; `offset` counts from the file's start."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    nbytes: int
    offset: int


@dataclass(frozen=True)
class _Array:
    """A field's array that has not been decoded: where its values lie."""

    kind: int
    count: int
    start: int


class _Cursor:
    """Reads a header front to back; every read is checked against the file's end first."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.size, self.at, self.order = data, path, len(data), 0, "<"

    def wrong(self, field: str, what: str, at: int | None = None) -> FileFormatError:
        return refuse(self.path, field, self.at if at is None else at, what, _DAMAGED)

    def need(self, count: int, field: str) -> None:
        if count > self.size - self.at:
            raise self.wrong(field, f"{count} bytes are needed, the file has {self.size - self.at} left")

    def number(self, code: str, field: str) -> Any:
        width = int(code[1])
        self.need(width, field)
        letter = {"u1": "B", "i1": "b", "u2": "H", "i2": "h", "u4": "I", "i4": "i", "u8": "Q", "i8": "q", "f4": "f", "f8": "d"}[code]
        (value,) = struct.unpack_from(self.order + letter, self.data, self.at)
        self.at += width
        return value

    def text(self, field: str, most: int | None = None) -> str:
        start = self.at
        length = self.number("u8", field)
        if most is not None and length > most:
            raise self.wrong(field, f"a string of {length} bytes, {most} at most", start)
        self.need(length, field)
        value = self.decode(self.at, length, field)
        self.at += length
        return value

    def decode(self, start: int, length: int, field: str) -> str:
        try:
            return self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.wrong(field, "not UTF-8 text", start + error.start) from None

    def value(self, field: str) -> Any:
        """A field's value; an array of more than a few values as _Array."""
        start = self.at
        kind = self.number("u4", field)
        if kind == _STRING:
            return self.text(field)
        if kind != _ARRAY:
            return self.scalar(kind, field, start)
        start = self.at
        kind, count = self.number("u4", field), self.number("u8", field)
        if kind == _ARRAY:
            raise self.wrong(field, "an array inside an array", start)
        if kind != _STRING and kind not in _SCALARS:
            raise self.wrong(field, f"unknown value type {kind} (known: 0 to 12)", start)
        if count > (self.size - self.at) // (8 if kind == _STRING else int(_SCALARS[kind][1])):
            raise self.wrong(field, f"an array of {count} values, the file has {self.size - self.at} bytes left", start)
        found = _Array(kind, count, self.at)
        if kind == _STRING:
            self.skip_strings(count, field)
        else:
            self.at += count * int(_SCALARS[kind][1])
        return self.values(found, field) if count <= SMALL else found

    def scalar(self, kind: int, field: str, start: int) -> Any:
        if kind not in _SCALARS:
            raise self.wrong(field, f"unknown value type {kind} (known: 0 to 12)", start)
        value = self.number(_SCALARS[kind], field)
        if kind != _BOOL:
            return value
        if value > 1:
            raise self.wrong(field, f"the byte {value} is neither false nor true", self.at - 1)
        return bool(value)

    def skip_strings(self, count: int, field: str) -> None:
        at, read, data, limit = self.at, struct.Struct(self.order + "Q").unpack_from, self.data, self.size - 8
        for i in range(count):
            length = read(data, at)[0] if at <= limit else 0
            if at > limit or length > limit - at:
                raise self.wrong(f"{field}[{i}]", f"a string of {length} bytes leaves the file", at)
            at += 8 + length
        self.at = at

    def values(self, array: _Array, field: str) -> Any:
        """The values of an array: a list of strings or of booleans, or a NumPy array. ValueError: the file is closed."""
        if self.data.closed:
            raise ValueError(f"{self.path} is closed")
        if array.kind == _STRING:
            at, found, read = array.start, [], struct.Struct(self.order + "Q").unpack_from
            for i in range(array.count):
                (length,) = read(self.data, at)
                found.append(self.decode(at + 8, length, f"{field}[{i}]"))
                at += 8 + length
            return found
        code = _SCALARS[array.kind]
        numbers = np.frombuffer(self.data, np.dtype(self.order + code), array.count, array.start)
        numbers = numbers.astype(np.dtype(code))  # a copy: metadata outlives the map, and arrays may lie at any byte
        if array.kind != _BOOL:
            return numbers
        if (numbers > 1).any():
            index = int(np.argmax(numbers > 1))
            raise self.wrong(f"{field}[{index}]", "neither false nor true", array.start + index)
        return [bool(n) for n in numbers]


class Metadata(Mapping[str, Any]):
    """The fields of a file: numbers, strings, booleans; arrays as lists (strings, booleans) or NumPy arrays, decoded on first use."""

    def __init__(self, cursor: _Cursor, fields: dict[str, Any], places: dict[str, int]) -> None:
        self._cursor, self._fields, self._places = cursor, fields, places

    def at(self, key: str) -> str:
        """For messages: ` (at byte 7)`, where a field begins; for one that is not there, where the fields begin."""
        return f" (at byte {self._places[key]})" if key in self._places else f" (not among the fields, which begin at byte {_FIELDS})"

    def __getitem__(self, key: str) -> Any:
        value = self._fields[key]
        if isinstance(value, _Array):
            value = self._fields[key] = self._cursor.values(value, f"field {shown(key)}")
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def summary(self) -> dict[str, Any]:
        """The same with a note in place of every array and text that is long, decoding none."""

        def brief(value: Any) -> Any:
            if isinstance(value, _Array):
                return f"{value.count} values of {NAMES[value.kind]}"
            if isinstance(value, str) and len(value) > 256:
                return f"{len(value)} characters"
            return f"{len(value)} values" if isinstance(value, (list, np.ndarray)) and len(value) > 16 else value

        return {key: brief(value) for key, value in self._fields.items()}


class Container:
    """An opened GGUF file: nothing but the header has been read; tensors are views of the mapped file.

    `metadata` holds the fields, `tensors` the tensors in the order of the header, `version` and `order` ("<" or ">") how it is written.
    Raises: FileFormatError on opening, naming the field and the byte: anything the module's rules forbid, or an unknown tensor type.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise FileFormatError(f"{self.path}: cannot be opened: {reason}; check the path and its permissions") from None
        try:
            status = os.fstat(fd)
            self.size = status.st_size
            if not stat.S_ISREG(status.st_mode):
                raise FileFormatError(f"{self.path}: not a regular file; give a .gguf file")
            if self.size < 24:
                raise refuse(self.path, "header", 0, f"the file has only {self.size} bytes", "it is cut short: fetch or write it again")
            self._map = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise FileFormatError(f"{self.path}: cannot be read: {error.strerror}; check the disk and the file") from None
        finally:
            os.close(fd)
        cursor = _Cursor(self._map, self.path)
        places: dict[str, int] = {}
        self.version, fields, count = _read_fields(cursor, places)
        self.order = cursor.order
        self.metadata = Metadata(cursor, fields, places)
        alignment, self._list = _alignment(cursor, fields), cursor.at
        self.tensors: Mapping[str, GgufTensor] = _read_tensors(cursor, count, alignment)

    def info(self, name: str) -> GgufTensor:
        """One tensor's place. Raises: FileFormatError: no such tensor."""
        try:
            return self.tensors[name]
        except KeyError:
            raise FileFormatError(f"{self.path}: no tensor {shown(name)}; `anybit inspect` lists what the file holds") from None

    def place(self, name: str) -> str:
        """For messages: ` (at byte 4096)`, where a tensor begins; for one that is not there, where the list of tensors does."""
        info = self.tensors.get(name)
        return f" (not in the list of tensors at byte {self._list})" if info is None else f" (at byte {info.offset})"

    def blocks(self, name: str) -> NDArray[Any]:
        """A read-only view of a tensor's blocks in the map: the kind's structured dtype in the file's byte order, [..., blocks]."""
        info = self.info(name)
        if self._map.closed:
            raise ValueError(f"{self.path} is closed")
        dtype = info.kind.dtype.newbyteorder(self.order)  # type: ignore[arg-type]
        shape = (*info.shape[:-1], info.shape[-1] // info.kind.weights)
        return np.frombuffer(self._map, dtype, info.nbytes // dtype.itemsize, info.offset).reshape(shape)

    def release(self, name: str) -> None:
        """Gives a tensor's resident pages back to the system; a later read fetches them again. Whole pages, rounded outward."""
        info = self.info(name)
        start = info.offset - info.offset % mmap.PAGESIZE
        if not self._map.closed:
            self._map.madvise(mmap.MADV_DONTNEED, start, info.offset + info.nbytes - start)

    def close(self) -> None:
        """Drops the map. Views that are still alive keep the memory mapped until they go."""
        try:
            self._map.close()
        except BufferError:
            return  # a view is alive: the map goes with it


def _read_fields(cursor: _Cursor, places: dict[str, int]) -> tuple[int, dict[str, Any], int]:
    """Version, fields and the number of tensors; sets the cursor's byte order, and in `places` where each field begins."""
    if cursor.data[:4] != b"GGUF":
        raise refuse(cursor.path, "magic", 0, f"{cursor.data[:4]!r}, not b'GGUF'", "give a GGUF file")
    cursor.at = 4
    version = cursor.number("u4", "version")
    if version and not version & 0xFFFF:  # no version has so many: the other byte order
        cursor.at, cursor.order = 4, ">"
        version = cursor.number("u4", "version")
    if version not in (2, 3):
        advice = "convert the model again with a current llama.cpp" if version == 1 else "update anybit, or check the file"
        raise refuse(cursor.path, "version", 4, f"{version}; this reader knows 2 and 3", advice)
    tensors, count = cursor.number("u8", "tensor count"), cursor.number("u8", "field count")
    # a tensor takes at least 32 bytes of header, a field 13
    if tensors > min(MAX_TENSORS, cursor.size // 32):
        raise cursor.wrong("tensor count", f"{tensors} tensors in a file of {cursor.size} bytes, {MAX_TENSORS} at most", 8)
    if count > min(MAX_FIELDS, cursor.size // 13):
        raise cursor.wrong("field count", f"{count} fields in a file of {cursor.size} bytes, {MAX_FIELDS} at most", 16)
    fields: dict[str, Any] = {}
    for i in range(count):
        start = cursor.at
        key = cursor.text(f"key of field {i}", MAX_KEY)
        if not key or not key.isprintable() or key in fields:
            what = "occurs twice" if key in fields else "is empty or has control characters"
            raise cursor.wrong(f"key of field {i}", f"{shown(key)} {what}", start)
        places[key] = start
        fields[key] = cursor.value(f"field {shown(key)}")
    return version, fields, tensors


def _alignment(cursor: _Cursor, fields: dict[str, Any]) -> int:
    value = fields.get("general.alignment", 32)
    if type(value) is not int or not 8 <= value <= 1 << 20 or value & (value - 1):
        raise cursor.wrong("field 'general.alignment'", f"{shown(value, 40)} is no power of two from 8 to 1048576")
    return value


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, GgufTensor]:
    listed: list[tuple[int, str, Kind, tuple[int, ...], int, int]] = []
    names: set[str] = set()
    for i in range(count):
        start = cursor.at
        name = cursor.text(f"name of tensor {i}", MAX_NAME)
        reason = "the name occurs twice" if name in names else bad_name(name)
        if reason is not None:
            raise cursor.wrong(f"name of tensor {i}", f"{shown(name)}: {reason}", start)
        names.add(name)
        field = f"tensor {shown(name)}"
        at = cursor.at
        axes = cursor.number("u4", field)
        if not 1 <= axes <= MAX_AXES:
            raise cursor.wrong(field, f"{axes} axes; there are 1 to {MAX_AXES}", at)
        at = cursor.at
        sizes = [cursor.number("u8", field) for _ in range(axes)]
        if not all(1 <= n < MAX_WEIGHTS for n in sizes) or math.prod(sizes) >= MAX_WEIGHTS:
            raise cursor.wrong(field, f"sizes {sizes}: each is at least 1 and their product below 2**48", at)
        at = cursor.at
        code = cursor.number("u4", field)
        kind = kind_of(code)
        if isinstance(kind, str):
            raise cursor.wrong(field, kind, at)
        if sizes[0] % kind.weights:
            raise cursor.wrong(field, f"rows of {sizes[0]} weights do not divide into blocks of {kind.weights} ({kind.name})", at)
        at = cursor.at
        offset = cursor.number("u8", field)
        if offset % alignment:
            raise cursor.wrong(field, f"offset {offset} is no multiple of the alignment {alignment}", at)
        listed.append((at, name, kind, tuple(reversed(sizes)), math.prod(sizes) // kind.weights * kind.dtype.itemsize, offset))
    data = -(-cursor.at // alignment) * alignment
    here, before = 0, ""
    for at, name, _, _, nbytes, offset in sorted(listed, key=lambda item: item[5]):
        if offset + nbytes > cursor.size - data:
            what = f"its {nbytes} bytes from byte {data + offset} on leave the file, which has {cursor.size}"
            raise cursor.wrong(f"tensor {shown(name)}", what, at)
        if offset < here:
            raise cursor.wrong(f"tensor {shown(name)}", f"it overlaps tensor {shown(before)}", at)
        here, before = offset + nbytes, name
    return {name: GgufTensor(name, kind, shape, nbytes, data + offset) for _, name, kind, shape, nbytes, offset in listed}
