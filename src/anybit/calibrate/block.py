"""One transformer block while it is calibrated and quantized: its float weights, its groups, and how it runs rounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from anybit.calibrate.forward import FloatBlock, bias_of, members, part_of
from anybit.calibrate.inputs import branch, clear, cleared, round_activations, transformed
from anybit.errors import NonFiniteError
from anybit.formats import Spec
from anybit.methods.statistics import Statistics
from anybit.methods.step import Correction, Group, Producer, Rounding, Target, kind_of
from anybit.models.spec import Experts, Layer


@dataclass(frozen=True)
class Assignment:
    """What becomes of one matrix. `act`: expression of the activations' format, None for float."""

    spec: Spec
    rounding: Rounding
    corrections: tuple[Correction, ...] = ()
    act: str | None = None

    @property
    def needs(self) -> frozenset[str]:
        """Statistics that its steps ask for."""
        return self.rounding.asks(self.spec).union(*(step.asks(self.spec) for step in self.corrections))


@dataclass
class Block:
    """`arrays`: every float32 tensor of the block by name, as the steps left them; `groups` by role, those matrices that are quantized.

    A group's `targets` are the quantized ones among its members; kept ones stay in `arrays` (a transform changes both).
    """

    layer: Layer
    index: int
    arrays: dict[str, np.ndarray]
    groups: dict[str, Group] = field(default_factory=dict)
    choices: Mapping[str, Assignment] = field(default_factory=dict)

    @classmethod
    def of(cls, layer: Layer, index: int, arrays: dict[str, np.ndarray], choices: Mapping[str, Assignment]) -> Block:
        """Groups the matrices that `choices` names."""
        made = cls(layer, index, arrays, {}, {n: choices[n] for names in members(layer).values() for n in names if n in choices})
        attention = layer.mixer
        for role, all_names in members(layer).items():
            names = [name for name in all_names if name in made.choices]
            if not names:
                continue
            targets = [Target(n, arrays[n], made.choices[n].spec.for_tensor(n), arrays.get(bias_of(n))) for n in names]
            stats = Statistics(arrays[names[0]].shape[1], frozenset())
            act = made.choices[names[0]].act
            made.groups[role] = Group(role, index, targets, stats, None, [], act, attention.heads, attention.head_dim)
        return made

    def producer(self, role: str) -> Producer | None:
        """What makes a group's input. None: every matrix that reads it must be scaled too, and one of them is kept; or a branch runs beside
        what makes it; or the router and other experts read the same."""
        names, attention, kind = members(self.layer)[role], self.layer.mixer, kind_of(role)
        if any(name not in self.choices for name in names):
            return None
        if kind == "gate_up" and isinstance(self.layer.mlp, Experts):
            return None
        if kind in ("qkv", "gate_up"):
            norm = self.layer.mixer_norm if kind == "qkv" else self.layer.mlp_norm
            return Producer(norm, self.arrays[norm], np.arange(len(self.arrays[norm])))
        mlp = part_of(self.layer, role)
        made_by = (attention.v,) if kind == "o" else (mlp.up, mlp.gate)
        if any(t.name in made_by and t.added for group in self.groups.values() for t in group.targets):
            return None
        name, bias = made_by[0], self.arrays.get(bias_of(made_by[0]))
        if kind == "o":
            repeat, dim = attention.heads // attention.kv_heads, attention.head_dim
            heads = np.arange(attention.heads) // repeat
            channels = (heads[:, None] * dim + np.arange(dim)).reshape(-1)
            return Producer(name, self.arrays[name], channels, bias, dim)
        beside = [self.arrays[n] for n in (mlp.gate, bias_of(mlp.gate)) if n in self.arrays]
        return Producer(name, self.arrays[name], np.arange(mlp.width), bias, mlp.width, tuple(beside))

    def take_back(self, group: Group) -> None:
        """Writes the targets' weights and biases, as a step left them, into the arrays that the float block runs on."""
        for target in group.targets:
            self.arrays[target.name] = target.weight
            if target.bias is not None:
                self.arrays[bias_of(target.name)] = target.bias

    def refresh(self, group: Group) -> None:
        """The other way: what another group's producer changed (rows of up_proj, of v_proj) reaches this group's targets."""
        for target in group.targets:
            target.weight = self.arrays[target.name]
            target.bias = self.arrays.get(bias_of(target.name), target.bias)


class RoundedBlock(FloatBlock):
    """The block with its transforms, and with those of its matrices replaced that have been rounded so far (the others run as float).

    `original`: none is replaced; with its transforms it is the float model still.
    """

    def __init__(self, block: Block, original: bool = False) -> None:
        super().__init__(block.arrays)
        self.groups, self.index = block.groups, block.index
        targets = [t for g in block.groups.values() for t in g.targets if t.parts is not None and not original]
        self._targets = {t.name: t for t in targets}
        self._weights = {t.name: t.rounded for t in targets}
        self._inputs: dict[str, np.ndarray] = {}

    def prepare(self, role: str, x: np.ndarray) -> np.ndarray:
        """See `Runs.prepare`. NonFiniteError: an input that the activations' format cannot hold, with the layer's name."""
        group = self.groups.get(role)
        if group is None:
            return x
        whole = transformed(group.pre, x)
        ready = clear(whole, cleared(group))
        if all(target.name in self._targets for target in group.targets):
            try:
                ready = round_activations(ready, group.act, group.targets[0].format, group.act_scale)
            except NonFiniteError as error:
                raise NonFiniteError(f"layer {self.index}, input of {group.targets[0].name}: {error}") from None
        self._inputs[role] = whole
        return ready

    def transformed(self, role: str, x: np.ndarray) -> np.ndarray:
        """A group's input after its transforms, without the columns that branches take, before it is rounded: what statistics are of."""
        group = self.groups[role]
        return clear(transformed(group.pre, x), cleared(group))

    def linear(self, role: str, name: str, x: np.ndarray) -> np.ndarray:
        """See `Runs.linear`."""
        target = self._targets.get(name)
        if target is None:
            y = super().linear(role, name, x)
            found = [t for t in self.groups[role].targets if t.name == name] if role in self.groups else []
            columns = [added for each in found for added in each.added if added.kind == "columns"]  # part of the float model
        else:
            y, columns = x @ self._weights[name].T, target.added
            y = y if target.bias is None else y + target.bias
        for added in columns:
            group = self.groups[role]
            y = y + branch(added, self._inputs[role], x, group, group.targets[0].format)
        return y
