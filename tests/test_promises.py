"""What the README promises of time and memory, measured in processes of their own; and what an interrupt leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small import CONFIG, write_model
from synthetic import BILLION, dense_model, quantized_checkpoint

import anybit

SRC = Path(anybit.__file__).parents[1]

MEASURE = """
import json, os, sys, time

def memory():
    lines = open("/proc/self/status").read().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.startswith(("VmHWM", "VmRSS", "RssAnon", "RssFile"))}

def fresh():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    return memory()["VmRSS"]
"""

LOAD = """
import anybit
anybit.load
before = fresh()
start = time.perf_counter()
model = anybit.load(sys.argv[1])
model.engine
seconds = time.perf_counter() - start
loaded = memory()["VmRSS"] - before
state = model.engine.state()
model.engine.forward(list(range(100, 108)), state, all_logits=False)
for token in range(200, 204):
    model.engine.forward([token], state)
print(json.dumps({"seconds": seconds, "loaded": loaded, "peak": memory()["VmHWM"] - before, "cache": state.nbytes}))
"""

QUANTIZE = """
from anybit.model import quantize_file
before = fresh()
written = quantize_file(sys.argv[1], sys.argv[2], "int4@32")
print(json.dumps({"peak": memory()["VmHWM"] - before, "written": written}))
"""


def python(script: str, *args: object, **environment: str) -> Any:
    """Runs a script in a fresh interpreter and gives the JSON that it prints."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE + script, *map(str, args)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(SRC), "OPENBLAS_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


def can_reset_peak() -> bool:
    return Path("/proc/self/clear_refs").exists() and os.access("/proc/self/clear_refs", os.W_OK)


needs_proc = pytest.mark.skipif(not can_reset_peak(), reason="memory is measured through Linux's /proc")


@needs_proc
@pytest.mark.parametrize("fmt", ["ternary@256", "int4@32"])
def test_a_model_of_a_billion_weights_loads_at_once_and_fits_into_its_file(tmp_path: Path, fmt: str) -> None:
    """Under 0.3 s; at most 1.05 times its file beside the cache, after a prompt of 8 tokens and 4 more. All matrices quantized: the file
    is as small as it can be, and nearly all of it is read."""
    size = quantized_checkpoint(tmp_path / "m", BILLION, fmt, kept=fmt)
    runs = [python(LOAD, tmp_path / "m") for _ in range(2)]
    print(f"\n{fmt}: {size} bytes, {runs}")
    runs += [python(LOAD, tmp_path / "m") for _ in range(3) if min(run["seconds"] for run in runs) > 0.3]  # a loaded machine
    assert min(run["seconds"] for run in runs) < 0.3
    for run in runs:
        assert run["peak"] <= 1.05 * size + run["cache"]
        assert run["peak"] > 0.8 * size, "the weights were read"
        assert run["loaded"] < 16 << 20, "loading reads headers, not weights"


@needs_proc
def test_quantizing_a_file_holds_one_matrix(tmp_path: Path) -> None:
    """A bf16 model of 390 MB with matrices of up to 8.4e6 weights: their float32 values and codes, the source's pages, some blocks."""
    config = {
        **BILLION, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16, "num_attention_heads": 16,
        "num_key_value_heads": 4, "vocab_size": 8192,
    }  # fmt: skip
    size = dense_model(tmp_path / "m", config)
    found = python(QUANTIZE, tmp_path / "m", tmp_path / "q")
    print(f"\n{size} bytes of bf16: {found}")
    largest = 8192 * 1024
    assert size > 390_000_000 and found["peak"] < largest * (2 + 4 + 2) + (16 << 20) < size / 4


def test_import_and_version_load_nothing_heavy() -> None:
    modules = python("import anybit; print(json.dumps(sorted(sys.modules)))")
    assert not {"numpy", "tokenizers", "safetensors", "click", "rich"} & set(modules)
    assert [name for name in modules if name.startswith("anybit")] == ["anybit"]
    main = pytest.importorskip("anybit.cli.main")
    assert main
    script = """
import io, contextlib
from anybit.cli.main import run
with contextlib.redirect_stdout(io.StringIO()) as out:
    try:
        run(["--version"])
    except SystemExit as leave:
        assert not leave.code and out.getvalue().startswith("anybit "), out.getvalue()
print(json.dumps(sorted(sys.modules)))
"""
    modules = python(script)
    assert not {"numpy", "tokenizers", "safetensors", "rich", "anybit.model", "anybit.formats"} & set(modules)


def test_nothing_touches_the_network(tmp_path: Path) -> None:
    script = """
import socket
def refuse(*args, **options):
    raise AssertionError("a socket")
socket.socket = socket.create_connection = socket.getaddrinfo = refuse
import anybit
model = anybit.load("pycoder-5m").quantize("int4@32")
print(json.dumps(model.generate("import", max_tokens=2)))
"""
    assert isinstance(python(script), str)


INTERRUPTED = """
import anybit, signal
from anybit.model import quantize_file
signal.signal(signal.SIGINT, signal.default_int_handler)

def tell(done, total, name):
    if done == 3:
        print("ready", flush=True)
    time.sleep(0.05)

try:
    if sys.argv[3] == "file":
        quantize_file(sys.argv[1], sys.argv[2], "int4@32", progress=tell)
    else:
        anybit.load(sys.argv[1]).quantize("int4@32", progress=tell).save(sys.argv[2])
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("way", ["file", "model"])
def test_ctrl_c_leaves_nothing(tmp_path: Path, way: str) -> None:
    write_model(tmp_path / "m", {**CONFIG, "num_hidden_layers": 8})
    process = subprocess.Popen(
        [sys.executable, "-c", MEASURE + INTERRUPTED, str(tmp_path / "m"), str(tmp_path / "out"), way],
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(SRC)}, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    process.stdout.close()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_killed_in_the_middle_leaves_what_the_next_save_removes(tmp_path: Path) -> None:
    write_model(tmp_path / "m", {**CONFIG, "num_hidden_layers": 8})
    process = subprocess.Popen(
        [sys.executable, "-c", MEASURE + INTERRUPTED, str(tmp_path / "m"), str(tmp_path / "out"), "file"],
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(SRC)}, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.kill()
    process.wait(timeout=60)
    process.stdout.close()
    assert not (tmp_path / "out").exists() and len(list(tmp_path.iterdir())) == 2
    from anybit.model import quantize_file

    quantize_file(tmp_path / "m", tmp_path / "out", "int4@32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "out"]
