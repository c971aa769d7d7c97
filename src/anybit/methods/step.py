"""What a recipe is made of: steps, and the group of matrices that they work on.

A step is a frozen dataclass in a file of its own, registered in `STEPS`; its fields are the options that a recipe may set. There are five
kinds, applied in this order:

    ModelStep    rewrites the float model tensor by tensor, before anything is measured (residual rotations, head permutations)
    GroupStep    changes a group of matrices that read one input, with that input's statistics (SmoothQuant, AWQ, block Hadamard)
    Rounding     chooses the codes of one matrix (nearest, GPTQ, HQQ ...)
    Correction   repairs what rounding did to one matrix (bias, low rank, refitted scales)

Everything works on float32 NumPy arrays; a step changes the group it is given and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from anybit.arrays import host_copy, is_torch
from anybit.errors import UsageError, near_misses
from anybit.formats import Format, Spec
from anybit.methods.rtn import dequantize_parts, quantize_parts
from anybit.methods.statistics import Statistics
from anybit.registry import Registry
from anybit.transforms import Transform, apply, fold

Parts = dict[str, np.ndarray]
ROLES = ("qkv", "o", "gate_up", "down")
"""Kinds of inputs of a block, in the order of execution."""


def kind_of(role: str) -> str:
    """The kind of a group's role.

    >>> kind_of("gate_up/3")
    'gate_up'
    """
    return role.partition("/")[0]


@dataclass(frozen=True)
class Step:
    """Base of all kinds. Class attributes: `source`, the publication and equation; `needs`, which statistics it asks for."""

    source: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()

    def asks(self, spec: Spec) -> frozenset[str]:
        """Which statistics it needs for a matrix that becomes `spec`: `needs`, unless the format decides."""
        return self.needs

    @classmethod
    def made(cls, options: Mapping[str, Any], where: str) -> Step:
        """From a recipe's options. UsageError: an unknown option, or a value that is not allowed, with `where`."""
        known = {f.name: str(f.type) for f in fields(cls)}
        for name, value in options.items():
            if name not in known:
                raise UsageError(f"{where}: no option '{name}'{near_misses(name, known)}; there is {', '.join(known) or 'none'}")
            if not any(_is(value, kind.strip()) for kind in known[name].split("|")):
                raise UsageError(f"{where}: '{name}' is {value!r}; it must be {known[name].replace(' | ', ' or ')}")
        try:
            return cls(**options)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{where}: {error}") from None


def _is(value: Any, kind: str) -> bool:
    """Whether a value from a recipe is what a field's annotation says. Annotations other than plain ones are the step's own business."""
    if kind in ("int", "float"):
        return not isinstance(value, bool) and isinstance(value, int if kind == "int" else (int, float))
    kinds: dict[str, type] = {"bool": bool, "str": str, "None": type(None)}
    return isinstance(value, kinds[kind]) if kind in kinds else True


STEPS: Registry[type[Step]] = Registry("step", "anybit.methods")


@dataclass(frozen=True)
class Pre:
    """A transform that runs on a group's input (the fields of `anybit.linear.Transform`). kind: scale, permute, hadamard, rotate, shift."""

    kind: str
    data: np.ndarray | None = None
    block: int | None = None
    seed: int | None = None

    @property
    def transform(self) -> Transform:
        """The same as what runs."""
        return Transform(self.kind, self.block, self.data, self.seed)


@dataclass(frozen=True)
class Added:
    """A branch beside a matrix (the fields of `anybit.linear.Branch`), its matrices still float32. kind: low_rank (a [r, k], b [n, r]),
    columns (a [n, c] of the channels `index`), residual (a [n, c] of the channels `index`). `format`: how a and b are stored."""

    kind: str
    a: np.ndarray
    b: np.ndarray | None = None
    index: np.ndarray | None = None
    format: str = "bf16"
    source: str = ""


def as_stored(values: np.ndarray, expression: str, name: str) -> np.ndarray:
    """float32: a branch's matrix as its format will keep it, so that calibration sees what runs."""
    spec = Spec.parse(expression)
    return dequantize_parts(quantize_parts(values, spec, name=name), spec.format, values.shape)


