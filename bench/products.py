"""Product rules: speed of their kernels beside the float path, and what they cost a language model.

    python bench/products.py [--out FILE.json] [--tokens 32768] [--skip-quality]

Speed: one thread; for each weight the float path and the rules take turns, the best of all rounds counts, and the ratio to the float path
of the same weight in the same run is what means something. Quality: the bundled model on held-out text, perplexity and KL divergence from
the bf16 original.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import anybit
from anybit.kernels import cpu
from anybit.measure.accuracy import evaluate
from anybit.measure.machine import machine, summary
from anybit.measure.text import DEFAULT_TOKENS, default_text, separator_of

N, K = 256, 2048  # a few milliseconds at most: a shared machine interrupts longer runs every time
SPEED: dict[str, tuple[tuple[str, str | None], ...]] = {
    "bf16": (("lmul", None), ("lmul3", None)),
    "int4@128": (("lmul", None), ("shift2", None), ("table=mitchell", "int4"), ("table=mitchell", "int8")),
    "ternary@128": (("shift", None), ("table=exact", "int4")),
    "fp4_e3m0@128": (("shift", None), ("lmul", None)),
    "int8@128": (("lmul", None), ("table=mitchell", "int8")),
}
QUALITY: dict[str, Callable[[Any], Any]] = {
    "bf16, lmul in attention": lambda m: m.with_attention("lmul"),
    "bf16, lmul in weights": lambda m: m.with_product("lmul"),
    "bf16, lmul in both": lambda m: m.with_product("lmul").with_attention("lmul"),
    "bf16, lmul3 in attention": lambda m: m.with_attention("lmul3"),
    "bf16, lmul3 in weights": lambda m: m.with_product("lmul3"),
    "bf16, lmul3 in both": lambda m: m.with_product("lmul3").with_attention("lmul3"),
    "int4@32": lambda m: m.quantize("int4@32"),
    "int4@32, lmul": lambda m: m.quantize("int4@32", product="lmul"),
    "int4@32, shift2": lambda m: m.quantize("int4@32", product="shift2"),
    "int4@32, int8 activations": lambda m: m.quantize("int4@32", act="int8"),
    "int4@32, int8 activations, table=mitchell": lambda m: m.quantize("int4@32", act="int8", product="table=mitchell"),
    "int4@32, int8 activations, table=trunc4": lambda m: m.quantize("int4@32", act="int8", product="table=trunc4"),
    "int4@32, int4 activations, table=exact": lambda m: m.quantize("int4@32", act="int4", product="table=exact"),
    "int4@32, int4 activations, table=mitchell": lambda m: m.quantize("int4@32", act="int4", product="table=mitchell"),
}


def best(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of each: the least over rounds in which all take turns."""
    found = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds + 1):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            found[name] = min(found[name], time.perf_counter() - begun)
    return found


def speed(rounds: int) -> list[dict[str, Any]]:
    """Every weight, rows and rule on the instruction sets of this machine: milliseconds, and the speed relative to the float path."""
    rng, rows = np.random.default_rng(0), []
    w = rng.standard_normal((N, K), np.float32)
    before = cpu.isa()
    for isa in cpu.native.supported_isas():
        if isa == "generic":
            continue  # no fused hardware there: the float path itself is libm's
        cpu.use_isa(isa)
        for fmt, rules in SPEED.items():
            q = anybit.quantize(w, fmt)
            for m in (1, 32):
                x = rng.standard_normal((m, K), np.float32)
                runs: dict[str, Callable[[], Any]] = {"float": partial(q.matmul, x)}
                for rule, act in rules:
                    runs[rule + (f", {act}" if act else "")] = partial(q.matmul, x, act, product=rule)
                seconds = best(runs, rounds)
                for name in list(runs)[1:]:
                    ms, ratio = 1e3 * seconds[name], seconds["float"] / seconds[name]
                    rows.append({"isa": isa, "format": fmt, "rows": m, "rule": name, "ms": ms, "of_float": ratio})
                    print(f"{isa:7} {fmt:13} m={m:<3} {name:22} {ms:8.3f} ms  {ratio:.2f} of the float path", flush=True)
    cpu.use_isa(before)
    return rows


def quality(tokens: int) -> list[dict[str, Any]]:
    """Perplexity and KL divergence of each variant, all on the same windows."""
    model = anybit.load("pycoder-5m")
    text = default_text(model.tokenizer, tokens, separator_of(model))
    found = evaluate({name: change(model) for name, change in QUALITY.items()} | {"bf16": model}, text.ids, model)
    rows = [{"name": name, **accuracy.describe()} for name, accuracy in found.items()]
    for row in rows:
        kl = f"{row['kl_mean']:.3g} +- {row['kl_mean_se']:.2g}"
        perplexity = f"{row['perplexity']:.4g} +- {row['perplexity_se']:.2g}"
        print(f"{row['name']:45} perplexity {perplexity}  KL {kl}  same {100 * row['same_top1']:.1f} %")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tokens", type=int, default=DEFAULT_TOKENS)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--skip-quality", action="store_true")
    options = parser.parse_args()
    cpu.set_threads(1)
    result: dict[str, Any] = {"date": datetime.date.today().isoformat(), "machine": machine(), "speed": speed(options.rounds)}
    if not options.skip_quality:
        cpu.set_threads(2)
        result |= {"tokens": options.tokens, "quality": quality(options.tokens)}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(summary(machine()))


if __name__ == "__main__":
    main()
