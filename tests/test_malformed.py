"""Malformed files by the thousand (`malformed/`): one exception with file, field and byte; no crash, no hang, bounded memory.

1,000 of each kind by default; ANYBIT_MALFORMED=10000 reads so many. Time and memory are measured in processes of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from malformed import KINDS, worker

HERE = Path(__file__).parent
COUNT = int(os.environ.get("ANYBIT_MALFORMED", "1000"))


def read_variants(kind: str, first: int, count: int, folder: Path) -> dict[str, Any]:
    """What the worker finds. A worker that dies has been killed by the variant that it names."""
    folder.mkdir()
    paths = [HERE.parent / "src", HERE, HERE / "io"]
    run = subprocess.run(
        [sys.executable, "-m", "malformed.worker", kind, str(first), str(count), str(folder)], capture_output=True, text=True, check=False,
        env={
            **os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "ANYBIT_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
            "RUST_BACKTRACE": "0",
        },
    )  # fmt: skip
    if run.returncode != 0:
        current = (folder / "current").read_text() if (folder / "current").exists() else "base"
        pytest.fail(f"variant {kind}/{current.strip()} ended the process with {run.returncode}: {run.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(run.stdout)
    print(f"\n{kind}: {found}")
    return found


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="memory is measured through Linux's /proc")
@pytest.mark.parametrize("kind", KINDS)
def test_variants(tmp_path: Path, kind: str) -> None:
    found = read_variants(kind, 0, COUNT, tmp_path / "w")
    assert found["problems"] == []
    assert found["slowest"] < 1 and found["refused"] > COUNT // 2, "most of them are wrong, and none takes long"
    assert found["refused"] + found["accepted"] == COUNT
    assert found["without_place"] == 0, "a byte, or of a recipe the line, is named in every refusal but of a file that is not there"


def test_variants_are_the_same_everywhere() -> None:
    import hashlib

    for kind in ("safetensors_files", "gguf_files", "tokenizers_files", "foreign_checkpoints", "recipe_files"):
        digest = hashlib.sha256()
        for index in range(-1, 40):
            what, files = worker.files_of(kind, index)
            digest.update(repr((what, sorted(files.items()))).encode("utf-8", "surrogatepass"))
            assert worker.files_of(kind, index)[1] == files
        assert len({worker.files_of(kind, index)[0] for index in range(40)}) > 25


NOTICES = """
import json, sys
from pathlib import Path
from malformed import safetensors_files, worker

def bad(folder):
    size = (folder / "a.safetensors").stat().st_size
    if size % 4 == 0:
        raise KeyError("another exception")
    if size % 4 == 1:
        hog = b"x" * (70 << 20)
        raise worker.FileFormatError(f"{folder}: {len(hog)} of memory at byte 0; free it")
    raise worker.FileFormatError("a message without the path")

real, calls = safetensors_files.read, [0]

def after_the_base(folder):
    calls[0] += 1
    (real if calls[0] <= 3 else bad)(folder)

safetensors_files.read = after_the_base
worker.resource.setrlimit = lambda *args: None
print(json.dumps(worker.run("safetensors_files", 0, 20, Path(sys.argv[1]))["problems"]))
"""


def test_the_worker_notices(tmp_path: Path) -> None:
    """Each of the limits is one that can be exceeded. In a process of its own, whose memory nothing else has made large."""
    done = subprocess.run(
        [sys.executable, "-c", NOTICES, str(tmp_path)], capture_output=True, text=True, check=True, cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )  # fmt: skip
    problems = json.loads(done.stdout.splitlines()[-1])
    for what in ("KeyError", " MB for a file", "without the path"):
        assert any(what in problem for problem in problems), (what, problems)
