"""Recipes: a strict, versioned description of how a whole model is quantized (docs/recipes.md)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anybit.cache import CacheSpec
from anybit.errors import AnybitError, FileFormatError, UnknownNameError, UsageError, near_misses
from anybit.formats import Spec
from anybit.io import strict_json
from anybit.methods.step import STEPS, Correction, GroupStep, ModelStep, Rounding, Step
from anybit.recipes import llmcompressor, quantization_config, strict_yaml
from anybit.recipes.given import shown as _shown
from anybit.recipes.pattern import pattern

VERSION = 1
SEQUENCES, LENGTH = 128, 512


@dataclass(frozen=True)
class Calibration:
    """`sequences` windows of `length` tokens; `sequential`: see `anybit.calibrate.Plan`."""

    sequences: int = SEQUENCES
    length: int = LENGTH
    seed: int = 0
    sequential: str = "block"


@dataclass(frozen=True)
class Rule:
    """What becomes of the matrices whose names `match` finds (see `pattern`). `spec` None: they are kept."""

    match: str
    spec: Spec | None
    rounding: Rounding | None = None
    corrections: tuple[Correction, ...] = ()
    act: str | None = None


@dataclass(frozen=True)
class Gates:
    """What the result must hold against the original on the evaluation text: mean KL in nats a token, share of equal most likely tokens."""

    max_kl: float | None = None
    min_top1: float | None = None


@dataclass(frozen=True)
class Allocation:
    """Formats by layer, chosen by integer programming under budgets, of which there is at least one.

    `formats`: the candidates; `cost`: what is minimised, "kl" (measured, one layer at a time) or "hawq" (trace of X^T X times the error).
    Budgets, all over the matrices that rules quantize: `bits`, exact stored bits a weight; `latency_ms`, their products with one token's
    inputs as measured on this machine; `bit_operations`, the mean over multiplications of the weight's bits times the activations' (32 for
    float), in which HAWQ-V3 counts.
    """

    bits: float | None
    formats: tuple[str, ...]
    cost: str = "kl"
    latency_ms: float | None = None
    bit_operations: float | None = None


@dataclass(frozen=True)
class Recipe:
    """See docs/recipes.md. `measured`: what it gave, where and when (keys `MEASURED`); `text`: what it does, in canonical form, without
    what is said about it; `digest` names that; `notes`: what an import did not take over."""

    name: str
    rules: tuple[Rule, ...]
    about: str = ""
    source: str = ""
    published: str = ""
    calibration: Calibration = field(default_factory=Calibration)
    steps: tuple[ModelStep | GroupStep, ...] = ()
    kv_cache: CacheSpec | None = None
    gates: Gates = field(default_factory=Gates)
    allocation: Allocation | None = None
    nonfinite: str = "error"
    measured: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe in canonical form."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def rule_of(self, name: str) -> Rule | None:
        """The first rule that matches a tensor's name; None: it is kept."""
        return next((rule for rule in self.rules if pattern(rule.match).search(name)), None)


Lines = Callable[[tuple[str, ...]], int]


@dataclass(frozen=True)
class _Where:
    """A place in a recipe, as messages name it: the file, the line where it is known, and the field."""

    file: str
    lines: Lines | None = None
    keys: tuple[str, ...] = ()
    field: str = ""

    def at(self, key: str, shown: str | None = None) -> _Where:
        """A place below; `shown`: how the field is called, "" to go on with this one's name."""
        name = key if shown is None else shown
        return _Where(self.file, self.lines, (*self.keys, key), f"{self.field}: {name}" if self.field and name else self.field or name)

    def item(self, key: str, i: int) -> _Where:
        """An item of the list `key`."""
        return self.at(key, "").at(str(i), f"{key}[{i}]")

    def __str__(self) -> str:
        line = f": line {self.lines(self.keys)}" if self.lines else ""
        return f"{self.file}{line}" + (f": {self.field}" if self.field else "")


