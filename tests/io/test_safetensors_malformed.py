"""Structure-aware malformed files: each is refused with FileFormatError that says where, and nothing else happens."""

from __future__ import annotations

import copy
import json
import random
import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors

import anybit.io.safetensors
from anybit.errors import FileFormatError
from anybit.io.safetensors import PAD, SafeFile

Header = dict[str, Any]


def container(header: str | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else header.encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + data


def bases() -> list[tuple[Header, bytes]]:
    one = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    many = {
        "__metadata__": {"format": "pt"},
        "w": {"dtype": "BF16", "shape": [4, 4], "data_offsets": [0, 32]},
        "empty": {"dtype": "I64", "shape": [0, 5], "data_offsets": [32, 32]},
        "b": {"dtype": "U8", "shape": [7], "data_offsets": [32, 39]},
        "scalar": {"dtype": "F64", "shape": [], "data_offsets": [39, 47]},
    }
    return [(one, bytes(range(24))), (many, bytes(range(47)))]


def entries(header: Header) -> list[str]:
    return [name for name in header if name != "__metadata__"]


BAD_FIELDS: dict[str, list[Any]] = {
    "dtype": ["F31", "f32", "", "F4", 32, None, [], {}, True, "F32\0", "BF16 "],
    "shape": [
        None, 6, "2,3", {}, [2.0, 3], [True, 6], [-2, -3], ["2", 3], [[2], 3], [None], [2**63], [2**64 - 1, 2], [2**32, 2**32],
        [2**42 + 1, 2**22],
        [0, 2**63], [0, 2**32, 2**32], [1] * 33, [10**30], [1, 2, 3, 4, 5, 6, 7],
    ],
    "data_offsets": [
        None, 0, "0,24", {}, [], [0], [0, 24, 24], [24, 0], [-1, 23], [0.0, 24], ["0", "24"], [False, 24], [0, 2**64], [2**64 - 24,
        2**64], [10**30, 10**30 + 24],
        [2**63, 2**63 + 24], [1, 25], [100, 124], [[0], 24],
    ],
}  # fmt: skip

BAD_NAMES = [
    '""', '".."', '"../../etc/passwd"', '"/etc/passwd"', '"\\\\\\\\host"', '"a/../b"', '"a\\u0000b"', '"a\\u001fb"', '"a\\u007fb"',
    '"a\\nb"', '"\\ud800"',
    '"\\udc00x"', '"\\u202eevil"', '"\\u2028"', '"' + "x" * 1025 + '"', "'a'", "a", "1", "null", "[]", '"a', '"\\x41"', '"a\tb"',
]  # fmt: skip

BAD_TEXTS = [
    "", " ", "{", "}", "[]", "null", "1", '"a"', "{}{}", "{} x", "{}\0", "\ufeff{}", " {}", "{,}", '{"a"}', '{"a":}', '{"a":1}',
    '{"a":[]}', '{"a":null}',
    '{"a":{}}', '{"a":{},}', '{"__metadata__":1}', '{"__metadata__":[]}', '{"__metadata__":{"a":1}}',
    '{"__metadata__":{"a":null}}', '{"__metadata__":{"a":{"b":"c"}}}',
    '{"__metadata__":{"a":"b","a":"c"}}', '{"__metadata__":{},"__metadata__":{}}', '{"__metadata__":{"a":"b",}}', "{/**/}",
    "{//\n}", '{"__metadata__":{"a":"\\ud8"}}',
    "{" * 100_000, '{"a":' * 50_000, '{"a":' + "[" * 100_000, '{"a":{"shape":' + "[" * 4_000 + "]" * 4_000 + "}}",
    '{"__metadata__":' + '{"a":' * 50_000,
    '{"a":' + "9" * 100_000 + "}", '{"a":"' + "x" * 100_000, '{"a":NaN}', '{"__metadata__":{"a":"\\ud800"}}',
    '{"__metadata__":{"a":Infinity}}',
]  # fmt: skip


def variants() -> Iterator[tuple[str, bytes]]:
    """(what was done, file bytes), none of them valid."""
    for number, (header, data) in enumerate([*bases(), bases()[1]]):
        style = {"separators": (",", ":")} if number == 2 else {}  # the spelling that the reader takes a short cut for
        text = json.dumps(header, **style)
        whole = container(text, data)

        def changed(edit: Callable[[Header], None], header: Header = header, data: bytes = data, style: Any = style) -> bytes:
            new = copy.deepcopy(header)
            edit(new)
            return container(json.dumps(new, **style), data)

        n = len(text)
        for length in (0, 1, n - 1, n + 1, n + len(data), n + len(data) + 1, 100_000_001, 2**31, 2**32 + n, 2**63, 2**64 - 1):
            yield f"{number}: header length {length}", length.to_bytes(8, "little") + whole[8:]
        for end in sorted({*range(10), 8 + n // 2, 8 + n - 1, 8 + n, 8 + n + 1, len(whole) - 1}):
            yield f"{number}: cut to {end}", whole[:end]
        yield f"{number}: a byte too many", whole + b"\0"
        yield f"{number}: a page too many", whole + bytes(4096)
        for name in entries(header):
            for field, values in BAD_FIELDS.items():
                for value in values:
                    if value != header[name][field]:
                        yield (
                            f"{number}: {name}.{field} = {str(value)[:40]}",
                            changed(lambda h, n=name, f=field, v=value: h[n].__setitem__(f, v)),
                        )
                yield f"{number}: {name} without {field}", changed(lambda h, n=name, f=field: h[n].pop(f))
            yield f"{number}: {name} with another key", changed(lambda h, n=name: h[n].__setitem__("extra", 1))
            entry = json.dumps(header[name], **style)
            yield f"{number}: {name} twice", container(text[:-1] + f', "{name}": {entry}}}', data)
            escaped = "".join(f"\\u{ord(c):04x}" for c in name)
            yield f"{number}: {name} twice, escaped", container(text[:-1] + f', "{escaped}": {entry}}}', data)
            yield f"{number}: {name}'s dtype twice", container(text.replace(entry, '{"dtype":"U8",' + entry[1:]), data)
            yield (
                f"{number}: alias of {name}'s bytes",
                changed(lambda h, n=name: h.__setitem__("alias", {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]})),
            )
            yield f"{number}: {name}'s comma lost", container(re.sub(r", ?\"data_offsets\"", ' "data_offsets"', text, count=1), data)
        first = entries(header)[0]
        for name in BAD_NAMES:
            yield f"{number}: named {name[:30]}", container(text.replace(f'"{first}":', f"{name}:"), data)
        yield f"{number}: not UTF-8", container(text.encode().replace(b'"' + first.encode() + b'"', b'"\xff\xfe"'), data)
        yield f"{number}: overlong UTF-8", container(text.encode().replace(b'"' + first.encode() + b'"', b'"\xc0\xaf"'), data)
        moved = copy.deepcopy(header)
        moved[entries(header)[-1]]["data_offsets"] = [n + 8 for n in header[entries(header)[-1]]["data_offsets"]]
        yield f"{number}: a hole of 8 bytes, or a start after 0", container(json.dumps(moved, **style), data + bytes(8))
        yield f"{number}: holes", changed(lambda h: h.__setitem__("far", {"dtype": "U8", "shape": [1], "data_offsets": [60, 61]}))
    for text in BAD_TEXTS:
        yield f"text {text[:40]!r}", container(text, b"")


VARIANTS = list(variants())


def test_the_bases_are_valid(tmp_path: Path) -> None:
    for header, data in bases():
        (tmp_path / "a").write_bytes(container(json.dumps(header), data))
        with SafeFile(tmp_path / "a") as file:
            assert set(file.tensors) == set(entries(header))


def test_every_variant_is_refused_with_file_and_byte(tmp_path: Path) -> None:
    assert len(VARIANTS) >= 300
    path = tmp_path / "bad.safetensors"
    for what, content in VARIANTS:
        path.write_bytes(content)
        try:
            SafeFile(path).close()
        except FileFormatError as error:
            message = str(error)
            assert message.startswith(f"{path}: ") and " at byte " in message and ";" in message, (what, message)
            assert message.isprintable() and len(message) < 800, (what, message)
        else:
            pytest.fail(f"accepted: {what}")


def test_reported_byte_is_where_the_fault_is(tmp_path: Path) -> None:
    header = '{"ä":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U9","shape":[1],"data_offsets":[1,2]}}'
    (tmp_path / "a").write_bytes(container(header, bytes(2)))
    place = (tmp_path / "a").read_bytes().index(b'"b"')
    with pytest.raises(FileFormatError, match=rf"tensor 'b' at byte {place}: unknown dtype 'U9'"):
        SafeFile(tmp_path / "a")


def test_damaged_headers_are_refused_or_read_as_the_stock_library_reads_them(tmp_path: Path) -> None:
    """Random damage. What we accept, an independent reader must accept too and see the same."""
    rng = random.Random(7)
    path = tmp_path / "a"
    for header, data in bases():
        for style in ({}, {"separators": (",", ":")}) * 150:
            whole = container(json.dumps(header, **style), data)
            content = bytearray(whole)
            for _ in range(rng.choice((1, 1, 2, 4))):
                content[rng.randrange(len(whole) - len(data))] = rng.choice((rng.randrange(256), *b'"{}[],:0129 \\'))
            path.write_bytes(content)
            try:
                with SafeFile(path) as file:
                    ours = {name: (info.dtype, info.shape, file.tensor(name).tobytes()) for name, info in file.tensors.items()}
            except FileFormatError:
                continue
            theirs = {n: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for n, t in safetensors.deserialize(bytes(content))}
            assert ours == {n: t for n, t in theirs.items() if not n.startswith(PAD)}


def test_the_number_of_tensors_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = {f"{i:x}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(101)}
    (tmp_path / "a").write_bytes(container(json.dumps(header), b""))
    SafeFile(tmp_path / "a").close()
    monkeypatch.setattr(anybit.io.safetensors, "MAX_TENSORS", 100)
    with pytest.raises(FileFormatError, match="more than 100 tensors"):
        SafeFile(tmp_path / "a")


def hostile_memory() -> Iterator[tuple[str, bytes]]:
    yield "a long list", container('{"a":[' + "[]," * 1_000_000 + "[]]}", b"")
    yield "many metadata keys", container('{"__metadata__":{' + ",".join(f'"{i:x}":""' for i in range(70_000)) + "}}", b"")
    yield "a long string", container('{"a":"' + "\\u0000" * 1_000_000 + '"}', b"")


@pytest.mark.parametrize(("what", "content"), list(hostile_memory()), ids=lambda v: v if isinstance(v, str) else "")
def test_memory_stays_in_proportion(tmp_path: Path, what: str, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(FileFormatError):
        SafeFile(tmp_path / "a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (64 << 20) + 2 * len(content)
