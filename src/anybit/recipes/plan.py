"""What a recipe does to a model, before it is done: the choice for each matrix, its bytes and kernel, memory and time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np

from anybit.activations import ActSpec
from anybit.calibrate import Assignment, Plan
from anybit.calibrate.run import UNTIED
from anybit.errors import UsageError
from anybit.formats import Format, Spec
from anybit.kernels import choose
from anybit.kernels.cpu import native, op_spec
from anybit.layouts import LAYOUTS, default_layout, sizes_known
from anybit.methods.panels import panels
from anybit.methods.static_activations import StaticActivations
from anybit.methods.step import Correction, GroupStep, ModelStep, Rounding, Step
from anybit.models.spec import PLAIN, ModelSpec
from anybit.recipes.schema import Allocation, Recipe
from anybit.stored import DENSE_FORMATS

Override = Mapping[str, Spec]


def make_plan(recipe: Recipe, spec: ModelSpec, digest: str = "", override: Override | None = None) -> Plan:
    """The choices of a recipe for a model. `digest`: of model and calibration text; `override`: formats by layer, from an allocation.

    UsageError: a rule that cannot serve a tensor, or no rule that quantizes any. NoKernelError: no kernel runs what a rule names.
    """
    override = override or {}
    choices: dict[str, Assignment] = {}
    names = [t.name for t in spec.tensors if t.role not in PLAIN] + ([UNTIED] if spec.tied else [])
    _check_routers(recipe, spec, names)
    for name in names:
        rule = recipe.rule_of(name)
        if rule is None or rule.spec is None:
            continue
        assert rule.rounding is not None
        choice = Assignment(override.get(name, rule.spec), rule.rounding, rule.corrections, rule.act)
        if name == spec.embedding and choice.needs:
            raise UsageError(
                f"recipe {recipe.name}: rule '{rule.match}' gives the embedding {step_name(rule.rounding)}, which looks at inputs,"
                " and an embedding has none; give it a rule of its own with nearest, or keep it"
            )
        if name != UNTIED:
            choices[name] = choice
            kernel_of(choice, gives_scale(recipe.steps))
        elif any(isinstance(step, ModelStep) for step in recipe.steps):
            choices[name] = choice
    if not any(name != UNTIED for name in choices):
        raise UsageError(f"recipe {recipe.name}: no rule quantizes a matrix of this model; its tensors are named like {names[0]}")
    whole = "\n".join([recipe.digest, digest, *(f"{name} {each}" for name, each in sorted(override.items()))])
    return Plan(
        choices, tuple(s for s in recipe.steps if isinstance(s, ModelStep)), tuple(s for s in recipe.steps if isinstance(s, GroupStep)),
        recipe.calibration.sequential, hashlib.sha256(whole.encode()).hexdigest(),
    )  # fmt: skip


def _check_routers(recipe: Recipe, spec: ModelSpec, names: Sequence[str]) -> None:
    """UsageError: a rule that quantizes is for routers alone."""
    for router in (t.name for t in spec.tensors if t.role == "router"):
        rule = recipe.rule_of(router)
        if rule is not None and rule.spec is not None and not any(recipe.rule_of(name) is rule for name in names):
            what = f"recipe {recipe.name}: rule '{rule.match}' is for routers, as '{router}', which choose experts and stay as they are"
            raise UsageError(f"{what}; remove it, or make it one that keeps them")


def gives_scale(steps: Iterable[Step]) -> bool:
    """Whether a step will give the activations of every layer one scale."""
    return any(isinstance(step, StaticActivations) and step.roles is None for step in steps)


def kernel_of(choice: Assignment, static: bool = False) -> str:
    """The name of the kernel that will run a choice; `static`: its activations' scale will be given. NoKernelError: none does."""
    act = ActSpec.named(choice.act, 1.0 if static and choice.act is not None else None)
    fmt = choice.spec.format
    kernel: str = choose(op_spec(fmt, default_layout(fmt, (16, 32)), act.kernel_name if act else None), native=True).kernel.name
    return kernel


def step_name(step: Rounding | Correction | ModelStep | GroupStep) -> str:
    """As recipes spell it, with the options that are not the default."""
    from dataclasses import fields

    from anybit.methods.step import STEPS

    name = next(key for key in STEPS if STEPS[key] is type(step))
    options = [f"{f.name}={getattr(step, f.name)}" for f in fields(step) if getattr(step, f.name) != f.default]
    return f"{name}({', '.join(options)})" if options else name