@dataclass
class Target:
    """One matrix while a recipe works on it.

    `weight` float32[n, k] as it is after the transforms so far (its k channels are those of the group's input after `Group.pre`; a torch
    tensor is copied to the host, where codes are chosen), `bias`
    float32[n] or None; `spec` what it becomes. A rounding sets `parts`, corrections change `parts`, `bias` and `added`. `pruned`
    bool[n, k]: weights that are zero and stay so, whatever rounding moves onto others; None: there are none.
    """

    name: str
    weight: np.ndarray
    spec: Spec
    bias: np.ndarray | None = None
    parts: Parts | None = None
    added: list[Added] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what the user should hear: damping raised, fell back to nearest ...
    pruned: np.ndarray | None = None

    def __post_init__(self) -> None:
        if is_torch(self.weight):
            self.weight = host_copy(self.weight.float())  # type: ignore[attr-defined]

    def hear(self, *notes: str) -> None:
        """Something that the user should hear, said once: several steps may find the same."""
        self.notes.extend(note for note in notes if note not in self.notes)

    @property
    def format(self) -> Format:
        """What its codes mean."""
        return self.spec.format

    @property
    def rounded(self) -> np.ndarray:
        """float32[n, k]: the values that its parts stand for."""
        assert self.parts is not None, "it has not been rounded yet"
        return dequantize_parts(self.parts, self.format, self.weight.shape)


@dataclass
class Producer:
    """What makes a group's input, where that is linear in something stored: a norm's weight, or rows of a matrix (up_proj for down_proj,
    v_proj for o_proj). `channels` int64[k]: the stored channel behind each input channel (several heads may share one).

    `weight` is float32[m] (norm) or float32[m, j] (matrix), `bias` float32[m] or None; both are changed in place. `run`: stored channels
    may change places within each run of so many (a head's; all of an MLP's; 0: none may, as everything reads a residual stream), and
    `partners` are what must follow them: gate_proj's rows and bias.
    """

    name: str
    weight: np.ndarray
    channels: np.ndarray
    bias: np.ndarray | None = None
    run: int = 0
    partners: tuple[np.ndarray, ...] = ()

    @property
    def count(self) -> int:
        """Stored channels, m."""
        return len(self.weight)

    def tied(self, scale: np.ndarray) -> np.ndarray:
        """float32[k]: the geometric mean of a scale over the input channels that share a stored one."""
        logs = np.zeros(self.count)
        np.add.at(logs, self.channels, np.log(np.asarray(scale, np.float64)))
        shared = np.bincount(self.channels, minlength=self.count)
        return np.exp(logs / np.maximum(shared, 1)).astype(np.float32)[self.channels]

    def divide(self, scale: np.ndarray) -> None:
        """Makes the input x / scale, for a scale that `tied` gave."""
        own = np.ones(self.count, np.float32)
        own[self.channels] = scale
        self.weight /= own if self.weight.ndim == 1 else own[:, None]
        if self.bias is not None:
            self.bias /= own

    def worst(self, score: np.ndarray) -> np.ndarray:
        """float64[m]: the largest of a score float[k] over the input channels that share a stored one."""
        most = np.full(self.count, -np.inf)
        np.maximum.at(most, self.channels, score)
        return most

    def permute(self, order: np.ndarray) -> np.ndarray:
        """Puts the stored channels `order` int64[m] in their place, within runs. Returns index int64[k]: the input becomes x[index]."""
        for array in (self.weight, self.bias, *self.partners):
            if array is not None:
                array[...] = array[order]
        return np.asarray(np.arange(len(self.channels)) + order[self.channels] - self.channels, np.int64)


