"""A tensor of a GGUF file as logical parts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from anybit.errors import FileFormatError
from anybit.io.coded import Blocks, Coded
from anybit.io.gguf.container import Container
from anybit.io.strict_json import refuse, shown


def coded(file: Container, name: str, part: int | None = None) -> Coded:
    """One tensor: its format, its shape, and its rows on demand; of one of three axes the matrix `part` of the first, if that is given.
    FileFormatError: no such tensor, or a block that no format expresses.

    Tensors of one axis are one row; those of three or four have their leading axes merged for the conversion and come back whole.
    """
    info = file.info(name)
    blocks, shape = file.blocks(name), info.shape
    if part is not None:
        blocks, shape = blocks[part], shape[1:]
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

    def finish(parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            return fields.finish(parts) if fields else parts
        except ValueError as error:
            raise fail(error) from None

    fields, size = info.kind.fields, info.kind.dtype.itemsize
    made = Coded(info.kind.format_of(rows_of), shape, rows)
    if fields is None or len(shape) != 2 or file.order != "<":
        return made
    data = rows_of.view(np.uint8).reshape(shape[0], -1)
    numbers = fields.numbers(info.kind.dtype)
    return replace(made, blocks=Blocks(data, size, info.kind.weights, fields.plane_table(info.kind.dtype), fields.flip, numbers, finish))
