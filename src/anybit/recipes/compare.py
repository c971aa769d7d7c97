"""Several recipes on one model and one text: quality with paired errors, exact bits, speed, memory, time, and which are on the front."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from anybit.errors import AnybitError, NoRecipeError, UsageError
from anybit.io.save import scratch
from anybit.measure.accuracy import Accuracy, evaluate, kl_difference, perplexity_difference
from anybit.measure.speed import model_speed
from anybit.measure.text import EvalText
from anybit.model import Model, load
from anybit.recipes.quantize import Stage, quantize_recipe, staged
from anybit.recipes.schema import Gates, Recipe
from anybit.tensor import QTensor


@dataclass(frozen=True)
class Entry:
    """What one recipe gave. `layer_errors`: relative squared error of each block's output; `histogram`: see `weight_histogram`."""

    recipe: Recipe
    bits: float
    nbytes: int
    seconds: float
    accuracy: Accuracy
    decode: float | None
    prefill: float | None
    cache_bytes_per_token: float
    layer_errors: tuple[float, ...]
    notes: tuple[str, ...]
    histogram: dict[str, Any] = field(default_factory=dict)
    front: bool = False


@dataclass(frozen=True)
class Comparison:
    """All entries, best KL first; `failed`: recipes that did not serve this model, with the reason."""

    original: Accuracy
    entries: tuple[Entry, ...]
    failed: Mapping[str, str]
    seconds: float


def compare_recipes(
    path: str | Path, recipes: Sequence[Recipe], text: EvalText, window: int = 512, calibration: Sequence[Path] = (), speed: bool = True,
    stage: Stage = lambda name, units: lambda done, note: None, folder: Path | None = None,
) -> Comparison:  # fmt: skip
    """Quantizes the model after each recipe and evaluates all on the same windows.

    A recipe that does not serve the model (a format that fits no layer, a step for another architecture) is reported, not fatal.
    Args: speed, whether decoding and prefill are timed; folder, where the quantized models are made (None: a temporary folder; one at a
        time on disk is not enough, all are evaluated in lockstep).
    """
    if not recipes:
        raise UsageError("nothing to compare: name recipes, or --all")
    begun = time.perf_counter()
    original = load(path)
    with scratch(folder) as temporary:
        made: dict[str, tuple[Recipe, Any, Model]] = {}
        failed: dict[str, str] = {}
        for i, recipe in enumerate(recipes):
            try:
                out = temporary / str(i)
                told = staged(stage, f"{recipe.name} ({i + 1} of {len(recipes)}), ")
                result = quantize_recipe(path, out, _without_gates(recipe), calibration, progress=told)
                made[recipe.name] = recipe, result, load(out)
            except AnybitError as error:
                failed[recipe.name] = str(error)
        if not made:
            name, reason = next(iter(failed.items()))
            raise NoRecipeError(f"no recipe serves {path}; {name}: {reason}")
        models: dict[str, Any] = {"": original} | {name: each[2] for name, each in made.items()}
        step = stage("evaluate", math.ceil(text.tokens / window) * len(models))
        found = evaluate(models, text.ids, original, window, progress=step)
        entries = []
        step = stage("speed", len(made))
        for name, (recipe, result, model) in made.items():
            timed = model_speed(model, min(128, model.context // 2), tokens=16, repeats=2) if speed else None
            step(1, name)
            entries.append(Entry(
                recipe, float(model.quantized_bits_per_weight or 0), model.nbytes, result.seconds, found[name],
                None if timed is None else timed.decode_tok_s, None if timed is None else timed.prefill_tok_s,
                _cache_bytes(model), tuple(layer.loss for layer in result.layers if layer.index >= 0), tuple(result.notes),
                weight_histogram(model, original),
            ))  # fmt: skip
    ordered = sorted(entries, key=kl_of)
    return Comparison(found[""], tuple(_marked(ordered)), failed, time.perf_counter() - begun)


def _without_gates(recipe: Recipe) -> Recipe:
    return replace(recipe, gates=Gates())


def kl_of(entry: Entry) -> float:
    """Mean KL, nats a token."""
    kl = entry.accuracy.kl_mean
    assert kl is not None
    return kl.mean


def _marked(entries: Sequence[Entry]) -> list[Entry]:
    """The entries that no other beats in both KL and bytes are on the front."""
    def beaten(entry: Entry) -> bool:
        mine = kl_of(entry), entry.nbytes
        return any(
            (kl_of(o), o.nbytes) != mine and kl_of(o) <= mine[0] and o.nbytes <= mine[1] for o in entries
        )  # fmt: skip

    return [replace(entry, front=not beaten(entry)) for entry in entries]


def _cache_bytes(model: Model) -> float:
    state = model.engine.state(64)
    model.engine.forward(np.zeros(64, np.int32), state, all_logits=False)
    return state.nbytes / 64


def weight_histogram(model: Model, original: Model, bins: int = 81) -> dict[str, Any]:
    """Of the first quantized matrix: how often its float values, each over its own block's largest magnitude, fall into each of `bins`
    equal parts of [-1, 1], and the values that its format gives there, divided alike."""
    name = next((n for n in model.linears if n in model.quantized), None)
    if name is None:
        return {}
    w, q = original.linears[name].weight.dequantize(), model.linears[name].weight
    values = QTensor.dequantize(q)
    rows = slice(0, min(256, len(w)))
    block = q.format.block
    size = min(block.size or w.shape[1], w.shape[1]) if block is not None and block.per_row else w.shape[1]
    whole = w.shape[1] // size * size
    parts = w[rows, :whole].reshape(-1, size)
    grid = values[rows, :whole].reshape(-1, size)
    most = np.maximum(np.abs(parts).max(axis=1, keepdims=True), 1e-30)
    counts, _ = np.histogram(parts / most, bins, (-1, 1))
    seen, often = np.unique(np.round((grid / most).reshape(-1), 2), return_counts=True)
    top = np.sort(seen[np.argsort(-often)[:64]])
    return {"tensor": name, "counts": counts.tolist(), "grid": [float(v) for v in top]}


def as_json(result: Comparison, about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, with the paired difference of each entry from the best."""
    best = result.entries[0]
    rows = []
    for entry in result.entries:
        difference = kl_difference(entry.accuracy, best.accuracy)
        perplexity = perplexity_difference(entry.accuracy, result.original)
        rows.append({
            "recipe": entry.recipe.name, "about": entry.recipe.about, "digest": entry.recipe.digest,
            "quantized_bits_per_weight": entry.bits, "bytes": entry.nbytes, "quantize_seconds": entry.seconds,
            **entry.accuracy.describe(), "kl_over_best": difference.mean, "kl_over_best_se": difference.se,
            "perplexity_over_original": perplexity.mean, "perplexity_over_original_se": perplexity.se,
            "decode_tokens_per_s": entry.decode, "prefill_tokens_per_s": entry.prefill,
            "cache_bytes_per_token": entry.cache_bytes_per_token, "layer_errors": list(entry.layer_errors), "notes": list(entry.notes),
            "histogram": entry.histogram, "front": entry.front,
        })  # fmt: skip
    return {**about, "original": result.original.describe(), "recipes": rows, "failed": dict(result.failed), "seconds": result.seconds}
