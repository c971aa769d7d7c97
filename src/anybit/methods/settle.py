"""Codes of the feedback loop as float64 chooses them, at the price of float32.

The loop says which of its targets lie so near a switch of codes that float32 may have taken the wrong side: some millionths of them.
Those are worked out in float64. Where the code changes, all later targets of that row do: it is gone through again from there. What comes
out does not hang on how a BLAS adds up.
"""

from __future__ import annotations

import numpy as np

from anybit.kernels.cpu import native
from anybit.methods.curvature import Curvature
from anybit.methods.feedback import BLOCK, Feedback


def can_settle(found: Curvature, round: str) -> bool:
    """Whether there is a float64 factor to work with, and codes have one switch between two values, with the target between them."""
    return found.backward.dtype == np.float64 and round.startswith("nearest")


def settle(run: Feedback, found: Curvature, block: int = BLOCK) -> None:
    """Puts right what float32 has got wrong in a run with doubts, whose coupling is `found.unit`; losses too."""
    part, rows = run, np.arange(len(run.losses))
    changed = np.zeros(len(rows), bool)
    while True:
        row, column, codes, values = _wrong(part, found)
        if not len(row):
            break
        part, rows = part.of(row), rows[row]
        own = np.arange(len(row))
        part.codes[column, own], part.error[column, own] = codes, part.weight[column, own] - values
        part.again(column, block)
        run.put(rows, part)
        changed[rows] = True
    if changed.any() and run.cost is not None:
        run.losses[changed] = found.losses(run.of(np.flatnonzero(changed)).stored_error())


def _wrong(run: Feedback, found: Curvature) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows with a code that float64 does not choose, the first such column of each, the code and its value."""
    if not run.doubtful:
        return (np.empty(0, np.int64),) * 4
    row, column = (np.concatenate(each).astype(np.int64) for each in zip(*run.doubtful, strict=True))
    by_column = np.argsort(column, kind="stable")
    row, column = row[by_column], column[by_column]
    target = np.empty(len(row))
    native.targets(found.backward, run.weight, run.error, row, column, target)
    codes, values = run.columns.rows(row).choose(run.order[column], target[:, None])
    wrong = np.flatnonzero(codes != run.codes[column, row])
    rows, first = np.unique(row[wrong], return_index=True)
    at = wrong[first]
    return rows, column[at], codes[at], values[at, 0]
