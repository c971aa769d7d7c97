"""Structure-aware malformed GGUF files: one exception that names file, field and byte; no crash, no hang, bounded memory."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_file import Field, File, Tensor, small

from anybit.errors import FileFormatError
from anybit.io import gguf

HUGE = (2**16, 2**20, 2**31, 2**32 - 1, 2**32, 2**40, 2**48, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1)
BAD_NAMES: list[str | bytes] = [
    "", "..", "../../etc/passwd", "/etc/passwd", "\\\\host", "a/../b", "a\0b", "a\x1fb", "a\nb", "a\x7f", "\u202eevil", "x" * 257,
    b"\xff\xfe", b"\xc0\xaf", b"\xed\xa0\x80",
]  # fmt: skip


def u64(order: str, *values: int) -> bytes:
    return struct.pack(f"{order}{len(values)}Q", *values)


def of_header(name: str, base: File) -> Iterator[tuple[str, bytes]]:
    whole = base.bytes()
    head = len(base.header())
    for magic in (b"GGML", b"GGUf", b"FUGG", b"\0\0\0\0", b"ggjt"):
        yield f"{name}: magic {magic!r}", base.changed(magic=magic).bytes()
    for version in (0, 1, 4, 5, 99, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF):
        yield f"{name}: version {version}", base.changed(version=version).bytes()
    for count in (*HUGE, len(base.tensors) + 1, len(base.tensors) + 100):
        yield f"{name}: {count} tensors", base.changed(count=count).bytes()
    for count in (*HUGE, len(base.fields) + 1, len(base.fields) + 3, 0, 1, len(base.fields) - 1):
        yield f"{name}: {count} fields", base.changed(field_count=count).bytes()
    for end in sorted({*range(0, head, 3), head - 1, head, *range(head, len(whole) - 32, 40)}):
        yield f"{name}: cut to {end}", whole[:end]


def of_fields(name: str, base: File) -> Iterator[tuple[str, bytes]]:
    order = base.order
    for i, field in enumerate(base.fields):
        for length in (*HUGE, len(field.key) + 1, 0):
            yield f"{name}: key {i} of {length} bytes", base.with_field(i, key_length=length).bytes()
        for kind in (13, 14, 255, 2**31, 2**32 - 1):
            yield f"{name}: field {i} of type {kind}", base.with_field(i, raw=struct.pack(f"{order}IQ", kind, 0)).bytes()
        for key in ("", b"\xff\xff", "a\0b", "a\nb"):
            yield f"{name}: field {i} named {key!r}", base.with_field(i, key=key).bytes()
        yield f"{name}: field {i} twice", base.changed(fields=(*base.fields, field)).bytes()
        if field.kind == 9:
            for count in (*HUGE, 1 << 24):
                yield f"{name}: array {i} of {count}", base.with_field(i, count=count).bytes()
            for of in (9, 13, 255, 2**32 - 1):
                yield f"{name}: array {i} of type {of}", base.with_field(i, raw=struct.pack(f"{order}IIQ", 9, of, 1) + bytes(64)).bytes()
        if field.kind == 8:
            for length in HUGE:
                yield f"{name}: text {i} of {length}", base.with_field(i, raw=struct.pack(f"{order}IQ", 8, length) + b"x").bytes()
            yield f"{name}: text {i} not UTF-8", base.with_field(i, value=b"a\xff\xfe").bytes()
        if field.kind == 7:
            for value in (2, 7, 255):
                yield f"{name}: flag {i} {value}", base.with_field(i, value=value).bytes()
    for depth in (2, 9, 1000, 20000):
        nested = struct.pack(f"{order}I", 9) + struct.pack(f"{order}IQ", 9, 1) * depth + struct.pack(f"{order}IQ", 0, 0)
        yield f"{name}: {depth} arrays in arrays", base.changed(fields=(Field("n", 9, raw=nested), *base.fields)).bytes()
    for of, item in ((7, [0, 2]), (7, [255])):
        yield f"{name}: flags {item}", base.changed(fields=(*base.fields, Field("f", 9, item, of))).bytes()
    bad_words = struct.pack(f"{order}IIQ", 9, 8, 3) + u64(order, 1) + b"x" + u64(order, 2**64 - 9) + bytes(40)
    yield f"{name}: a string in an array that wraps", base.changed(fields=(*base.fields, Field("w", 9, raw=bad_words))).bytes()
    for kind, value in (
        (4, 0),
        (4, 1),
        (4, 3),
        (4, 12),
        (4, 48),
        (4, 7),
        (4, 2**21),
        (4, 2**31),
        (4, 2**32 - 1),
        (8, "32"),
        (6, 32.0),
        (7, 1),
        (11, -32),
    ):
        yield f"{name}: alignment {value}", base.changed(fields=(*base.fields, Field("general.alignment", kind, value))).bytes()


def of_tensors(name: str, base: File) -> Iterator[tuple[str, bytes]]:
    for i, tensor in enumerate(base.tensors):
        for wrong in BAD_NAMES:
            yield f"{name}: tensor {i} named {wrong!r:.30}", base.with_tensor(i, name=wrong).bytes()
        for length in (*HUGE, len(tensor.name) + 1):
            yield f"{name}: tensor {i}'s name of {length}", base.with_tensor(i, name_length=length).bytes()
        for axes in (0, 5, 6, 255, 2**31, 2**32 - 1, len(tensor.sizes) + 1):
            yield f"{name}: tensor {i} of {axes} axes", base.with_tensor(i, axes=axes).bytes()
        for place in range(len(tensor.sizes)):
            for size in (0, *HUGE, 2**42 + 1, tensor.sizes[place] * 1000 + 1):
                sizes = tuple(size if j == place else n for j, n in enumerate(tensor.sizes))
                yield f"{name}: tensor {i} of sizes {sizes}", base.with_tensor(i, sizes=sizes).bytes()
        wraps = [(2**32, 2**32), (2**63, 2), (2**31, 2**31, 4), (2**42 + 1, 2**22), (2**24, 2**24, 2**16), (2**16,) * 4, (2**32,) * 4]
        for sizes in wraps:
            yield f"{name}: tensor {i} of sizes {sizes}", base.with_tensor(i, sizes=sizes).bytes()
        for kind in (4, 5, 9, 15, 31, 33, 36, 38, 43, 99, 255, 2**31, 2**32 - 1):
            yield f"{name}: tensor {i} of type {kind}", base.with_tensor(i, kind=kind).bytes()
        for offset in (1, 31, 33, *HUGE, 2**64 - 32, 2**63 - 32, 1 << 20):
            yield f"{name}: tensor {i} at {offset}", base.with_tensor(i, offset=offset).bytes()
        if i:
            yield f"{name}: tensor {i} over another", base.with_tensor(i, offset=0).bytes()
            yield f"{name}: tensor {i} named as another", base.with_tensor(i, name=base.tensors[0].name).bytes()
        if tensor.kind in (2, 8):
            for width in (1, 31, 33, 63):
                yield f"{name}: rows of {width}", base.with_tensor(i, sizes=(width, *tensor.sizes[1:])).bytes()


def variants() -> Iterator[tuple[str, bytes]]:
    """(what was done, file bytes), none of them valid."""
    for name, base in (("v3", small()), ("v2", small().changed(version=2)), ("big", small().changed(order=">"))):
        yield from of_header(name, base)
        yield from of_fields(name, base)
        yield from of_tensors(name, base)


def read_all(path: Path) -> None:
    """Everything that a file can be asked for."""
    with gguf.open(path) as file:
        for key in file.metadata:
            file.metadata[key]
        for name in file:
            file[name]


VARIANTS = list(variants())


def test_the_base_is_valid(tmp_path: Path) -> None:
    for base in (small(), small().changed(version=2), small().changed(order=">")):
        (tmp_path / "a").write_bytes(base.bytes())
        read_all(tmp_path / "a")


def test_every_variant_is_refused_with_file_and_byte(tmp_path: Path) -> None:
    assert len(VARIANTS) >= 1000
    path = tmp_path / "bad.gguf"
    slowest = 0.0  # of the processor's time: a machine may be busy
    tracemalloc.start()
    for what, content in VARIANTS:
        path.write_bytes(content)
        begun = time.process_time()
        try:
            read_all(path)
        except FileFormatError as error:
            message = str(error)
            assert message.startswith(f"{path}: ") and " at byte " in message and ";" in message, (what, message)
        else:
            pytest.fail(f"accepted: {what}")
        slowest = max(slowest, time.process_time() - begun)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert slowest < 1 and peak < 64 << 20


def test_flipped_bytes_end_in_the_one_exception_or_in_tensors(tmp_path: Path) -> None:
    """1,000 random changes of one to four bytes of the header; whatever is accepted can be read."""
    rng = random.Random(0)
    base = small()
    whole, head, path = base.bytes(), len(base.header()), tmp_path / "bad.gguf"
    refused = 0
    for _ in range(1000):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(head)] = rng.randrange(256)
        path.write_bytes(content)
        try:
            read_all(path)
        except FileFormatError:
            refused += 1
    assert refused > 500


def test_a_count_of_strings_is_no_loop_without_end(tmp_path: Path) -> None:
    """43 bytes with an array of 2^63 strings: gguf-py 0.19.0 reads on for ever (llama.cpp issue 27188)."""
    content = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<II", 9, 8) + b"\0\0\0\0\0\0\0\x80"
    (tmp_path / "a").write_bytes(content)
    begun = time.process_time()
    with pytest.raises(FileFormatError, match="an array of 9223372036854775808 values"):
        gguf.open(tmp_path / "a")
    assert time.process_time() - begun < 1


@pytest.mark.parametrize(("kind", "byte"), [(39, 255), (40, 255)])
def test_blocks_that_no_format_expresses(tmp_path: Path, kind: int, byte: int) -> None:
    width, size = (32, 17) if kind == 39 else (64, 36)
    tensor = Tensor("w", (width, 2), kind, bytes([byte]) * (2 * size))
    (tmp_path / "a").write_bytes(replace(small(), tensors=(tensor,)).bytes())
    with (
        gguf.open(tmp_path / "a") as file,
        pytest.raises(FileFormatError, match=r"tensor 'w' \((MX|NV)FP4\) at byte \d+: a scale byte is 255"),
    ):
        file["w"]


def test_numbers_that_float32_does_not_hold(tmp_path: Path) -> None:
    for kind, data in ((28, struct.pack("<d", 0.1)), (26, struct.pack("<i", (1 << 24) + 1)), (27, struct.pack("<q", (1 << 62) + 1))):
        (tmp_path / "a").write_bytes(replace(small(), tensors=(Tensor("w", (1,), kind, data),)).bytes())
        with gguf.open(tmp_path / "a") as file, pytest.raises(FileFormatError, match="is not exact in float32"):
            file["w"]
    for kind, data, value in (
        (28, struct.pack("<d", 0.25), 0.25),
        (26, struct.pack("<i", -7), -7),
        (27, struct.pack("<q", 1 << 24), 1 << 24),
    ):
        (tmp_path / "a").write_bytes(replace(small(), tensors=(Tensor("w", (1,), kind, data),)).bytes())
        with gguf.open(tmp_path / "a") as file:
            assert np.array_equal(file["w"].dequantize(), [value])


def test_what_is_no_file(tmp_path: Path) -> None:
    for path, says in ((tmp_path, "not a regular file"), (tmp_path / "x", "cannot be opened"), ("a\0b", "cannot be opened")):
        with pytest.raises(FileFormatError, match=says):
            gguf.open(path)
    (tmp_path / "short").write_bytes(b"GGUF")
    with pytest.raises(FileFormatError, match="has only 4 bytes"):
        gguf.open(tmp_path / "short")
