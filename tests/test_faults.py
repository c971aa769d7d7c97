"""Saves whose system calls kill, fail or stop half-way (faults/driver.py says what must hold then).

A sample by default: every 9th call of each scenario and action. ANYBIT_KILLS=1000 takes a larger model and every call of it, which is more
than a thousand kills and three thousand failures.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small import CONFIG, write_model

import anybit

FAULTS = Path(__file__).parent / "faults"
SRC = Path(anybit.__file__).parents[1]
EVEN = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}  # whole groups of 32
KILLS = int(os.environ.get("ANYBIT_KILLS", "0"))


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler for the shim")
    made = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", made, FAULTS / "shim.c", "-ldl"], check=True)
    return made


def drive(shim: Path, folder: Path, scenario: str, stride: int) -> dict[str, Any]:
    config = {**CONFIG, **({"num_hidden_layers": 12} if KILLS else {}), **(EVEN if scenario == "gptq" else {})}
    write_model(folder / "m", config)
    (folder / "m" / "tokenizer.json").write_text("{}")
    run = subprocess.run(
        [sys.executable, FAULTS / "driver.py", folder, scenario, str(stride)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(SRC), "LD_PRELOAD": str(shim), "ANYBIT_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    found: dict[str, Any] = json.loads(run.stdout)
    print(f"\n{scenario}: {found}")
    return found


@pytest.mark.parametrize(
    ("scenario", "stride"), [
        ("save_model", 9), ("save_shards", 9), ("stream", 9), ("replace_file", 2), ("new_file", 2), ("compressed-tensors", 9), ("gptq", 9),
        ("onnx", 9), ("dequantized", 9), ("gguf", 9), ("gguf_file", 2), ("convert", 9), ("calibrated", 17),
    ],
)  # fmt: skip
def test_every_call_of_a_save_may_be_the_last(shim: Path, tmp_path: Path, scenario: str, stride: int) -> None:
    stride = 1 if KILLS else stride
    found = drive(shim, tmp_path, scenario, stride)
    log, outcomes = found["log"], found["outcomes"]
    assert {"w", "s", "r", "c", "o", "k"} <= set(log), "the shim sees every kind of call"
    assert "a" in log or scenario == "save_shards", "the disk is told to begin before the end of what is no small file"
    last = log.rindex("r") if scenario == "calibrated" else log.index("r")  # blocks and states are files of their own
    assert log.rindex("w") < last < log.rindex("s"), "all is written, then renamed, then the folder synced"
    tried = {action: sum(counts.values()) for action, counts in outcomes.items()}
    assert all(count >= len(log) // stride > 0 for count in tried.values())
    assert outcomes["kill"] == {"killed": tried["kill"]} and outcomes["torn"] == {"killed": tried["torn"]}
    assert outcomes["short"] == {"done": tried["short"]} and outcomes["once-ENOSPC"]["refused"] > tried["once-ENOSPC"] / 2
    if KILLS and scenario == "stream":
        assert tried["kill"] + tried["torn"] > KILLS // 3


def test_the_driver_notices_a_save_that_is_not_atomic(shim: Path, tmp_path: Path) -> None:
    """The same run over a save that writes in place: the check is one that can fail."""
    write_model(tmp_path / "m")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import driver; from pathlib import Path\n"
        "def naive(model, out):\n"
        "    with open(out, 'wb', buffering=0) as file:\n"
        "        file.write(b'new' * 1000)\n"
        "        file.write(b'more')\n"
        "driver.SCENARIOS['replace_file'] = naive\n"
        "driver.main(Path(sys.argv[2]), 'replace_file', 1)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, FAULTS, tmp_path], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(SRC), "LD_PRELOAD": str(shim)},
    )  # fmt: skip
    assert run.returncode == 1 and "AssertionError: replace_file, kill at call 1" in run.stderr, run.stderr
