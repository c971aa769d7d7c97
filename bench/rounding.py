"""Rounding float32 to a format and back, one thread: anybit against NumPy's copy, torch, ml_dtypes and Brevitas, taken in turns.

    python bench/rounding.py [--brevitas-python PYTHON] [--numbers 64000000] [--rounds 5]

Every figure is a round trip (float32 in, float32 out) of the same normal numbers, with `out` or into new memory. "words alone"
makes the halves of random words that every stochastic rounding takes, in memory that stays in the caches; "5/8" copies the bytes that an
encoding to bytes moves.
Each round runs every job once; the table gives medians, and anybit's ratios to the peers within this run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np

import anybit
from anybit.kernels import cpu

HERE = Path(__file__).resolve().parent
ROW = 4096
IRREGULAR = "codebook_" + "_".join(f"{v:.5f}" for v in np.sort(np.random.default_rng(1).permutation(4000)[:256] / 1024 - 2))
# 256 values that no rule makes: as fine as a posit near 1, and at random, where neighbours may be close together.
QUANTILES = "codebook_" + "_".join(f"{NormalDist().inv_cdf((i + 0.5) / 256):.6f}" for i in range(256))
ELEMENTS = {
    "e4m3": "fp8_e4m3fn", "e2m1": "fp4_e2m1", "bf16": "bf16", "int8": "int8", "posit8": "posit8", "nf4": "nf4", "256 quantiles": QUANTILES,
    "256 random values": IRREGULAR,
}  # fmt: skip
BLOCKS = ("mxfp4", "nvfp4", "mxfp8")
Job = Callable[[], float]


def timed(call: Callable[[], object]) -> Job:
    """A job that calls once and says how many seconds it took; results are freed after the clock has stopped."""

    def job() -> float:
        begun = time.perf_counter()
        kept = call()
        took = time.perf_counter() - begun
        del kept
        return took

    return job


def own_jobs(x: np.ndarray, out: np.ndarray) -> dict[str, Job]:
    """anybit's round trips, encoding and decoding, random words, and NumPy's copy."""
    few = x.size * 5 // 8
    part, halves = np.ones(few, np.float32), np.empty(1 << 17, np.uint16)
    jobs: dict[str, Job] = {
        "numpy.copyto": timed(lambda: np.copyto(out, x)), "numpy.copyto, 5/8": timed(lambda: np.copyto(part, x.reshape(-1)[:few])),
        "numpy.copy": timed(lambda: np.array(x)),
        "words alone": timed(lambda: [cpu.native.random_halves(1, start, False, halves) for start in range(0, x.size, halves.size)]),
    }  # fmt: skip
    for name, element in ELEMENTS.items():
        e = anybit.Format(element).element
        codes = np.empty(x.shape, e.code_dtype)
        jobs[f"{name}, out"] = timed(lambda e=e: anybit.round(x, e, out=out))
        jobs[f"{name}, new"] = timed(lambda e=e: anybit.round(x, e))
        jobs[f"{name}, sr24, out"] = timed(lambda e=e: anybit.round(x, e, "sr24", out=out))
        jobs[f"{name}, encode"] = timed(lambda e=e, c=codes: anybit.encode(x, e, out=c))
        jobs[f"{name}, decode"] = timed(lambda e=e, c=codes: anybit.decode(c, e, out=out))
    for name in BLOCKS:
        jobs[f"{name}, out"] = timed(lambda n=name: anybit.fake_quantize(x, n, out=out))
        jobs[f"{name}, new"] = timed(lambda n=name: anybit.fake_quantize(x, n))
        jobs[f"{name}, sr24, out"] = timed(lambda n=f"{name}+round=sr24": anybit.fake_quantize(x, n, out=out))
    return jobs


def peer_jobs(x: np.ndarray) -> tuple[dict[str, Job], dict[str, str]]:
    """torch's and ml_dtypes' round trips of e4m3, and their versions."""
    import ml_dtypes
    import torch

    torch.set_num_threads(1)
    t = torch.from_numpy(x)
    jobs = {
        "torch e4m3": timed(lambda: t.to(torch.float8_e4m3fn).to(torch.float32)),
        "ml_dtypes e4m3": timed(lambda: x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)),
    }
    return jobs, {"torch": torch.__version__, "ml_dtypes": ml_dtypes.__version__, "numpy": np.__version__}


class Brevitas:
    """Brevitas' MXFP4 in a process of its own, on a quarter of the numbers (it needs many times their memory); seconds are scaled up."""

    def __init__(self, python: str, numbers: int) -> None:
        self.share = 4
        self.process = subprocess.Popen(
            [python, str(HERE / "peer_brevitas.py"), str(numbers // self.share), str(ROW)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.versions = json.loads(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("peer_brevitas.py ended; see its message above")
        return line

    def job(self) -> float:
        """One round trip, seconds for all numbers."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(self._line()) * self.share


def ratios(median: dict[str, float]) -> dict[str, dict[str, float]]:
    """For each of anybit's round trips how many times faster it is than each peer; below 1 is slower."""
    peers = {name: value for name, value in median.items() if name.startswith(("numpy", "torch", "ml_dtypes", "brevitas"))}
    own = {name: value for name, value in median.items() if name not in peers}
    found = {name: {peer: theirs / value for peer, theirs in peers.items()} for name, value in own.items()}
    for name in (*ELEMENTS, *BLOCKS):
        found[f"{name}, sr24, out"]["nearest"] = own[f"{name}, out"] / own[f"{name}, sr24, out"]
    return found


def main() -> None:
    """Measures in turns, prints a table, writes the JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--brevitas-python", help="Python of an environment that has brevitas")
    parser.add_argument("--numbers", type=int, default=64_000_000 // ROW * ROW)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--isa", help="instruction set; the best if not given")
    parser.add_argument("--out", type=Path, help="JSON file; bench/results/DATE-rounding.json if not given")
    options = parser.parse_args()
    from anybit.measure.machine import machine, summary
    from anybit.report.table import Column, show

    if options.isa:
        cpu.use_isa(options.isa)
    cpu.set_threads(1)
    load = os.getloadavg()
    x = np.random.default_rng(0).standard_normal((options.numbers // ROW, ROW), dtype=np.float32)
    out = np.ones_like(x)
    theirs, versions = peer_jobs(x)
    jobs = own_jobs(x, out) | theirs
    if options.brevitas_python:
        brevitas = Brevitas(options.brevitas_python, x.size)
        versions |= {f"brevitas' {name}" if name != "brevitas" else name: value for name, value in brevitas.versions.items()}
        jobs["brevitas mxfp4"] = brevitas.job
    runs: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(options.rounds + 1):  # the first warms up and does not count
        for name, job in jobs.items():
            took = job()
            if turn:
                runs[name].append(took)
        print(f"round {turn} of {options.rounds}", file=sys.stderr, flush=True)
    median = {name: statistics.median(times) for name, times in runs.items()}
    compared = ratios(median)
    peers = [name for name in median if name not in compared]
    rows = []
    for name, seconds in median.items():
        times = [f"{compared[name][peer]:.2f}" for peer in peers] if name in compared else [""] * len(peers)
        nearest = name.replace(", sr24", "")  # how many times longer than to nearest, of the best times
        times.append(f"{min(runs[name]) / min(runs[nearest]):.2f}" if nearest != name else "")
        rows.append([name, f"{seconds * 1e3:.1f}", f"{min(runs[name]) * 1e3:.1f}", f"{x.size / seconds / 1e6:.0f}", *times])
    ratio = [Column(f"/ {peer}") for peer in peers]
    show([Column("round trip", "left"), Column("ms"), Column("best"), Column("M/s"), *ratio, Column("x nearest")], rows)
    facts = machine() | {"threads": 1, "isa": cpu.isa()}
    print(summary(facts), f"load before: {load}", sep="\n")
    record = {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"), "numbers": x.size, "rounds": options.rounds, "machine": facts, "peers": versions,
        "load_average_before": load, "median_s": median, "times_faster": compared, "runs_s": runs,
    }  # fmt: skip
    path = options.out or HERE / "results" / f"{time.strftime('%Y-%m-%d')}-rounding.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
