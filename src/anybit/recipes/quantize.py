"""Quantizes a stored model after a recipe into a new checkpoint: calibration, rounding, the gates, and what is said about it."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from anybit.calibrate import Event, Plan, calibrate, calibration_text
from anybit.calibrate.finished import load_finished
from anybit.calibrate.run import UNTIED
from anybit.calibrate.work import ENDS
from anybit.errors import GateError, OutputError
from anybit.io.checkpoint import QuantizedEntry, save_checkpoint
from anybit.io.foreign import Made, Sidecar
from anybit.io.hf import open_model
from anybit.io.quantization import StoredLayer
from anybit.io.save import renew_file, scratch
from anybit.linear import Linear
from anybit.measure.accuracy import Accuracy, evaluate
from anybit.measure.text import DEFAULT_TOKENS, default_text, separator_of, text_from_files
from anybit.model import Model, load
from anybit.models import PLAIN
from anybit.recipes.build import Summary, linear_named, linears
from anybit.recipes.kept import Kept
from anybit.recipes.mixed import Mixed, choose_formats
from anybit.recipes.plan import Override, make_plan
from anybit.recipes.schema import Gates, Recipe
from anybit.recipes.source import FloatSource
from anybit.stored import DENSE_FORMATS, dense_tensor, entry_of, formats_of, tables_of

Progress = Callable[[Event], Any]
Stage = Callable[[str, int], Callable[[int, str], Any]]
"""Begins a stage of so many units, and returns what counts them: (units, what they were)."""
CARD = "README.md"
Tensors = Sequence[tuple[str, str, int]]
Card = Callable[[Tensors, float, Mapping[str, Any], Mapping[str, Any] | None], str]
"""A model card from (format before, format here, tensors), bits a weight of the quantized matrices, what is known of the calibration text,
and the keys of `anybit eval --json` where a gate measured them."""


@dataclass(frozen=True)
class Result:
    """What was made. `accuracy`: against the original, where a gate asked for it."""

    out: Path
    nbytes: int
    seconds: float
    layers: tuple[Summary, ...]
    text: dict[str, Any] = field(default_factory=dict)
    accuracy: Accuracy | None = None
    mixed: Mixed | None = None
    passed_over: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """What happened that a user should know; first, what an imported recipe says and this one does not do."""
        return [*self.passed_over, *(note for layer in self.layers for note in layer.notes)]


def quantize_recipe(
    path: str | Path, out: str | Path, recipe: Recipe, calibration: Sequence[Path] = (), work: str | Path | None = None,
    resume: bool = False, progress: Progress | None = None, override: Override | None = None, evaluation: Sequence[Path] = (),
    card: Card | None = None,
) -> Result:  # fmt: skip
    """Quantizes a stored model after a recipe. Arguments: calibration, text files (none: the standard library outside the evaluation
    modules); work, a folder that keeps hidden states and finished layers, for resuming (None: a temporary one beside `out`); override,
        formats by tensor name in the place of the rules' (None: the recipe's allocation chooses, if it has one); evaluation, text files for
        the gates (none: the held-out modules); card, what makes the model card (None: there is none).

    Raises: GateError: the result misses a gate; it is kept as `out` + ".rejected". Others as `calibrate`, `make_plan`, `load`.
    """
    begun = time.perf_counter()
    out = Path(out)
    model = FloatSource(path)
    tokens, about = None, dict[str, Any]()
    if recipe.allocation is not None or not make_plan(recipe, model.spec, override=override).data_free:
        tokens, about = calibration_tokens(path, recipe, calibration)
    gated = recipe.gates != Gates()
    target = out.with_name(f"{out.name}.rejected") if gated else out
    for each in {out, target}:
        if each.exists():
            raise OutputError(f"{each} exists already; remove it or choose another name")
    mixed = None
    if recipe.allocation is not None and override is None:
        assert tokens is not None
        told = None if progress is None else _as_events(progress)

        @contextmanager
        def whole(formats: Override) -> Iterator[Model]:
            todo = make_plan(recipe, model.spec, override=formats)
            with _folder(None, out) as aside:
                deque(calibrate(model, todo, None if todo.data_free else tokens, aside), 0)
                _save(model, todo, recipe, aside, aside / "model", about, path)
                yield load(aside / "model")

        kept = None if work is None else Kept(Path(work), f"{recipe.digest} {model.digest} {about['tokens_sha256']}", resume)
        mixed = None if kept is None else kept.read()
        if mixed is None:
            mixed = choose_formats(path, recipe, tokens, told, whole=whole)
            if kept is not None:
                kept.write(mixed)
        override = mixed.formats
    plan = make_plan(recipe, model.spec, f"{model.digest} {about.get('tokens_sha256', '')}", override)
    with _folder(work, out) as folder:
        given = None if plan.data_free else tokens
        layers = tuple(map(Summary.of, calibrate(model, plan, given, folder, resume, progress)))  # of one block at a time
        written = _save(model, plan, recipe, folder, target, about, path, card)
    accuracy = None
    if gated:
        accuracy, measured = _judge(path, target, recipe.gates, out, evaluation)
        if card is not None:
            renew_file(target, CARD, card(*_stored(target, model), about, measured).encode())
        target.rename(out)
    return Result(out, written, time.perf_counter() - begun, layers, about, accuracy, mixed, recipe.notes)


def staged(stage: Stage, before: str = "", note: Callable[[], str] = lambda: "") -> Progress:
    """What `quantize_recipe` tells of its progress, as stages: one for each part of an allocation, one for the layers. Stages are named
    with `before` in front; `note`: what is said beside a layer and its error."""
    step: Callable[[int, str], Any] | None = None
    named, done = "", 0

    def told(event: Event) -> None:
        nonlocal step, named, done
        name = before + ("calibrate and quantize" if event.what.startswith("layer") else event.what.split(" to ")[0])
        if step is None or name != named:
            step, named, done = stage(name, event.total), name, 0
        if event.done > done:
            loss = "" if event.loss is None else f", error {event.loss:.3g}"
            step(event.done - done, f"{event.what}{loss}{note()}")
            done = event.done

    return told


def _as_events(progress: Progress) -> Callable[[str, int, int], Any]:
    return lambda what, done, total: progress(Event(done, total, what))


def calibration_tokens(path: str | Path, recipe: Recipe, files: Sequence[Path]) -> tuple[np.ndarray, dict[str, Any]]:
    """int32[sequences, length] for a recipe on a model, and what a result records about them."""
    model = load(path)
    separator = separator_of(model)
    wanted = recipe.calibration
    length = min(wanted.length, model.context)
    text = calibration_text(model.tokenizer, files, wanted.sequences, length, separator, wanted.seed)
    return text.ids, {"source": text.source, "sequences": wanted.sequences, "length": length, "tokens_sha256": text.digest}


@contextmanager
def _folder(work: str | Path | None, out: Path) -> Iterator[Path]:
    """The work folder; a temporary one lies beside `out`, where there must be room anyway."""
    if work is not None:
        yield Path(work)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with scratch(out.parent) as folder:
        yield folder


def _stored(out: Path, model: FloatSource) -> tuple[Tensors, float]:
    """What became of the matrices of a saved checkpoint, for its card."""
    source = open_model(out)
    assert source.quantization is not None
    found = _counted(source.quantization.layers, model)
    source.close()
    return found


def _counted(layers: Mapping[str, StoredLayer], model: FloatSource) -> tuple[Tensors, float]:
    counted: dict[tuple[str, str], int] = {}
    nbytes = weights = 0
    for name, layer in layers.items():
        was = DENSE_FORMATS[model.dtype(name)] if name in model.source.tensors else "shared with the embedding"
        act = "" if layer.act is None else f", {layer.act} activations"
        counted[was, layer.format + act] = counted.get((was, layer.format + act), 0) + 1
        if layer.format not in DENSE_FORMATS.values():
            nbytes, weights = nbytes + layer.nbytes, weights + prod(layer.shape)
    return [(was, here, count) for (was, here), count in counted.items()], 8 * nbytes / max(1, weights)


def _save(
    model: FloatSource, plan: Plan, recipe: Recipe, folder: Path, out: Path, about: dict[str, Any], path: str | Path,
    card: Card | None = None,
) -> int:  # fmt: skip
    """Writes the checkpoint from the finished blocks, one matrix in memory at a time."""
    spec, where = model.spec, model.where
    files = [folder / f"block-{i}.safetensors" for i in range(len(spec.layers))] + [folder / ENDS]
    changed: dict[str, Path] = {}
    entries: dict[str, QuantizedEntry] = {}
    formats = []
    untied = False
    roles = {t.name: t.role for t in spec.tensors}
    for file in files:
        finished = load_finished(file)
        for name, made in linears(finished).items():
            entries[name] = _lazy(name, made, file, f"{name.rpartition('.')[0]}.bias" in roles)
            formats += formats_of(made)
        changed |= dict.fromkeys(finished.arrays, file)
        untied |= UNTIED in finished.arrays or any(t.name == UNTIED for g in finished.groups.values() for t in g.targets)
    quantized, plain = [], []
    names = [t.name for t in spec.tensors] + ([UNTIED] if spec.tied and untied else [])
    for name in names:
        if name in entries:
            quantized.append((name, entries[name]))
            continue
        array, dtype = _kept(model, name, changed.get(name))
        if roles.get(name) in PLAIN:
            plain.append((name, dtype, array))
        else:
            quantized.append((name, entry_of(Linear(dense_tensor(array, dtype, name, where)))))
    config = dict(model.source.config)
    if spec.tied and untied:
        config["tie_word_embeddings"] = False
    policies = {name: choice.spec.policy_text for name, choice in plan.choices.items()}
    common = next(iter(policies.values())) if len(set(policies.values())) == 1 else None
    if common is None:
        quantized = [(name, replace(entry, stored=replace(entry.stored, policy=policies.get(name)))) for name, entry in quantized]
    beside: tuple[Sidecar, ...] = tuple(file for file in model.source.sidecars if card is None or file.name != CARD)
    if card is not None:
        layers = {name: entry.stored for name, entry in quantized}
        beside = (*beside, Made(CARD, lambda: card(*_counted(layers, model), about, None).encode()))
    provenance = [{"recipe": recipe.name, "text": json.loads(recipe.text), "calibration": about, "base": str(path)}]
    return save_checkpoint(
        out, config, quantized, plain, beside, tables=tables_of(formats), provenance=provenance,
        policy=common, recipe_digest=recipe.digest,
        kv_cache=None if recipe.kv_cache is None else recipe.kv_cache.fields,
    )  # fmt: skip


def _lazy(name: str, made: Linear, file: Path, bias_apart: bool) -> QuantizedEntry:
    """A layer's entry that is made again from its file when its turn comes."""
    stored = entry_of(made, bias_apart).stored
    return QuantizedEntry(stored, lambda: entry_of(linear_named(load_finished(file, name), name), bias_apart).produce())


