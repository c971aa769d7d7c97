"""An integer-only network: a program of integer steps, with a grid of its input and one of its output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from anybit.errors import ShapeError
from anybit.graphs.floats import BATCH
from anybit.graphs.grid import ActGrid
from anybit.graphs.proof import check_sums
from anybit.graphs.steps import IntegerStep, Requantize, Sum
from anybit.models import INPUT
from anybit.models.operators import Shape


@dataclass(frozen=True, eq=False)
class LayerNumbers:
    """How a layer was quantized.

    weight: its format; bits: of its input; scales: float64 [channels] of its int32 sums, the input's scale times the weight's; size_bits:
    of weight (codes alone) and bias.
    """

    weight: str
    bits: int
    scales: np.ndarray
    size_bits: int


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """Steps in order of execution; the last one's result is the output.

    UsageError: an input exists for which a sum would leave int32.
    """

    shape: Shape
    input: ActGrid
    output: ActGrid
    steps: tuple[IntegerStep, ...]
    layers: dict[str, LayerNumbers]

    def __post_init__(self) -> None:
        check_sums(self.steps, self.input)

    def run(self, q: np.ndarray) -> np.ndarray:
        """Integers to integers: q [n, *shape] of the input grid's type to the output's. No float, no division.

        ShapeError: another shape or dtype, or a number that is not on the grid.
        """
        return np.concatenate([values[self.steps[-1].name] for values in self.values(q)])

    def values(self, q: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Every intermediate result by its step's name, batch by batch. ShapeError: see `run`."""
        grid, q = self.input, np.asarray(q)
        if q.shape[1:] != self.shape or not len(q) or q.dtype != grid.dtype:
            raise ShapeError(f"inputs are {grid.dtype}[n, {', '.join(map(str, self.shape))}], not {q.dtype}{list(q.shape)}; use encode")
        if q.min() < grid.low or q.max() > grid.high:
            raise ShapeError(f"inputs are from {grid.low} to {grid.high}, not from {q.min()} to {q.max()}; use encode")
        for start in range(0, len(q), BATCH):
            values = {INPUT: q[start : start + BATCH]}
            for step in self.steps:
                values[step.name] = step.run(*(values[name] for name in step.inputs))
            yield values

    def __call__(self, x: Any) -> np.ndarray:
        """float32 outputs of float samples: encoded, run in integers, decoded."""
        return self.output.decode(self.run(self.input.encode(x)))

    @property
    def size_bits(self) -> int:
        """Bits of weights in their formats, int32 biases, and 32 + 6 bits for each dyadic number (2^c has c up to 62)."""
        dyadics = 0
        for step in self.steps:
            out = getattr(step, "out", None)
            held = step.b if isinstance(step, Sum) else (out.b,) if isinstance(out, Requantize) else ()
            dyadics += sum(b.size for b in held)
        return 38 * dyadics + sum(layer.size_bits for layer in self.layers.values())

    @property
    def plain(self) -> dict[str, Any]:
        """All of it as Python numbers, lists and names, for the reference or a program elsewhere."""
        return {"shape": self.shape, "low": self.input.low, "high": self.input.high, "steps": [step.plain for step in self.steps]}
