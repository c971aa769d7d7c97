"""One matrix product beside OpenVINO's compressed-weight MatMul of the same bits and blocks, in turns.

    python bench/matmul_openvino.py --peer PYTHON [--rows 1,128] [--rounds 3] [--json FILE]

PYTHON is that of an environment with openvino. Each of OpenVINO's types runs with dynamic int8 activations (groups of 32) and without; the
faster of the two stands beside anybit with int8 activations. Weights of both rotate over 256 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from matmul import Case, larger, limits

from anybit.kernels.cpu import isa, set_threads
from anybit.measure.machine import machine, summary

PAIRS = {
    "u4 128": "uint4@128:fp16", "u4 32": "uint4@32:fp16", "i8 128": "int8@128:fp16", "f4e2m1 32": "fp4_e2m1@32:fp16",
    "nf4 64": "nf4@64:fp16", "u2 128": "uint2@128:fp16",
}  # fmt: skip
GROUPS = 0, 32


def beside(kind: str, expression: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Results of one pair: a row for each number of rows."""
    name, block = kind.split()
    case, shape = Case(expression, (options.n, options.k)), [str(options.n), str(options.k)]
    script, peers = str(Path(__file__).with_name("peer_openvino.py")), {}
    for group in GROUPS:
        command = [options.peer, script, *shape, name, block, str(group), str(options.threads)]
        peers[group] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    versions = {group: answer(peer) for group, peer in peers.items()}
    rows = [int(m) for m in options.rows.split(",")]
    inputs = {m: np.random.default_rng(m).standard_normal((m, options.k)).astype(np.float32) for m in rows}
    theirs: dict[tuple[int, int], list[float]] = {}
    for _ in range(options.rounds):
        for m, x in inputs.items():
            case.run("int8", m, x, options.seconds)
            for group, peer in peers.items():
                theirs.setdefault((m, group), []).extend(answer(peer, f"{m} {options.seconds}"))
    for peer in peers.values():
        peer.communicate()
    found = []
    for m in rows:
        own, medians = statistics.median(case.times["int8", m]), {g: statistics.median(theirs[m, g]) for g in GROUPS if theirs[m, g]}
        if not medians:
            raise SystemExit(f"OpenVINO runs {kind} in none of its ways")
        best = min(medians, key=lambda group: medians[group])
        work = 2 * m * options.n * options.k
        found.append({
            "format": expression, "kind": kind, "rows": m, "path": case.natives[0].kind, "anybit_gop_s": work / own / 1e9,
            "openvino_gop_s": work / medians[best] / 1e9, "openvino_group": best, "openvino": versions[best],
            "times_as_fast": medians[best] / own,
        })  # fmt: skip
    return found


def answer(peer: subprocess.Popen[str], line: str | None = None) -> Any:
    """What it says next, to a line if there is one; an empty list once it has ended: it does not run everything in every way."""
    assert peer.stdin is not None and peer.stdout is not None
    if line is not None and peer.poll() is None:
        peer.stdin.write(line + "\n")
        try:
            peer.stdin.flush()
        except BrokenPipeError:
            return []
    return next((json.loads(said) for said in peer.stdout if said[:1] in '["'), [])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--kinds", default=",".join(PAIRS))
    parser.add_argument("--rows", default="1,16,128")
    parser.add_argument("--n", type=int, default=14336)
    parser.add_argument("--k", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    set_threads(options.threads)
    load, top, results = os.getloadavg()[0], limits(options.threads), []
    for kind in options.kinds.split(","):
        for r in beside(kind, PAIRS[kind], options):
            line = (
                "{kind:10} {format:18} M={rows:<4} anybit {anybit_gop_s:6.0f} GOP/s  OpenVINO {openvino_gop_s:6.0f}  {times_as_fast:5.2f}x"
            )
            print(line.format(**r), flush=True)
            results.append(r)
    top = [larger(a, b) for a, b in zip(top, limits(options.threads), strict=True)]
    facts = machine() | {"isa": isa(), "threads": options.threads, "load_before": load, "limits": top}
    print(summary(machine()))
    if options.json:
        options.json.write_text(json.dumps(facts | {"n": options.n, "k": options.k, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
