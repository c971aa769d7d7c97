"""Many formats of one model in one run: accuracy against the original, speed, sizes, and which differences are larger than chance."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anybit.formats import Format
from anybit.measure.accuracy import Accuracy, evaluate, kl_difference
from anybit.measure.speed import BlockSpeed, block_speed
from anybit.measure.text import EvalText

Stage = Callable[[str, int], Callable[[int, str], None]]
"""stage(name, units) begins a stage; what it gives counts units: see anybit.cli.progress."""

ACTS = ("float", "int8")
INT8_EVERY = 4
"""int8 activations are measured on every fourth window: what they add to the float result is a paired difference with a small error."""


@dataclass(frozen=True)
class Sweep:
    """Results of one run, by format as it was spelt; `accuracy` by (format, activations)."""

    original: Accuracy
    models: Mapping[str, Any]
    accuracy: Mapping[tuple[str, str], Accuracy]
    speed: Mapping[str, BlockSpeed]
    seconds: Mapping[str, float] = field(default_factory=dict)


def silent(name: str, units: int) -> Callable[[int, str], None]:
    """A `Stage` that shows nothing."""
    return lambda done, note: None


def sweep(model: Any, formats: Sequence[str], text: EvalText, window: int = 512, stage: Stage = silent, **options: Any) -> Sweep:
    """Quantizes a model to each format, evaluates it with float activations on all windows and with int8 activations on every
    fourth, in one pass, and measures the blocks' speed.

    Args: options go to `model.quantize` (keep, method).
    """
    clock = time.perf_counter
    seconds: dict[str, float] = {}
    begun, models = clock(), {}
    step = stage("quantize", len(formats))
    for name in formats:
        models[name] = model.quantize(name, **options)
        step(1, name)
    seconds["quantize"], begun = clock() - begun, clock()

    variants: dict[str, Any] = {"original": model}
    variants |= {f"{name} {act}": models[name].with_act(act) for name in formats for act in ACTS}
    windows, int8_windows = -(-text.tokens // window), -(-text.tokens // (window * INT8_EVERY))
    step = stage("evaluate", windows * (1 + len(formats)) + int8_windows * len(formats))
    every = {f"{name} int8": INT8_EVERY for name in formats}
    found = evaluate(variants, text.ids, model, window, progress=step, every=every)
    seconds["evaluate"], begun = clock() - begun, clock()

    step, speed = stage("speed", len(formats)), {}
    for name in formats:
        speed[name] = block_speed(name, "int8")
        step(1, name)
    seconds["speed"] = clock() - begun
    accuracy = {(name, act): found[f"{name} {act}"] for name in formats for act in ACTS}
    return Sweep(found["original"], models, accuracy, speed, seconds)


def rows(result: Sweep) -> list[dict[str, Any]]:
    """One JSON object a format: exact and stored bits, accuracy with both activations, speed."""
    out = []
    for name, model in result.models.items():
        stored = model.quantized_bits_per_weight
        accuracy = {act: result.accuracy[name, act].describe() for act in ACTS}
        added = kl_difference(result.accuracy[name, "int8"], result.accuracy[name, "float"])
        accuracy["int8"] |= {"kl_added": added.mean, "kl_added_se": added.se}
        out.append({
            "format": name,
            "explicit": Format(name).explicit,
            "format_bits_per_weight": str(Format(name).bits_per_weight),
            "quantized_bits_per_weight": str(stored),
            "bits_per_weight": float(model.bits_per_weight),
            "model_bytes": model.nbytes,
            **accuracy,
            "speed": result.speed[name].describe(),
        })  # fmt: skip
    return out


def comparisons(result: Sweep, chains: Sequence[Sequence[str]], act: str = "float") -> list[dict[str, Any]]:
    """Neighbours of each chain, best first: how much less KL the better one has, its paired error, and how many errors that is."""
    out = []
    for chain in chains:
        for better, worse in itertools.pairwise(chain):
            difference = kl_difference(result.accuracy[worse, act], result.accuracy[better, act])
            errors = difference.mean / difference.se if difference.se > 0 else None
            out.append({
                "better": better, "worse": worse, "activations": act, "kl_difference": difference.mean, "kl_difference_se": difference.se,
                "errors": errors, "holds": errors is not None and errors >= 2,
            })  # fmt: skip
    return out
