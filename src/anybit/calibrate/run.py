"""The pass over a model, block by block: statistics on the inputs that the already quantized part gives, then the steps, then the next.

Memory: the float32 weights of one block with what was made of them, its statistics, one sequence's activations, and the hidden states of
all sequences (float32[sequences, length, width]), which lie in a file. With a work folder every finished block is kept there, and a run
that was killed goes on after the last one with the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from anybit.calibrate.block import Assignment, Block, RoundedBlock
from anybit.calibrate.forward import Routing, members, rms_norm, run_block
from anybit.calibrate.work import Work
from anybit.errors import NonFiniteError, UsageError
from anybit.formats import codes_shape
from anybit.io.save import scratch
from anybit.methods.prune import zeros_again
from anybit.methods.statistics import Statistics
from anybit.methods.step import ROLES, Group, GroupStep, ModelStep, Target, kind_of
from anybit.models.spec import Experts, ModelSpec

UNTIED = "lm_head.weight"


class FloatModel(Protocol):
    """Where float weights come from."""

    spec: ModelSpec

    def array(self, name: str) -> np.ndarray:
        """float32 values of a tensor, read now."""

    def rows(self, name: str, index: np.ndarray) -> np.ndarray:
        """float32 values of some rows of a matrix: `array(name)[index]` without the others."""


@dataclass(frozen=True)
class Plan:
    """What is to be done: steps in order, and a choice for every matrix that is quantized (by tensor name).

    `sequential`: "block" gathers the statistics of a block's four inputs in one pass over the float block; "group" gathers each anew after
    the matrices before it were rounded, which costs three more passes. `digest` names all of this and the model, for resuming.
    """

    choices: Mapping[str, Assignment]
    model_steps: tuple[ModelStep, ...] = ()
    group_steps: tuple[GroupStep, ...] = ()
    sequential: str = "block"
    digest: str = ""

    def __post_init__(self) -> None:
        if self.sequential not in ("block", "group"):
            raise UsageError(f"sequential is '{self.sequential}'; there is block and group")

    def needs(self, names: Sequence[str]) -> frozenset[str]:
        """Statistics of the input of these matrices."""
        found = [self.choices[name] for name in names if name in self.choices]
        steps = [step.asks(choice.spec) for choice in found for step in self.group_steps]
        return frozenset().union(*(choice.needs for choice in found), *steps)

    @property
    def data_free(self) -> bool:
        """Whether nothing of it looks at data: no calibration text is needed, and no block is run."""
        return not self.needs(list(self.choices))


@dataclass(frozen=True)
class Event:
    """Progress: `done` of `total` blocks; `loss`: relative error of the last block's output; `seconds_left` None while unknown."""

    done: int
    total: int
    what: str
    loss: float | None = None
    seconds_left: float | None = None


@dataclass
class Finished:
    """A block that is done: its norms, biases and kept matrices (`arrays`), its groups with parts, and its error."""

    index: int  # -1: embedding, final norm and head
    arrays: dict[str, np.ndarray]
    groups: dict[str, Group]
    loss: float = 0.0
    notes: list[str] = field(default_factory=list)


def calibrate(
    model: FloatModel, plan: Plan, ids: np.ndarray | None, work: str | Path | None = None, resume: bool = False,
    progress: Callable[[Event], Any] | None = None,
) -> Iterator[Finished]:  # fmt: skip
    """Quantizes a model's blocks in order; the last thing that it yields (index -1) is the final norm with embedding and head, as far as
    they are rounded or a step changed them. Memory is that of one block where the caller drops each before it asks for the next.

    Args: ids, int32[sequences, length] calibration tokens (None, for a plan without data: no block is run, losses are NaN); work, a folder
        for hidden states and finished blocks (None: a temporary one), where block-i.safetensors and ends.safetensors stay; resume, go on
        with what lies there.
    Raises: NonFiniteError: an input or a block's output is not finite, with the layer's name. UsageError: the work folder holds what
        another run left.
    """
    spec = model.spec
    if ids is None:
        if not plan.data_free:
            raise UsageError("these steps look at data: calibration tokens are needed")
        ids = np.zeros((0, 0), np.int32)
    layers = len(spec.layers)
    for step in plan.model_steps:
        step.prepare(spec)
    cross = any("cross" in plan.needs(names) for layer in spec.layers for names in members(layer).values())
    with scratch() if work is None else nullcontext(Path(work)) as folder:
        held = Work(folder, plan.digest, resume)
        shape = (*ids.shape, spec.width)
        start = held.begin(shape, cross, _embedded(model, plan, ids))
        begun = time.perf_counter()
        for index in range(layers):
            if index < start:
                yield held.load(index)
                continue
            if progress:
                spent = time.perf_counter() - begun
                left = spent / (index - start) * (layers - index) if index > start else None
                progress(Event(index, layers, f"layer {index}", None, left))
            finished = _one(model, plan, held, index, len(ids), cross)
            held.keep(finished)
            loss = finished.loss
            yield finished
            del finished  # whoever takes it may drop it: the next block's weights come
            if progress:
                spent = time.perf_counter() - begun
                progress(Event(index + 1, layers, f"layer {index}", loss, spent / (index + 1 - start) * (layers - index - 1)))
        last = _head(model, plan, held, _ends(model, plan), len(ids))
        held.done(last)
        yield last


