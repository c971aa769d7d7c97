"""Opens a model in a Hugging Face directory: config.json, safetensors (one file or shards with an index), tokenizer.json.

A directory that anybit saved is one too: its `quantization_config` says which tensors are the parts of which layer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from numpy.typing import NDArray

from anybit.errors import FileFormatError
from anybit.io import strict_json
from anybit.io.manifest import MANIFEST, check_size, read_manifest
from anybit.io.quantization import Quantization, parse_quantization
from anybit.io.safetensors import SafeFile, TensorInfo, bad_name
from anybit.io.strict_json import shown

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER, GENERATION = "tokenizer.json", "generation_config.json"
# what a copy of the model takes along beside weights and config
SIDECARS = (TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", GENERATION)
LAYOUT = f"a Hugging Face directory holds {CONFIG}, {SINGLE} (or {INDEX} and its shards) and {TOKENIZER}"

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_NO_PICKLE = (
    "pickle files can run any code, so anybit never opens them; in an environment where you trust the file, "
    "transformers' from_pretrained(IN).save_pretrained(OUT) writes safetensors"
)
_MANY = 1 << 31


def read_config(path: Path) -> dict[str, Any]:
    """config.json: an object that says what model it is. Whoever reads another of its fields checks it (`models.describe`).

    Raises: FileFormatError: not JSON, no object, neither `model_type` nor `architectures`.
    """
    config = strict_json.read(path)
    if not isinstance(config, dict):
        raise FileFormatError(f"{path}: the top level at byte 0 is no object; {LAYOUT}")
    if not config.get("model_type") and not config.get("architectures"):
        at = (strict_json.where(path) / "model_type").at
        raise FileFormatError(f"{path}: neither 'model_type' nor 'architectures' says what model this is{at}; add 'model_type'")
    return config


def _eos(path: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """The end-of-text token ids: generation_config.json's where it has any, otherwise config.json's."""
    sources: list[tuple[Path, Any]] = [(path / CONFIG, config)]
    if (path / GENERATION).exists():
        sources.insert(0, (path / GENERATION, strict_json.read(path / GENERATION)))
    for file, holder in sources:
        if not isinstance(holder, dict):
            raise FileFormatError(f"{file}: the top level at byte 0 is no object; restore the file or remove it")
        value = holder.get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(type(i) is int and 0 <= i < _MANY for i in ids):
            where = strict_json.where(file) / "eos_token_id"
            raise FileFormatError(f"{file}: field 'eos_token_id' is {shown(value, 60)}, but must be token ids{where.at}; correct it")
        return tuple(ids)
    return ()


@dataclass(frozen=True)
class Source:
    """An opened model: nothing but headers has been read, every array is a read-only view of the mapped files.

    `tensors` holds everything stored, a quantized layer's parts as `<name>.<part>`; `dense` names what is stored as it is.
    `quantization` is None for a model that anybit did not save. `eos` are the end-of-text token ids, `tokenizer` its file or None.
    """

    path: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    files: Mapping[Path, SafeFile]
    quantization: Quantization | None
    tokenizer: Path | None
    eos: tuple[int, ...]

    @property
    def dense(self) -> tuple[str, ...]:
        """Names of the tensors that are no layer's part."""
        layers = self.quantization.layers if self.quantization else {}
        parts = {f"{name}.{part}" for name, layer in layers.items() for part in layer.parts}
        return tuple(name for name in self.tensors if name not in parts)

    @property
    def sidecars(self) -> tuple[Path, ...]:
        """Files that a copy of this model takes along: tokenizer, chat template, generation settings."""
        return tuple(self.path / name for name in SIDECARS if (self.path / name).is_file())

    def _file(self, name: str) -> SafeFile:
        info = self.tensors.get(name)
        if info is None:
            raise FileFormatError(f"{self.path}: no tensor {shown(name)}; `anybit inspect {self.path}` lists what is there")
        return self.files[info.file]

    def place(self, name: str) -> str:
        """For messages: where a tensor lies, or a quantized layer is described; for what is not there, the list that lacks it."""
        if self.quantization is not None and name in self.quantization.layers:
            return (strict_json.where(self.path / CONFIG) / "quantization_config" / "layers" / name).at_of
        if name not in self.tensors and len(self.files) > 1:
            return (strict_json.where(self.path / INDEX) / "weight_map").at_of
        file = self.tensors[name].file if name in self.tensors else next(iter(self.files))
        return self.files[file].place(name)

    def field(self, keys: Sequence[str]) -> str:
        """For messages: where a field of config.json lies; for one that is not there, the object that lacks it."""
        where = strict_json.where(self.path / CONFIG)
        return replace(where, keys=tuple(keys)).at

    def get(self, name: str) -> tuple[NDArray[Any], str]:
        """A tensor's view and its dtype's name (BF16 comes as uint16 bits). Raises: FileFormatError: no such tensor."""
        return self._file(name).tensor(name), self.tensors[name].dtype

    def parts(self, name: str) -> dict[str, NDArray[Any]]:
        """The stored arrays of a quantized layer by part name, as views. Raises: FileFormatError: the layer is not quantized."""
        if self.quantization is None or name not in self.quantization.layers:
            raise FileFormatError(f"{self.path}: {shown(name)} is no quantized layer here; `anybit inspect {self.path}` lists them")
        return {part: self.get(f"{name}.{part}")[0] for part in self.quantization.layers[name].parts}

    def release(self, name: str) -> None:
        """Gives the resident pages of a tensor, or of a quantized layer's parts, back to the system."""
        layer = self.quantization.layers.get(name) if self.quantization else None
        for stored in [f"{name}.{part}" for part in layer.parts] if layer else [name]:
            self._file(stored).release(stored)

    def require_tokenizer(self) -> Path:
        """The path of tokenizer.json. Raises: FileFormatError: the directory has none."""
        if self.tokenizer is None:
            raise FileFormatError(f"{self.path}: no {TOKENIZER}; save the model's fast tokenizer there (tokenizer.save_pretrained)")
        return self.tokenizer

    def close(self) -> None:
        """Drops the maps; views that are alive stay valid."""
        for file in self.files.values():
            file.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _check_path(path: Path) -> None:
    """Raises FileFormatError with the most helpful reason why `path` is no model directory."""
    try:
        exists, is_dir = path.exists(), path.is_dir()
    except OSError as error:
        raise FileFormatError(f"{path}: no usable path: {error.strerror}; give a model directory") from None
    if "\0" in str(path):
        raise FileFormatError(f"{shown(str(path))}: no usable path: a NUL in it; give a model directory")
    if not exists:
        hub = re.fullmatch(r"[\w.-]+/[\w.-]+", str(path))
        advice = (
            f"anybit downloads nothing: fetch it first with `hf download {path} --local-dir DIR`, or check the spelling" if hub else LAYOUT
        )
        raise FileFormatError(f"{path}: no such file or directory; {advice}")
    if not is_dir:
        if path.suffix in _PICKLES:
            raise FileFormatError(f"{path}: {_NO_PICKLE}")
        if path.suffix in (".safetensors", ".json"):
            raise FileFormatError(f"{path}: a single file is no model; give its directory: {path.absolute().parent}")
        raise FileFormatError(f"{path}: not a directory; {LAYOUT}")
    if not (path / CONFIG).exists():
        raise FileFormatError(f"{path}: no model: it has no {CONFIG}; {LAYOUT}")


