"""Predictions of llama.cpp and of our engine on the same GGUF files, which `anybit export` writes of the bundled model.

    python bench/llamacpp_agrees.py --peers-python PYTHON [--types q4_0,q4_k] [--out FILE.json]

PYTHON is the interpreter of an environment with llama-cpp-python and numpy, which runs this file's second half. Prints for each type the
KL divergence of llama.cpp from us in nats a token, the share of equal most likely tokens and the largest difference of logits over the
largest logit, with our activations float and int8. llama.cpp keeps a float32 cache here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TYPES = "f32,f16,bf16,q4_0,q4_1,q5_0,q5_1,q8_0,q2_k,q3_k,q4_k,q5_k,q6_k,iq4_nl,iq4_xs,tq1_0,tq2_0,mxfp4,nvfp4"
TOKENS, WINDOW = 4096, 512


def peer(file: str, ids: str, out: str) -> None:
    """llama.cpp's logits of every position, float32[windows, tokens, vocabulary]."""
    import llama_cpp

    windows = np.load(ids)
    n = windows.shape[1]
    model = llama_cpp.Llama(
        file, n_ctx=n, n_batch=n, n_ubatch=n, n_threads=2, logits_all=True, verbose=False, type_k=0, type_v=0, flash_attn=False
    )  # fmt: skip
    rows = []
    for window in windows:
        model.reset()
        model.eval(window.tolist())
        rows.append(np.array(model.scores[:n], np.float32))
    np.save(out, np.stack(rows))


def log_softmax(x: np.ndarray) -> np.ndarray:
    """In float64."""
    x = x.astype(np.float64) - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def main() -> None:
    """Exports, runs both, prints."""
    import anybit
    from anybit.export import prepare, write
    from anybit.measure.text import default_text

    parser = argparse.ArgumentParser()
    parser.add_argument("--peers-python", required=True)
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--out")
    options = parser.parse_args()
    base = anybit.load("pycoder-5m")
    windows = np.asarray(default_text(base.tokenizer, TOKENS, 0).ids[:TOKENS]).reshape(-1, WINDOW)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        ids, logits = Path(folder) / "ids.npy", Path(folder) / "logits.npy"
        np.save(ids, windows)
        for kind in options.types.split(","):
            file = Path(folder) / f"{kind}.gguf"
            whole = kind in ("f32", "f16", "bf16")  # llama.cpp rounds what it multiplies with bf16 and fp16 to them
            write(prepare("pycoder-5m", f"gguf:{kind}", keep=None if whole else "embed_tokens|lm_head"), file)
            subprocess.run([options.peers_python, __file__, "peer", str(file), str(ids), str(logits)], check=True)
            theirs, ours = np.load(logits), anybit.load(file)
            for act in ("float", "int8"):
                runs = ours.with_act(act) if ours.quantized else ours
                mine = np.stack([runs.logits(window) for window in windows])
                a, b = log_softmax(mine), log_softmax(theirs)
                one = {
                    "type": kind, "act": act, "kl": float((np.exp(a) * (a - b)).sum(axis=-1).mean()),
                    "top1": float((mine.argmax(-1) == theirs.argmax(-1)).mean()),
                    "relative": float(np.abs(mine - theirs).max() / np.abs(theirs).max()),
                }  # fmt: skip
                found.append(one)
                print("{type:8} {act:6} KL {kl:.3g}  top-1 {top1:.4f}  relative {relative:.3g}".format(**one), flush=True)
            file.unlink()
    if options.out:
        Path(options.out).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    peer(*sys.argv[2:]) if sys.argv[1:2] == ["peer"] else main()
