"""manifest.json: the last file of every saved directory, with the size and SHA-256 of all others. Its presence says: complete."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anybit.errors import FileFormatError, OutputError
from anybit.io import strict_json
from anybit.io.strict_json import shown

MANIFEST = "manifest.json"
VERSION = 1
_CHUNK = 1 << 18
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ADVICE = "the directory was not saved completely or was changed; save or fetch it again"


Progress = Callable[[int, str], None]
"""Called with how many more bytes of which file have been read."""


def file_digest(path: Path, progress: Progress | None = None) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
            if progress is not None:
                progress(len(piece), path.name)
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


def _bad_file(name: str) -> str | None:
    """Why a directory cannot have a file of this name, or None."""
    if not name or name.startswith("/") or "\0" in name or ".." in name.split("/"):
        return "leaves the directory"
    return "is the manifest itself" if name == MANIFEST else None


def _bad_item(item: object) -> str | None:
    fits = isinstance(item, dict) and item.keys() == {"size", "sha256"} and type(item["size"]) is int and item["size"] >= 0
    if not fits or not isinstance(item["sha256"], str) or _SHA256.fullmatch(item["sha256"]) is None:  # type: ignore[index]
        return "needs an integer size and a sha256, and nothing else"
    return None


def read_manifest(path: Path) -> dict[str, Any]:
    """A directory's manifest, checked field by field. Raises: FileFormatError."""
    file = path / MANIFEST
    manifest = strict_json.read(file)
    where = strict_json.where(file)
    if not isinstance(manifest, dict) or manifest.get("manifest") != "anybit":
        raise FileFormatError(f"{file}: no anybit manifest{(where / 'manifest').at}; {_ADVICE}")
    if type(manifest.get("version")) is not int or manifest["version"] != VERSION:
        version = f"manifest version {shown(manifest.get('version'), 40)}{(where / 'version').at}"
        raise FileFormatError(f"{file}: {version}; this anybit reads {VERSION}")
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise FileFormatError(f"{file}: field 'files' is no object{(where / 'files').at}; {_ADVICE}")
    for name, item in files.items():
        reason = _bad_file(name) or _bad_item(item)
        if reason is not None:
            raise FileFormatError(f"{file}: field 'files': {shown(name)} {reason}{(where / 'files' / name).at}; {_ADVICE}")
    if manifest.get("digest") != contents_digest(files):
        raise FileFormatError(f"{file}: field 'digest' does not match 'files'{(where / 'digest').at}; {_ADVICE}")
    return manifest


def verify_directory(path: str | os.PathLike[str], progress: Progress | None = None) -> Verified:
    """Reads every file that the manifest lists and compares sizes and digests.

    Raises: FileFormatError naming the first file that is missing, has another size or other bytes. Cost: reads everything once.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileFormatError(f"{root}: no such directory; give a directory that anybit saved")
    manifest = read_manifest(root)
    files: dict[str, dict[str, Any]] = manifest["files"]
    for name, item in files.items():
        check_size(root, name, item["size"], strict_json.where(root / MANIFEST) / "files" / name)
        try:
            digest = file_digest(root / name, progress)
        except OSError as error:
            raise FileFormatError(f"{root / name}: cannot be read: {error.strerror}; check the disk, or fetch it again") from None
        if digest != item["sha256"]:
            raise FileFormatError(f"{root / name}: its SHA-256 is not the manifest's: changed or damaged; save or fetch it again")
    unlisted = sorted({p.relative_to(root).as_posix() for p in root.rglob("*") if not p.is_dir()} - {*files, MANIFEST})
    return Verified(manifest["digest"], len(files), sum(item["size"] for item in files.values()), tuple(unlisted))


def check_size(root: Path, name: str, size: int, listed: strict_json.Where) -> None:
    """Raises: FileFormatError: a file that the manifest lists, `listed` says where, is missing or has another length."""
    try:
        status = (root / name).stat()
    except OSError as error:
        what = f"listed in {MANIFEST} but {error.strerror}{listed.at_of}"
        raise FileFormatError(f"{root / name}: {what}; save or fetch the directory again") from None
    if not stat.S_ISREG(status.st_mode):
        what = f"listed in {MANIFEST} but not a regular file{listed.at_of}"
        raise FileFormatError(f"{root / name}: {what}; save or fetch the directory again")
    if status.st_size != size:
        what = f"{status.st_size} bytes, but {MANIFEST} says {size}{(listed / 'size').at_of}"
        raise FileFormatError(f"{root / name}: {what}: cut short or changed; save or fetch it again")
