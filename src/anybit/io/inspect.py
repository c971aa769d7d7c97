"""What a model's files hold, for `anybit inspect`: reads headers and JSON, executes nothing, touches no weight."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from anybit.io.foreign import open_foreign
from anybit.io.gguf.container import Container
from anybit.io.hf import CONFIG, open_model, read_config
from anybit.io.safetensors import SafeFile, TensorInfo


@dataclass(frozen=True)
class TensorRow:
    """One logical tensor. `format` is an expression for a quantized one and the stored dtype otherwise; `nbytes` counts what is stored."""

    name: str
    format: str
    shape: tuple[int, ...]
    nbytes: int
    file: str
    offset: int
    layout: str | None = None
    act: str | None = None
    parts: dict[str, str] | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bits_per_element(self) -> Fraction:
        """Stored bits, a layout's padding included, for each logical element; 0 for an empty tensor."""
        return Fraction(8 * self.nbytes, self.elements) if self.elements else Fraction(0)


@dataclass(frozen=True)
class Inspection:
    """Everything about a model that its headers say; `nbytes`: of the tensor files.

    `kind`: "hugging face", "anybit", "safetensors", "gguf", or the quant_method of another tool's checkpoint.
    """

    path: str
    kind: str
    tensors: tuple[TensorRow, ...]
    files: dict[str, int]
    metadata: dict[str, Any]

    @property
    def nbytes(self) -> int:
        return sum(self.files.values())

    @property
    def elements(self) -> int:
        return sum(row.elements for row in self.tensors)

    def as_dict(self) -> dict[str, Any]:
        """The same for `--json`."""
        return {**asdict(self), "nbytes": self.nbytes, "elements": self.elements}


def _plain(name: str, info: TensorInfo) -> TensorRow:
    return TensorRow(name, info.dtype.lower(), info.shape, info.nbytes, info.file.name, info.offset)


def _one_file(path: Path) -> Inspection:
    with SafeFile(path) as file:
        rows = tuple(_plain(name, info) for name, info in file.tensors.items())
        return Inspection(str(path), "safetensors", rows, {path.name: file.size}, dict(file.metadata))


def _gguf(path: Path) -> Inspection:
    file = Container(path)
    rows = tuple(
        TensorRow(info.name, info.kind.format, info.shape, info.nbytes, path.name, info.offset, info.kind.name)
        for info in sorted(file.tensors.values(), key=lambda info: info.offset)
    )
    metadata = {"version": file.version, "byte order": "little" if file.order == "<" else "big", **file.metadata.summary()}
    file.close()
    return Inspection(str(path), "gguf", rows, {path.name: file.size}, metadata)


def _method(path: Path) -> str | None:
    """The quant_method of another tool whose checkpoints are read here."""
    if not (path / CONFIG).is_file() or read_config(path / CONFIG).get("quantization_config") is None:
        return None
    foreign = open_foreign(path)
    if foreign is None:
        return None
    foreign.close()
    return foreign.container


def inspect_model(path: str | os.PathLike[str]) -> Inspection:
    """Lists what a Hugging Face directory, an anybit checkpoint, a GGUF file or a single .safetensors file holds.

    Raises: FileFormatError, as `open_model`, `Container` and `SafeFile` do.
    """
    path = Path(path)
    if path.suffix == ".gguf" and path.is_file():
        return _gguf(path)
    if path.suffix == ".safetensors" and path.is_file():
        return _one_file(path)
    method = _method(path)
    with open_model(path, foreign=method is not None) as source:
        rows = {name: _plain(name, source.tensors[name]) for name in source.dense}
        quantization = source.quantization
        for name, layer in quantization.layers.items() if quantization else ():
            stored = {part: source.tensors[f"{name}.{part}"] for part in layer.parts}
            first = min(stored.values(), key=lambda info: info.offset)
            parts = {part: f"{info.dtype.lower()} {list(info.shape)}" for part, info in stored.items()}
            rows[name] = TensorRow(
                name, layer.format, layer.shape, layer.nbytes, first.file.name, first.offset, layer.layout, layer.act, parts
            )
        metadata: dict[str, Any] = {"config": {k: v for k, v in source.config.items() if method or k != "quantization_config"}}
        metadata |= {"eos": source.eos, "tokenizer": source.tokenizer.name if source.tokenizer else None}
        if quantization:
            fields = ("version", "policy", "recipe_digest", "kv_cache", "provenance", "attention_product")
            metadata["quantization"] = {name: getattr(quantization, name) for name in fields} | {"tables": sorted(quantization.tables)}
        ordered = tuple(sorted(rows.values(), key=lambda row: (row.file, row.offset)))
        files = {file.path.name: file.size for file in source.files.values()}
        return Inspection(str(path), method or ("anybit" if quantization else "hugging face"), ordered, files, metadata)
