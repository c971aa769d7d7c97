"""Learned elements: what an array's codes mean stands in a table that lies beside them; here the two are put together."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from anybit.errors import FormatError, ShapeError
from anybit.formats.format import Format

_LARGEST, _LEAST = 2.0**64, 2.0**-64


def bound(fmt: Format, parts: Mapping[str, np.ndarray]) -> Format:
    """The format of one array: `fmt` itself, or with the values in the part "table" where its element is learned.

    Everything that decodes codes goes through here: dequantizing, kernels, inspection. ShapeError: the part is missing. FormatError: it
    holds something else than such values.

    >>> fmt = Format("kmeans1@4")
    >>> fmt.element.learned, bound(fmt, {"table": np.float32([-0.5, 1.0])}).element.values.tolist()
    (True, [-0.5, 1.0])
    """
    if not fmt.element.learned:
        return fmt
    if "table" not in parts:
        raise ShapeError(f"the values of {fmt.element} are learned and lie in a part 'table', which is missing")
    return fmt.with_element(fmt.element.bind(parts["table"]))


def checked_table(name: str, table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A read-only float32 copy of a table of learned values. FormatError: another shape, not finite, all one number, or out of scale."""
    if table.shape != shape or table.dtype != np.float32:
        raise FormatError(f"the table of {name} is float32{list(shape)}, not {table.dtype}{list(table.shape)}")
    if not np.isfinite(table).all():
        raise FormatError(f"the table of {name} holds a value that is not finite")
    largest = float(np.abs(table).max())
    if not _LEAST <= largest <= _LARGEST:
        raise FormatError(
            f"the largest value in the table of {name} lies between 2^-64 and 2^64, not at {largest:g}; multiply the array, or use"
            f" scales, as in {name}@channel"
        )
    if (table == table.reshape(-1)[0]).all():
        raise FormatError(f"the table of {name} holds one value only")
    own = table.copy()
    own.flags.writeable = False
    return own