@dataclass
class Group:
    """Matrices that read one input (q, k, v; gate, up), with that input's statistics.

    `role`: qkv, o, gate_up or down; where several inputs of a block are of one kind, the kind with a number, as in gate_up/3.
    `pre`: transforms that run on the input, in order. `producer`: None where nothing linear makes it.
    `heads`, `head_dim`: of the attention around qkv and o. `layer`: the block's number.
    """

    role: str
    layer: int
    targets: list[Target]
    stats: Statistics
    producer: Producer | None = None
    pre: list[Pre] = field(default_factory=list)
    act: str | None = None  # the expression of the activations' format, None: float
    heads: int = 0
    head_dim: int = 0
    act_scale: float | None = None  # the input's one scale, from calibration; None: dynamic ones

    @property
    def kind(self) -> str:
        """The role without its number."""
        return kind_of(self.role)

    @property
    def k(self) -> int:
        """Channels of the input."""
        return int(self.targets[0].weight.shape[1])

    @property
    def folds(self) -> bool:
        """Whether a change of the input can be folded into what makes it: something linear does, and no transform runs between."""
        return self.producer is not None and not self.pre

    def note(self, text: str) -> None:
        """Something that the user should hear."""
        self.targets[0].notes.append(text)

    def tied(self, scale: np.ndarray) -> np.ndarray:
        """float32[k]: a scale that `scale_input` can fold, equal where channels share what makes them."""
        if self.producer is not None and self.folds:
            return self.producer.tied(scale)
        return np.asarray(scale, np.float32)

    def scale_input(self, scale: np.ndarray, online: bool = False) -> None:
        """Divides the input by scale float32[k] (> 0) and multiplies every matrix's columns: folded into the producer where there is one
        (the scale must come from `Producer.tied`), otherwise, or if `online`, as a transform at run time."""
        self._free()
        if self.producer is not None and self.folds and not online:
            self.producer.divide(scale)
        else:
            self.pre.append(Pre("scale", data=(1 / scale).astype(np.float32)))
        for target in self.targets:
            target.weight = target.weight * scale
        self.stats = self.stats.scaled(1 / np.asarray(scale, np.float64))

    def permute_input(self, index: np.ndarray, folded: bool = False) -> None:
        """The matrices read x[index], int64[k]: as a transform at run time, or if `folded`, because `Producer.permute` gave that index."""
        self._free()
        if not folded:
            self.pre.append(Pre("permute", data=np.asarray(index, np.int64)))
        for target in self.targets:
            target.weight = np.ascontiguousarray(target.weight[:, index])
            if target.pruned is not None:
                target.pruned = np.ascontiguousarray(target.pruned[:, index])
        self.stats = self.stats.permuted(index)

    def hadamard_input(self, block: int, seed: int | None = None) -> None:
        """Turns every `block` channels (a power of two that divides k) by the Hadamard matrix at run time, after signs from a seed."""
        self._free()
        if any(target.pruned is not None for target in self.targets):
            raise UsageError(f"layer {self.layer}, {self.role}: steps that prune come after those that mix channels and fill zeros")
        pre = Pre("hadamard", block=block, seed=seed)
        transform = pre.transform
        transform.check(self.k)
        for target in self.targets:
            target.weight = fold([transform], target.weight)[0]
        signs, matrix = transform.signs(self.k), apply([Transform("hadamard", block)], np.eye(block, dtype=np.float32))
        self.stats = (self.stats if signs is None else self.stats.scaled(signs)).rotated(matrix)
        self.pre.append(pre)

    def clear_input(self, index: np.ndarray) -> None:
        """The main weights see +0 in the channels `index` int64[c], which a branch of kind "columns" takes."""
        mask = np.ones(self.k, np.float32)
        mask[index] = 0
        for target in self.targets:
            target.weight = target.weight * mask
        self.stats = self.stats.scaled(mask)

    def _free(self) -> None:
        """UsageError: a branch is there already, whose matrix would have to change too."""
        if any(target.added for target in self.targets):
            raise UsageError(f"layer {self.layer}, {self.role}: steps that add branches come after those that change a layer's input")


class ModelStep(Step):
    """Rewrites tensors of the float model. `prepare` is called once, then `tensor` for each, block by block; data-free."""

    def prepare(self, model: Any) -> None:
        """Looks at the `ModelSpec`. UsageError: the step cannot serve this architecture."""

    def block(self, model: Any, index: int, arrays: dict[str, np.ndarray]) -> None:
        """Changes the float32 arrays (by tensor name: matrices, biases, norms) of block `index` of the `ModelSpec` in place, or puts others
        in their place."""

    def ends(self, model: Any, arrays: dict[str, np.ndarray]) -> None:
        """The same for embedding, final norm and head. A step that must untie a tied head puts it there as "lm_head.weight"."""


@dataclass(frozen=True)
class GroupStep(Step):
    """Changes a group before it is rounded. `roles`: the inputs that it is for, of qkv, o, gate_up, down, with spaces; None: all."""

    roles: str | None = None

    def __post_init__(self) -> None:
        unknown = [role for role in (self.roles or "").split() if role not in ROLES]
        if unknown or (self.roles is not None and not self.roles.split()):
            raise ValueError(f"'roles' is '{self.roles}'; it must be some of {', '.join(ROLES)}, with spaces between")

    def serves(self, role: str) -> bool:
        """Whether it is for groups of this role."""
        return self.roles is None or kind_of(role) in self.roles.split()

    def apply(self, group: Group) -> None:
        """Changes the targets' weights, `pre`, the producer, and moves the statistics along."""
        raise NotImplementedError


class Rounding(Step):
    """Chooses codes."""

    def round(self, target: Target, stats: Statistics) -> None:
        """Sets `target.parts`. Falls back to nearest, with a note, where the statistics do not serve."""
        raise NotImplementedError


class Correction(Step):
    """Repairs a rounded target."""

    def correct(self, target: Target, stats: Statistics) -> None:
        """Changes `parts`, `bias` or `added`."""
        raise NotImplementedError
