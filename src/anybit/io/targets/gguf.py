"""GGUF files for llama.cpp: every type that is packed here (`io/gguf/`), with the model's fields and tokenizer.

A tensor takes the narrowest type that has every one of its values: int3@128 goes into Q4_0, whose blocks repeat its scales. What no type
holds is refused; a kind, as in gguf:q4_k, quantizes dense models to one type. Codes of IQ1 to IQ3 must be from the type's list of points:
those of a tensor that has their format are looked up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anybit.errors import UnknownNameError, near_misses
from anybit.formats import Format
from anybit.io.ahead import ahead
from anybit.io.gguf.experts import EXPERTS, WHICH
from anybit.io.gguf.kind import KINDS, Kind, writers
from anybit.io.gguf.model import MODULES, WHOLE, row_order
from anybit.io.gguf.model_fields import architecture_of, interleaved, model_fields, rope_factors
from anybit.io.gguf.tokenizer_fields import tokenizer_fields
from anybit.io.gguf.writer import Entry, Value, write_gguf
from anybit.io.output import digested
from anybit.io.targets.fit import Fit, NoFit, fit
from anybit.io.targets.target import SLAB, TARGETS, Held, Parts, Plan, Source, Step, Target, Written

FILE = "model.gguf"
RULES = {
    "q8_0": "mse", "mxfp4": "mse", "nvfp4": "mse", "tq1_0": "mse", "tq2_0": "mse", "q1_0": "mse", "q2_0": "mse", "q4_0": "kquant",
    "q5_0": "kquant", "iq4_nl": "kquant", "iq4_xs": "kquant", "q4_1": "kquant", "q5_1": "kquant", "q2_k": "kquant", "q3_k": "kquant",
    "q4_k": "kquant", "q5_k": "kquant", "q6_k": "kquant",
}  # fmt: skip
"""How scales are chosen where a kind quantizes."""
_DENSE = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
# llama.cpp's number for a model that is mostly of a type: shown, not used
_FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 12, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18,
    "IQ2_XXS": 19, "IQ2_XS": 20, "IQ3_XXS": 23, "IQ1_S": 24, "IQ4_NL": 25, "IQ3_S": 26, "IQ2_S": 28, "IQ4_XS": 30, "IQ1_M": 31, "BF16": 32,
    "TQ1_0": 36, "TQ2_0": 37, "MXFP4": 38,
}  # fmt: skip
_SECOND = "fp4_e2m1@16:fp8_e4m3fn@tensor:fp32"


@dataclass(frozen=True)
class _Place:
    """Where a tensor goes: its name and type there, how its parts become that type's, and the order of its rows (None: as they are)."""

    held: Held
    name: str
    kind: Kind
    fitted: Fit | None
    order: np.ndarray | None
    experts: int = 0  # it is the matrix of one of so many, which lie in one tensor, one after the other; 0: a tensor of its own

    @property
    def factor(self) -> str | None:
        """The name of the float32 factor beside it (NVFP4)."""
        return f"{self.name.removesuffix('.weight')}.scale" if self.kind.name == "NVFP4" else None

    @property
    def entries(self) -> list[Entry]:
        """The tensor (of experts, with all of them), and its factor."""
        found = [Entry(self.name, self.kind, (self.experts, *self.held.shape) if self.experts else self.held.shape)]
        return found + ([Entry(self.factor, KINDS["F32"], (1,))] if self.factor else [])

    def data(self) -> Iterator[tuple[str, np.ndarray]]:
        """Blocks of some rows at a time."""
        held = self.held
        if held.plain:
            values = held.values(0, held.shape[0])
            yield self.name, np.ascontiguousarray(values if self.order is None else values[self.order], np.float32)
            held.release()
            return
        rows, k = held.shape
        parts: Parts = {}
        for start, stop in [(0, rows)] if self.order is not None else held.pieces():
            parts = held.rows(start, stop)
            parts = parts if self.fitted is None else self.fitted.parts(parts, (stop - start, k))
            yield from self._blocks(parts, stop - start)
        if self.factor:
            yield self.factor, np.ascontiguousarray(parts["scale.1"].reshape(1)).view(np.float32)
        held.release()

    def _blocks(self, parts: Parts, rows: int) -> Iterator[tuple[str, np.ndarray]]:
        """The same some rows at a time, in the order of the file."""
        k = self.held.shape[1]
        step = max(1, SLAB // k)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            take: Any = slice(start, stop) if self.order is None else self.order[start:stop]
            some = {name: part[take] if part.shape[0] == rows and part.shape != (1, 1) else part for name, part in parts.items()}
            blocks = np.empty((stop - start, k // self.kind.weights), self.kind.dtype)
            writers()[self.kind.name](some, blocks)
            yield self.name, blocks.view(np.uint8)


def _spec(kind: str) -> str:
    """The format and scale rule of a type. UnknownNameError."""
    name = kind.upper()
    if name not in writers():
        known = [n.lower() for n in writers()]
        raise UnknownNameError(f"no GGUF type named '{kind}' is written{near_misses(kind, known)}; there are {', '.join(known)}")
    rule = RULES.get(kind.lower())
    return KINDS[name].format + (f"+scale={rule}" if rule and rule != "absmax" else "")


def _renamed(name: str) -> str:
    """The name in a file; that of the matrices of all experts is the same."""
    module, _, part = name.rpartition(".")
    if module in _WHOLE_BACK:
        return f"{_WHOLE_BACK[module]}.{part}"
    _, _, layer, inner = module.split(".", 3)
    return f"blk.{layer}.{_MODULES_BACK.get(inner) or _EXPERTS_BACK[re.sub('[.][0-9]+[.]', '.', inner)]}.{part}"


_MODULES_BACK = {theirs: ours for ours, theirs in MODULES.items()}
_EXPERTS_BACK = {each.router: "ffn_gate_inp" for each in EXPERTS.values()} | {
    f"{each.module}.{name}": f"ffn_{which}_exps" for each in EXPERTS.values() for which, name in zip(WHICH, each.names, strict=True)
}
_WHOLE_BACK = {theirs: ours for ours, theirs in WHOLE.items()}


def _candidates(kind: str | None) -> list[Kind]:
    """Types in the order in which they are tried: those that take the fewest bits first."""
    if kind is not None:
        return [KINDS[kind.upper()]]
    coded = [KINDS[name] for name in writers() if name not in _DENSE.values() and name != "TQ1_0"]  # TQ2_0 is what TQ1_0 is, faster
    return sorted(coded, key=lambda kind: kind.dtype.itemsize / kind.weights)


def _kind_of(held: Held, wanted: str | None) -> tuple[Kind, Fit | None]:
    """The type that holds a tensor exactly. NoFit: there is none."""
    if held.plain:
        return KINDS["F32"], None
    element = held.format.plain.element.name
    if held.dense:
        return KINDS[_DENSE[element]], None
    if held.order is not None:
        raise NoFit("its inputs are in another order (desc_act), which no GGUF type has")
    reasons, absent = [], []
    for kind in _candidates(wanted):
        try:
            if held.shape[1] % kind.weights:
                raise NoFit(f"rows of {held.shape[1]} are no whole blocks of {kind.weights}")
            fitted = fit(held.format, Format(kind.format), held.shape)
            if kind.name == "NVFP4" and held.format.plain.explicit != _SECOND:
                raise NoFit("it has other scales")
            fitted.check(held)
            missing = _missing(held, fitted, kind)
            if missing is None:
                return kind, fitted
            absent.append(f"{kind.name}: {missing}")
        except NoFit as error:
            reasons.append((kind.name, str(error)))
    # the most telling reason: of a type that has the format, or at least the element
    told = (
        absent
        or [f"{name}: {why}" for name, why in reasons if not why.startswith(("codes in", "level"))]
        or [f"{n}: {w}" for n, w in reasons]
    )
    raise NoFit(f"no GGUF type has all its values ({told[-1]})")


def _missing(held: Held, fitted: Fit, kind: Kind) -> str | None:
    """Why codes of a tensor are not from the type's list of points; None: they are, or it has none. Reads all codes."""
    if kind.points is None or held.points is kind.points:
        return None
    for start, stop in held.pieces():
        parts = fitted.parts(held.rows(start, stop), (stop - start, held.shape[1]))
        reason = kind.points.refusal(parts["codes"], parts["scale.0"])
        if reason is not None:
            return f"{reason}, in rows {start} to {stop - 1}"
    return None


def _of_experts(held: Held) -> bool:
    return ".experts." in held.name


def _together(source: Source) -> dict[str, list[Held]]:
    """By the name in a file the matrices of all experts of a layer, in their order; each other tensor alone."""
    found: dict[str, list[Held]] = {}
    for name, held in source.tensors.items():
        found.setdefault(_renamed(name), []).append(held)
    return found


def _kinds_of(together: list[Held], wanted: str | None) -> list[tuple[Kind, Fit | None]]:
    """The one type that holds each of some tensors exactly. NoFit: there is none."""
    fits = [_kind_of(held, wanted) for held in together]
    if len({kind.name for kind, _ in fits}) > 1:  # of those that each would take, the widest may hold all
        widest = max((kind for kind, _ in fits), key=lambda kind: kind.dtype.itemsize / kind.weights)
        if any(held.dense for held in together):
            raise NoFit("experts of a layer are one tensor there, of one type, and here some are stored otherwise than others")
        fits = [_kind_of(held, widest.name.lower()) for held in together]
    if _of_experts(together[0]) and fits[0][0].name == "NVFP4":
        raise NoFit("experts of a layer are one tensor there, with a factor for each that is not written here")
    return fits


def _text(held: Held) -> str:
    return held.format.alias or str(held.format)


def _plan(source: Source, kind: str | None) -> Plan:
    architecture_of(source.spec)
    factors = rope_factors(source.spec)
    steps, places = [], []
    for together in _together(source).values():
        held = together[0]
        try:
            fits = _kinds_of(together, kind)
        except NoFit as error:
            steps += [Step(each.name, each.shape, _text(each), "", False, 0, str(error)) for each in together]
            continue
        for each, (chosen, fitted) in zip(together, fits, strict=True):
            count = len(together) if _of_experts(held) else 0
            place = _Place(each, _renamed(each.name), chosen, fitted, _order(source, each.name, each), count)
            places.append(place)
            steps.append(Step(each.name, each.shape, _text(each), chosen.name, True, sum(e.nbytes for e in place.entries) // len(together)))
    fields = model_fields(source.spec, source.config, _title(source))
    notes = []
    tokenizer = source.sidecar("tokenizer.json")
    if tokenizer is None:
        notes.append("no tokenizer.json: the file has no tokenizer")
        fields["tokenizer.ggml.model"] = Value("str", "no_vocab")
    else:
        fields |= tokenizer_fields(tokenizer, source.spec.vocab, source.spec.bos, source.eos, _chat_template(source))
    counted: dict[str, int] = {}
    for place in places:
        counted[place.kind.name] = counted.get(place.kind.name, 0) + int(np.prod(place.held.shape))
    most = max((name for name in counted if name not in ("F32",)), key=lambda name: counted[name], default="F32")
    if most in _FILE_TYPES:
        fields["general.file_type"] = Value("u32", _FILE_TYPES[most])

    def pour(put: Callable[[Any], None], written: Written) -> None:
        _pour(put, fields, places, factors, written)

    def write(folder: Path, written: Written) -> dict[str, str]:
        with digested(folder / FILE, passing=True) as file:
            pour(file.write, written)
        return {FILE: file.sha256}

    return Plan(tuple(steps), write, tuple(notes), FILE, pour)


def _order(source: Source, name: str, held: Held) -> np.ndarray | None:
    """The row of ours that comes at each row of the file."""
    module = held.module.rpartition(".")[2]
    if not interleaved(source.spec) or module not in ("q_proj", "k_proj"):
        return None
    attention = source.spec.layers[0].mixer
    order = row_order(attention.heads if module == "q_proj" else attention.kv_heads, held.shape[0])
    return None if order is None else np.argsort(order)


def file_names(source: Source) -> dict[str, list[tuple[Held, np.ndarray | None]]]:
    """By the name that it has in a file, each tensor (of experts, all) and the order of its rows there (None: as they are here)."""
    return {name: [(held, _order(source, held.name, held)) for held in together] for name, together in _together(source).items()}


def _pour(
    put: Callable[[Any], None], fields: dict[str, Value], places: list[_Place], factors: np.ndarray | None, written: Written
) -> None:  # fmt: skip
    entries = list({entry.name: entry for place in places for entry in place.entries}.values())  # experts share one
    if factors is not None:
        entries.append(Entry("rope_freqs.weight", KINDS["F32"], factors.shape))

    def data() -> Iterator[tuple[str, np.ndarray]]:
        for place in places:
            yield from place.data()
            written(place.held.name)
        if factors is not None:
            yield "rope_freqs.weight", factors

    with closing(ahead(data())) as made:  # no blocks are views of the source, whose pages `data` gives back
        write_gguf(put, fields, entries, made)


def _title(source: Source) -> str:
    return str(source.config.get("_name_or_path") or Path(source.name).name or "model")


def _chat_template(source: Source) -> str | None:
    """The chat template of a model: a file of its own, or a field of tokenizer_config.json."""
    own = source.sidecar("chat_template.jinja")
    if own is not None:
        return own.decode()
    settings = source.sidecar("tokenizer_config.json")
    template = json.loads(settings).get("chat_template") if settings else None
    return template if isinstance(template, str) else None


TARGETS.add("gguf", Target("gguf", "a file for llama.cpp", "gguf[:TYPE]", _spec, _plan, points=lambda kind: KINDS[kind.upper()].points))
