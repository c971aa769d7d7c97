"""What a plan says beforehand against what comes: stored bytes exactly, peak memory within a share of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import anybit
from anybit.recipes.plan import bits_per_weight, estimate, make_plan, rows
from anybit.recipes.quantize import quantize_recipe
from anybit.recipes.schema import Recipe, parse_recipe
from anybit.recipes.source import FloatSource

sys.path.insert(0, str(Path(__file__).parents[1]))
from synthetic import BILLION, dense_model

SRC = Path(anybit.__file__).parents[1]
HOLDS = """
import json, sys, time
from collections import deque
import numpy as np
from anybit.calibrate import calibrate
from anybit.measure.memory import memory, reset_peak
from anybit.recipes.plan import estimate, make_plan, rows
from anybit.recipes.schema import parse_recipe
from anybit.recipes.source import FloatSource
recipe = parse_recipe(json.loads(sys.argv[2]), "r")
source = FloatSource(sys.argv[1])
plan = make_plan(recipe, source.spec)
table = rows(plan, source.spec, {t.name: source.dtype(t.name) for t in source.spec.tensors})
costs = estimate(plan, table, source.spec, recipe)
wanted = recipe.calibration
ids = np.random.default_rng(0).integers(0, 2048, (wanted.sequences, wanted.length)).astype(np.int32)
reset_peak()
begun = time.time()
deque(calibrate(source, plan, ids, sys.argv[3]), 0)
print(json.dumps({"peak": memory().peak_bytes, "estimate": costs.quantize_bytes, "seconds": time.time() - begun, "said": costs.seconds}))
"""


def recipe(sequences: int, length: int, rounding: object = "gptq") -> dict[str, object]:
    rule = {"match": "layers", "format": "int4@128", "rounding": rounding}
    return {"version": 1, "rules": [rule], "calibration": {"sequences": sequences, "length": length}}


def peak(model: Path, value: dict[str, object], work: Path) -> dict[str, float]:
    run = subprocess.run(
        [sys.executable, "-c", HOLDS, str(model), json.dumps(value), str(work)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(SRC), "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    found: dict[str, float] = json.loads(run.stdout)
    return found


def test_bytes_are_exact(tmp_path: Path) -> None:
    """Of every quantized matrix, as it is stored; formats with scales of scales, zero points, and a last block that is short."""
    rules = [
        {"match": "q_proj", "format": "nvfp4"}, {"match": "v_proj", "format": "uint3@48+zp"}, {"match": "up_proj", "format": "q4_k"},
        {"match": "down_proj", "format": "ternary@256:fp16+pack=base3"}, {"match": "layers", "format": "int5@100"},
    ]  # fmt: skip
    todo: Recipe = parse_recipe({"version": 1, "rules": rules}, "r")
    source = FloatSource("pycoder-5m")
    plan = make_plan(todo, source.spec)
    table = rows(plan, source.spec, {t.name: source.dtype(t.name) for t in source.spec.tensors})
    quantize_recipe("pycoder-5m", tmp_path / "out", todo)
    made = anybit.load(tmp_path / "out")
    for row in table:
        assert row.nbytes == made.linears[row.name].weight.nbytes, row.name
    assert bits_per_weight(table, plan) == made.quantized_bits_per_weight
    stored = sum(row.nbytes or 0 for row in table)
    costs = estimate(plan, table, source.spec, todo)
    assert costs.model_bytes == stored and 0 <= (tmp_path / "out" / "model.safetensors").stat().st_size - stored < 40_000


needs_proc = pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="memory is measured through Linux's /proc")


@needs_proc
@pytest.mark.parametrize("rounding", ["gptq", "nearest"])
def test_peak_memory_is_what_was_said(rounding: str, tmp_path: Path) -> None:
    """A block of 11.5 million weights. Never above the estimate, which is at most 1.3 times too high."""
    config = {**BILLION, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 2, "num_attention_heads": 16,
              "num_key_value_heads": 4, "vocab_size": 2048}  # fmt: skip
    dense_model(tmp_path / "m", config)
    found = peak(tmp_path / "m", recipe(4, 128, rounding), tmp_path / "work")
    print(f"\n{found}")
    assert found["estimate"] / 1.3 <= found["peak"] <= found["estimate"]


@needs_proc
def test_more_tokens_go_to_disk(tmp_path: Path) -> None:
    """64 MiB more of hidden states, before a block and after it, of a model that is wide and has few weights."""
    config = {**BILLION, "hidden_size": 1024, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
              "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 2048}  # fmt: skip
    dense_model(tmp_path / "m", config)
    few, many = (peak(tmp_path / "m", recipe(n, 512, {"nearest": {"importance": True}}), tmp_path / f"{n}") for n in (2, 34))
    assert many["peak"] - few["peak"] < (64 << 20) / 4, (few, many)


@needs_proc
@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("ANYBIT_FULL"), reason="ten minutes; with ANYBIT_FULL=1")
def test_peak_memory_of_a_billion_weights_block(tmp_path: Path) -> None:
    """The blocks of a model of 1.1e9 weights, two of them, 128 sequences of 512 tokens: hidden states lie on disk, and memory is that of
    one block. The bar of 1.3 times the largest block (float32) and 1 GB counts what lies above an idle interpreter."""
    dense_model(tmp_path / "m", {**BILLION, "num_hidden_layers": 2})
    found = peak(tmp_path / "m", recipe(128, 512), tmp_path / "work")
    print(f"\n{found}")
    block = 4 * (2 * 2048 * 2048 + 2 * 512 * 2048 + 3 * 2048 * 5632)
    assert found["peak"] <= found["estimate"] and found["peak"] < 1.3 * block + 1e9