class _Reader:
    """A mapping whose every key must be taken: what is left over is unknown."""

    def __init__(self, value: Any, where: _Where, allowed: tuple[str, ...]) -> None:
        if not isinstance(value, dict):
            raise FileFormatError(f"{where}: it must be a mapping, not {_shown(value)}; there is {', '.join(allowed)}")
        for key in value:
            if key not in allowed:
                raise FileFormatError(f"{where.at(key, '')}: no key '{key}'{near_misses(key, allowed)}; there is {', '.join(allowed)}")
        self.value, self.where = value, where

    def __contains__(self, key: str) -> bool:
        return key in self.value

    def get(
        self, key: str, kind: type | tuple[type, ...], default: Any, check: Callable[[Any], bool] = lambda v: True, wanted: str = ""
    ) -> Any:
        """The value, or the default where it is left out."""
        if key not in self.value:
            return default
        value = self.value[key]
        bad_bool = isinstance(value, bool) and bool not in (kind if isinstance(kind, tuple) else (kind,))
        if bad_bool or not isinstance(value, kind) or not check(value):
            name = wanted or " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise FileFormatError(f"{self.where.at(key, '')}: '{key}' is {_shown(value)}; it must be {name}")
        return value


def load_recipe(given: str | Path) -> Recipe:
    """A named recipe, or a file (anything with a slash or that ends in .yaml, .yml or .json): a recipe, llm-compressor's recipe.yaml, or a
    config.json whose quantization_config says what to do.

    UnknownNameError: no such name. FileFormatError: a file that is no recipe, with the place and what is allowed there.
    """
    text = str(given)
    if isinstance(given, Path) or "/" in text or text.endswith((".yaml", ".yml", ".json")):
        return _opened(Path(text), text)
    known = named()
    if text not in known:
        raise UnknownNameError(f"no recipe named '{text}'{near_misses(text, known)}; 'anybit recipes' lists them, a file ends in .yaml")
    return _opened(known[text], text)


def _opened(path: Path, where: str) -> Recipe:
    """A recipe of this tool, or of another."""
    content = strict_yaml.text_of(path)
    if path.suffix == ".json":
        data = content.encode()

        def line(keys: tuple[str, ...]) -> int:
            return data[: strict_json.place(data, keys)].count(b"\n") + 1

        value, notes = quantization_config.recipe(strict_json.parse(data, where), where, line)
    else:
        value = strict_yaml.parse(content, where)
        if not llmcompressor.recognised(value):
            return parse_recipe(value, where, strict_yaml.lines(content))
        value, notes = llmcompressor.recipe(value, where, strict_yaml.lines(content))
    return replace(parse_recipe({"name": path.stem, **value}, where), notes=notes)


