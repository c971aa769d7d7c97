"""Proof that no int32 sum of an integer program overflows, whatever its input: bounds of every value, from the program alone."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from anybit.errors import UsageError
from anybit.graphs.grid import ActGrid
from anybit.graphs.steps import Average, Convolve, IntegerStep, Multiply, Sum
from anybit.models import INPUT

LIMIT = (1 << 31) - 1


def check_sums(steps: Iterable[IntegerStep], grid: ActGrid) -> dict[str, int]:
    """The largest magnitude of the int32 sums of each step that has some. UsageError: one that is beyond int32, with the step."""
    held: dict[str, np.ndarray] = {INPUT: np.array([grid.low, grid.high])}  # ends of q; of sums: -reach, reach of every channel
    found = {}
    for step in steps:
        first = held[step.inputs[0]]
        reach = [np.abs(held[name] - zero).reshape(2, -1).max(axis=0) for name, zero in zip(step.inputs, step.zeros, strict=True)]
        if isinstance(step, (Convolve, Multiply)):
            magnitudes = np.abs(step.weight.reshape(len(step.weight), -1).astype(np.int64))
            total = magnitudes.sum(axis=1) * int(reach[0].max()) + np.abs(step.bias.astype(np.int64))
        elif isinstance(step, Average):
            total = reach[0] * (step.kernel[0] * step.kernel[1])
        elif isinstance(step, Sum):
            total = sum((_scaled(r, b, c) for r, b, c in zip(reach, step.b, step.c, strict=True)), np.zeros(1, np.int64))
        else:
            total = np.zeros(1, np.int64)
        found[step.name] = int(total.max())
        if found[step.name] > LIMIT:
            raise UsageError(
                f"step '{step.name}': its sums can reach {found[step.name]}, beyond int32; use fewer bits, or ranges of more samples"
            )
        out = getattr(step, "out", None)
        raw = isinstance(step, (Convolve, Multiply)) and out is None
        held[step.name] = np.stack([-total, total]) if raw else first if out is None else np.array([out.low, out.high])
    return found


def _scaled(reach: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The largest magnitude after a dyadic number, one a channel; below 2^62 as both factors are below 2^31."""
    return (reach * b + (1 << c >> 1)) >> c
