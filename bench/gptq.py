"""GPTQ of one layer, int4 in blocks of 128 with the same scales, beside llm-compressor's in the same run, in turns.

    python bench/gptq.py [--size 4096] [--rounds 2] [--threads N] [--peer PYTHON] [--formula] [--json FILE]

PYTHON is that of an environment with llmcompressor; --formula also works through the paper's algorithm in float64, in this file. Figures
are the best of the rounds. The loss is tr(E H E^T) on undamped statistics: the
two differ by the order of roundings, and by rows that anybit leaves at nearest codes where those are better.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from anybit.formats import Spec
from anybit.kernels import cpu
from anybit.measure.machine import machine, summary
from anybit.methods.gptq import Gptq
from anybit.methods.rtn import dequantize_parts, quantize_parts, stored_grids
from anybit.methods.statistics import Statistics
from anybit.methods.step import Target

EXPRESSION = "int4@128:fp32"


def layer(size: int) -> tuple[np.ndarray, Statistics]:
    """A weight [size, size] and statistics of correlated inputs with a few strong channels, 2 * size tokens."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((64, size), np.float32) / 8
    stats = Statistics(size, frozenset({"xtx"}))
    for _ in range(4):
        x = rng.standard_normal((size // 2, 64), np.float32) @ mix + 0.5 * rng.standard_normal((size // 2, size), np.float32)
        stats.add(x * np.exp(rng.standard_normal(size).astype(np.float32) / 3), "layer")
    return rng.standard_normal((size, size), np.float32) * np.float32(0.02), stats


def ours(w: np.ndarray, stats: Statistics) -> tuple[float, np.ndarray]:
    """Seconds, and the values."""
    target = Target("layer", w, Spec.parse(EXPRESSION))
    stats.factored = None  # matrices of one input would share it
    begun = time.perf_counter()
    Gptq().round(target, stats)
    return time.perf_counter() - begun, target.rounded


def formula(w: np.ndarray, h: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Values by algorithm 1 of arXiv 2210.17323 in float64, largest diagonal first, damping 0.01; rows that nearest codes serve better
    keep them."""
    size, damped = len(h), h.astype(np.float64)
    damped[np.diag_indices(size)] += 0.01 * np.diag(h).mean(dtype=np.float64)
    order = np.argsort(-np.diag(h), kind="stable")
    u = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    steps = scale.astype(np.float64).repeat(w.shape[1] // scale.shape[1], axis=1)[:, order]
    left, q = w.astype(np.float64)[:, order], np.empty(w.shape)
    for begin in range(0, size, 128):
        block = slice(begin, begin + 128)
        errors = np.empty((len(w), left[:, block].shape[1]))
        for at in range(begin, begin + errors.shape[1]):
            q[:, at] = (np.clip(np.rint(left[:, at] / steps[:, at]), -8, 7) * steps[:, at]).astype(np.float32)
            errors[:, at - begin] = (left[:, at] - q[:, at]) / u[at, at]
            left[:, at + 1 : block.stop] -= np.outer(errors[:, at - begin], u[at, at + 1 : block.stop])
        left[:, block.stop :] -= errors @ u[block, block.stop :]
    values = np.empty_like(q)
    values[:, order] = q
    steps[:, order] = steps.copy()
    nearest = (np.clip(np.rint(w / steps), -8, 7) * steps).astype(np.float32)
    worse = row_losses(w, values, damped) > row_losses(w, nearest, damped)
    values[worse] = nearest[worse]
    return values


def row_losses(w: np.ndarray, q: np.ndarray, h: np.ndarray) -> np.ndarray:
    """(w - q) h (w - q)^T of each row."""
    error = w - q
    return ((error @ h) * error).sum(axis=1)


def loss(w: np.ndarray, q: np.ndarray, h: np.ndarray) -> float:
    """tr((w - q) h (w - q)^T)."""
    error = w - q
    return float(((error @ h) * error).sum(dtype=np.float64))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer")
    parser.add_argument("--formula", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    cpu.set_threads(given.threads)
    w, stats = layer(given.size)
    assert stats.xtx is not None
    h = stats.xtx / stats.count
    parts = quantize_parts(w, EXPRESSION)
    fmt = Spec.parse(EXPRESSION).format
    found: dict[str, Any] = {"machine": machine(), "size": given.size, "format": EXPRESSION, "threads": given.threads}
    found["nearest"] = {"loss": loss(w, dequantize_parts(parts, fmt, w.shape), h)}
    with tempfile.TemporaryDirectory() as folder:
        peer = None
        if given.peer:
            file = Path(folder) / "layer.npz"
            np.savez(file, weight=w, hessian=h, scale=stored_grids(parts, fmt, w.shape).scale)
            command = [given.peer, str(Path(__file__).with_name("peer_llmcompressor.py")), str(file), str(given.threads)]
            peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert peer.stdin is not None and peer.stdout is not None
            found["peer"] = {"versions": json.loads(peer.stdout.readline()), "seconds": []}
        own: list[float] = []
        for _ in range(given.rounds):
            time.sleep(0.5)  # threads of what ran before may spin for a while
            seconds, values = ours(w, stats)
            own.append(seconds)
            if peer is not None and peer.stdin is not None and peer.stdout is not None:
                time.sleep(0.5)
                peer.stdin.write("\n")
                peer.stdin.flush()
                answer = json.loads(peer.stdout.readline())
                found["peer"]["seconds"].append(answer["seconds"])
                found["peer"]["loss"] = answer["loss"]
        if peer is not None and peer.stdin is not None:
            peer.stdin.close()
            peer.wait()
    found["anybit"] = {"seconds": own, "loss": loss(w, values, h)}
    if given.formula:
        expected = formula(w, h, stored_grids(parts, fmt, w.shape).scale)
        exact = h.astype(np.float64)
        apart, others = abs(row_losses(w, values, exact).sum() / row_losses(w, expected, exact).sum() - 1), int((values != expected).sum())
        found["formula"] = {"loss": loss(w, expected, h), "relative_difference": apart, "values_that_differ": others}
    print(summary(found["machine"]))
    for name in ("nearest", "formula", "anybit", "peer"):
        if name in found:
            seconds = f"{min(found[name]['seconds']):8.2f} s" if "seconds" in found[name] else 10 * " "
            print(f"{name:8}{seconds}  loss {found[name]['loss']:.6g}")
    if "formula" in found:
        apart, others = found["formula"]["relative_difference"], found["formula"]["values_that_differ"]
        print(f"{others} of {w.size} values differ from the formula's, the loss by {apart:.1e} of it")
    if "peer" in found:
        print(f"anybit is {min(found['peer']['seconds']) / min(own):.2f} times as fast")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
