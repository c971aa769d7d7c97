"""One matrix product by format and number of rows, beside the machine's limits: decode in GB/s read, prefill in GOP/s.

    python bench/matmul.py [--formats int4@128,mxfp4,...] [--rows 1,2,4,8,16,128] [--act int8|float|both] [--threads 2] [--json FILE]

Weights rotate over at least 256 MB, so that no cache holds them; bytes are those that are read (codes, scales, zero points), padding
included. The table gives the median over several rounds and the best, as shares of the limits (of reading; of int8, int16 or float32
arithmetic, as the weight's path has it), and the time beside that of one row. Limits are measured by bench/roofline.c before the run and
after it; the larger counts.
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
FORMATS = (
    "int8@128,int8@channel,int4@128,int4@64,int4@32,uint4@128:fp16+zp,uint4@32:fp16+off,mxfp4,nvfp4,nf4@64,int3@128,int2@128,binary@128,"
    "ternary@256,ternary@256:fp16+pack=base3,int5@128,int6@128,fp6_e3m2@128,mxfp6,mxfp8,fp8_e4m3fn@128,posit8@128,dyn8@128,bf16"
)
PEAKS = {"u8": "int8_gop_s", "s8": "int8_gop_s", "i16": "int16_gop_s"}
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
    """One format's weights in rotation, and the times of one call for each kind of activations and number of rows."""

    def __init__(self, expression: str, shape: tuple[int, int]) -> None:
        from anybit.formats import Spec
        from anybit.measure.speed import generated_weight

        self.name, self.shape = expression, shape
        first = generated_weight(Spec.parse(expression), shape)
        self.nbytes = first.nbytes
        copies = -(-ROTATE // self.nbytes)
        self.weights = [first] + [self.copy(first) for _ in range(copies - 1)]
        self.natives = [weight.native for weight in self.weights]
        self.takes_int8 = first.format.block is not None and first.format.element.table.kind != "f32"
        self.times: dict[tuple[str, int], list[float]] = {}
        self.at = 0

    @staticmethod
    def copy(weight: Any) -> Any:
        from anybit.tensor import QTensor

        return QTensor.from_stored(weight.format, weight.shape, weight.layout, {name: part.copy() for name, part in weight.parts.items()})

    def run(self, name: str, rows: int, x: Any, seconds: float) -> None:
        from anybit.kernels.cpu import ACTS

        act, end = ACTS[None if name == "float" else name], time.perf_counter() + seconds
        found = self.times.setdefault((name, rows), [])
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
    parser.add_argument("--rows", default="1,4,8,128")
    parser.add_argument("--act", default="both", choices=["int8", "float", "both"])
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
    acts = ["int8", "float"] if options.act == "both" else [options.act]
    load = os.getloadavg()[0]
    peaks = limits(options.threads)
    shape = (options.n, options.k)
    rng = np.random.default_rng(0)
    inputs = {m: rng.standard_normal((m, options.k)).astype(np.float32) for m in rows}
    results = []
    for name in options.formats.split(","):  # one format's rotation in memory at a time
        results += measure(Case(name, shape), acts, inputs, options)
    peaks = [larger(a, b) for a, b in zip(peaks, limits(options.threads), strict=True)]
    top = peaks[-1] if peaks else {}
    for r in results:
        peak = top.get(PEAKS.get(r["path"], "float32_gflop_s") if r["act"] == "int8" else "float32_gflop_s")
        r["read_share"], r["peak_share"] = (r["read_gb_s"] / top["read_gb_s"], r["gop_s"] / peak) if peak else (None, None)
        shares = f"{100 * r['read_share']:4.0f} % read {100 * r['peak_share']:4.0f} % peak" if peak else ""
        text = "{format:28} {act:5} M={rows:<4} {path:6} {read_gb_s:6.1f} GB/s ({read_gb_s_best:.1f}) {gop_s:6.0f} GOP/s ({gop_s_best:.0f})"
        print(text.format(**r), f"{r['times_one_row']:5.2f}x", shares)
    about = {"isa": isa(), "threads": options.threads, "load_before": load, "limits": peaks}
    print(json.dumps(about))
    if options.json:
        options.json.write_text(json.dumps(about | {"n": shape[0], "k": shape[1], "results": results}, indent=1) + "\n")


def larger(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The larger of each limit."""
    return {key: max(a[key], b[key]) if key.endswith("_s") else a[key] for key in a}


def measure(case: Case, acts: list[str], inputs: dict[int, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of results of one format: activations and numbers of rows in turns."""
    acts = [act for act in acts if act == "float" or case.takes_int8]
    for _ in range(options.rounds):
        for act in acts:
            for m, x in inputs.items():
                case.run(act, m, x, options.seconds)
    n, k = case.shape
    found = []
    for act in acts:
        one = None
        for m in inputs:
            times = case.times[act, m]
            median, best = statistics.median(times), min(times)
            one = one or median
            path = case.natives[0].kind if act == "int8" else "float"
            found.append({
                "format": case.name, "act": act, "rows": m, "path": path, "calls": len(times), "nbytes": case.nbytes,
                "read_gb_s": case.nbytes / median / 1e9, "read_gb_s_best": case.nbytes / best / 1e9,
                "gop_s": 2 * m * n * k / median / 1e9, "gop_s_best": 2 * m * n * k / best / 1e9, "times_one_row": median / one,
            })  # fmt: skip
    return found


if __name__ == "__main__":
    main()
