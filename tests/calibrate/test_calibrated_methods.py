"""GPTQ and descent inside the pass over a model: each block's outputs come nearer to the float block's."""

import numpy as np

import anybit
from anybit.calibrate import Assignment, Plan, calibrate, calibration_text
from anybit.formats import Spec
from anybit.linear import Linear
from anybit.methods.descent import Descent
from anybit.methods.gptaq import Gptaq
from anybit.methods.gptq import Gptq
from anybit.methods.nearest import Nearest
from anybit.methods.step import Rounding
from anybit.model import Model


class Weights:
    """Two layers of a loaded model."""

    def __init__(self, model: Model) -> None:
        from dataclasses import replace

        self.spec = replace(model.spec, layers=model.spec.layers[:2])
        self._model = model

    def array(self, name: str) -> np.ndarray:
        held = self._model.weights[name]
        return held.weight.dequantize() if isinstance(held, Linear) else held

    def rows(self, name: str, index: np.ndarray) -> np.ndarray:
        return self.array(name)[index]


def test_blocks_come_nearer() -> None:
    model = anybit.load("pycoder-5m")
    ids = calibration_text(model.tokenizer, sequences=6, length=128, seed=3).ids
    names = [name for name in model.linears if ".layers.0." in name or ".layers.1." in name]
    losses = {}
    cases: dict[str, tuple[Rounding, tuple[Descent, ...]]] = {
        "nearest": (Nearest(), ()), "gptq": (Gptq(), ()), "gptaq": (Gptaq(), ()), "descent": (Gptq(), (Descent(sweeps=2),)),
    }  # fmt: skip
    for case, (step, corrections) in cases.items():
        plan = Plan({name: Assignment(Spec.parse("int2@64+scale=mse"), step, corrections) for name in names})
        losses[case] = [finished.loss for finished in calibrate(Weights(model), plan, ids)][:-1]
    for layer in (0, 1):
        assert losses["descent"][layer] < losses["gptq"][layer] < 0.7 * losses["nearest"][layer]
        assert losses["gptaq"][layer] < 0.7 * losses["nearest"][layer]