@dataclass(frozen=True)
class Row:
    """One matrix of the plan. `nbytes` stored (None: known only when it is made); of an allocation, its share of the budget."""

    name: str
    shape: tuple[int, ...]
    format: str
    method: str
    act: str
    kernel: str
    nbytes: int | None


def stored_bytes(fmt: Format, shape: tuple[int, ...]) -> int | None:
    """Of a matrix in its default layout; None where that depends on the data."""
    layout = default_layout(fmt, shape)
    if not sizes_known(fmt, shape, layout):
        return None
    return sum(dtype.itemsize * prod(size) for dtype, size in LAYOUTS[layout].parts(fmt, shape).values())


def rows(plan: Plan, spec: ModelSpec, dtypes: Mapping[str, str], allocation: Allocation | None = None) -> list[Row]:
    """The layer table, in the order of execution. With an allocation, whose formats nobody knows yet, what they lie between, and each
    matrix' share of the budget of stored bits."""
    found = []
    offered = sorted((Spec.parse(each) for each in allocation.formats), key=lambda s: s.format.bits_per_weight) if allocation else []
    for tensor in spec.tensors:
        if tensor.role in PLAIN:
            continue
        choice = plan.choices.get(tensor.name)
        fmt = Format(DENSE_FORMATS[dtypes[tensor.name]]) if choice is None else choice.spec.format
        method = "kept" if choice is None else " + ".join([step_name(choice.rounding), *(step_name(s) for s in choice.corrections)])
        kernels = [choice] if choice is None or not offered else [replace(choice, spec=each) for each in offered]
        kernel = ", ".join(dict.fromkeys("dense" if each is None else kernel_of(each, gives_scale(plan.group_steps)) for each in kernels))
        act = "float" if choice is None or choice.act is None else choice.act
        shown, nbytes = str(fmt), stored_bytes(fmt, tensor.shape)
        if allocation is not None and choice is not None:
            shown = f"{offered[0].format} to {offered[-1].format}"
            nbytes = None if allocation.bits is None else int(allocation.bits * prod(tensor.shape) / 8)
        found.append(Row(tensor.name, tensor.shape, shown, method, act, kernel, nbytes))
    return found


def bits_per_weight(table: list[Row], plan: Plan) -> Fraction | None:
    """Stored bits a weight of the matrices that are quantized; None where a size is not known."""
    chosen = [row for row in table if row.name in plan.choices]
    if any(row.nbytes is None for row in chosen):
        return None
    return Fraction(8 * sum(row.nbytes or 0 for row in chosen), sum(prod(row.shape) for row in chosen))


@dataclass(frozen=True)
class Estimate:
    """What quantizing will take, and what the result will take to run. Bytes and seconds, rough: from shapes, never measured.

    `quantize_bytes`: the most memory while quantizing; `spill_bytes`: hidden states on disk; `run_bytes`: weights and the KV cache of one
    sequence of the whole context.
    """

    quantize_bytes: int
    spill_bytes: int
    seconds: float
    model_bytes: int
    run_bytes: int

    def as_json(self) -> dict[str, Any]:
        """The same as a mapping."""
        return dict(self.__dict__)


