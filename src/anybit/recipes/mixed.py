"""Formats by layer: what each layer costs in each candidate format, and the choice of least total cost within a budget of stored bits.

Cost "kl": the mean KL divergence of the model with that layer alone quantized, measured on calibration text. Cost "hawq": HAWQ-V3's
sensitivity (arXiv 2011.10680, eq. 4) with the layer's own X^T X for the Hessian: tr(dW H dW^T) over the tokens, no model is run for it.
Both add up over layers, which is an approximation; so the uniform formats that fit the budgets are measured beside the result, on the
same text, and the best of all is taken.

Every candidate is quantized with the recipe's rounding, corrections and steps. Steps change several layers together, so that no layer can
be exchanged for another candidate's: with steps the cost "kl" is that of the layer alone in the float model as the candidate's own steps
left it, against that model, and what is compared at the end is quantized anew, each as a whole.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from anybit.calibrate import Event, Finished, Plan, calibrate
from anybit.errors import DoesNotFitError, UsageError
from anybit.formats import Spec
from anybit.linear import Linear
from anybit.measure.accuracy import evaluate
from anybit.methods.statistics import Statistics
from anybit.methods.step import Correction, Target
from anybit.model import Model, load
from anybit.recipes.allocate import Budget, allocate
from anybit.recipes.build import linears
from anybit.recipes.moved import moved, noting_biases
from anybit.recipes.plan import Override, make_plan, stored_bytes
from anybit.recipes.schema import Allocation, Recipe
from anybit.recipes.source import FloatSource

TOKENS, WINDOW, AT_ONCE = 4096, 256, 16
Whole = Callable[[Override], AbstractContextManager[Model]]


@dataclass(frozen=True)
class Mixed:
    """`formats` by tensor name; `costs` by name and format; `kl` on the calibration slice of the mixture and of each uniform format that
    fits; `bits` stored a weight of each of these; `taken`: "mixed", or the uniform format that was better."""

    formats: Mapping[str, Spec]
    costs: Mapping[str, Mapping[str, float]]
    kl: Mapping[str, float]
    bits: Mapping[str, float]
    taken: str

    def as_json(self) -> dict[str, Any]:
        """The same as JSON's values."""
        return {
            "formats": {name: str(spec) for name, spec in self.formats.items()}, "costs": {k: dict(v) for k, v in self.costs.items()},
            "kl": dict(self.kl), "bits": dict(self.bits), "taken": self.taken,
        }  # fmt: skip


def choose_formats(
    path: str | Path, recipe: Recipe, ids: np.ndarray, progress: Callable[[str, int, int], Any] | None = None, tokens: int = TOKENS,
    whole: Whole | None = None,
) -> Mixed:  # fmt: skip
    """Chooses a format of `recipe.allocation` for every matrix that a rule quantizes. Arguments and errors as `candidates`.

    Raises: DoesNotFitError: not even the smallest formats meet the budgets.
    """
    found = candidates(path, recipe, ids, progress, tokens, whole)
    assert recipe.allocation is not None
    return found.within(found.budgets(recipe.allocation))


