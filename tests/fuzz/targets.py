"""One function a parser: takes bytes, and lets nothing out but what the parser promises. With seeds, and mutations that know the format."""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from malformed.json_damage import damage, dump, parse

from anybit.errors import FileFormatError, NonFiniteError
from anybit.io import gguf, strict_json
from anybit.io.foreign import open_foreign
from anybit.io.manifest import read_manifest
from anybit.io.packed import packed
from anybit.io.quantization import parse_quantization
from anybit.io.safetensors import SafeFile
from anybit.io.tokenizer import read_tokenizer


@cache
def folder() -> Path:
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="anybit-fuzz-", dir=memory if os.access(memory, os.W_OK) else None))


def _file(name: str, data: bytes) -> Path:
    path = folder() / name
    path.write_bytes(data)
    return path


def fuzz_safetensors(data: bytes) -> None:
    try:
        with SafeFile(_file("a.safetensors", data)) as file:
            total = sum(file.tensor(name).nbytes for name in file.tensors)
            assert total + file.padding <= len(data)
    except FileFormatError as error:
        assert "at byte " in str(error)


def fuzz_gguf(data: bytes) -> None:
    try:
        with gguf.open(_file("a.gguf", data)) as file:
            ends = 0
            for key in file.metadata:
                file.metadata[key]
            for name in sorted(file, key=lambda name: file.info(name).offset):
                info = file.info(name)
                assert ends <= info.offset and info.offset + info.nbytes <= len(data)
                ends = info.offset + info.nbytes
                if info.nbytes < 1 << 16:
                    file[name]
    except FileFormatError as error:
        assert "at byte " in str(error)


def fuzz_gguf_model(data: bytes) -> None:
    try:
        foreign = open_foreign(_file("a.gguf", data))
        assert foreign is not None
        for sidecar in foreign.sidecars:
            sidecar.read_bytes()
        for stored in foreign.tensors.values():
            packed(stored.read())
        foreign.close()
    except (FileFormatError, NonFiniteError):
        pass


def fuzz_json(data: bytes) -> None:
    try:
        value = strict_json.parse(data, "x.json")
    except FileFormatError as error:
        assert "at byte " in str(error)
        return
    assert value == json.loads(data)
    keys: list[str] = []
    inner = value
    while isinstance(inner, dict) and inner:
        keys.append(list(inner)[-1])
        inner = inner[keys[-1]]
    at = strict_json.place(data, keys)
    assert json.JSONDecoder().raw_decode(data[at:].decode())[0] == inner


def fuzz_quantization(data: bytes) -> None:
    try:
        value = strict_json.parse(data, "config.json")
        parse_quantization(value, strict_json.Where("config.json", lambda: b'{"quantization_config": ' + data + b"}"))
    except FileFormatError as error:
        assert "at byte " in str(error)


def fuzz_manifest(data: bytes) -> None:
    try:
        read_manifest(_file("manifest.json", data).parent)
    except FileFormatError as error:
        assert str(folder()) in str(error)


def fuzz_tokenizer(data: bytes) -> None:
    try:
        tokenizer = read_tokenizer(data, "tokenizer.json")
    except FileFormatError as error:
        assert "at byte " in str(error)
        return
    tokenizer.decode(tokenizer.encode("ab cd\u00e4 12" + "a" * 40).ids)


def fuzz_foreign(data: bytes) -> None:
    """A quantization_config and a set of tensors, chosen by the first byte."""
    from malformed import foreign_checkpoints as made

    _, tensors = made.bases()[data[0] % len(made.bases())] if data else made.bases()[0]
    config = '{"model_type": "llama", "quantization_config": ' + data[1:].decode("latin-1") + "}"
    for name, content in made._directory(config, tensors).items():
        _file(name, content)
    try:
        foreign = open_foreign(folder())
        if foreign is not None:
            for stored in foreign.tensors.values():
                packed(stored.read())
            foreign.close()
    except FileFormatError:
        pass


# ---------------------------------------------------------------------------------------------- seeds and mutations
def _variants(kind: str, name: str, count: int = 150) -> list[bytes]:
    from malformed import worker

    return [files[name] for files in (worker.files_of(kind, i)[1] for i in range(-1, count)) if len(files[name]) < 20_000]


def _config_seeds() -> list[bytes]:
    from malformed import checkpoints

    configs = [json.loads(checkpoints.saved(fmt)["config.json"]) for fmt in checkpoints.FORMATS]
    return [json.dumps(config["quantization_config"]).encode() for config in configs]


def _foreign_seeds() -> list[bytes]:
    from malformed import foreign_checkpoints

    return [bytes([i]) + json.dumps(config).encode() for i, (config, _) in enumerate(foreign_checkpoints.bases())]


def mutate_json(data: bytes, seed: int) -> bytes:
    """The same JSON with a damaged structure; data that are no JSON come back as they are."""
    try:
        tree = parse(data)
    except (ValueError, RecursionError):
        return data
    if not isinstance(tree, list):
        return data
    try:
        damage(tree, random.Random(seed))
        return dump(tree).encode("utf-8", "surrogatepass")
    except RecursionError:
        return data


def mutate_header(data: bytes, seed: int) -> bytes:
    """A safetensors file with a damaged header of the right length."""
    length = int.from_bytes(data[:8], "little")
    header = mutate_json(data[8 : 8 + length], seed)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def mutate_gguf(data: bytes, seed: int) -> bytes:
    """A fresh malformed file, or this one with a number of 8 bytes replaced."""
    from malformed import gguf_files

    rng = random.Random(seed)
    if rng.random() < 0.5 or len(data) < 16:
        return gguf_files.variant(rng)[1]["a.gguf"]
    at = rng.randrange(len(data) - 8)
    return data[:at] + rng.choice(gguf_files.COUNTS).to_bytes(8, rng.choice(("little", "big"))) + data[at + 8 :]


@dataclass(frozen=True)
class Target:
    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    mutate: Callable[[bytes, int], bytes]


TARGETS = {
    "safetensors": Target(fuzz_safetensors, lambda: _variants("safetensors_files", "a.safetensors"), mutate_header),
    "gguf": Target(fuzz_gguf, lambda: _variants("gguf_files", "a.gguf"), mutate_gguf),
    "gguf_model": Target(fuzz_gguf_model, lambda: _variants("gguf_files", "a.gguf"), mutate_gguf),
    "json": Target(fuzz_json, lambda: _variants("tokenizers_files", "tokenizer.json"), mutate_json),
    "quantization": Target(fuzz_quantization, _config_seeds, mutate_json),
    "manifest": Target(fuzz_manifest, lambda: _variants("checkpoints", "manifest.json", 30), mutate_json),
    "tokenizer": Target(fuzz_tokenizer, lambda: _variants("tokenizers_files", "tokenizer.json"), mutate_json),
    "foreign": Target(fuzz_foreign, _foreign_seeds, lambda data, seed: data[:1] + mutate_json(data[1:], seed)),
}
