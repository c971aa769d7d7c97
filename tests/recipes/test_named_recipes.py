"""Every named recipe on the bundled model: it runs, and its codes are others than nearest's. The papers of the page each have one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import anybit
from anybit.formats import Spec
from anybit.methods.rtn import dequantize_parts, quantize_parts
from anybit.recipes.quantize import quantize_recipe
from anybit.recipes.schema import Recipe, load_recipe, named, parse_recipe
from anybit.recipes.strict_yaml import read

MODEL = "pycoder-5m"
PLAIN = {"w8a8", "static-int8", "fp6", "fp8", "lossless", "nearest-int2", "nf4", "olive-4"}
"""Nearest by the format's own rule, the format being what they are about."""
BESIDE = {"arcquant"}
"""It leaves codes as they are and adds a branch."""

PAPERS = {
    "SmoothQuant": "2211.10438", "AWQ": "2306.00978", "equalisation": "1906.04721", "QuaRot": "2404.00456", "MR-GPTQ": "2509.23202",
    "COMET": "2410.12168", "K-sort": "2403.20137", "ARCQuant": "ARCQuant", "LLM.int8": "2208.07339", "OliVe": "2304.07493",
    "HQQ": "Half-Quadratic", "GPTQ": "2210.17323", "GPTAQ": "2504.02692", "MatGPTQ": "MatGPTQ", "AdaRound": "2004.10568",
    "SignRound": "2309.05516", "NUPES": "2308.05600", "k-means": "2306.07629", "LDLQ": "2307.13304", "LoRC": "2303.08302",
    "FLAP": "2312.11983",
    "scale refit": "refit", "ZeroQuant-FP": "2307.09782", "ZeroQuant(4+2)": "2312.08583", "AccLLM": "2505.03745", "2:4": "2306.11695",
    "magnitude": "1506.02626", "HAWQ-V3": "2011.10680", "whitepaper": "1806.08342", "PowerQuant": "2301.09858", "DFloat11": "2504.11651",
}  # fmt: skip


def shortened(name: str) -> Recipe:
    """A recipe with two short windows of text, fewer turns where it searches, and every other format where it allocates them."""
    value = read(named()[name]) | {"name": name, "calibration": {"sequences": 2, "length": 64}}
    if name == "awq":
        value["steps"] = [{"awq": {"grid": 4, "clip": True}}]
    if "allocation" in value:
        value["allocation"] = value["allocation"] | {"formats": value["allocation"]["formats"][::2]}
    for rule in value["rules"]:
        for key, few in (("adaround", 30), ("signround", 30)):
            if rule.get("rounding") == key:
                rule["rounding"] = {key: {"steps": few}}
    return parse_recipe(value, name)


def test_every_paper_has_a_recipe() -> None:
    sources = {name: f"{recipe.source} {recipe.about}" for name in named() if (recipe := load_recipe(name))}
    for paper, mark in PAPERS.items():
        assert any(mark in text for text in sources.values()), paper


SAMPLE = ("accllm", "awq", "flap", "gptq-int3", "hadamard-mxfp4", "llm-int8", "lorc-int4", "squeezellm-3", "w4a8", "zeroquant-fp-m2")
"""Without ANYBIT_FULL=1; with it, all of them."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in sorted(named()) if os.environ.get("ANYBIT_FULL") or name in SAMPLE])
def test_a_named_recipe_runs_and_its_codes_differ_from_nearest(name: str, tmp_path: Path) -> None:
    recipe = shortened(name)
    result = quantize_recipe(MODEL, tmp_path / "out", recipe)
    made, original = anybit.load(tmp_path / "out"), anybit.load(MODEL)
    quantized = {n: linear for n, linear in made.linears.items() if not linear.weight.format.dense or name == "lossless"}
    assert quantized and result.nbytes > 0
    ids = original.tokenize("def mean(values):\n    return sum(values) / len(values)\n")
    before, after = original.logits(ids), made.logits(ids)
    assert np.isfinite(after).all() and (name == "lossless") == np.array_equal(before, after)
    different = 0
    for tensor, linear in quantized.items():
        rule = recipe.rule_of(tensor)
        if rule is None or rule.spec is None:
            continue
        w = original.linears[tensor].weight.dequantize()
        fmt = linear.weight.format
        plain = Spec(fmt.stored if fmt.opened is not None else fmt)
        nearest = dequantize_parts(quantize_parts(w, plain), plain.format, w.shape)
        different += not np.array_equal(nearest, linear.weight.dequantize())
    print(f"{name}: {different} of {len(quantized)} matrices differ from nearest's")
    assert (different > 0) == (name not in PLAIN | BESIDE)
