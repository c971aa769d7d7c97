"""Predictions of llama.cpp and of our engine on the same GGUF files, which `anybit export` writes of the bundled model.

    python bench/llamacpp_agrees.py --peers-python PYTHON [--types q4_0,q4_k] [--out FILE.json]

PYTHON is the interpreter of an environment with llama-cpp-python and numpy, which runs this file's second half. Prints for each type the
KL divergence of llama.cpp from us in nats a token, the share of equal most likely tokens and the largest difference of logits over the
largest logit, three times:

float   both with float32 activations. On a CPU llama.cpp has those beside F32 weights alone, so that its own `llama_model_quantize` first
        turns the same file into F32, which says also that both decode the same numbers.
same    activations as llama.cpp rounds them beside that type (`ACTS`), here too.
int8    its activations beside our usual ones: int8 with the block of the weights.

llama.cpp keeps a float32 cache here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

_BY_32, _BY_256 = "int8_sym@32:fp32", "int8_sym@256:fp32"
ACTS = {
    "f32": None, "f16": None, "bf16": None, "q4_0": _BY_32, "q4_1": _BY_32, "q5_0": _BY_32, "q5_1": _BY_32, "q8_0": _BY_32,
    "q1_0": _BY_32, "q2_0": _BY_32, "iq4_nl": _BY_32, "mxfp4": _BY_32, "nvfp4": _BY_32, "q2_k": _BY_256, "q3_k": _BY_256, "q4_k": _BY_256,
    "q5_k": _BY_256, "q6_k": _BY_256, "iq4_xs": _BY_256, "tq1_0": _BY_256, "tq2_0": _BY_256,
    "iq1_s": _BY_256, "iq1_m": _BY_256, "iq2_xxs": _BY_256, "iq2_xs": _BY_256, "iq2_s": _BY_256, "iq3_xxs": _BY_256, "iq3_s": _BY_256,
}  # fmt: skip
"""By type of the weights the format that llama.cpp's CPU code rounds activations to (`vec_dot_type`): Q8_0 and Q8_1, whose codes are chosen
with a float32 scale that is rounded to float16 afterwards, or Q8_K, with a float32 one; |q| <= 127 in all of them. Beside F16 and BF16 it
rounds them to the dtype of the matrix, in every file."""
TOKENS, WINDOW = 4096, 512


def peer(file: str, ids: str, out: str, as_float: str) -> None:
    """llama.cpp's logits of every position, float32[windows, tokens, vocabulary]; as_float: another file to be made, of the same in F32."""
    import llama_cpp

    if as_float:
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize, params.nthread = llama_cpp.LLAMA_FTYPE_ALL_F32, True, 2
        if llama_cpp.llama_model_quantize(file.encode(), as_float.encode(), params):
            raise SystemExit(f"llama.cpp turns {file} into no F32")
        file = as_float
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


def rounded(model: Any, act: str | None) -> Any:
    """The model with activations in a format, and beside a dense matrix in that matrix's dtype: what llama.cpp multiplies with."""
    from anybit.activations import ActSpec

    changed = {}
    for name, linear in model.linears.items():
        dense = str(linear.weight.format.plain)
        changed[name] = replace(linear, act=ActSpec.named(act if name in model.quantized else None if dense == "fp32" else dense))
    return replace(model, weights={**model.weights, **changed})


def main() -> None:
    """Exports, runs both, prints."""
    import anybit
    from anybit.export import prepare, write
    from anybit.measure.machine import machine
    from anybit.measure.text import default_text

    parser = argparse.ArgumentParser()
    parser.add_argument("--peers-python", required=True)
    parser.add_argument("--types", default=",".join(ACTS))
    parser.add_argument("--out")
    options = parser.parse_args()
    base = anybit.load("pycoder-5m")
    windows = np.asarray(default_text(base.tokenizer, TOKENS, 0).ids[:TOKENS]).reshape(-1, WINDOW)
    asked = subprocess.run([options.peers_python, "-c", "import llama_cpp; print(llama_cpp.__version__)"], capture_output=True, text=True)
    version = f"llama-cpp-python {asked.stdout.strip()}"
    found = []
    with tempfile.TemporaryDirectory() as folder:
        ids, logits, floats = (Path(folder) / name for name in ("ids.npy", "logits.npy", "float.gguf"))
        np.save(ids, windows)

        def theirs(file: Path, as_float: str) -> np.ndarray:
            command = [options.peers_python, __file__, "peer", str(file), str(ids), str(logits), as_float]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{file.name}: {done.stderr[-2000:]}")
            return np.load(logits)

        for kind in options.types.split(","):
            file = Path(folder) / f"{kind}.gguf"
            write(prepare("pycoder-5m", f"gguf:{kind}", keep="embed_tokens|lm_head" if ACTS[kind] else None), file)
            ours, rounding = anybit.load(file), theirs(file, "")
            runs = [("float", ours, theirs(file, str(floats))), ("same", rounded(ours, ACTS[kind]), rounding)]
            if ours.quantized:
                runs.append(("int8", ours.with_act("int8"), rounding))
            for act, model, other in runs:
                mine = np.stack([model.logits(window) for window in windows])
                a, b = log_softmax(mine), log_softmax(other)
                one = {
                    "type": kind, "act": act, "kl": float((np.exp(a) * (a - b)).sum(axis=-1).mean()),
                    "top1": float((mine.argmax(-1) == other.argmax(-1)).mean()),
                    "relative": float(np.abs(mine - other).max() / np.abs(other).max()), "date": time.strftime("%Y-%m-%d"),
                }  # fmt: skip
                found.append(one)
                print("{type:8} {act:6} KL {kl:.3g}  top-1 {top1:.4f}  relative {relative:.3g}".format(**one), flush=True)
            file.unlink()
            floats.unlink()
    if options.out:
        said = {"machine": machine(), "model": "pycoder-5m", "tokens": TOKENS, "window": WINDOW}
        Path(options.out).write_text(json.dumps({**said, "llama_cpp": version, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    peer(*sys.argv[2:]) if sys.argv[1:2] == ["peer"] else main()
