"""How fast a 0.85B Llama is written for other tools: output bytes a second of the whole process, beside plain writes of as many bytes.

    python bench/export.py --work FOLDER [--targets gguf:q4_0,dequantized,...] [--rounds 5]

A process of its own each, start of Python and sync included, in turns with one that writes the same number of bytes and syncs them, through
the system's memory ("written") and past it ("direct"), which is what the disk allows. Memory is the process's largest resident size, mapped
pages of the source included. Nothing else may run: seconds of another process's writing count here.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from llama_0p85b import CONFIG, child, make_checkpoint

HERE = Path(__file__).resolve().parent
SOURCES = {"gguf": "int4@32", "dequantized": "int4@32", "compressed-tensors": "int4@128:bf16", "gptq": "int4@128:fp16"}
"""What is exported to each target: a checkpoint whose codes and scales it holds as they are."""
DENSE = ("compressed-tensors", "gptq")
"""Targets whose embedding and head stay dense: bfloat16 here."""
_PIECE = 4 << 20


def make_source(work: Path, target: str) -> Path:
    """The checkpoint that is exported to a target; made once."""
    from anybit.formats import Spec
    from anybit.linear import Linear
    from anybit.measure.speed import generated_weight
    from anybit.model import Model
    from anybit.models import describe

    name = target.partition(":")[0]
    expression = SOURCES[name]
    if name not in DENSE:
        return make_checkpoint(work, expression)
    path, model = work / f"{expression.replace(':', '_')}+dense", describe(CONFIG)
    if path.exists():
        return path
    weights: dict[str, Any] = {}
    for tensor in model.tensors:
        if tensor.role != "norm":
            spec = Spec.parse("bf16" if tensor.role in ("embedding", "head") else expression)
            weights[tensor.name] = Linear(generated_weight(spec, (tensor.shape[0], tensor.shape[1])))
    import numpy as np

    plain = {tensor.name: ("F32", np.ones(tensor.shape, np.float32)) for tensor in model.tensors if tensor.role == "norm"}
    Model(CONFIG, model, weights | {name: array for name, (_, array) in plain.items()}, plain).save(path)
    return path


def timed(command: list[str]) -> dict[str, float]:
    """Seconds from start to end of a process, its processor seconds, and its largest resident size.

    The system counts this process's own size among the child's: nothing large is imported here before the end.
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    null = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    begun = time.perf_counter()
    pid = os.posix_spawn(command[0], command, environment, file_actions=null)
    _, status, used = os.wait4(pid, 0)
    seconds = time.perf_counter() - begun
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return {"seconds": seconds, "user_s": used.ru_utime, "system_s": used.ru_stime, "peak_bytes": used.ru_maxrss * 1024}


def plain_write(path: Path, size: int, direct: bool) -> None:
    """Writes `size` bytes, rounded up to whole pieces, and syncs them."""
    buffer = mmap.mmap(-1, _PIECE)
    buffer.write(os.urandom(_PIECE))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_DIRECT if direct else 0), 0o666)
    for _ in range(0, size, _PIECE):
        os.write(fd, buffer)
    os.fsync(fd)
    os.close(fd)


def cleared(path: Path) -> None:
    """Removes what a run wrote, and waits until the disk has nothing to do."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    os.sync()


def rounds(work: Path, targets: list[str], count: int, pause: float) -> list[dict[str, Any]]:
    """For each target all runs, and those of the plain writes beside them."""
    found: dict[str, dict[str, Any]] = {}
    sources = {target: Path(child([sys.executable, __file__, "--work", str(work), "--make", target])["path"]) for target in targets}
    for turn in range(count + 1):  # the first compiles what was not compiled
        for target in targets:
            source, out = sources[target], work / ("export-out.gguf" if target.startswith("gguf") else "export-out")
            cleared(out)
            time.sleep(pause)
            run = timed([sys.executable, "-m", "anybit", "export", str(source), str(out), "--to", target, "--no-progress"])
            size = sum(file.stat().st_size for file in ([out] if out.is_file() else out.iterdir()))
            cleared(out)
            row = found.setdefault(target, {"target": target, "source": source.name, "bytes": size})
            runs = {"export": run}
            for how in ("written", "direct"):
                time.sleep(pause)
                runs[how] = timed([sys.executable, __file__, "--work", str(out), "--plain", how, "--bytes", str(size)])
                cleared(out)
            if turn:
                for how, each in runs.items():
                    row.setdefault(how, []).append(each)
            print(f"round {turn} of {count}: {target} {size / 1e6 / run['seconds']:.0f} MB/s", file=sys.stderr, flush=True)
    return list(found.values())


def show_results(results: list[dict[str, Any]]) -> None:
    """One aligned table."""
    from anybit.report.table import Column, show, size

    columns = ("output", "s", "MB/s", "best", "written MB/s", "direct MB/s", "memory", "of output")
    rows = []
    for r in results:
        seconds = {how: [run["seconds"] for run in r[how]] for how in ("export", "written", "direct")}
        rate = {how: r["bytes"] / 1e6 / statistics.median(each) for how, each in seconds.items()}
        peak = max(run["peak_bytes"] for run in r["export"])
        best = r["bytes"] / 1e6 / min(seconds["export"])
        speeds = [f"{each:.0f}" for each in (rate["export"], best, rate["written"], rate["direct"])]
        median = f"{statistics.median(seconds['export']):.2f}"
        rows.append([r["target"], r["source"], size(r["bytes"]), median, *speeds, size(peak), f"{peak / r['bytes']:.2f}"])
    show([Column("target", "left"), Column("from", "left"), *map(Column, columns)], rows)


def main() -> None:
    """Makes the sources, measures in turns, prints a table and writes the JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for models and outputs, about 5 GB")
    parser.add_argument("--targets", default="gguf:q4_0,dequantized,compressed-tensors,gptq", help="with commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pause", type=float, default=5, help="seconds before each run, in which the system forgets the last one's memory")
    parser.add_argument("--out", type=Path, help="JSON file; bench/results/DATE-export.json if not given")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--plain", choices=["written", "direct"], help=argparse.SUPPRESS)
    parser.add_argument("--bytes", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        plain_write(options.work, options.bytes, options.plain == "direct")
        return
    options.work.mkdir(parents=True, exist_ok=True)
    if options.make:
        print(json.dumps({"path": str(make_source(options.work, options.make))}))
        return
    load = os.getloadavg()
    results = rounds(options.work, options.targets.split(","), options.rounds, options.pause)
    from anybit.measure.machine import machine, summary

    facts = machine()
    show_results(results)
    print(summary(facts))
    record = {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"), "config": CONFIG, "rounds": options.rounds, "pause_s": options.pause,
        "machine": facts, "load_average_before": load, "results": results,
    }  # fmt: skip
    out = options.out or HERE / "results" / f"{time.strftime('%Y-%m-%d')}-export.json"
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
