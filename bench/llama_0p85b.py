"""Prefill and decode of a random-weight 0.85B Llama: anybit's formats against llama.cpp's types, taken in turns on one machine.

    python bench/llama_0p85b.py --work FOLDER --peers-python PYTHON [--formats int4@32,gguf:q4_k,...] [--types q4_0,...] [--rounds 3]

A format `gguf:TYPE` is llama.cpp's own file of that type, opened by anybit and run from its mapped bytes with int8 activations.

Each figure is taken in a process of its own, in turns (anybit, llama.cpp, anybit, ...), so that a machine that slows down slows both.
Without --peers-python only anybit is measured. See bench/README.md for what is measured and how the weights are made.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from itertools import zip_longest
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DECODED = 32
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 5632,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip


def make_checkpoint(folder: Path, expression: str) -> Path:
    """A saved model with every matrix, embedding and head included, in one format."""
    import numpy as np

    from anybit.formats import Spec
    from anybit.linear import ActSpec, Linear
    from anybit.measure.speed import generated_weight
    from anybit.model import Model
    from anybit.models import describe

    path = folder / re.sub(r"[^\w.@+=-]", "_", expression)
    if path.exists():
        return path
    spec, model = Spec.parse(expression), describe(CONFIG)
    weights: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for tensor in model.tensors:
        if tensor.role == "norm":
            weights[tensor.name] = np.ones(tensor.shape, np.float32)
            plain[tensor.name] = ("F32", weights[tensor.name])
        else:
            act = None if tensor.role == "embedding" or spec.format.dense else ActSpec.named("int8")
            weights[tensor.name] = Linear(generated_weight(spec, (tensor.shape[0], tensor.shape[1])), act=act)
    Model(CONFIG, model, weights, plain).save(path)
    return path


def measure_anybit(path: Path, threads: int, prompt: int) -> dict[str, Any]:
    """One run in this process: opening, prefill, decoding, memory."""
    import numpy as np

    import anybit
    from anybit.kernels.cpu import isa, set_threads
    from anybit.measure.memory import memory, reset_peak

    set_threads(threads)
    before = memory()
    reset_peak()
    begun = time.perf_counter()
    model = anybit.load(path)
    if path.suffix == ".gguf":
        model = model.with_act("int8")
    load_s = time.perf_counter() - begun
    engine = model.engine
    ids = np.random.default_rng(0).integers(300, 30000, prompt).astype(np.int32)
    engine.forward(ids[:4], engine.state(8), all_logits=False)
    prefill = []
    for _ in range(2):
        state = engine.state(prompt + DECODED)
        begun = time.perf_counter()
        engine.forward(ids, state, all_logits=False)
        prefill.append(time.perf_counter() - begun)
    decode = []
    for token in ids[:DECODED]:
        begun = time.perf_counter()
        engine.step([int(token)], [state])
        decode.append(time.perf_counter() - begun)
    after = memory()
    read = model.nbytes - model.linears[model.spec.embedding].weight.nbytes
    file_bytes = path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return {
        "prefill_s": min(prefill), "decode_s": statistics.median(decode), "decode_best_s": min(decode), "file_bytes": file_bytes,
        "read_bytes": read, "load_s": load_s, "memory_bytes": after.peak_bytes - before.resident_bytes, "isa": isa(),
    }  # fmt: skip


def child(command: list[str]) -> dict[str, Any]:
    """The JSON object on the last line of a process's output."""
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{found.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return result


def roofline(work: Path, threads: int) -> list[dict[str, Any]]:
    """The machine's limits; nothing without a C compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return []
    binary = work / "roofline"
    subprocess.run([compiler, "-O3", "-pthread", str(HERE / "roofline.c"), "-o", str(binary)], check=True)
    found = subprocess.run([str(binary), str(threads)], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in found.stdout.splitlines()]


def summarize(name: str, engine: str, prompt: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, and the best, which a shared machine disturbs least."""
    decode = statistics.median(run["decode_s"] for run in runs)
    best = min(run["decode_best_s"] for run in runs)
    read = runs[0]["read_bytes"]
    extra = {key: statistics.median(run[key] for run in runs) for key in ("load_s", "memory_bytes") if key in runs[0]}
    prefills = [prompt / run["prefill_s"] for run in runs]
    return {
        "engine": engine, "format": name, "file_bytes": runs[0]["file_bytes"], "read_bytes": read,
        "prefill_tok_s": statistics.median(prefills), "prefill_tok_s_best": max(prefills),
        "decode_tok_s": 1 / decode, "decode_tok_s_best": 1 / best, "read_gb_s": read / decode / 1e9, "read_gb_s_best": read / best / 1e9,
        **extra, "runs": runs,
    }  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for models, about 3 GB; kept between runs")
    parser.add_argument("--formats", default="int4@32,mxfp4,int8@32,ternary@256", help="anybit formats, with commas")
    parser.add_argument("--types", default="q4_0,mxfp4,q8_0,tq2_0", help="llama.cpp types, with commas")
    parser.add_argument("--peers-python", help="Python of an environment that has llama-cpp-python and gguf")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="JSON file; bench/results/DATE-llama_0p85b.json if not given")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def make_jobs(options: argparse.Namespace) -> list[tuple[str, str, list[str]]]:
    """(engine, format, command) of every measurement, engines in turns; makes the models."""
    work, threads, prompt = options.work, str(options.threads), str(options.prompt)
    ours, theirs = [], []
    if options.peers_python:
        peer = [options.peers_python, str(HERE / "peer_llamacpp.py")]
        for name in options.types.split(","):
            file = str(work / f"{name}.gguf")
            child([*peer, "make", file, name])
            theirs.append(("llama.cpp", name, [*peer, "measure", file, threads, prompt, str(DECODED)]))
    for name in options.formats.split(","):
        path = work / f"{name.removeprefix('gguf:')}.gguf" if name.startswith("gguf:") else make_checkpoint(work, name)
        command = [sys.executable, __file__, "--work", str(work), "--threads", threads, "--prompt", prompt, "--worker", str(path)]
        ours.append(("anybit", name, command))
    return [job for pair in zip_longest(ours, theirs) for job in pair if job is not None]