def _embedded(model: FloatModel, plan: Plan, ids: np.ndarray) -> Callable[[int], np.ndarray]:
    """Hidden states of a sequence before the first block. A large vocabulary's float32 matrices would outweigh a block: where no step
    changes them, only the rows that are needed are read; otherwise the ends are read again when their turn comes."""
    name = model.spec.embedding
    if not plan.model_steps:
        return lambda i: model.rows(name, ids[i])
    table = _ends(model, plan)[name]
    return lambda i: table[ids[i]]


def _one(model: FloatModel, plan: Plan, held: Work, index: int, sequences: int, cross: bool) -> Finished:
    """One block: statistics, transforms, rounding, corrections, and the hidden states of the next."""
    spec = model.spec
    layer = spec.layers[index]
    arrays = {name: np.array(model.array(name)) for name in block_tensors(spec, index)}
    for step in plan.model_steps:
        step.block(spec, index, arrays)
    block, groups = Block.of(layer, index, arrays, plan.choices), members(layer)
    notes: list[str] = []
    _gather(block, plan, held, spec, sequences, tuple(block.groups), cross)
    for group_step in plan.group_steps:
        for role, group in block.groups.items():
            if not group_step.serves(role):
                continue
            if len(group.targets) < len(groups[role]):
                notes.append(f"layer {index}: {role} keeps a matrix as it is, so {type(group_step).__name__} leaves it alone")
                continue
            block.refresh(group)
            group.producer = block.producer(role)
            group_step.apply(group)
            block.take_back(group)
    seen = "" if plan.group_steps else kind_of(next(iter(block.groups), ""))
    for group in block.groups.values():
        block.refresh(group)
        if plan.sequential == "group" and group.kind != seen:  # inputs of one kind do not depend on each other: one pass for all
            seen = group.kind
            _gather(block, plan, held, spec, sequences, tuple(each for each in block.groups if kind_of(each) == seen), cross)
        for target in group.targets:
            _round(target, block.choices[target.name], group.stats)
            notes += [f"{target.name}: {note}" for note in target.notes]
        group.stats = Statistics(group.k, frozenset())  # what was gathered is not kept
    loss = _advance(block, held, spec, sequences, cross)
    kept = {name: array for name, array in block.arrays.items() if name not in plan.choices}
    for group in block.groups.values():
        for target in group.targets:
            if target.bias is not None:
                kept[f"{target.name.rpartition('.')[0]}.bias"] = target.bias
        group.producer = None
    return Finished(index, kept, block.groups, loss, notes)


def _round(target: Target, choice: Assignment, stats: Statistics) -> None:
    choice.rounding.round(target, stats)
    assert target.parts is not None and target.parts["codes"].shape == codes_shape(target.format.element, target.weight.shape)
    set_again = zeros_again(target)
    for step in choice.corrections:
        step.correct(target, stats)
        set_again += zeros_again(target)
    if set_again:
        target.notes.append(f"{set_again} pruned weights were set to zero again")


def block_tensors(spec: ModelSpec, index: int) -> list[str]:
    """Names of a block's tensors: matrices, their biases, norms, and a router."""
    layer = spec.layers[index]
    matrices = {name for names in members(layer).values() for name in names}
    modules = {name.rpartition(".")[0] for name in matrices}
    norms = {layer.mixer_norm, layer.mlp_norm, layer.mixer.q_norm, layer.mixer.k_norm}
    others = norms | {layer.mlp.router} if isinstance(layer.mlp, Experts) else norms
    return [t.name for t in spec.tensors if t.name in matrices or t.name in others or (t.role == "bias" and t.module in modules)]


