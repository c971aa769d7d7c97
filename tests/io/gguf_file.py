"""GGUF files by hand: every number in them can be said, right or wrong. Independent of the reader."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from typing import Any

SIZES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144)}
"""Type name: (number, weights of a block, bytes of a block)."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class Field:
    """One field; `raw` replaces everything after the key."""

    key: str | bytes
    kind: int
    value: Any = None
    of: int | None = None  # the type of an array's values
    count: int | None = None  # what the file says of an array's length
    raw: bytes | None = None
    key_length: int | None = None


@dataclass(frozen=True)
class Tensor:
    """One tensor: sizes innermost first, as the file has them. `offset` None: the next free place."""

    name: str | bytes
    sizes: tuple[int, ...]
    kind: int
    data: bytes
    offset: int | None = None
    axes: int | None = None
    name_length: int | None = None


@dataclass(frozen=True)
class File:
    """A whole file."""

    fields: tuple[Field, ...]
    tensors: tuple[Tensor, ...]
    version: int = 3
    order: str = "<"
    magic: bytes = b"GGUF"
    alignment: int = 32
    count: int | None = None
    field_count: int | None = None
    tail: bytes = field(default=b"")

    def changed(self, **fields: Any) -> File:
        return replace(self, **fields)

    def with_field(self, index: int, **change: Any) -> File:
        return replace(self, fields=tuple(replace(f, **change) if i == index else f for i, f in enumerate(self.fields)))

    def with_tensor(self, index: int, **change: Any) -> File:
        return replace(self, tensors=tuple(replace(t, **change) if i == index else t for i, t in enumerate(self.tensors)))

    def _string(self, text: str | bytes, length: int | None = None) -> bytes:
        data = text.encode() if isinstance(text, str) else text
        return struct.pack(self.order + "Q", len(data) if length is None else length) + data

    def _value(self, kind: int, value: Any) -> bytes:
        return self._string(value) if kind == 8 else struct.pack(self.order + _SCALARS[kind], value)

    def _field(self, f: Field) -> bytes:
        head = self._string(f.key, f.key_length)
        if f.raw is not None:
            return head + f.raw
        head += struct.pack(self.order + "I", f.kind)
        if f.kind != 9:
            return head + self._value(f.kind, f.value)
        assert f.of is not None
        head += struct.pack(self.order + "IQ", f.of, len(f.value) if f.count is None else f.count)
        return head + b"".join(self._value(f.of, item) for item in f.value)

    def header(self) -> bytes:
        out = self.magic + struct.pack(self.order + "I", self.version)
        out += struct.pack(self.order + "Q", len(self.tensors) if self.count is None else self.count)
        out += struct.pack(self.order + "Q", len(self.fields) if self.field_count is None else self.field_count)
        out += b"".join(self._field(f) for f in self.fields)
        at = 0
        for t in self.tensors:
            offset = at if t.offset is None else t.offset
            out += self._string(t.name, t.name_length) + struct.pack(self.order + "I", len(t.sizes) if t.axes is None else t.axes)
            out += b"".join(struct.pack(self.order + "Q", n) for n in t.sizes) + struct.pack(self.order + "IQ", t.kind, offset)
            at = -(-(at + len(t.data)) // self.alignment) * self.alignment
        return out

    def bytes(self) -> bytes:
        out = self.header()
        out += bytes(-len(out) % self.alignment)
        for t in self.tensors:
            out += t.data + bytes(-len(t.data) % self.alignment)
        return out + self.tail


def small() -> File:
    """Every kind of field, and tensors of several types."""
    fields = (
        Field("general.architecture", 8, "llama"), Field("a.u8", 0, 200), Field("a.i8", 1, -3), Field("a.u16", 2, 60000),
        Field("a.i16", 3, -5), Field("a.u32", 4, 1 << 31), Field("a.i32", 5, -7), Field("a.f32", 6, 0.5), Field("a.bool", 7, 1),
        Field("a.u64", 10, 1 << 63), Field("a.i64", 11, -(1 << 40)), Field("a.f64", 12, 0.1), Field("a.text", 8, "a b \u2581"),
        Field("b.numbers", 9, [1, 2, 3], 4), Field("b.flags", 9, [0, 1], 7), Field("b.words", 9, ["x", "", "\u00e4"], 8),
        Field("b.none", 9, [], 8),
    )  # fmt: skip
    tensors = (
        Tensor("norm.weight", (5,), 0, struct.pack("<5f", 1, 2, 3, 4, 5)),
        Tensor("blk.0.a.weight", (64, 3), 2, bytes(range(1, 109))),
        Tensor("blk.0.b.weight", (32, 2), 8, bytes(range(68))),
        Tensor("blk.0.c.weight", (4, 2, 3), 1, bytes(48)),
    )
    return File(fields, tensors)
