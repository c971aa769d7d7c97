"""The float model as a recipe's steps left it: what one rounded layer is exchanged in, where steps change several layers together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from anybit.calibrate import Finished, Plan
from anybit.calibrate.run import UNTIED
from anybit.linear import Linear
from anybit.methods.statistics import Statistics
from anybit.methods.step import Correction, Target
from anybit.model import Model
from anybit.models import describe
from anybit.recipes.build import branch, transforms
from anybit.stored import dense_tensor

Biases = dict[str, np.ndarray | None]


@dataclass(frozen=True)
class _Unrepaired(Correction):
    """Notes each matrix' bias as the steps left it, before corrections add to it; changes nothing."""

    found: Biases

    def correct(self, target: Target, stats: Statistics) -> None:
        """See `Correction.correct`."""
        self.found[target.name] = target.bias


def noting_biases(plan: Plan) -> tuple[Plan, Biases]:
    """The same plan, and where the biases before its corrections will stand, by the name of their matrix."""
    found: Biases = {}
    first = _Unrepaired(found)
    return replace(plan, choices={n: replace(c, corrections=(first, *c.corrections)) for n, c in plan.choices.items()}), found


def moved(model: Model, finished: Iterable[Finished], biases: Mapping[str, np.ndarray | None]) -> Model:
    """The model with float32 weights after the steps: norms and kept matrices too, with the transforms that run on inputs and the columns
    that run beside a matrix. Each of `finished` (as `calibrate` yields it, not read back from a file) is dropped before the next is asked
    for. Where all steps are exact it computes what `model` does, but for float32's rounding.
    """
    weights = dict(model.weights)
    matrices = set(model.linears) | {UNTIED}
    for each in finished:
        for name, array in each.arrays.items():
            if name not in matrices:
                if name in weights:  # a norm; biases stay with their matrices
                    weights[name] = array
                continue
            before = weights.get(name)
            bias = each.arrays.get(f"{name.rpartition('.')[0]}.bias", before.bias if isinstance(before, Linear) else None)
            weights[name] = _dense(name, array, bias)
        for group in each.groups.values():
            for target in group.targets:
                columns = tuple(branch(added, target.name) for added in target.added if added.kind == "columns")
                made = _dense(target.name, target.weight, biases[target.name])
                weights[target.name] = replace(made, pre=transforms(group.pre), branches=columns)
    if UNTIED not in weights or UNTIED in model.weights:
        return replace(model, weights=weights)
    config = {**model.config, "tie_word_embeddings": False}
    return replace(model, config=config, spec=replace(describe(config, model.name), eos=model.spec.eos), weights=weights)


def _dense(name: str, values: np.ndarray, bias: np.ndarray | None) -> Linear:
    return Linear(dense_tensor(np.ascontiguousarray(values, np.float32), "F32", name, "the model after the steps"), bias)
