"""Runs saves under the shim in forked processes: `python driver.py FOLDER SCENARIO STRIDE`; prints what happened as JSON.

Every STRIDE-th call is tried, each action beginning at another. kill: the process dies before the call; torn: after it, a write being cut
in the middle; short: a write takes half of its bytes; once-CODE: the call fails; full-CODE: it and all after it that make or change
anything. FOLDER holds a model `m`. After each the folder must hold the old version or the whole new one, and the same save again must
succeed, give the same bytes, and leave nothing beside them.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from anybit.errors import AnybitError, FileFormatError, OutputError
from anybit.export import prepare, write, write_checkpoint
from anybit.io import output
from anybit.io.checkpoint import save_checkpoint
from anybit.io.manifest import verify_directory
from anybit.io.save import atomic_file
from anybit.model import load, quantize_file

SHIM = ctypes.CDLL(None)
if hasattr(SHIM, "fault_arm"):
    SHIM.fault_count.restype = SHIM.fault_written.restype = ctypes.c_long
    SHIM.fault_arm.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int)
    SHIM.fault_call.argtypes, SHIM.fault_call.restype = (ctypes.c_long,), ctypes.c_char
NONE, KILL, TORN, FAIL, SHORT, FULL = range(6)
WORK = "work"  # the folder of unfinished runs
output.PAGE, output.BEHIND = 4096, 12288  # so that small files, too, take many writes, and the disk is told of them on the way


def save_model(model: Path, out: Path) -> None:
    load(model).quantize("int4@32").save(out)


def save_shards(model: Path, out: Path) -> None:
    import numpy as np

    tensors = [(f"t{i}", "F32", np.full((40, 8), i, np.float32)) for i in range(6)]
    save_checkpoint(out, {"model_type": "llama"}, [], tensors, [model / "tokenizer.json"], shard_bytes=2600)


def stream(model: Path, out: Path) -> None:
    quantize_file(model, out, "nf4@16")


def replace_file(model: Path, out: Path) -> None:
    with atomic_file(out) as file:
        for i in range(4):
            file.write(bytes([i]) * 9000)


def export(to: str) -> Callable[[Path, Path], None]:
    def run(model: Path, out: Path) -> None:
        write(prepare(untold(model), to), out, card=lambda: "a card")

    return run


def convert(model: Path, out: Path) -> None:
    quantized = model.with_name("packed")
    if not quantized.exists():
        write(prepare(model, "compressed-tensors:int4@8"), quantized)
    write_checkpoint(quantized, out)


def calibrated(model: Path, out: Path) -> None:
    """A run that finds what an earlier one left: hidden states, finished blocks, how far it got."""
    import numpy as np

    from anybit.recipes import quantize
    from anybit.recipes.schema import parse_recipe

    recipe = {"version": 1, "name": "gptq", "rules": [{"match": "layers", "format": "int4@16", "rounding": "gptq"}]}
    ids = np.random.default_rng(0).integers(0, 64, (3, 20), np.int32)
    quantize.calibration_tokens = lambda *_: (ids, {"source": "random", "sequences": 3, "length": 20, "tokens_sha256": "random"})
    quantize.quantize_recipe(untold(model), out, parse_recipe(recipe, "test"), work=out.with_name(WORK), resume=True)


def untold(model: Path) -> Path:
    """The same model without its tokenizer, which here is none."""
    made = model.with_name("untold")
    if not made.exists():
        made.mkdir()
        for file in model.iterdir():
            if file.name != "tokenizer.json":
                (made / file.name).symlink_to(file)
    return made


SCENARIOS: dict[str, Callable[[Path, Path], None]] = {
    "save_model": save_model, "save_shards": save_shards, "stream": stream, "replace_file": replace_file, "new_file": replace_file,
    "compressed-tensors": export("compressed-tensors:int4@8"), "gptq": export("gptq:int4@32:fp16"), "onnx": export("onnx"),
    "dequantized": export("dequantized:f32"), "gguf": export("gguf"), "gguf_file": export("gguf"), "convert": convert,
    "calibrated": calibrated,
}  # fmt: skip


def digest(path: Path) -> str:
    """What lies at a path: names and bytes, but for the manifest's own name."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return verify_directory(path).digest if (path / "manifest.json").exists() else "no manifest"


