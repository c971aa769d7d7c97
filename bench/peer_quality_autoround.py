"""AutoRound for quality_peers.py, run by the Python of an environment of its own.

    peer_quality_autoround.py MODEL CALIBRATION OUT BITS GROUP ITERATIONS SAMPLES LENGTH BATCH

MODEL is a Hugging Face directory, CALIBRATION a .npy of int32[sequences, length], of which SAMPLES windows of LENGTH tokens are taken,
BATCH an iteration. Symmetric integers. OUT receives the dequantized float32 matrices (.npz); the last line of standard output is JSON.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version


def main() -> None:
    """Its own defaults but for what the arguments say, float32 throughout, and no torch.compile, which is about time alone."""
    answers, sys.stdout = sys.stdout, sys.stderr
    path, calibration, out = sys.argv[1:4]
    bits, group, iterations, samples, length, batch = map(int, sys.argv[4:10])
    import numpy as np
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = np.load(calibration)[:samples, :length].astype(np.int64)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    windows = [torch.from_numpy(row[None]) for row in ids]
    scheme = {"bits": bits, "group_size": group, "sym": True, "data_type": "int", "act_bits": 16}
    rounds = AutoRound(
        model, AutoTokenizer.from_pretrained(path), scheme=scheme, dataset=windows, iters=iterations, seqlen=length,
        nsamples=len(ids), batch_size=batch, device_map="cpu", seed=42, amp=False, enable_torch_compile=False,
    )  # fmt: skip
    begun = time.perf_counter()
    found = rounds.quantize()
    seconds = time.perf_counter() - begun
    made = found[0] if isinstance(found, tuple) else model
    state = {name: tensor.float().numpy() for name, tensor in made.state_dict().items() if name.endswith("_proj.weight")}
    np.savez(out, **state)
    said = {
        "seconds": seconds, "versions": {name: version(name) for name in ("auto-round", "torch", "transformers")},
        "settings": {"iterations": iterations, "samples": list(ids.shape), "batch": batch},
    }  # fmt: skip
    print(json.dumps(said), file=answers)


if __name__ == "__main__":
    main()