@dataclass(frozen=True)
class Candidates:
    """Every matrix in every format, once: what any budget is then chosen from. `layers` by format and tensor name; `costs`, and `sizes` in
    bits, by tensor name and format; `weights` of each matrix; `whole` makes a mixture anew where steps forbid an exchange of layers."""

    model: Model
    specs: Mapping[str, Spec]
    layers: Mapping[str, Mapping[str, Linear]]
    costs: Mapping[str, Mapping[str, float]]
    sizes: Mapping[str, Mapping[str, float]]
    weights: Mapping[str, int]
    text: np.ndarray  # int32[t]: what KL is measured on
    whole: Whole | None = None

    def bits(self, choices: Mapping[str, str]) -> float:
        """Stored bits a weight."""
        return sum(self.sizes[name][each] for name, each in choices.items()) / sum(self.weights.values())

    def uniform(self, bits: float) -> dict[str, float]:
        """Stored bits a weight of each format alone, of those that are within a budget."""
        totals = {each: self.bits(dict.fromkeys(self.costs, each)) for each in self.specs}
        return {each: total for each, total in totals.items() if total <= bits}

    def choose(self, bits: float) -> Mixed:
        """The least total cost within `bits` a weight, or a uniform format that is better. DoesNotFitError: nothing fits."""
        return self.within(self.budgets(Allocation(bits, tuple(self.specs))))

    def budgets(self, wanted: Allocation) -> list[Budget[str]]:
        """Those that an allocation names, stored bits first."""
        found, weights, layers, shares = [], self.weights, self.layers, self.model.spec.shares
        read = {name: count * shares.get(name, 1.0) for name, count in weights.items()}  # of a token's
        if wanted.bits is not None:
            found.append(Budget("stored bits", self.sizes, wanted.bits * sum(weights.values()), "bits"))
        if wanted.latency_ms is not None:
            times = {n: {e: shares.get(n, 1.0) * latency_ms(layers[e][n]) for e in self.specs} for n in weights}
            found.append(Budget("latency", times, wanted.latency_ms, "ms"))
        if wanted.bit_operations is not None:
            counts = {n: {e: float(read[n] * bit_operations(layers[e][n])) for e in self.specs} for n in weights}
            found.append(Budget("bit operations", counts, wanted.bit_operations * sum(read.values()), "bit operations a token"))
        return found

    def within(self, budgets: Sequence[Budget[str]]) -> Mixed:
        """The least total cost within all budgets, or a uniform format that is better. DoesNotFitError: nothing fits."""
        result = allocate(self.costs, *budgets)
        uniform = [each for each in self.specs if all(sum(b.use[name][each] for name in self.costs) <= b.limit for b in budgets)]
        tried = {"mixed": result.choices} | {each: dict.fromkeys(self.costs, each) for each in uniform}
        kl: dict[str, float] = {}
        if self.whole is None:
            made = {key: {name: self.layers[each][name] for name, each in choices.items()} for key, choices in tried.items()}
            kl = measured_kl(self.model, {key: with_layers(self.model, each) for key, each in made.items()}, self.text)
        else:
            for key, choices in tried.items():
                with self.whole({name: self.specs[each] for name, each in choices.items()}) as one:
                    kl |= measured_kl(self.model, {key: one}, self.text)
        taken = min(kl, key=lambda key: (kl[key], key != "mixed"))
        bits = {key: self.bits(choices) for key, choices in tried.items()}
        return Mixed({name: self.specs[each] for name, each in tried[taken].items()}, self.costs, kl, bits, taken)


def candidates(
    path: str | Path, recipe: Recipe, ids: np.ndarray, progress: Callable[[str, int, int], Any] | None = None, tokens: int = TOKENS,
    whole: Whole | None = None,
) -> Candidates:  # fmt: skip
    """Quantizes the model to every format of `recipe.allocation`, and measures what each matrix costs in each.

    Args: ids, int32[sequences, length] calibration tokens; progress(what, done, total); tokens, how many of them KL is measured on;
        whole, makes the model with given formats by tensor name (needed where the recipe has steps).
    Raises: UsageError: the recipe has no allocation, or a format's size depends on the data.
    """
    wanted = recipe.allocation
    if wanted is None:
        raise UsageError(f"recipe {recipe.name} has no allocation")
    assert whole is not None or not recipe.steps
    source = FloatSource(path)
    base = make_plan(recipe, source.spec)
    names = [name for name in base.choices if name in {t.name for t in source.spec.tensors}]
    shapes = {t.name: t.shape for t in source.spec.tensors}
    specs = {each: Spec.parse(each) for each in wanted.formats}
    sizes: dict[str, dict[str, float]] = {}
    for name in names:
        found = {each: stored_bytes(spec.format, shapes[name]) for each, spec in specs.items()}
        if None in found.values():
            raise UsageError(f"allocation: the size of {next(k for k, v in found.items() if v is None)} depends on the data; leave it out")
        sizes[name] = {each: 8.0 * count for each, count in found.items() if count is not None}

    model, text = load(path), ids.reshape(-1)[: tokens + 1]
    layers: dict[str, dict[str, Linear]] = {}
    losses: dict[str, dict[str, float]] = {name: {} for name in names}
    for i, (each, spec) in enumerate(specs.items()):
        plan = make_plan(recipe, source.spec, override=dict.fromkeys(names, spec))
        if wanted.cost == "hawq":
            watch = _Watch({}, ids.size)
            plan = replace(plan, choices={n: replace(c, corrections=(*c.corrections, watch)) for n, c in plan.choices.items()})

        def step(event: Event, each: str = each, i: int = i) -> None:
            if progress and event.loss is not None:
                progress(f"quantize to {each}", i * event.total + event.done, len(specs) * event.total)

        made: dict[str, Linear] = {}
        layers[each] = made

        def rounded(plan: Plan, made: dict[str, Linear] = made, step: Callable[[Event], None] = step) -> Iterator[Finished]:
            for finished in calibrate(source, plan, ids if not plan.data_free else None, progress=step):
                made |= linears(finished)
                yield finished
                del finished  # its float weights

        if wanted.cost == "hawq":
            deque(rounded(plan), 0)
            for name in names:
                losses[name][each] = watch.found[name]
        elif recipe.steps:
            plan, biases = noting_biases(plan)
            after = moved(model, rounded(plan), biases)
            alone = {name: with_layers(after, {name: made[name]}) for name in names}
            for name, loss in measured_kl(after, alone, text, progress).items():
                losses[name][each] = loss
        else:
            deque(rounded(plan), 0)
    if wanted.cost == "kl" and not recipe.steps:
        cases = [(name, each) for name in names for each in specs]
        found_kl = measured_kl(
            model, {f"{name} {each}": with_layers(model, {name: layers[each][name]}) for name, each in cases}, text, progress
        )
        for name, each in cases:
            losses[name][each] = found_kl[f"{name} {each}"]
    weights = {name: prod(shapes[name]) for name in names}
    return Candidates(model, specs, layers, losses, sizes, weights, text, whole if recipe.steps else None)


