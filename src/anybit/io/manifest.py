"""manifest.json: the last file of every saved directory, with the size and SHA-256 of all others. Its presence says: complete."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anybit.errors import FileFormatError, OutputError
from anybit.io import strict_json
from anybit.io.strict_json import shown

MANIFEST = "manifest.json"
VERSION = 1
_CHUNK = 1 << 18
_ADVICE = "the directory was not saved completely or was changed; save or fetch it again"


def file_digest(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def listing(root: Path) -> list[str]:
    """The regular files below `root` as sorted relative names. Raises: OutputError: anything else lies there."""
    names = []
    for path in root.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            names.append(path.relative_to(root).as_posix())
        elif not stat.S_ISDIR(mode):
            raise OutputError(f"{path} is neither a file nor a directory and cannot be saved")
    return sorted(names)


def contents_digest(files: dict[str, dict[str, Any]]) -> str:
    """One SHA-256 over all files' names, sizes and digests, sorted by name: the identity of a saved directory."""
    lines = "".join(f"{name}\0{files[name]['size']}\0{files[name]['sha256']}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def manifest_text(root: Path, names: list[str], digests: dict[str, str]) -> bytes:
    """The manifest of the files `names` below `root`. A digest that is not given is computed from the file."""
    from anybit import __version__

    files = {name: {"size": (root / name).stat().st_size, "sha256": digests.get(name) or file_digest(root / name)} for name in names}
    head = {"manifest": "anybit", "version": VERSION, "tool": f"anybit {__version__}", "digest": contents_digest(files)}
    return json.dumps({**head, "files": files}, indent=1, ensure_ascii=False).encode() + b"\n"


@dataclass(frozen=True)
class Verified:
    """What `verify_directory` found in order: the manifest's digest, the listed files and their bytes, and files it does not list."""

    digest: str
    files: int
    nbytes: int
    unlisted: tuple[str, ...]


def read_manifest(path: Path) -> dict[str, Any]:
    """A directory's manifest, checked field by field. Raises: FileFormatError."""
    where = path / MANIFEST
    manifest = strict_json.read(where)
    if not isinstance(manifest, dict) or manifest.get("manifest") != "anybit":
        raise FileFormatError(f"{where}: no anybit manifest; {_ADVICE}")
    if manifest.get("version") != VERSION:
        raise FileFormatError(f"{where}: manifest version {shown(manifest.get('version'), 40)}; this anybit reads {VERSION}")
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise FileFormatError(f"{where}: field 'files' is no object; {_ADVICE}")
    for name, item in files.items():
        if not name or name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise FileFormatError(f"{where}: field 'files': {shown(name)} leaves the directory; {_ADVICE}")
        fits = isinstance(item, dict) and type(item.get("size")) is int and isinstance(item.get("sha256"), str)
        if not fits:
            raise FileFormatError(f"{where}: field 'files': {shown(name)} needs an integer size and a sha256; {_ADVICE}")
    if manifest.get("digest") != contents_digest(files):
        raise FileFormatError(f"{where}: field 'digest' does not match 'files'; {_ADVICE}")
    return manifest


def verify_directory(path: str | os.PathLike[str]) -> Verified:
    """Reads every file that the manifest lists and compares sizes and digests.

    Raises: FileFormatError naming the first file that is missing, has another size or other bytes. Cost: reads everything once.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileFormatError(f"{root}: no such directory; give a directory that anybit saved")
    manifest = read_manifest(root)
    files: dict[str, dict[str, Any]] = manifest["files"]
    for name, item in files.items():
        check_size(root, name, item["size"])
        if file_digest(root / name) != item["sha256"]:
            raise FileFormatError(f"{root / name}: its SHA-256 is not the manifest's: changed or damaged; save or fetch it again")
    unlisted = sorted({p.relative_to(root).as_posix() for p in root.rglob("*") if not p.is_dir()} - {*files, MANIFEST})
    return Verified(manifest["digest"], len(files), sum(item["size"] for item in files.values()), tuple(unlisted))


def check_size(root: Path, name: str, size: int) -> None:
    """Raises: FileFormatError: a listed file is missing or has another length."""
    try:
        status = (root / name).stat()
    except OSError as error:
        raise FileFormatError(f"{root / name}: listed in {MANIFEST} but {error.strerror}; save or fetch the directory again") from None
    if not stat.S_ISREG(status.st_mode):
        raise FileFormatError(f"{root / name}: listed in {MANIFEST} but not a regular file; save or fetch the directory again")
    if status.st_size != size:
        what = f"{status.st_size} bytes, but {MANIFEST} says {size}"
        raise FileFormatError(f"{root / name}: {what}: cut short or changed; save or fetch it again")
