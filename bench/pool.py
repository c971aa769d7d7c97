"""Fork and join of the pool: microseconds of a job right after the last one and after a sleep, and the time that idle workers use.

    python bench/pool.py [--threads 2] [--repeats 2000]

Each job has one task a thread, which ends when all have begun, so that every thread has to come (or 5 ms have passed).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

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
        "after_sleep_us": microseconds(given.threads, max(20, given.repeats // 20), 0.003), "idle_share": idle_share(given.threads),
        "machine": machine(),
    }  # fmt: skip
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
