"""Mixed precision beside the best uniform format at the same bytes, on the bundled model's held-out text.

    python bench/mixed.py [RECIPE] [--bits 2.5,3.25,4.5] [--tokens 32768] [--cost-tokens 4096] [--out FILE.json]

Quantizes to each format that RECIPE (a named one with an allocation) offers and measures what each matrix costs in each, once, on
calibration text; then allocates every budget, makes the mixture and the uniform formats within it, and evaluates all of them together.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from anybit.calibrate import calibrate
from anybit.measure.accuracy import evaluate, kl_difference
from anybit.measure.machine import machine
from anybit.measure.text import default_text
from anybit.model import Model
from anybit.recipes.build import linears
from anybit.recipes.mixed import candidates, with_layers
from anybit.recipes.plan import make_plan
from anybit.recipes.quantize import calibration_tokens
from anybit.recipes.schema import load_recipe
from anybit.recipes.source import FloatSource

MODEL = "pycoder-5m"


def main() -> None:
    """One table for all budgets."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", nargs="?", default="mixed-3.25")
    parser.add_argument("--bits", default="2.5,3.25,4.5")
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--cost-tokens", type=int, default=4096)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    recipe, source = load_recipe(args.recipe), FloatSource(MODEL)
    assert recipe.allocation is not None
    ids, about = calibration_tokens(MODEL, recipe, ())
    begun = time.perf_counter()
    found = candidates(MODEL, recipe, ids, lambda what, done, total: print(f"{what}: {done} of {total}", flush=True), args.cost_tokens)
    budgets = [float(each) for each in args.bits.split(",")]
    chosen = {bits: found.choose(bits) for bits in budgets}
    models: dict[str, Model] = {each: with_layers(found.model, found.layers[each]) for each in found.uniform(max(budgets))}
    for bits, mixed in chosen.items():
        layers: dict[str, Any] = {}
        for block in calibrate(source, make_plan(recipe, source.spec, override=mixed.formats), ids):
            layers |= linears(block)
        models[f"mixed {bits:g}"] = with_layers(found.model, layers)
    text = default_text(found.model.tokenizer, args.tokens)
    measured = evaluate(models, text.ids, found.model)
    rows = []
    for bits, mixed in chosen.items():
        mine = measured[f"mixed {bits:g}"]
        uniform = {each: measured[each].kl_mean for each in found.uniform(bits)}
        best = min(uniform, key=lambda each: uniform[each].mean)  # type: ignore[union-attr]
        assert mine.kl_mean is not None and uniform[best] is not None
        gap = kl_difference(mine, measured[best])
        rows.append({
            "budget": bits, "bits": mixed.bits["mixed"], "kl": mine.kl_mean.mean, "kl_se": mine.kl_mean.se, "taken": mixed.taken,
            "uniform": {each: {"bits": found.uniform(bits)[each], "kl": kl.mean, "kl_se": kl.se} for each, kl in uniform.items() if kl},
            "best_uniform": best, "ratio": mine.kl_mean.mean / uniform[best].mean, "difference": gap.mean, "difference_se": gap.se,
            "formats": {name: str(spec) for name, spec in mixed.formats.items()},
        })  # fmt: skip
        print(f"{bits:g} bits: KL {mine.kl_mean.mean:.5f} ({mixed.taken}), best uniform {best} {uniform[best].mean:.5f},"
              f" ratio {rows[-1]['ratio']:.3f}", flush=True)  # fmt: skip
    if args.out:
        result = {
            "date": time.strftime("%Y-%m-%d"), "machine": machine(), "model": MODEL, "recipe": recipe.name, "calibration": about,
            "cost_tokens": args.cost_tokens, "text": text.describe(), "seconds": time.perf_counter() - begun, "rows": rows,
        }  # fmt: skip
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