def estimate(plan: Plan, table: list[Row], spec: ModelSpec, recipe: Recipe) -> Estimate:
    """From shapes, and a moment's measurement of this machine's matrix product."""
    from anybit.calibrate.forward import members

    speed = flops_per_second()
    tokens = 0 if plan.data_free else recipe.calibration.sequences * recipe.calibration.length
    shapes = {t.name: t.shape for t in spec.tensors}
    shares, block, work = spec.shares, 0, 0.0
    for layer in spec.layers:
        groups = members(layer)
        weights = sum(prod(shapes[name]) for names in groups.values() for name in names)
        held = most = 0
        passes = 3 if plan.sequential == "block" else 6
        attention = 4 * recipe.calibration.length * layer.mixer.heads * layer.mixer.head_dim
        outside = {name for part in layer.mlp.parts[1:] for name in (part.gate, part.up, part.down)}
        work += tokens * attention * passes
        for names in groups.values():
            seen = tokens * shares.get(names[0], 1.0)
            work += 2 * seen * sum(prod(shapes[name]) for name in names) * passes
            needs, k = plan.needs(names), shapes[names[0]][1]
            if needs & {"xtx", "cross"}:
                both = len(needs & {"xtx", "cross"})
                held += 4 * k * k * both
                # the factor of the statistics and the coupling of one matrix, the first in float64 where that is not too large; the
                # statistics themselves too, damped, for what comes after rounding and for two inputs
                more = both > 1 or any(plan.choices[name].corrections for name in names if name in plan.choices)
                wide = (28 if k <= 8192 else 18) if more else (12 if k <= 8192 else 8)
                # and of its rows codes, values and, in panels that the threads are at, four copies
                n = max(shapes[name][0] for name in names)
                most = max(most, wide * k * k + (9 * n + 16 * native.threads() * (panels(n)[0].stop if n else 0)) * k)
                work += 2 * seen * k * k * both + 4 * k**3 + sum(2 * shapes[name][0] * k * k for name in names)
            held += 4 * k * (1024 if "rows" in needs else 4)
        # float32 weights; beside them what was gathered and codes while a matrix is rounded, or rounded weights while it runs on data
        widest = sum(shapes[name][0] for names in groups.values() for name in names if name not in outside)  # one expert at a time
        length = recipe.calibration.length if tokens else 0
        running = 4 * length * (2 * widest + layer.mixer.heads * 3 * min(512, length))
        block = max(block, 4 * weights + held + running, 5 * weights + held + most, (9 * weights + running) if tokens else 0)
    outer = [row for row in table if row.name in (spec.embedding, spec.head)]
    read = [prod(row.shape) for row in outer if plan.model_steps or row.name in plan.choices]
    ends = 4 * sum(read) + 12 * max(read, default=0)
    spill = 4 * tokens * spec.width * (4 if any("cross" in plan.needs(n) for x in spec.layers for n in members(x).values()) else 2)
    parameters = sum(prod(row.shape) for row in table)
    model = sum(row.nbytes if row.nbytes is not None else 2 * prod(row.shape) for row in table)
    cache = 8 * spec.context * sum(layer.mixer.kv_heads * layer.mixer.head_dim for layer in spec.layers)
    # interpreter and libraries besides
    return Estimate(max(block, ends) + (135 << 20), spill, work / speed + parameters * 4e-8, model, model + cache + (80 << 20))


def flops_per_second(size: int = 512) -> float:
    """Of this machine's float32 matrix product, measured now."""
    a = np.ones((size, size), np.float32)
    a @ a
    best = min(_timed(a) for _ in range(3))
    return 2 * size**3 / best


def _timed(a: np.ndarray) -> float:
    begun = time.perf_counter()
    a @ a
    return time.perf_counter() - begun


def within(recipes: Sequence[Recipe], path: str, bits: float | None) -> list[Recipe]:
    """Those whose quantized layers would take at most so many stored bits a weight.

    Where that depends on the data, the bits that the recipe had on the bundled model decide; a recipe without such a record counts as
    fitting.
    """
    from anybit.errors import AnybitError
    from anybit.recipes.source import FloatSource

    if bits is None:
        return list(recipes)
    source, found = FloatSource(path), []
    dtypes = {t.name: source.dtype(t.name) for t in source.spec.tensors}
    for recipe in recipes:
        try:
            plan = make_plan(recipe, source.spec)
        except AnybitError:
            found.append(recipe)  # it is said why when it is tried
            continue
        wanted = recipe.allocation
        stored = bits_per_weight(rows(plan, source.spec, dtypes), plan) if wanted is None else wanted.bits
        if stored is None:
            stored = recipe.measured.get("bits")
        if stored is None or stored <= bits:
            found.append(recipe)
    return found


def running_bytes(recipe: Recipe, path: str) -> int:
    """Weights and one context's cache of what a recipe makes of a model."""
    from anybit.recipes.source import FloatSource

    source = FloatSource(path)
    plan = make_plan(recipe, source.spec)
    table = rows(plan, source.spec, {t.name: source.dtype(t.name) for t in source.spec.tensors}, recipe.allocation)
    return estimate(plan, table, source.spec, recipe).run_bytes
