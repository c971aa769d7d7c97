"""One matrix product by format and number of rows, beside the machine's limits: decode in GB/s read, prefill in GOP/s.

    python bench/matmul.py [--formats int4@128,mxfp4,...] [--rows 1,8,128] [--act int8|float] [--threads 2] [--json FILE]

Weights rotate over at least 256 MB, so that no cache holds them; bytes are those that are read (codes, scales, zero points), padding
included. The table gives the median over several rounds and the best. Limits are measured in the same run by bench/roofline.c.
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
from typing import Any

HERE = Path(__file__).resolve().parent
FORMATS = "int8@128,int4@128,int4@32,mxfp4,nvfp4,nf4@64,int3@128,int2@128,ternary@256,int5@128,int6@128,fp6_e3m2@128,mxfp6,mxfp8"
ROTATE = 256 << 20


def limits(threads: int) -> list[dict[str, Any]]:
    """Read bandwidth and arithmetic peaks for 1 and `threads` threads; nothing without a C compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return []
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "roofline"
        subprocess.run([compiler, "-O3", "-pthread", str(HERE / "roofline.c"), "-o", str(binary)], check=True)
        found = subprocess.run([str(binary), str(threads)], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in found.stdout.splitlines()]


class Case:
    """One format's weights in rotation, and the times of one call for each number of rows."""

    def __init__(self, expression: str, shape: tuple[int, int], act: str | None) -> None:
        from anybit.formats import Spec
        from anybit.measure.speed import generated_weight

        self.name, self.shape, self.act = expression, shape, act
        first = generated_weight(Spec.parse(expression), shape)
        self.nbytes = first.nbytes
        copies = -(-ROTATE // self.nbytes)
        self.weights = [first] + [self.copy(first) for _ in range(copies - 1)]
        self.natives = [weight.native for weight in self.weights]
        self.times: dict[int, list[float]] = {}
        self.at = 0

    @staticmethod
    def copy(weight: Any) -> Any:
        from anybit.tensor import QTensor

        return QTensor.from_stored(weight.format, weight.shape, weight.layout, {name: part.copy() for name, part in weight.parts.items()})

    def run(self, rows: int, x: Any, seconds: float) -> None:
        from anybit.kernels.cpu import ACTS

        act, end = ACTS[self.act], time.perf_counter() + seconds
        found = self.times.setdefault(rows, [])
        while True:
            weight = self.natives[self.at % len(self.natives)]
            self.at += 1
            begun = time.perf_counter()
            weight.matmul(x, act, None)
            now = time.perf_counter()
            found.append(now - begun)
            if now > end:
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--formats", default=FORMATS)
    parser.add_argument("--rows", default="1,8,128")
    parser.add_argument("--act", default="int8", choices=["int8", "float"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--n", type=int, default=14336)
    parser.add_argument("--k", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.15, help="of each format and number of rows in each round")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    import numpy as np

    from anybit.kernels.cpu import isa, set_threads

    set_threads(options.threads)
    rows = [int(m) for m in options.rows.split(",")]
    act = None if options.act == "float" else options.act
    load = os.getloadavg()[0]
    peaks = limits(options.threads)
    shape = (options.n, options.k)
    rng = np.random.default_rng(0)
    inputs = {m: rng.standard_normal((m, options.k)).astype(np.float32) for m in rows}
    results = []
    for name in options.formats.split(","):  # one format's rotation in memory at a time
        case = Case(name, shape, act)
        for _ in range(options.rounds):
            for m in rows:
                case.run(m, inputs[m], options.seconds)
        for m in rows:
            median, best = statistics.median(case.times[m]), min(case.times[m])
            work = 2 * m * shape[0] * shape[1]
            result = {
                "format": name, "rows": m, "path": case.natives[0].kind, "calls": len(case.times[m]), "nbytes": case.nbytes,
                "read_gb_s": case.nbytes / median / 1e9, "read_gb_s_best": case.nbytes / best / 1e9,
                "gop_s": work / median / 1e9, "gop_s_best": work / best / 1e9,
            }  # fmt: skip
            results.append(result)
            text = "{format:18} M={rows:<4} {path:6} {read_gb_s:6.1f} GB/s ({read_gb_s_best:.1f}) {gop_s:6.0f} GOP/s ({gop_s_best:.0f})"
            print(text.format(**result), flush=True)
    about = {"isa": isa(), "threads": options.threads, "load_before": load, "limits": peaks}
    print(json.dumps(about))
    report = about | {"act": options.act, "n": shape[0], "k": shape[1], "results": results}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
