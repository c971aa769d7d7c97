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

from anybit.errors import UsageError, near_misses
from anybit.formats import Format, Spec
from anybit.methods.rtn import dequantize_parts
from anybit.methods.statistics import Statistics
from anybit.registry import Registry

Parts = dict[str, np.ndarray]


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


@dataclass
class Target:
    """One matrix while a recipe works on it.

    `weight` float32[n, k] as it is after the transforms so far (its k channels are those of the group's input after `Group.pre`), `bias`
    float32[n] or None; `spec` what it becomes. A rounding sets `parts`, corrections change `parts`, `bias` and `added`.
    """

    name: str
    weight: np.ndarray
    spec: Spec
    bias: np.ndarray | None = None
    parts: Parts | None = None
    added: list[Added] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what the user should hear: damping raised, fell back to nearest ...

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

    `weight` is float32[m] (norm) or float32[m, j] (matrix), `bias` float32[m] or None; both are changed in place.
    """

    name: str
    weight: np.ndarray
    channels: np.ndarray
    bias: np.ndarray | None = None

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


@dataclass
class Group:
    """Matrices that read one input (q, k, v; gate, up), with that input's statistics.

    `role`: qkv, o, gate_up or down. `pre`: transforms that run on the input, in order. `producer`: None where nothing linear makes it.
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

    @property
    def k(self) -> int:
        """Channels of the input."""
        return int(self.targets[0].weight.shape[1])

    def scale_input(self, scale: np.ndarray, online: bool = False) -> None:
        """Divides the input by scale float32[k] (> 0) and multiplies every matrix's columns: folded into the producer where there is one
        (the scale must come from `Producer.tied`), otherwise, or if `online`, as a transform at run time."""
        if self.producer is not None and not online:
            self.producer.divide(scale)
        else:
            self.pre.append(Pre("scale", data=(1 / scale).astype(np.float32)))
        for target in self.targets:
            target.weight = target.weight * scale
        self.stats = self.stats.scaled(1 / np.asarray(scale, np.float64))


class ModelStep(Step):
    """Rewrites tensors of the float model. `prepare` is called once, then `tensor` for each, block by block; data-free."""

    def prepare(self, model: Any) -> None:
        """Looks at the `ModelSpec`. UsageError: the step cannot serve this architecture."""

    def block(self, layer: Any, arrays: dict[str, np.ndarray], index: int) -> None:
        """Changes the float32 arrays (by tensor name: matrices, biases, norms) of one block in place, or puts others in their place."""

    def ends(self, arrays: dict[str, np.ndarray]) -> None:
        """The same for embedding, final norm and head. A step that must untie a tied head puts it there as "lm_head.weight"."""


class GroupStep(Step):
    """Changes a group before it is rounded."""

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
