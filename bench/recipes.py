"""What every named recipe gives on the bundled model: fills `measured` in src/anybit/recipes/named/*.yaml.

    python bench/recipes.py [NAME ...] [--tokens 32768] [--write]

Quantizes after each recipe (all by default), evaluates against the original on the held-out text, prints a line each; --write puts the
figures into the recipe's file. Recipes whose allocations differ in their budgets alone share what their layers cost.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import anybit
from anybit.measure.accuracy import evaluate
from anybit.measure.text import default_text
from anybit.recipes import mixed
from anybit.recipes.quantize import quantize_recipe
from anybit.recipes.schema import Recipe, load_recipe, named

MODEL = "pycoder-5m"


def share_costs() -> None:
    """Has `mixed.candidates` answer from what it found for a recipe without steps that differs in name and budgets alone."""
    make, held = mixed.candidates, dict[str, Any]()

    def found(path: str, recipe: Recipe, *rest: Any) -> Any:
        said = json.loads(recipe.text)
        allocation = {key: said["allocation"].get(key) for key in ("formats", "cost")}
        key = json.dumps({**said, "name": "", "allocation": allocation})
        if recipe.steps or key not in held:
            held[key] = make(path, recipe, *rest)
        return held[key]

    mixed.candidates = found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    share_costs()
    original = anybit.load(MODEL)
    text = default_text(original.tokenizer, args.tokens)
    for name in args.names or named():
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            try:
                quantize_recipe(MODEL, Path(folder) / "out", load_recipe(name))
            except anybit.AnybitError as error:
                print(f"{name}: {error}", flush=True)
                continue
            seconds = time.perf_counter() - begun
            made = anybit.load(Path(folder) / "out")
            found = evaluate({name: made}, text.ids, original)[name]
        assert found.kl_mean is not None and found.same_top1 is not None
        bits = float(made.quantized_bits_per_weight or 16)
        print(f"{name}: {bits:.4g} bits, KL {found.kl_mean.mean:.5f} +- {found.kl_mean.se:.5f}, same top-1 {found.same_top1:.4f},"
              f" {seconds:.0f} s", flush=True)  # fmt: skip
        if args.write:
            line = (
                f"measured: {{model: {MODEL}, tokens: {text.tokens}, kl: {found.kl_mean.mean:.4g}, kl_se: {found.kl_mean.se:.2g},"
                f" bits: {bits:.4g}, on: '{time.strftime('%Y-%m-%d')}'}}"
            )
            path = named()[name]
            kept = re.sub(r"^measured: .*\n", "", path.read_text(), flags=re.MULTILINE)
            head, source, rest = re.split(r"^(source: .*\n)", kept, maxsplit=1, flags=re.MULTILINE)
            path.write_text(f"{head}{source}{line}\n{rest}")


if __name__ == "__main__":
    main()
