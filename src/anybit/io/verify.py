"""Is a model on the disk what was saved? Digests where a manifest has them, and the structure of every file that is known here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from anybit.errors import FileFormatError
from anybit.io.foreign import open_foreign
from anybit.io.gguf.container import Container
from anybit.io.hf import CONFIG, INDEX, SINGLE, open_model
from anybit.io.manifest import MANIFEST, Progress, read_manifest, verify_directory
from anybit.io.safetensors import SafeFile

_CONTAINERS = (".safetensors", ".gguf")


@dataclass(frozen=True)
class Verification:
    """What was found in order.

    `digest` is the manifest's, None where nothing says what the bytes should be: then only the structure has been checked. `files` and
    `nbytes` count what was compared with digests, `tensors` what the containers hold, `unlisted` the files that the manifest does not list.
    """

    path: str
    kind: str
    digest: str | None
    files: int
    nbytes: int
    tensors: int
    unlisted: tuple[str, ...]


def total_bytes(path: str | os.PathLike[str]) -> int:
    """The bytes that `verify` will hash, by the manifest; 0 if there is none. FileFormatError: a manifest that is damaged."""
    root = Path(path)
    return sum(item["size"] for item in read_manifest(root)["files"].values()) if (root / MANIFEST).is_file() else 0


def verify(path: str | os.PathLike[str], progress: Progress | None = None) -> Verification:
    """Checks a directory or a single .safetensors or .gguf file; `progress(bytes, file)` is called as files are hashed.

    Raises: FileFormatError naming the first file that is missing, has another size, other bytes or a damaged structure, or a checkpoint of
    anybit's without its manifest. Cost: reads every listed file once; no weight is decoded.
    """
    root = Path(path)
    if root.is_file() and root.suffix in _CONTAINERS:
        return Verification(str(path), root.suffix[1:], None, 0, 0, _tensors(root), ())
    if not root.is_dir():
        what = "neither a directory nor a .safetensors or .gguf file" if root.exists() else "no such directory"
        raise FileFormatError(f"{root}: {what}; give a directory that anybit saved, or a .safetensors or .gguf file")
    known = sorted(file for file in root.iterdir() if file.suffix in _CONTAINERS)
    listed = verify_directory(root, progress) if (root / MANIFEST).exists() else None
    if listed is None and not known and not (root / CONFIG).exists():
        raise FileFormatError(f"{root}: neither a {MANIFEST} nor anything of a model; give a directory that anybit saved")
    tensors = sum(map(_tensors, known))  # those that no index lists too
    kind = "files"
    if (root / CONFIG).exists() and any((root / name).exists() for name in (SINGLE, INDEX)):
        kind = _model(root)
    elif known:
        kind = known[0].suffix[1:]
    if listed is None:
        return Verification(str(path), kind, None, 0, 0, tensors, ())
    return Verification(str(path), kind, listed.digest, listed.files, listed.nbytes, tensors, listed.unlisted)


def _tensors(file: Path) -> int:
    """How many tensors a container holds, its header checked completely."""
    if file.suffix == ".gguf":
        container = Container(file)
        container.close()
        return len(container.tensors)
    with SafeFile(file) as opened:
        return len(opened.tensors)


def _model(root: Path) -> str:
    """Config, index, shards and quantization agree; what kind of model it is."""
    foreign = open_foreign(root)
    if foreign is not None:
        foreign.close()
        return foreign.container
    with open_model(root) as source:
        return "anybit" if source.quantization is not None else "hugging face"
