"""From what calibration made of a block to the linear layers that run and are stored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from anybit.activations import ActSpec
from anybit.calibrate import Finished
from anybit.formats import Spec
from anybit.linear import Branch, Linear
from anybit.methods.rtn import quantize_parts
from anybit.methods.step import Added, Group, Pre, Target
from anybit.tensor import QTensor
from anybit.transforms import Transform


def transforms(pre: Iterable[Pre]) -> tuple[Transform, ...]:
    """Those that run on a group's input."""
    return tuple(step.transform for step in pre)


def stored_matrix(values: np.ndarray, expression: str, name: str) -> QTensor:
    """A branch's matrix in its format."""
    spec = Spec.parse(expression)
    return QTensor.pack(spec.format, values.shape, quantize_parts(values, spec, name=name))


def branch(added: Added, name: str) -> Branch:
    """A branch with its matrices stored."""
    a = stored_matrix(added.a, added.format, f"{name}, branch a")
    b = None if added.b is None else stored_matrix(added.b, added.format, f"{name}, branch b")
    index = None if added.index is None else np.asarray(added.index, np.int64)
    return Branch(added.kind, a, b, index, added.source)


def linear(group: Group, target: Target) -> Linear:
    """The layer that a rounded target became."""
    assert target.parts is not None
    weight = QTensor.pack(target.format, target.weight.shape, target.parts)
    branches = tuple(branch(added, target.name) for added in target.added)
    return Linear(weight, target.bias, transforms(group.pre), ActSpec.named(group.act, group.act_scale), branches)


def linears(finished: Finished) -> dict[str, Linear]:
    """All of a block's, by tensor name."""
    return {target.name: linear(group, target) for group in finished.groups.values() for target in group.targets}


def linear_named(finished: Finished, name: str) -> Linear:
    """One of them. KeyError: no target of this name."""
    for group in finished.groups.values():
        for target in group.targets:
            if target.name == name:
                return linear(group, target)
    raise KeyError(name)


@dataclass(frozen=True)
class Summary:
    """What is left to say of a block when its arrays are gone."""

    index: int
    loss: float
    notes: tuple[str, ...]

    @classmethod
    def of(cls, finished: Finished) -> Summary:
        """Of a finished block."""
        return cls(finished.index, finished.loss, tuple(finished.notes))
