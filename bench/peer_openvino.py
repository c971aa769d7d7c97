"""OpenVINO for matmul_openvino.py, run by the Python of an environment of its own.

    peer_openvino.py N K KIND BLOCK GROUP THREADS

One matrix [N, K] of OpenVINO's type KIND (u4, i8, f4e2m1, nf4, u2) with a float16 scale for each BLOCK of K, compiled often enough to fill
256 MB; GROUP: what DYNAMIC_QUANTIZATION_GROUP_SIZE is set to (0: float activations). The first line of standard output says the version;
then each line "ROWS SECONDS" on standard input is answered with a JSON list of the seconds of single calls.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from typing import Any

ROTATE = 256 << 20
BITS = {"u4": 4, "i8": 8, "f4e2m1": 4, "nf4": 4, "u2": 2}


def product(n: int, k: int, kind: str, block: int) -> Any:
    """x[-1, k] times the transpose of codes that are converted and multiplied by their scales: what OpenVINO fuses."""
    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops

    rng = np.random.default_rng(0)
    codes = ov.Tensor(getattr(ov.Type, kind), [n, k // block, block])
    stored = codes.data.reshape(-1).view(np.uint8)
    stored[:] = rng.integers(0, 256, stored.size, np.uint8)
    scales = ops.constant(rng.uniform(0.5, 1.5, (n, k // block, 1)).astype(np.float16))
    values = ops.multiply(ops.convert(ov.op.Constant(codes), np.float32), ops.convert(scales, np.float32))
    x = ops.parameter([-1, k], np.float32)
    return ov.Model([ops.matmul(x, ops.reshape(values, ops.constant(np.array([n, k])), False), False, True)], [x], "product")


def main() -> None:
    """Compiles, then answers until its input ends."""
    import numpy as np
    import openvino as ov

    n, k = map(int, sys.argv[1:3])
    kind, (block, group, threads) = sys.argv[3], map(int, sys.argv[4:7])
    settings = {"INFERENCE_NUM_THREADS": threads, "DYNAMIC_QUANTIZATION_GROUP_SIZE": group, "PERFORMANCE_HINT": "LATENCY"}
    core, copies = ov.Core(), -(-ROTATE // (n * k * BITS[kind] // 8))
    compiled = [core.compile_model(product(n, k, kind, block), "CPU", settings).create_infer_request() for _ in range(copies)]
    turn = itertools.cycle(compiled)
    print(json.dumps(ov.__version__), flush=True)
    for line in sys.stdin:
        rows, seconds = line.split()
        x = np.random.default_rng(1).standard_normal((int(rows), k), dtype=np.float32)
        for request in compiled:  # shapes are dynamic: the first call of each prepares
            request.infer([x], share_inputs=True, share_outputs=True)
        found, end = [], time.perf_counter() + float(seconds)
        while time.perf_counter() < end:
            request, begun = next(turn), time.perf_counter()
            request.infer([x], share_inputs=True, share_outputs=True)
            found.append(time.perf_counter() - begun)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
