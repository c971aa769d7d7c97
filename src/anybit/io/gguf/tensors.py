"""A tensor of a GGUF file as logical parts."""

from __future__ import annotations

import numpy as np

from anybit.errors import FileFormatError
from anybit.io.coded import Coded
from anybit.io.gguf.container import Container
from anybit.io.strict_json import refuse, shown


def coded(file: Container, name: str) -> Coded:
    """One tensor: its format, its shape, and its rows on demand. FileFormatError: no such tensor, or a block that no format expresses.

    Tensors of one axis are one row; those of three or four have their leading axes merged for the conversion and come back whole.
    """
    info = file.info(name)
    blocks = file.blocks(name)
    shape = info.shape
    rows_of = blocks.reshape(1, -1) if len(shape) == 1 else blocks

    def fail(error: ValueError) -> FileFormatError:
        return refuse(file.path, f"tensor {shown(name)} ({info.kind.name})", info.offset, str(error), "convert the original model again")

    def rows(start: int, stop: int) -> dict[str, np.ndarray]:
        part = rows_of if len(shape) == 1 else rows_of[start:stop]
        flat = part.reshape(-1, part.shape[-1])
        try:
            made = info.kind.convert(flat)
        except ValueError as error:
            raise fail(error) from None
        local = shape if len(shape) == 1 else (stop - start, *shape[1:])
        grids = {
            level: array if array.shape == (1, 1) and len(flat) > 1 else array.reshape(*local[:-1], -1) for level, array in made.items()
        }
        return grids | {"codes": made["codes"].reshape(local)}

    return Coded(info.kind.format_of(rows_of), shape, rows)
