"""The certificate of a full self-test: which code was checked, where, and what came out. It is replaced whole after each format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from anybit import __version__
from anybit.errors import FileFormatError
from anybit.io.save import atomic_file

KIND = "anybit selftest --full"


def source_digest() -> str:
    """SHA-256 over the files that decide what codes are: formats, references, native modules and what calls them, in order."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for pattern in ("formats/**/*.py", "reference/**/*.py", "kernels/*.so", "kernels/*.py", "elementwise.py"):
        for path in sorted(root.glob(pattern)):
            data = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def begin(machine: Mapping[str, Any]) -> dict[str, Any]:
    """A certificate without rows."""
    return {"kind": KIND, "anybit": __version__, "source": source_digest(), "machine": dict(machine), "begun": now(), "formats": []}


def now() -> str:
    """The time, to the second, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def read(path: Path) -> dict[str, Any] | None:
    """A certificate to go on with; None: there is none. FileFormatError: another kind of file, which is left alone."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path}: cannot be read as a certificate ({error}); choose another --certificate") from None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("kind") != KIND or not isinstance(found.get("formats"), list):
        raise FileFormatError(f"{path}: it exists and is no certificate of anybit; choose another --certificate")
    return found


def resumed(path: Path, machine: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier run of the same code left in the file, or a new certificate."""
    fresh, found = begin(machine), read(path)
    same = found is not None and all(found.get(key) == fresh[key] for key in ("anybit", "source", "machine"))
    return found if same and found is not None else fresh


def write(path: Path, certificate: Mapping[str, Any]) -> None:
    """Replaces the file, whole or not at all. OutputError: it cannot be written."""
    with atomic_file(path) as file:
        file.write((json.dumps({**certificate, "ended": now()}, indent=1, allow_nan=False) + "\n").encode())
