"""Quality at equal bits beside other tools, on the bundled model: one calibration text, one evaluation text, one judge.

    python bench/quality_peers.py --work FOLDER [--llmcompressor PYTHON] [--autoround PYTHON] [--llamacpp PYTHON] [--recipes A,B,...]
                                  [--tokens 32768] [--out FILE.json]

Each PYTHON is the interpreter of an environment of its own that has this peer. FOLDER keeps what was made and judged: a case that lies
there is not made again, unless the calibration text has changed. Every result is judged by our engine on its dequantized values, with float
activations, as KL divergence from the original in nats a token. llm-compressor and AutoRound get symmetric integers in blocks with 16-bit
scales (counted so; they run in float32, which loses less), llama.cpp all matrices in one type, with and without importance: the mean
squares of the inputs that our calibration text gives the original model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

import anybit
from anybit.calibrate import calibrate
from anybit.export import prepare, write
from anybit.linear import Linear
from anybit.measure.accuracy import Accuracy, evaluate, kl_difference
from anybit.measure.machine import machine
from anybit.measure.text import EvalText, default_text
from anybit.methods.statistics import Statistics
from anybit.methods.step import Correction, Target
from anybit.model import Model
from anybit.recipes.plan import make_plan
from anybit.recipes.quantize import calibration_tokens, quantize_recipe
from anybit.recipes.schema import load_recipe, parse_recipe
from anybit.recipes.source import FloatSource
from anybit.stored import dense_tensor, resolve

MODEL = "pycoder-5m"
ORIGINAL = {"version": 1, "rules": [{"match": "layers", "format": "bf16"}]}
HERE = Path(__file__).parent
INTEGERS = ((4, 32), (4, 128), (3, 32), (3, 128), (2, 32), (2, 64))
LEARNED = ((2, 64), (4, 32), (3, 32), (2, 32))
"""AutoRound's bits and blocks: about what the recipes best-2.25, best-4.5, best-3.5 and best-2.65 store."""
AUTOROUND = 200, 128, 512, 8
"""Iterations, windows of the calibration text, their tokens, windows an iteration: its defaults, but for windows of 2048 tokens."""
K_QUANTS = {"q4_k": 4.5, "q3_k": 3.4375, "q2_k": 2.625}
"""Bits in the file: 144, 110 and 84 bytes for 256 weights."""
GGUF = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def main() -> None:
    """Makes what is missing, judges all of it in one pass, prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    for peer in ("llmcompressor", "autoround", "llamacpp"):
        parser.add_argument(f"--{peer}", metavar="PYTHON")
    parser.add_argument("--recipes", default="")
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    work = args.work
    work.mkdir(parents=True, exist_ok=True)
    ids, about = calibration_tokens(MODEL, parse_recipe(ORIGINAL, "original"), ())
    kept = work / "calibration.npy"
    if not (kept.exists() and np.array_equal(np.load(kept), ids)):
        for old in [*work.glob("made-*"), *work.glob("judged-*")]:
            old.unlink()
        np.save(kept, ids)
    original = anybit.load(MODEL)
    cases: dict[str, Case] = {}
    folder = str(resolve(MODEL))
    for bits, group in INTEGERS if args.llmcompressor else ():
        script = [args.llmcompressor, HERE / "peer_quality_llmcompressor.py", folder, kept]
        file = work / f"made-gptq-{bits}-{group}.npz"
        cases[f"llm-compressor GPTQ int{bits}@{group}"] = dense(original, *made(file, script, [bits, group]), bits + 16 / group)
    for bits, group in LEARNED if args.autoround else ():
        script = [args.autoround, HERE / "peer_quality_autoround.py", folder, kept]
        file = work / f"made-autoround-{bits}-{group}.npz"
        cases[f"AutoRound int{bits}@{group}"] = dense(original, *made(file, script, [bits, group, *AUTOROUND]), bits + 16 / group)
    if args.llamacpp:
        cases |= of_llamacpp(args.llamacpp, work, ids)
    for name in filter(None, args.recipes.split(",")):
        cases[name] = ours(name, work)
    text = default_text(original.tokenizer, args.tokens)
    found = judged(cases, text, original, work)
    rows = []
    for name, case in cases.items():
        kl = found[name].kl_mean
        assert kl is not None
        rows.append({"name": name, "kl": kl.mean, "kl_se": kl.se, "same_top1": found[name].same_top1, **case.said})
        print(f"{name:36s} {case.said['bits']:.4g} bits  KL {kl.mean:.5f} +- {kl.se:.5f}", flush=True)
    pairs = []
    for name in filter(None, args.recipes.split(",")):
        for other in cases:
            if other != name and cases[other].said["bits"] + 1e-9 >= cases[name].said["bits"]:
                gap = kl_difference(found[name], found[other])
                pairs.append({"recipe": name, "beside": other, "difference": gap.mean, "se": gap.se})
    if args.out:
        result = {
            "date": time.strftime("%Y-%m-%d"), "machine": machine(), "model": MODEL, "calibration": about, "text": text.describe(),
            "rows": rows, "paired": pairs,
        }  # fmt: skip
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def made(out: Path, script: list[Any], options: list[Any]) -> tuple[Path, dict[str, Any]]:
    """What a peer made, now or before, and what it said of it."""
    said = out.with_suffix(".json")
    if not (out.exists() and said.exists()):
        command = [str(each) for each in (*script, out, *options)]
        lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        said.write_text(lines[-1])
    return out, json.loads(said.read_text())


def dense(original: Model, file: Path, said: Mapping[str, Any], bits: float) -> Case:
    """The original with a peer's dequantized matrices in the place of all that it quantized."""
    with np.load(file) as held:
        arrays = {name: held[name] for name in held.files}
    wanted = {name for name in original.linears if name.endswith("_proj.weight")}
    assert wanted == set(arrays), "a matrix is missing, or one too many"
    layers = {name: Linear(dense_tensor(array, "F32", name, file)) for name, array in arrays.items()}
    return Case(original.replace({**original.weights, **layers}), {"bits": bits, **said}, file)