def latency_ms(linear: Linear, turns: int = 7) -> float:
    """Milliseconds of one token's product, transforms and branches included: the least of some turns after a first one."""
    x = np.random.default_rng(0).standard_normal((1, linear.weight.shape[1]), np.float32)
    linear(x)
    found = []
    for _ in range(turns):
        begun = time.perf_counter()
        linear(x)
        found.append(time.perf_counter() - begun)
    return 1000 * min(found)


def bit_operations(linear: Linear) -> float:
    """Bits of a weight times those of an activation (32 for float). Source: HAWQ-V3, arXiv 2011.10680, section 3.3."""
    weight, act = linear.weight.format.element, linear.act
    return weight.bits / weight.dim * (32 if act is None else act.format.element.bits)


@dataclass(frozen=True)
class _Watch(Correction):
    """Notes what rounding cost each matrix over so many tokens; changes nothing. An expert that none of them reached costs nothing."""

    found: dict[str, float]
    tokens: int
    needs = frozenset({"xtx"})

    def correct(self, target: Target, stats: Statistics) -> None:
        """tr(dW X^T X dW^T) over the tokens."""
        if stats.xtx is None or not self.tokens:
            raise UsageError(f"{target.name}: no calibration token reached it; cost 'hawq' needs some")
        error = (target.rounded - target.weight).astype(np.float32)
        self.found[target.name] = float(np.einsum("nk,nk->", error @ stats.xtx, error, dtype=np.float64)) / self.tokens


def with_layers(model: Model, changed: Mapping[str, Linear]) -> Model:
    """The model with other layers in the place of some."""
    return model.replace({**model.weights, **changed})


def measured_kl(
    model: Model, models: Mapping[str, Model], text: np.ndarray, progress: Callable[[str, int, int], Any] | None = None
) -> dict[str, float]:
    """Mean KL of each model on int32[t] tokens, some models at a time. DoesNotFitError: fewer than two tokens."""
    if len(text) < 2:
        raise DoesNotFitError("the calibration text is too short to measure on")
    found: dict[str, float] = {}
    keys = list(models)
    for start in range(0, len(keys), AT_ONCE):
        part = {key: models[key] for key in keys[start : start + AT_ONCE]}
        for key, accuracy in evaluate(part, text, model, min(WINDOW, model.context)).items():
            assert accuracy.kl_mean is not None
            found[key] = accuracy.kl_mean.mean
        if progress:
            progress("measure layers", min(start + AT_ONCE, len(keys)), len(keys))
    return found