def show_results(results: list[dict[str, Any]]) -> None:
    """One aligned table."""
    from anybit.report.table import Column, show, size

    numbers = ("file", "prefill tok/s", "best", "decode tok/s", "best", "read GB/s", "best", "load s", "memory / file")
    rows = []
    for r in results:
        row = [r["engine"], r["format"], size(r["file_bytes"])]
        for name, digits in (("prefill_tok_s", 1), ("decode_tok_s", 1), ("read_gb_s", 1)):
            row += [f"{r[name]:.{digits}f}", f"{r[f'{name}_best']:.{digits}f}"]
        rows.append([*row, f"{r['load_s']:.2f}", f"{r['memory_bytes'] / r['file_bytes']:.3f}"])
    show([Column("engine", "left"), Column("format", "left"), *map(Column, numbers)], rows)


def main() -> None:
    """Makes the models, measures in turns, prints a table and writes the JSON file."""
    options = parse_arguments()
    if options.worker is not None:
        print(json.dumps(measure_anybit(options.worker, options.threads, options.prompt)))
        return
    from anybit.measure.machine import machine, summary

    options.work.mkdir(parents=True, exist_ok=True)
    jobs = make_jobs(options)
    facts = machine() | {"threads": options.threads}
    versions = child([options.peers_python, str(HERE / "peer_llamacpp.py"), "versions"]) if options.peers_python else {}
    load = os.getloadavg()
    limits = roofline(options.work, options.threads)
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for turn in range(options.rounds):
        for engine, name, command in jobs:
            runs.setdefault((engine, name), []).append(child(command))
            print(f"round {turn + 1} of {options.rounds}: {engine} {name}", file=sys.stderr, flush=True)
    results = [summarize(name, engine, options.prompt, found) for (engine, name), found in runs.items()]
    show_results(results)
    print(summary(facts), *(json.dumps(line) for line in limits), sep="\n")
    record = {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"), "config": CONFIG, "prompt": options.prompt, "decoded": DECODED,
        "rounds": options.rounds, "machine": facts, "peers": versions, "load_average_before": load, "limits": limits, "results": results,
    }  # fmt: skip
    out = options.out or HERE / "results" / f"{time.strftime('%Y-%m-%d')}-llama_0p85b.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
