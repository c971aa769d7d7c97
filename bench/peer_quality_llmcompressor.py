"""llm-compressor's GPTQ for quality_peers.py, run by the Python of an environment of its own.

    peer_quality_llmcompressor.py MODEL CALIBRATION OUT BITS GROUP

MODEL is a Hugging Face directory, CALIBRATION a .npy of int32[sequences, length]. Symmetric integers, static activation order, every option
that is not said as its default recipe has it. OUT receives the dequantized float32 matrices (.npz); the last line of standard output
is JSON: seconds, versions, settings.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version


def main() -> None:
    """Quantizes in float32 arithmetic, so that nothing but its own codes and scales loses anything."""
    answers, sys.stdout = sys.stdout, sys.stderr  # its log goes to standard output
    path, calibration, out, bits, group = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
    import numpy as np
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    ids = np.load(calibration)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    rows = {"input_ids": ids.tolist(), "attention_mask": np.ones_like(ids).tolist()}
    weights = QuantizationArgs(num_bits=bits, type="int", symmetric=True, strategy="group", group_size=group)
    recipe = GPTQModifier(config_groups={"all": QuantizationScheme(targets=["Linear"], weights=weights)}, ignore=["lm_head"])
    begun = time.perf_counter()
    oneshot(
        model=model, dataset=Dataset.from_dict(rows), recipe=recipe, max_seq_length=ids.shape[1], num_calibration_samples=len(ids),
        tokenizer=AutoTokenizer.from_pretrained(path), shuffle_calibration_samples=False,
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items() if name.endswith("_proj.weight")}
    np.savez(out, **state)
    said = {
        "seconds": seconds, "versions": {name: version(name) for name in ("llmcompressor", "compressed-tensors", "torch", "transformers")},
        "settings": {"damp": recipe.dampening_frac, "order": str(recipe.actorder), "samples": list(ids.shape)},
    }  # fmt: skip
    print(json.dumps(said), file=answers)


if __name__ == "__main__":
    main()