def _kept(model: FloatSource, name: str, file: Path | None) -> tuple[np.ndarray, str]:
    """A tensor that is not quantized: as it was stored, bit for bit, or where a step changed it, float32."""
    if file is not None:
        values = load_finished(file).arrays[name]
        if (name == UNTIED and name not in model.source.tensors) or not np.array_equal(values, model.array(name)):
            return values, "F32"
    return model.source.get(name)


def _judge(path: str | Path, made: Path, gates: Gates, out: Path, files: Sequence[Path]) -> tuple[Accuracy, dict[str, Any]]:
    """Measures the result against the original; also as `anybit eval --json` says it. GateError: a gate is missed."""
    result, original = load(made), load(path)
    separator = separator_of(original)
    if files:
        text = text_from_files(original.tokenizer, files, None, separator)
    else:
        text = default_text(original.tokenizer, DEFAULT_TOKENS, separator)
    window = min(512, original.context)
    found = evaluate({"made": result}, text.ids, original, window)["made"]
    kl, top1 = found.kl_mean, found.same_top1
    assert kl is not None and top1 is not None
    missed = []
    if gates.max_kl is not None and not kl.mean <= gates.max_kl:
        missed.append(f"KL {kl.mean:.4g} ± {kl.se:.2g} is above max_kl {gates.max_kl:g}")
    if gates.min_top1 is not None and not top1 >= gates.min_top1:
        missed.append(f"same top-1 {top1:.4f} is below min_top1 {gates.min_top1:g}")
    if missed:
        raise GateError(f"{' and '.join(missed)}; the result lies aside in {made}, {out} was not made")
    told = {"source": text.source, "tokens": text.tokens}
    return found, {**found.describe(), "reference": str(path), "text": told, "window": window, "act": "those of each layer"}