def forked(run: Callable[[], None], refusals: tuple[type[AnybitError], ...]) -> int:
    """Exit code of a child: 0 done, 4 one of the refusals, 9 anything else; minus the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            run()
            code = 0
        except refusals:
            code = 4
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            SHIM.fault_disarm()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


ACTIONS = ("kill", "torn", "short", "once-ENOSPC", "once-EIO", "once-EDQUOT", "full-ENOSPC", "full-EIO")
OLD = b"the old version"


def cleared(path: Path) -> None:
    """Removes a file or a flat directory."""
    if path.is_dir():
        for each in path.iterdir():
            each.unlink()
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def main(folder: Path, scenario: str, stride: int) -> dict[str, object]:
    model, work = folder / "m", folder / scenario
    work.mkdir()
    suffix = ".gguf" if scenario == "gguf_file" else ""  # one file, as its name asks
    out, whole, run, replaces = work / f"out{suffix}", work / f"reference{suffix}", SCENARIOS[scenario], scenario == "replace_file"

    refusals = (OutputError, FileFormatError) if scenario == "calibrated" else (OutputError,)  # it reads what it wrote

    def armed(n: int, what: int, code: int, out: Path = out) -> None:
        SHIM.fault_arm(os.fsencode(work), n, what, code)
        run(model, out)

    if replaces:
        whole.write_bytes(OLD)
    armed(-1, NONE, 0, whole)
    calls, written = SHIM.fault_count(), SHIM.fault_written()
    log = b"".join(SHIM.fault_call(i) for i in range(calls)).decode()
    SHIM.fault_disarm()
    shutil.rmtree(work / WORK, ignore_errors=True)
    saved = sum(p.stat().st_size for p in ([whole] if whole.is_file() else whole.iterdir()))
    assert written == saved or (scenario == "calibrated" and written > saved), f"{saved} bytes saved, {written} seen by the shim"
    wanted, before = digest(whole), "old" if replaces else None
    outcomes: dict[str, Counter[str]] = {action: Counter() for action in ACTIONS}
    for number, action in enumerate(ACTIONS):
        what = {"kill": KILL, "torn": TORN, "short": SHORT}.get(action, FULL if action.startswith("full") else FAIL)
        code = getattr(errno, action.partition("-")[2], 0)
        for n in range(number % stride, calls, stride):
            if replaces:
                out.write_bytes(OLD)
            status = forked(lambda n=n, what=what, code=code: armed(n, what, code), refusals)  # type: ignore[misc]
            left = [p.name for p in work.iterdir() if p.name.startswith(".")]
            there = None if not out.exists() else "old" if out.is_file() and out.read_bytes() == OLD else digest(out)
            place = f"{scenario}, {action} at call {n} of {calls} ({log[n]}): exit {status}, target {there}, left {left}"
            assert status in {KILL: (-signal.SIGKILL,), TORN: (-signal.SIGKILL,), SHORT: (0,)}.get(what, (0, 4)), place
            assert there in (before, wanted), place
            if status == 0:
                assert there == wanted, place
            if status == 4 and what != FULL:  # where nothing works any more, what is in place cannot be taken back either
                assert there == before, place
            if status >= 0 and log[n] != "u":
                assert not left, place  # who lives cleans up; only a removal that fails itself cannot
            assert digest(whole) == wanted and {p.name for p in work.iterdir()} - {*left, out.name, WORK} == {whole.name}, place
            assert scenario == "calibrated" or not (work / WORK).exists(), place
            outcomes[action][{0: "done", 4: "refused"}.get(status, "killed")] += 1
            if there is not None and not replaces:
                cleared(out)
            run(model, out)
            assert digest(out) == wanted and not [p for p in work.iterdir() if p.name.startswith(".")], f"{place}; then again"
            cleared(out)
            shutil.rmtree(work / WORK, ignore_errors=True)
    return {"calls": calls, "log": log, "outcomes": outcomes}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
