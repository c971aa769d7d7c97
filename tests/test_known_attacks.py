"""One file for each class of published defect in readers of model files: refused with the place, at once, in little memory.

GGUF: CVE-2024-25664 to 25668 (Databricks), 21802, 21825, 21836, 23496, 23605 (Talos), 32878, 41130, CVE-2025-49847, 52566, 53630,
CVE-2026-27940, 33298, 7482; llama.cpp issues and requests 18674, 22234, 24997, 25969, 26318, 26690, 27188; Ollama CVE-2024-12886,
CVE-2025-0315 and GO-2025-3548 to 3689; templates CVE-2024-34359, CVE-2026-5760; pickle CVE-2025-32444, 24357; paths CVE-2024-37032.
"""

from __future__ import annotations

import gzip
import json
import pickle
import struct
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import malformed  # first: it says where gguf_file is
import pytest
from gguf_file import Field, File, Tensor, small

from anybit.errors import FileFormatError
from anybit.io.hf import open_model
from anybit.io.tokenizer import read_tokenizer
from anybit.model import load

U64 = 2**64


def gguf_head(tensors: int = 0, fields: int = 0, tail: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + tail


def array(of: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IIQ", 9, of, count) + values


def field(key: str, raw: bytes) -> bytes:
    return gguf_head(0, 1, struct.pack("<Q", len(key)) + key.encode() + raw) + bytes(64)


def tensor(**change: Any) -> bytes:
    return small().with_tensor(1, **change).bytes()


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def words(model: str = "llama", tokens: list[str] | None = None, **fields: Field) -> bytes:
    """A model's file with tokenizer fields; `read` asks for its tokenizer."""
    from malformed.gguf_files import model as whole

    listed = ["a", "b"] if tokens is None else tokens
    kept = {str(f.key): f for f in whole().fields if not str(f.key).startswith("tokenizer.ggml.")}
    kept |= {"t.model": Field("tokenizer.ggml.model", 8, model), "t.tokens": Field("tokenizer.ggml.tokens", 9, listed, 8), **fields}
    return replace(whole(), fields=tuple(kept.values())).bytes()


def attacks() -> Iterator[tuple[str, str, bytes, str]]:
    """(class, file name, content, what the refusal says)."""
    g = "a.gguf"
    # counts and lengths that are trusted before memory is taken
    yield "CVE-2024-25664: a count of fields", g, gguf_head(0, U64 - 1) + bytes(64), "field count at byte 16"
    yield "CVE-2024-25665: a string's length", g, field("a", struct.pack("<IQ", 8, U64 - 1)), r"field 'a' at byte \d+"
    yield "CVE-2024-25666: a count of tensors that wraps", g, gguf_head(U64 - 1) + bytes(64), "tensor count at byte 8"
    yield "CVE-2024-25667: an array's type beyond the table", g, field("a", array(255, 1)), "unknown value type 255"
    yield "CVE-2024-25668: an array's length", g, field("a", array(4, 2**62)), "an array of 4611686018427387904 values"
    yield "CVE-2024-21802: sizes whose product wraps", g, tensor(sizes=(2**32, 2**32)), r"product below 2\*\*48"
    yield "CVE-2024-21825: array of strings whose length wraps", g, field("a", array(8, 1, struct.pack("<Q", U64 - 8))), r"leaves the file"
    yield "CVE-2024-21836: tensors times their record's size", g, gguf_head(U64 // 40) + bytes(64), "tensor count at byte 8"
    yield "CVE-2024-23496: a string's length plus one", g, gguf_head(0, 1, struct.pack("<Q", U64 - 1)), "key of field 0"
    yield "CVE-2024-23605: fields times their record's size", g, gguf_head(0, U64 // 64) + bytes(64), "field count at byte 16"
    yield "CVE-2024-32878: fields end in the middle", g, gguf_head(0, 2, b"\1\0\0\0\0\0\0\0a\7\0\0\0\1") + bytes(8), "field"
    yield "CVE-2024-41130: a header and nothing else", g, gguf_head(1, 1), "count at byte"
    yield "CVE-2025-53630: the sum of sizes wraps", g, tensor(sizes=(2**47,), offset=U64 - 32), r"leave the file|product below"
    yield "CVE-2026-27940: that check passed by padding", g, tensor(offset=U64 - 64), "leave the file"
    yield "CVE-2026-33298: bytes of a tensor wrap to few", g, tensor(sizes=(2**42 + 32, 2**22)), r"product below 2\*\*48"
    yield "llama.cpp 18674: stride times size is 2^64", g, tensor(sizes=(32, 2**42 + 1)), r"product below 2\*\*48|leave the file"
    yield (
        "llama.cpp 24997: alignment without limit",
        g,
        small().changed(fields=(Field("general.alignment", 4, 2**31),)).bytes(),
        "alignment",
    )
    yield "llama.cpp 26318: alignment that wraps", g, small().changed(fields=(Field("general.alignment", 10, 2**63),)).bytes(), "alignment"
    yield "division by zero: alignment 0", g, small().changed(fields=(Field("general.alignment", 4, 0),)).bytes(), "alignment"
    yield "llama.cpp 27188: 2^63 strings in 43 bytes", g, field("a", array(8, 2**63)), "an array of 9223372036854775808 values"
    nested = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 20_000
    yield "recursion: arrays in arrays", g, field("a", nested), "an array inside an array"
    yield "CVE-2026-7482: a tensor beyond the file, for the quantizer to read", g, tensor(offset=1 << 20), "leave the file"
    yield "CVE-2026-7482: more rows than the file has", g, tensor(sizes=(64, 2**20)), "leave the file"
    yield "GO-2025-3558: rows that are no blocks", g, tensor(sizes=(33, 3)), "do not divide into blocks"
    yield "GO-2025-3689: a type beyond the table", g, tensor(kind=2**31), "type 2147483648 is not known"
    yield "overlap: two tensors on the same bytes", g, small().with_tensor(2, offset=0).bytes(), "overlaps"
    yield "a path as name", g, tensor(name="../../etc/passwd"), "looks like a path"
    # tokenizers
    yield "CVE-2025-49847: a token's length", g, words(tokens=["a" * 5000, "b"]), "has a token of 5000 characters"
    yield "llama.cpp 26690: an array of another type", g, words(t=Field("tokenizer.ggml.scores", 9, ["x", "y"], 8)), "one number for each"
    yield "llama.cpp 26690: fewer values than tokens", g, words(t=Field("tokenizer.ggml.token_type", 9, [1], 5)), "one number for each"
    yield "llama.cpp 25969: an index below 0", g, words(t=Field("tokenizer.ggml.bos_token_id", 5, -1)), "is -1, beyond the 2 tokens"
    yield "CVE-2025-52566: an index beyond the tokens", g, words(t=Field("tokenizer.ggml.bos_token_id", 4, 2**31)), "beyond the 2 tokens"
    merges = Field("tokenizer.ggml.merges", 9, ["a c"], 8)
    yield "a merge of tokens that are not there", g, words("gpt2", m=merges), "does not join two tokens"
    # the other containers
    s = "a.safetensors"
    yield "CVE-2025-0315: a header's length", s, safetensors({}, length=2**63), "header length at byte 0"
    yield (
        "a hundred tensors on the same bytes",
        s,
        safetensors({f"t{i}": entry([1 << 20], 0, 1 << 20) for i in range(100)}, bytes(1 << 20)),
        "at byte",
    )
    yield "a shape that wraps to 0 bytes", s, safetensors({"a": entry([2**32, 2**32], 0, 0)}), "product of the dimensions"
    yield "offsets beyond the file", s, safetensors({"a": entry([2**40], 0, 2**40)}, b"x"), "at byte"
    yield "polyglot: bytes that no tensor owns", s, safetensors({"a": entry([1], 0, 1)}, b"xPK\3\4"), "at byte"
    yield "a key twice", s, safetensors(b'{"a":%b,"a":%b}' % ((json.dumps(entry([1], 0, 1)).encode(),) * 2), b"x"), "twice"
    yield "CVE-2024-37032: a path as name", s, safetensors({"/root/.ssh/authorized_keys": entry([1], 0, 1)}, b"x"), "looks like a path"
    yield "CVE-2024-12886: compressed zeros", s, gzip.compress(bytes(50 << 20)), "header length"
    yield "pickle as safetensors", s, pickle.dumps({"a": 1}) + bytes(20), "header length"


def read(path: Path) -> None:
    if path.suffix == ".gguf":
        from anybit.io import gguf

        with gguf.open(path) as file:
            for key in file.metadata:
                file.metadata[key]
            for name in file:
                file[name]
        _ = load(path).tokenizer
    else:
        from anybit.io.safetensors import SafeFile

        SafeFile(path)


assert malformed.KINDS
ATTACKS = list(attacks())


@pytest.mark.parametrize(("name", "content", "says"), [case[1:] for case in ATTACKS], ids=[case[0] for case in ATTACKS])
def test_attack(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    begun = time.process_time()
    tracemalloc.start()
    with pytest.raises(FileFormatError, match=says) as error:
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(error.value).startswith(f"{path}: ") and "at byte" in str(error.value)
    assert time.process_time() - begun < 1 and peak < (64 << 20) + 2 * len(content)


def test_what_would_run_code_is_never_opened(tmp_path: Path) -> None:
    """CVE-2025-32444, CVE-2024-... and kin: pickle in every dress."""
    for name in ("pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.ckpt"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "llama", "auto_map": {"AutoModel": "evil.Model"}}')
        (folder / "evil.py").write_text("raise SystemExit('code of the model ran')")
        (folder / name).write_bytes(pickle.dumps(print))
        with pytest.raises(FileFormatError, match=r"pickle files can run any code|no weights"):
            open_model(folder)
        with pytest.raises(FileFormatError, match="pickle files can run any code"):
            load(folder / name)


def test_templates_are_text(tmp_path: Path) -> None:
    """CVE-2024-34359, CVE-2026-5760: a chat template from a file is carried along, never run."""
    payload = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for a in range(10**9) %}{% endfor %}"
    from malformed.gguf_files import model as whole

    fields = tuple(replace(f, value=payload) if f.key == "tokenizer.chat_template" else f for f in whole().fields)
    (tmp_path / "a.gguf").write_bytes(replace(whole(), fields=fields).bytes())
    model = load(tmp_path / "a.gguf")
    assert {file.name: file.read_bytes() for file in model.sidecars}["chat_template.jinja"].decode() == payload
    sources = (path.read_text() for path in Path(load.__code__.co_filename).parent.rglob("*.py"))
    assert not any("jinja2" in source or "import pickle" in source or "torch.load" in source for source in sources)


@pytest.mark.parametrize(
    "expression",
    [
        "(a+)+$", "(a|aa)+$", "((a*)*)*b", "(x+x+)+y", "(a{1000}){1000}", "x*" * 20, "(?=", ")", "(q*){16}z", "q?" * 60 + "q" * 60 + "z",
        "(q|qq)" * 40 + "z", "(q*q*q*q*|z)(q*q*q*q*|z)y", "((q|z){16}){16}y", "(q{0,100}){3}z",
    ],
)  # fmt: skip
def test_expressions_without_end(expression: str) -> None:
    """CVE-2025-48887 and kin: a tokenizer's expression is looked at before an engine is given it."""
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    text = json.dumps({"version": "1.0", "added_tokens": [], "pre_tokenizer": split, "model": model})
    with pytest.raises(FileFormatError, match="has the expression"):
        read_tokenizer(text.encode(), "tokenizer.json")


def hostile_tokenizers() -> Iterator[tuple[str, dict[str, Any], str]]:
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    yield "a text that doubles forty times", {"normalizer": {"type": "Sequence", "normalizers": [double] * 40}}, "64 times as long"
    deep: dict[str, Any] = {"type": "Lowercase"}
    for _ in range(20):
        deep = {"type": "Sequence", "normalizers": [deep]}
    yield "steps in steps", {"normalizer": deep}, "inside each other"
    yield "an id beyond memory", {"added_tokens": [{"id": 2**32 - 1, "content": "x"}]}, "a whole number below"
    yield "an id twice", {"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}, "a number of its own"
    yield (
        "a word that is not defined",
        {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}]}},
        "not define",
    )
    yield "a strip longer than its token", {"decoder": {"type": "Strip", "content": " ", "start": 0, "stop": 1}}, "aborts"
    yield "tokens drawn at random", {"model": {"type": "BPE", "dropout": 0.5, "vocab": {"a": 0}, "merges": []}}, "at random"
    yield "a merge of nothing", {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}, "does not join"


@pytest.mark.parametrize(("parts", "says"), [case[1:] for case in hostile_tokenizers()], ids=[case[0] for case in hostile_tokenizers()])
def test_tokenizers_that_ask_for_too_much(parts: dict[str, Any], says: str) -> None:
    good = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
    assert read_tokenizer(json.dumps(good).encode(), "tokenizer.json").encode("aa").ids == [0, 0]
    with pytest.raises(FileFormatError, match=says) as error:
        read_tokenizer(json.dumps({**good, **parts}).encode(), "tokenizer.json")
    assert "at byte" in str(error.value)


def test_nothing_is_cut_or_padded_without_a_word() -> None:
    """A file may ask for both; a prompt keeps its length."""
    from malformed.tokenizers_files import bases

    tokenizer = read_tokenizer(bases()[2].encode(), "tokenizer.json")
    assert len(tokenizer.encode("a" * 100).ids) >= 100 and len(tokenizer.encode("a").ids) < 4


@pytest.mark.parametrize("fields", [
    (Field("general.architecture", 9, [1, 2], 4),), (Field("general.architecture", 9, ["llama"], 8),),
])  # fmt: skip
def test_an_array_where_a_word_belongs(tmp_path: Path, fields: tuple[Field, ...]) -> None:
    """Found by fuzzing: a TypeError that escaped."""
    (tmp_path / "a.gguf").write_bytes(File(fields, (Tensor("token_embd.weight", (32, 2), 0, bytes(256)),)).bytes())
    with pytest.raises(FileFormatError, match=r"'general\.architecture' is .* not supported"):
        load(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").write_bytes(words(t=Field("tokenizer.ggml.bos_token_id", 9, [1, 2], 4)))
    with pytest.raises(FileFormatError, match="bos_token_id"):
        _ = load(tmp_path / "b.gguf").tokenizer
    (tmp_path / "c.gguf").write_bytes(words(**{"t.model": Field("tokenizer.ggml.model", 9, [1, 2], 4)}))
    with pytest.raises(FileFormatError, match=r"'tokenizer\.ggml\.model' is .* not supported"):
        _ = load(tmp_path / "c.gguf").tokenizer
