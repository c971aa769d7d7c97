"""Brevitas' side of rounding.py, run by the Python of an environment of its own: one MXFP4 round trip for each line on standard input.

    peer_brevitas.py COUNT ROW      answers each line with the seconds that one round trip of COUNT float32 in rows of ROW took
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from typing import Any


def main() -> None:
    """Prints versions, then one figure a line."""
    import torch
    from brevitas.nn import QuantIdentity
    from brevitas.quant.mx_quant_ocp import MXFloat8e4m3Act

    class MXFP4(MXFloat8e4m3Act):  # type: ignore[misc]
        bit_width, exponent_bit_width, mantissa_bit_width = 4, 2, 1

    torch.set_num_threads(1)
    count, row = int(sys.argv[1]), int(sys.argv[2])
    layer: Any = QuantIdentity(MXFP4, group_dim=-1, group_size=32).eval()
    x = torch.randn(count // row, row, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        values = layer(x[:1, :64])
        few = values if isinstance(values, torch.Tensor) else values.value
        scales = x[0, :64].reshape(2, 32).abs().amax(1).log2().floor().sub(2).exp2().repeat_interleave(32)
        grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        assert bool(torch.isin((few.reshape(-1) / scales).abs(), grid).all()), "this is no MXFP4"
        print(json.dumps({name: importlib.metadata.version(name) for name in ("brevitas", "torch")}), flush=True)
        for _ in sys.stdin:
            begun = time.perf_counter()
            layer(x)
            print(time.perf_counter() - begun, flush=True)


if __name__ == "__main__":
    main()