def judged(cases: Mapping[str, Case], text: EvalText, original: Model, work: Path) -> dict[str, Accuracy]:
    """All on the same text: what is new together, what was judged since it was made from its file."""
    files = {name: work / f"judged-{case.made.name}-{text.digest[:12]}.npz" for name, case in cases.items()}

    def known(name: str) -> bool:
        return files[name].exists() and files[name].stat().st_mtime > cases[name].made.stat().st_mtime

    new = {name: case.model for name, case in cases.items() if not known(name)}
    for name, found in (evaluate(new, text.ids, original) if new else {}).items():
        np.savez(files[name], **{each.name: getattr(found, each.name) for each in fields(found)})
    result = {}
    for name, file in files.items():
        with np.load(file) as held:
            result[name] = Accuracy(*(held[each.name] if held[each.name].ndim else float(held[each.name]) for each in fields(Accuracy)))
    return result


def ours(name: str, work: Path) -> Case:
    """A named recipe's result, made now."""
    recipe = load_recipe(name)
    out = work / f"ours-{name}-{recipe.digest[:12]}"
    said = work / f"{out.name}.json"
    if not out.exists():
        result = quantize_recipe(MODEL, out, recipe)
        said.write_text(json.dumps({"seconds": result.seconds, "versions": {"anybit": anybit.__version__}}))
    model = anybit.load(out)
    return Case(model, {"bits": float(model.quantized_bits_per_weight or 16), **json.loads(said.read_text())}, out)


def of_llamacpp(python: str, work: Path, ids: np.ndarray) -> dict[str, Case]:
    """Each K-quant, plain and with importance."""
    source, importance = work / "float.gguf", work / "made-importance.npz"
    if not source.exists():
        write(prepare(MODEL, "gguf:f32"), source)
    if not importance.exists():
        np.savez(importance, **mean_squares(ids))
    found = {}
    for kind, bits in K_QUANTS.items():
        for weighed in (False, True):
            name = f"{kind}-imatrix" if weighed else kind
            script = [python, HERE / "peer_quality_llamacpp.py", source]
            file, said = made(work / f"made-{name}.gguf", script, [kind, *([importance] if weighed else [])])
            found[f"llama.cpp {name}"] = Case(anybit.load(file), {"bits": bits, **said}, file)
    return found


def mean_squares(ids: np.ndarray) -> dict[str, np.ndarray]:
    """float32[k] of each matrix' input in the original model, by GGUF name."""
    watch, source = Watch({}), FloatSource(MODEL)
    plan = make_plan(parse_recipe(ORIGINAL, "original"), source.spec)
    plan = replace(plan, choices={name: replace(choice, corrections=(watch,)) for name, choice in plan.choices.items()})
    for _ in calibrate(source, plan, ids):
        pass
    named = {}
    for name, values in watch.found.items():
        _, _, block, module = name.removesuffix(".weight").split(".", 3)
        named[f"blk.{block}.{GGUF[module]}.weight"] = values
    return named


@dataclass(frozen=True)
class Case:
    """A result: the model with its values, what is said of it, and where it lies."""

    model: Model
    said: dict[str, Any]
    made: Path


@dataclass(frozen=True)
class Watch(Correction):
    """Notes the mean square of each input channel; changes nothing, for bf16 holds the weights as they are."""

    found: dict[str, np.ndarray]
    needs = frozenset({"xtx"})

    def correct(self, target: Target, stats: Statistics) -> None:
        """See `Correction.correct`."""
        assert stats.importance is not None
        self.found[target.name] = stats.importance.astype(np.float32)


if __name__ == "__main__":
    main()