def _gather(block: Block, plan: Plan, held: Work, spec: ModelSpec, sequences: int, roles: tuple[str, ...], cross: bool) -> None:
    """Fresh statistics of the inputs of some groups, as their matrices read them: after the transforms so far."""
    tokens, mlp = sequences * held.shape[1], block.layer.mlp
    wanted = {}
    for role in roles:
        group = block.groups[role]
        needs = plan.needs([t.name for t in group.targets])
        share = mlp.chosen / len(mlp.experts) if isinstance(mlp, Experts) and "/" in role else 1.0
        group.stats = Statistics(group.k, needs, expected=round(tokens * share))
        if needs:
            wanted[role] = group
    if not wanted:
        return
    runs, original = RoundedBlock(block), RoundedBlock(block, original=True)
    last = max(map(kind_of, wanted), key=ROLES.index)
    seen: dict[str, np.ndarray] = {}

    def take(role: str, x: np.ndarray, beside: np.ndarray | None = None) -> None:
        group = wanted[role]
        group.stats.add(x, f"layer {block.index}, input of {group.targets[0].name}", beside)

    def look(role: str, x: np.ndarray) -> None:
        if role not in wanted:
            return
        ready = runs.transformed(role, x)
        if "cross" in wanted[role].stats.needs:
            seen[role] = ready
        else:
            take(role, ready)

    def look_beside(role: str, x: np.ndarray) -> None:
        if role in seen:
            take(role, seen.pop(role), original.transformed(role, x))

    for i in range(sequences):
        routing = Routing()  # the original's inputs are wanted of the tokens that the quantized model's router sends to an expert
        run_block(block.layer, runs, held.hidden(i), spec.norm_eps, look, last, routing)
        if cross:
            run_block(block.layer, original, held.hidden(i, original=True), spec.norm_eps, look_beside, last, routing)


def _advance(block: Block, held: Work, spec: ModelSpec, sequences: int, cross: bool) -> float:
    """Writes the hidden states after the block, and gives the relative squared error of its outputs: of the rounded block against the
    float block on the same inputs, over the change that the block makes, on up to eight sequences. NonFiniteError: it is not finite."""
    if not sequences:
        return math.nan
    runs, original = RoundedBlock(block), RoundedBlock(block, original=True)
    wrong = right = 0.0
    measured = {int(i) for i in np.linspace(0, sequences - 1, min(8, sequences))}
    for i in range(sequences):
        x = held.hidden(i)
        y = run_block(block.layer, runs, x, spec.norm_eps)
        if not np.isfinite(y.sum(dtype=np.float64)) and not np.isfinite(y).all():
            token = i * len(y) + int(np.argwhere(~np.isfinite(y))[0][0])
            raise NonFiniteError(
                f"layer {block.index}: its output is not finite at calibration token {token}; the model or the text is damaged"
            )
        if i in measured:
            z = run_block(block.layer, original, x, spec.norm_eps)
            wrong += float(np.square(y - z, dtype=np.float64).sum())
            right += float(np.square(z - x, dtype=np.float64).sum())
        if cross:
            held.put(i, run_block(block.layer, original, held.hidden(i, original=True), spec.norm_eps), original=True)
        held.put(i, y)
    return wrong / right if right else 0.0


def _ends(model: FloatModel, plan: Plan) -> dict[str, np.ndarray]:
    """Embedding, final norm and head after the model's steps; a tied head is there under its name only if a step untied it. Without
    steps, of the matrices only those that are rounded."""
    spec = model.spec
    wanted = {spec.norm} | {name for name in (spec.embedding, spec.head) if plan.model_steps or name in plan.choices}
    names = [t.name for t in spec.tensors if t.name in wanted]
    arrays = {name: model.array(name) for name in names}
    if plan.model_steps:
        arrays = {name: np.array(array) for name, array in arrays.items()}
    for step in plan.model_steps:
        step.ends(spec, arrays)
    return arrays


def head_name(spec: ModelSpec) -> str:
    """The head's own tensor; a tied model has one only after a step that unties it."""
    return UNTIED if spec.tied else spec.head


def _head(model: FloatModel, plan: Plan, held: Work, ends: dict[str, np.ndarray], sequences: int) -> Finished:
    """Embedding, final norm and head; the head's statistics are those of the final norm's output."""
    spec = model.spec
    groups: dict[str, Group] = {}
    for role, name in (("embedding", spec.embedding), ("head", head_name(spec))):
        if name not in plan.choices or name not in ends:
            continue
        choice = plan.choices[name]
        needs = choice.needs if role == "head" else frozenset()
        stats = Statistics(spec.width, needs, expected=sequences * held.shape[1])
        if needs:
            for i in range(sequences):
                stats.add(rms_norm(held.hidden(i), ends[spec.norm], spec.norm_eps), f"input of {name}")
        target = Target(name, ends[name], choice.spec)
        _round(target, choice, stats)
        groups[role] = Group(role, -1, [target], Statistics(spec.width, frozenset()), act=choice.act)
    kept = {name: array for name, array in ends.items() if name not in plan.choices}
    return Finished(-1, kept, groups, 0.0, [f"{t.name}: {note}" for g in groups.values() for t in g.targets for note in t.notes])
