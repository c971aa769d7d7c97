"""Coded: a tensor of another tool's container as logical parts: a format expression, a shape, codes and scales of any rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Rows = Callable[[int, int], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Coded:
    """`rows(start, stop)` gives the logical parts of some rows (the first axis), as `anybit.methods.rtn` names them: "codes"
    uint[stop - start, ...], and for each level "scale.i" and "offset.i" on the grid of these rows; a part that all rows share comes whole
    each time. FileFormatError: what `format` cannot express. `order`: column j stands for input order[j] (None: for input j).
    """

    format: str
    shape: tuple[int, ...]
    rows: Rows
    order: np.ndarray | None = None

    def reordered(self, order: np.ndarray) -> Coded:
        """The same tensor with row i taken from row order[i]. Only for parts that have one entry a row or more."""

        def rows(start: int, stop: int) -> dict[str, np.ndarray]:
            wanted = order[start:stop]
            low, high = int(wanted.min()), int(wanted.max()) + 1
            parts = self.rows(low, high)
            return {name: part[wanted - low] if part.shape[0] == high - low else part for name, part in parts.items()}

        return Coded(self.format, self.shape, rows)


def of_arrays(format: str, shape: tuple[int, ...], parts: Mapping[str, np.ndarray]) -> Coded:
    """A tensor whose parts are arrays already, each with a row for every row of the tensor, for several of them, or for all."""

    def cut(part: np.ndarray, start: int, stop: int) -> np.ndarray:
        each = -(-shape[0] // part.shape[0])
        return part if part.shape[0] == 1 else part[start // each : -(-stop // each)]

    return Coded(format, shape, lambda start, stop: {name: cut(part, start, stop) for name, part in parts.items()})
