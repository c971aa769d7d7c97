"""`anybit verify`: what is in order, and each way in which it may not be."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from gguf_file import small

from anybit.cli import main as cli
from anybit.errors import FileFormatError
from anybit.io.verify import total_bytes, verify
from anybit.model import load


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "q"
    load("pycoder-5m").quantize("int4@32").save(path)
    return path


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "q"))


def test_what_is_in_order(copy: Path) -> None:
    (copy / "README.md").write_text("a note")
    seen: list[tuple[int, str]] = []
    found = verify(copy, lambda n, name: seen.append((n, name)))
    size = sum(p.stat().st_size for p in copy.iterdir() if p.name not in ("manifest.json", "README.md"))
    assert (found.kind, found.nbytes, found.unlisted) == ("anybit", size, ("README.md",))
    assert found.digest == json.loads((copy / "manifest.json").read_text())["digest"]
    assert sum(n for n, _ in seen) == size == total_bytes(copy) and {name for _, name in seen} >= {"model.safetensors", "config.json"}
    assert found.tensors > 50


def flipped(root: Path) -> None:
    """One bit in the last weight: no header shows it."""
    with (root / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


def replaced_header(root: Path) -> None:
    path = root / "extra.safetensors"
    path.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (flipped, r"model\.safetensors: its SHA-256 is not the manifest's"),
    (lambda root: os.truncate(root / "model.safetensors", 1000), r"model\.safetensors: 1000 bytes, but manifest\.json says"),
    (lambda root: (root / "tokenizer.json").unlink(), r"tokenizer\.json: listed in manifest\.json but No such file"),
    (lambda root: (root / "manifest.json").unlink(), r"no manifest\.json, which anybit writes last: incomplete"),
    (lambda root: (root / "manifest.json").write_text("{}"), "no anybit manifest"),
    (replaced_header, r"extra\.safetensors: header length at byte 0"),
    (lambda root: (root / "x.gguf").write_bytes(b"GGUF" + bytes(40)), r"x\.gguf: version at byte 4"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGE)
def test_what_is_not(copy: Path, damage: Callable[[Path], object], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage(copy)
    with pytest.raises(FileFormatError, match=says):
        verify(copy)
    with pytest.raises(SystemExit) as left:
        cli.run(["verify", str(copy), "--no-progress"])
    assert left.value.code == 4 and capsys.readouterr().err.startswith(f"anybit: error: {copy}")


def test_without_digests_the_answer_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, tmp_path / "a.safetensors")
    (tmp_path / "b.gguf").write_bytes(small().bytes())
    for path, kind, tensors in (
        (tmp_path / "a.safetensors", "safetensors", 1),
        (tmp_path / "b.gguf", "gguf", 4),
        (tmp_path, "safetensors", 5),
    ):
        found = verify(path)
        assert (found.kind, found.digest, found.files, found.tensors) == (kind, None, 0, tensors)
    with pytest.raises(SystemExit) as left:
        cli.run(["verify", str(tmp_path / "b.gguf")])
    assert left.value.code == 0 and "none to compare with" in capsys.readouterr().out
    found_bundled = verify(Path(load.__code__.co_filename).parent / "data" / "pycoder-5m")
    assert (found_bundled.kind, found_bundled.digest) == ("hugging face", None)


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    for name, what in (("empty", "neither a manifest"), ("file.txt", "neither a directory nor a .safetensors"), ("nowhere", "no such dir")):
        with pytest.raises(FileFormatError, match=f"{name}: {what}.*give a directory that anybit saved"):
            verify(tmp_path / name)


def test_json(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.run(["verify", str(saved), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert left.value.code == 0 and found["kind"] == "anybit" and len(found["digest"]) == 64 and found["unlisted"] == []
