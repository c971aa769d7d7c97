"""Fork and join of the pool: microseconds of a job right after the last one and after a sleep, and the time that idle workers use.

    python bench/pool.py [--threads 2] [--repeats 2000]

Each job has one task a thread, which ends when all have begun, so that every thread has to come (or 5 ms have passed). Beside the pool,
bench/wake.c says what waking one thread takes on this machine: no pool can come sooner after a sleep.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from anybit.kernels.cpu import native, set_threads
from anybit.measure.machine import machine

MOST_NS = 5_000_000


def microseconds(threads: int, repeats: int, pause_s: float) -> dict[str, float]:
    """Quantiles of the pool's time in microseconds, `pause_s` after the job before."""
    times = []
    for _ in range(repeats):
        if pause_s:
            time.sleep(pause_s)
        times.append(native.fork_join(threads, MOST_NS) / 1000)
    times.sort()
    return {"median": statistics.median(times), "p10": times[len(times) // 10], "p90": times[9 * len(times) // 10]}


def idle_share(threads: int) -> float:
    """Processor time that the process uses from 1 ms after a job on, over the time that passes."""
    native.fork_join(threads, MOST_NS)
    time.sleep(0.001)
    begun, used = time.perf_counter(), time.process_time()
    time.sleep(0.5)
    return (time.process_time() - used) / (time.perf_counter() - begun)


def bare_wake() -> dict[str, float] | None:
    """The same quantiles of a bare futex; None without a C compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        binary = str(Path(folder) / "wake")
        subprocess.run([compiler, "-O2", "-pthread", str(Path(__file__).with_name("wake.c")), "-o", binary], check=True)
        found: dict[str, float] = json.loads(subprocess.run([binary], capture_output=True, check=True).stdout)
    return found


def main() -> None:
    """Prints one JSON object."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=native.usable_cores())
    options.add_argument("--repeats", type=int, default=2000)
    given = options.parse_args()
    set_threads(given.threads)
    microseconds(given.threads, 50, 0)
    result = {
        "threads": given.threads, "warm_us": microseconds(given.threads, given.repeats, 0),
        "after_sleep_us": microseconds(given.threads, max(20, given.repeats // 20), 0.003), "bare_wake_us": bare_wake(),
        "idle_share": idle_share(given.threads),
        "machine": machine(),
    }  # fmt: skip
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