def named() -> dict[str, Path]:
    """The recipes that come with anybit, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "named").glob("*.yaml"))}


TOP = (
    "version", "name", "about", "source", "published", "measured", "calibration", "steps", "rules", "kv_cache", "gates", "allocation",
    "nonfinite",
)  # fmt: skip
MEASURED = ("model", "tokens", "kl", "kl_se", "bits", "on")


def parse_recipe(value: Any, file: str, lines: Lines | None = None) -> Recipe:
    """A recipe from YAML's values; `lines`: where they stand, see `strict_yaml.lines`.

    FileFormatError, with the line: an unknown key, with a suggestion; a value that is not allowed.
    """
    where = _Where(file, lines)
    top = _Reader(value, where, TOP)
    version = top.get("version", int, None)
    if version != VERSION:
        raise FileFormatError(f"{where.at('version', '')}: 'version' is {_shown(version)}; this anybit reads version {VERSION}")
    rules = top.get("rules", list, None)
    if not rules:
        advice = "give at least one, such as {match: layers, format: int4@128}"
        raise FileFormatError(f"{where.at('rules', '')}: 'rules' is missing or empty; {advice}")
    steps = tuple(_step(item, where.item("steps", i), (ModelStep, GroupStep)) for i, item in enumerate(top.get("steps", list, [])))
    nonfinite = top.get("nonfinite", str, "error", lambda v: v in ("error", "saturate", "propagate"), "error, saturate or propagate")
    measured = _Reader(value.get("measured", {}), where.at("measured"), MEASURED)
    said = {key: each for key, each in value.items() if key not in ("about", "source", "published", "measured")}
    return Recipe(
        name=top.get("name", str, Path(file).stem if file.endswith((".yaml", ".yml", ".json")) else file),
        about=top.get("about", str, ""), source=top.get("source", str, ""),
        published=top.get("published", str, ""), calibration=_calibration(value.get("calibration", {}), where.at("calibration")),
        steps=steps,  # type: ignore[arg-type]
        rules=tuple(_rule(item, where.item("rules", i), nonfinite) for i, item in enumerate(rules)),
        kv_cache=_cache(value.get("kv_cache"), where.at("kv_cache")), gates=_gates(value.get("gates", {}), where.at("gates")),
        allocation=_allocation(value["allocation"], where.at("allocation")) if "allocation" in value else None, nonfinite=nonfinite,
        measured={key: measured.get(key, (str, int, float), None) for key in MEASURED if key in measured},
        text=json.dumps(said, sort_keys=True, ensure_ascii=False, default=str),
    )  # fmt: skip


def _calibration(value: Any, where: _Where) -> Calibration:
    reader = _Reader(value, where, ("sequences", "length", "seed", "sequential"))

    def count(key: str, default: int, low: int) -> int:
        return int(reader.get(key, int, default, lambda v: low <= v < 1 << 31, f"a whole number of at least {low}"))

    sequential = reader.get("sequential", str, "block", lambda v: v in ("block", "group"), "block or group")
    return Calibration(count("sequences", SEQUENCES, 1), count("length", LENGTH, 1), count("seed", 0, 0), sequential)


def _cache(value: Any, where: _Where) -> CacheSpec | None:
    if value is None:
        return None
    reader = _Reader(value, where, ("k", "v", "stage"))
    try:
        return CacheSpec.of({key: reader.get(key, str, None) for key in ("k", "v", "stage") if key in reader})
    except AnybitError as error:
        advice = "" if ";" in str(error) else "; as in {k: int8@32, stage: pre_rope}"
        raise FileFormatError(f"{where}: {error}{advice}") from None


def _rule(value: Any, where: _Where, nonfinite: str) -> Rule:
    reader = _Reader(value, where, ("match", "keep", "format", "rounding", "corrections", "act"))
    match = reader.get("match", str, None)
    if match is None:
        raise FileFormatError(f"{where}: 'match' is missing; give a regular expression that tensor names are searched for")
    try:
        pattern(match)
    except UsageError as error:
        raise FileFormatError(f"{where.at('match', '')}: 'match' {error}") from None
    keep = reader.get("keep", bool, False)
    if keep == ("format" in reader):
        raise FileFormatError(f"{where}: give either 'format' or 'keep: true'; a matrix is quantized or kept")
    if keep:
        others = [key for key in ("rounding", "corrections", "act") if key in reader]
        if others:
            raise FileFormatError(f"{where.at(others[0], '')}: '{others[0]}' says nothing of a matrix that is kept; leave it out")
        return Rule(match, None)
    spec = _spec(reader.get("format", str, None), where.at("format", "'format'"))
    if nonfinite != "error" and "nonfinite" not in str(spec):
        spec = _spec(f"{spec}+nonfinite={nonfinite}", where.at("format", "'format'"))
    rounding = _step(value.get("rounding", "nearest"), where.at("rounding"), (Rounding,))
    corrections = tuple(
        _step(item, where.item("corrections", i), (Correction,)) for i, item in enumerate(reader.get("corrections", list, []))
    )
    act = reader.get("act", str, None)
    if act is not None and act != "float":
        _spec(act, where.at("act", "'act'"))
    return Rule(match, spec, rounding, corrections, None if act == "float" else act)  # type: ignore[arg-type]


def _spec(text: str, where: _Where) -> Spec:
    try:
        spec = Spec.parse(text)
        spec.check()
    except AnybitError as error:
        advice = "" if ";" in str(error) else "; see docs/expressions.md"
        raise FileFormatError(f"{where}: {error}{advice}") from None
    return spec


def _step(value: Any, where: _Where, kinds: tuple[type[Step], ...]) -> Step:
    """`name` or `{name: {options}}`."""
    if isinstance(value, str):
        name, options = value, dict[str, Any]()
    elif isinstance(value, dict) and len(value) == 1:
        ((name, options),) = value.items()
        options = {} if options is None else options
    else:
        raise FileFormatError(f"{where}: it must be a name, or a name with its options, not {_shown(value)}; give one such as nearest")
    if not isinstance(options, dict):
        raise FileFormatError(f"{where}: the options of {name} must be a mapping, not {_shown(options)}; as in {{importance: true}}")
    try:
        step = STEPS[name]
    except UnknownNameError as error:
        raise FileFormatError(f"{where}: {error}; {_steps(kinds)}") from None
    if not issubclass(step, kinds):
        raise FileFormatError(f"{where}: {name} is no {' or '.join(_KIND[k] for k in kinds)} but a {_kind(step)}; {_steps(kinds)}")
    try:
        return step.made(options, str(where.at(name)))
    except UsageError as error:
        raise FileFormatError(str(error)) from None


_KIND: dict[type[Step], str] = {
    ModelStep: "step of the model", GroupStep: "step of a group", Rounding: "rounding", Correction: "correction",
}  # fmt: skip


def _steps(kinds: tuple[type[Step], ...]) -> str:
    return f"there is {', '.join(name for name in sorted(STEPS) if issubclass(STEPS[name], kinds))}"


def _kind(step: type[Step]) -> str:
    return next(name for kind, name in _KIND.items() if issubclass(step, kind))


def _gates(value: Any, where: _Where) -> Gates:
    reader = _Reader(value, where, ("max_kl", "min_top1"))
    kl = reader.get("max_kl", (int, float), None, lambda v: v >= 0, "a number of nats, at least 0")
    top1 = reader.get("min_top1", (int, float), None, lambda v: 0 <= v <= 1, "a share between 0 and 1")
    return Gates(None if kl is None else float(kl), None if top1 is None else float(top1))


def _names(value: Any) -> bool:
    return len(value) > 1 and all(isinstance(each, str) for each in value)


def _allocation(value: Any, where: _Where) -> Allocation:
    reader = _Reader(value, where, ("bits", "formats", "cost", "latency_ms", "bit_operations"))
    bits = reader.get("bits", (int, float), None, lambda v: 0 < v < 64, "stored bits a weight")
    latency = reader.get("latency_ms", (int, float), None, lambda v: 0 < v < 1e9, "milliseconds a token")
    operations = reader.get("bit_operations", (int, float), None, lambda v: 0 < v <= 1024, "bits of weights times bits of activations")
    formats = reader.get("formats", list, None, _names, "a list of formats, two or more")
    if formats is None or (bits is None and latency is None and operations is None):
        raise FileFormatError(f"{where}: 'formats' and a budget are needed: 'bits', 'latency_ms' or 'bit_operations'")
    for i, each in enumerate(formats):
        _spec(each, where.item("formats", i))
    cost = reader.get("cost", str, "kl", lambda v: v in ("kl", "hawq"), "kl or hawq")
    budgets = [None if given is None else float(given) for given in (bits, latency, operations)]
    return Allocation(budgets[0], tuple(formats), cost, budgets[1], budgets[2])
