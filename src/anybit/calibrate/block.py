"""One transformer block while it is calibrated and quantized: its float weights, its groups, and how it runs rounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from anybit.calibrate.forward import ROLES, FloatBlock, bias_of, members
from anybit.formats import Spec
from anybit.methods.quality import scaled
from anybit.methods.rtn import dequantize_parts, quantize_parts
from anybit.methods.statistics import Statistics
from anybit.methods.step import Added, Correction, Group, Pre, Producer, Rounding, Target
from anybit.models.spec import Layer


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
        for role in ROLES:
            names = [name for name in members(layer)[role] if name in made.choices]
            if not names:
                continue
            targets = [Target(n, arrays[n], made.choices[n].spec.for_tensor(n), arrays.get(bias_of(n))) for n in names]
            stats = Statistics(arrays[names[0]].shape[1], frozenset())
            act = made.choices[names[0]].act
            made.groups[role] = Group(role, index, targets, stats, None, [], act, attention.heads, attention.head_dim)
        return made

    def producer(self, role: str) -> Producer | None:
        """What makes a group's input. None: every matrix that reads it must be scaled too, and one of them is kept; or nothing does."""
        names, attention, mlp = members(self.layer)[role], self.layer.mixer, self.layer.mlp
        if any(name not in self.choices for name in names):
            return None
        if role in ("qkv", "gate_up"):
            norm = self.layer.mixer_norm if role == "qkv" else self.layer.mlp_norm
            return Producer(norm, self.arrays[norm], np.arange(len(self.arrays[norm])))
        name = attention.v if role == "o" else mlp.up
        repeat = attention.heads // attention.kv_heads if role == "o" else 1
        dim = attention.head_dim if role == "o" else 1
        heads = np.arange(attention.heads if role == "o" else mlp.width) // repeat
        channels = (heads[:, None] * dim + np.arange(dim)).reshape(-1)
        return Producer(name, self.arrays[name], channels, self.arrays.get(bias_of(name)))

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


def apply_pre(pre: Sequence[Pre], x: np.ndarray) -> np.ndarray:
    """float32[..., k] after the transforms that run on a group's input, in order."""
    for step in pre:
        if step.kind == "scale":
            x = x * step.data
        elif step.kind == "shift":
            x = x + step.data
        elif step.kind == "permute":
            assert step.data is not None
            x = x[..., step.data]
        elif step.kind == "rotate":
            assert step.data is not None
            size = step.data.shape[-1]
            x = (x.reshape(*x.shape[:-1], -1, size) @ step.data.T).reshape(x.shape)
        elif step.kind == "hadamard":
            assert step.block is not None
            x = hadamard(x if step.data is None else x * step.data, step.block)
        else:
            raise AssertionError(step.kind)
    return np.ascontiguousarray(x, np.float32)


def hadamard(x: np.ndarray, block: int) -> np.ndarray:
    """x with every `block` (a power of two) channels multiplied by the Sylvester Hadamard matrix over sqrt(block)."""
    shape = x.shape
    y, width = x.reshape(-1, block), 1
    while width < block:
        pair = y.reshape(-1, block // (2 * width), 2, width)
        y = np.stack([pair[:, :, 0] + pair[:, :, 1], pair[:, :, 0] - pair[:, :, 1]], axis=2).reshape(-1, block)
        width *= 2
    return (y * np.float32(block**-0.5)).reshape(shape)


def round_activations(x: np.ndarray, act: str | None) -> np.ndarray:
    """x in the activations' format and back, each token by itself: dynamic scales a token (or its blocks). None: x."""
    if act is None:
        return x
    spec = scaled(act)
    return dequantize_parts(quantize_parts(x, spec, name="activations"), spec.format, x.shape)


class RoundedBlock(FloatBlock):
    """The block with its transforms, and with those of its matrices replaced that have been rounded so far (the others run as float).

    `original`: none is replaced; with its transforms it is the float model still.
    """

    def __init__(self, block: Block, original: bool = False) -> None:
        super().__init__(block.arrays)
        self.groups = block.groups
        targets = [t for g in block.groups.values() for t in g.targets if t.parts is not None and not original]
        self._targets = {t.name: t for t in targets}
        self._weights = {t.name: t.rounded for t in targets}
        self._inputs: dict[str, np.ndarray] = {}

    def prepare(self, role: str, x: np.ndarray) -> np.ndarray:
        """See `Runs.prepare`."""
        group = self.groups.get(role)
        if group is None:
            return x
        whole = self.transformed(role, x)
        done = all(target.name in self._targets for target in group.targets)
        ready = round_activations(whole, group.act) if done else whole
        self._inputs[role] = whole
        return ready

    def transformed(self, role: str, x: np.ndarray) -> np.ndarray:
        """A group's input after its transforms, before it is rounded: what statistics are of."""
        return apply_pre(self.groups[role].pre, x)

    def linear(self, role: str, name: str, x: np.ndarray) -> np.ndarray:
        """See `Runs.linear`."""
        target = self._targets.get(name)
        if target is None:
            return super().linear(role, name, x)
        y = x @ self._weights[name].T
        for added in target.added:
            y = y + branch(added, self._inputs[role], x)
        return y if target.bias is None else y + target.bias


def branch(added: Added, whole: np.ndarray, ready: np.ndarray) -> np.ndarray:
    """What a branch adds: `whole` is the input before it was rounded, `ready` what the matrix read."""
    if added.kind == "low_rank":
        assert added.b is not None
        return whole @ added.a.T @ added.b.T
    assert added.index is not None
    if added.kind == "columns":
        return whole[..., added.index] @ added.a.T
    return (whole - ready)[..., added.index] @ added.a.T  # residual