def _shard_names(path: Path) -> tuple[list[str], Mapping[str, str] | None]:
    """The safetensors files of a model and, where there is an index, which of them holds which tensor."""
    if (path / SINGLE).exists():
        return [SINGLE], None
    index = path / INDEX
    if not index.exists():
        found = sorted(item.name for item in path.iterdir())
        if any(name.endswith(_PICKLES) for name in found):
            raise FileFormatError(f"{path}: only pickled weights ({next(n for n in found if n.endswith(_PICKLES))}): {_NO_PICKLE}")
        others = [name for name in found if name.endswith(".safetensors")]
        seen = f"only {shown(others)}" if others else "no .safetensors file"
        raise FileFormatError(f"{path}: no weights: looked for {SINGLE} and {INDEX}, found {seen}; fetch the model again")
    content = strict_json.read(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        at = (strict_json.where(index) / "weight_map").at
        raise FileFormatError(f"{index}: field 'weight_map' is no object with entries{at}; fetch the file again")
    for name, file in weight_map.items():
        reason = bad_name(name)
        if reason is not None:
            at = (strict_json.where(index) / "weight_map" / name).at
            raise FileFormatError(f"{index}: field 'weight_map', tensor {shown(name)}{at}: {reason}; fetch the file again")
        if not isinstance(file, str) or bad_name(file) or "/" in file or "\\" in file or not file.endswith(".safetensors"):
            at = (strict_json.where(index) / "weight_map" / name).at
            what = f"{shown(file)} is no .safetensors file beside the index"
            raise FileFormatError(f"{index}: field 'weight_map', tensor {shown(name)}{at}: {what}; fetch the file again")
    return sorted(set(weight_map.values())), weight_map


def _open_files(path: Path) -> tuple[tuple[SafeFile, ...], dict[str, TensorInfo]]:
    names, weight_map = _shard_names(path)
    for name in names:
        if not (path / name).exists():
            first = next(tensor for tensor, file in (weight_map or {}).items() if file == name)
            at = (strict_json.where(path / INDEX) / "weight_map" / first).at_of
            raise FileFormatError(f"{path / name}: this shard is listed in {INDEX} but missing{at}; fetch it")
    files = tuple(SafeFile(path / name) for name in names)
    if weight_map is None:
        return files, dict(files[0].tensors)
    by_name = dict(zip(names, files, strict=True))
    tensors = {}
    for name, file in weight_map.items():
        if name not in by_name[file].tensors:
            at = (strict_json.where(path / INDEX) / "weight_map" / name).at_of
            raise FileFormatError(f"{path / file}: no tensor {shown(name)}, although {INDEX} lists it there{at}; fetch both files again")
        tensors[name] = by_name[file].tensors[name]
    return files, tensors


def _check_parts(path: Path, quantization: Quantization, tensors: Mapping[str, TensorInfo]) -> None:
    listed_in = strict_json.where(path / CONFIG) / "quantization_config" / "layers"
    for name, layer in quantization.layers.items():
        if name in tensors:
            what = f"is quantized, but there is a plain tensor too{(listed_in / name).at}"
            raise FileFormatError(f"{path / CONFIG}: layer {shown(name)} {what}; save it again")
        for part, wanted in layer.parts.items():
            info = tensors.get(f"{name}.{part}")
            if info is None:
                what = f"is missing, but {CONFIG} lists it{(listed_in / name / 'weight' / 'parts' / part).at_of}"
                raise FileFormatError(f"{path}: tensor {shown(f'{name}.{part}')} {what}; save the model again")
            if (info.dtype, info.shape) != (wanted.dtype, wanted.shape):
                stored, listed = f"{info.dtype}{list(info.shape)}", f"{wanted.dtype}{list(wanted.shape)}"
                field = f"tensor {shown(f'{name}.{part}')} at byte {info.offset}"
                raise FileFormatError(f"{info.file}: {field}: {stored}, but {CONFIG} says {listed}; save the model again")


def open_model(path: str | os.PathLike[str], foreign: bool = False) -> Source:
    """Opens a model directory. Cost: parses JSON and maps files; no weight is read, nothing is hashed.

    `foreign`: a quantization_config by another tool is left to the caller.

    Raises: FileFormatError, always with the file, what is wrong with it and what to do: no such path, no model, a pickle, a damaged or
        missing file, an index that does not fit its shards, a quantization that anybit does not read.
    """
    path = Path(path)
    _check_path(path)
    config = read_config(path / CONFIG)
    quantization = None
    if config.get("quantization_config") is not None and not foreign:
        quantization = parse_quantization(config["quantization_config"], strict_json.where(path / CONFIG))
        if not (path / MANIFEST).exists():
            raise FileFormatError(f"{path}: no {MANIFEST}, which anybit writes last: incomplete; save or fetch it again")
        for name, item in read_manifest(path)["files"].items():
            if name.endswith(".safetensors"):
                check_size(path, name, item["size"], strict_json.where(path / MANIFEST) / "files" / name)
    files, tensors = _open_files(path)
    if quantization is not None:
        _check_parts(path, quantization, tensors)
    tokenizer = path / TOKENIZER if (path / TOKENIZER).is_file() else None
    held = MappingProxyType({file.path: file for file in files})
    return Source(path, config, MappingProxyType(tensors), held, quantization, tokenizer, _eos(path, config))
