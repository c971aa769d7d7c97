"""Sequences decoded together: tokens a second of 1 to 16 sequences of the random 0.85B Llama, in turns in one process.

    python bench/batch.py --work FOLDER [--format int4@32] [--threads 2] [--rounds 5] [--past 64] [--kv int8@64]

Every round measures each batch size once; figures are medians of the rounds' best of three steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from llama_0p85b import make_checkpoint

import anybit
from anybit.kernels.cpu import native, set_threads
from anybit.measure.machine import machine

SIZES = (1, 2, 4, 8, 16)


def measure(path: Path, past: int, rounds: int, kv: str | None) -> dict[int, float]:
    """Tokens a second by batch size."""
    engine = anybit.load(path).with_cache(kv).engine
    rng = np.random.default_rng(0)
    states = []
    for _ in range(max(SIZES)):
        states.append(engine.state(past + 1000))
        engine.forward(rng.integers(0, engine.spec.vocab, past), states[-1], all_logits=False)
    found: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(rounds):
        for size in SIZES:
            best = float("inf")
            for _ in range(3):
                tokens = rng.integers(0, engine.spec.vocab, size)
                begun = time.perf_counter()
                engine.step(tokens, states[:size])
                best = min(best, time.perf_counter() - begun)
            found[size].append(size / best)
    return {size: statistics.median(values) for size, values in found.items()}


def main() -> None:
    """Prints one JSON object."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--format", default="int4@32")
    options.add_argument("--threads", type=int, default=native.usable_cores())
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--past", type=int, default=64)
    options.add_argument("--kv", default=None)
    given = options.parse_args()
    set_threads(given.threads)
    given.work.mkdir(parents=True, exist_ok=True)
    speeds = measure(make_checkpoint(given.work, given.format), given.past, given.rounds, given.kv)
    result: dict[str, Any] = {
        "format": given.format, "kv": given.kv or "float", "past": given.past, "tokens_s": speeds,
        "over_one": {size: round(speed / speeds[1], 2) for size, speed in speeds.items()}, "machine": machine(),
    }  # fmt: skip
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
