"""llm-compressor's side of gptq.py, run by the Python of an environment of its own.

    peer_llmcompressor.py FILE THREADS      answers each line on standard input with the seconds that its GPTQ of the layer in FILE took

FILE is a .npz of weight float32[n, k], hessian float32[k, k] (the mean of x x^T) and scale float32[n, k / 128]: int4, groups of 128, static
activation order, as its default recipe has it. The last line holds, beside the seconds, the loss of its result tr(E H E^T).
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time


def main() -> None:
    """Prints versions, then one line of JSON for each line that comes."""
    answers, sys.stdout = sys.stdout, sys.stderr  # its log goes to standard output
    import numpy as np
    import torch
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    torch.set_num_threads(int(sys.argv[2]))
    held = np.load(sys.argv[1])
    w, h, scale = (torch.from_numpy(held[name]) for name in ("weight", "hessian", "scale"))
    args = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=128, actorder="static")
    versions = {name: importlib.metadata.version(name) for name in ("llmcompressor", "compressed-tensors", "torch")}
    print(json.dumps(versions), file=answers, flush=True)
    for _ in sys.stdin:
        weights, hessians = w.clone()[None], h.clone()[None]  # both are working memory to it
        begun = time.perf_counter()
        with torch.no_grad():
            found = quantize_weight(weights, hessians, scale[None], torch.zeros_like(scale, dtype=torch.int8)[None], None, args)
        seconds = time.perf_counter() - begun
        error = (w - found[0][0]).double()
        print(json.dumps({"seconds": seconds, "loss": float(((error @ h.double()) * error).sum())}), file=answers, flush=True)


if __name__ == "__main__":
    main()
