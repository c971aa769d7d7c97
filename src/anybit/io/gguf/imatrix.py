"""llama.cpp's importance matrix: for each matrix of a model the mean of the squares of its inputs, as llama-imatrix writes it.

GGUF (since July 2025): general.type "imatrix"; tensors NAME.in_sum2 float32[1, k], the sums, and NAME.counts float32[1, 1], of how many.
Before (.dat, little endian): int32 entries; each int32 length, name, int32 count, int32 k, float32[k] sums; then what the text was.

Source: llama.cpp's tools/imatrix. Differs: matrices of experts, and sums over nothing, are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from anybit.errors import FileFormatError
from anybit.io.gguf.container import Container
from anybit.io.gguf.model import new_name
from anybit.io.strict_json import read_small, refuse, shown

MAX_BYTES = 1 << 30
MAX_ENTRIES = 1 << 17
_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAKE = "give what llama-imatrix wrote for this model"


def read_imatrix(path: Path) -> dict[str, np.ndarray]:
    """float64[k] by Hugging Face's name of each matrix.

    Raises: FileFormatError, with the byte: no importance matrix, a damaged one, a tensor that no model has, a number that is no mean of
        squares.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read: {error.strerror}; {_MAKE}") from None
    return _of_gguf(path) if magic == b"GGUF" else _of_dat(path)


def _mean(path: Path, name: str, at: int, sums: np.ndarray, count: float) -> tuple[str, np.ndarray]:
    found = new_name(name)
    if found is None:
        raise refuse(path, f"tensor {shown(name)}", at, "no matrix of a model that is known here has this name", _MAKE)
    if not np.isfinite(count) or count <= 0:
        raise refuse(path, f"tensor {shown(name)}", at, f"a mean over {count:g} inputs", _MAKE)
    mean = sums.astype(np.float64) / count
    if not np.isfinite(mean).all() or (mean < 0).any():
        index = int(np.argmax(~np.isfinite(mean) | (mean < 0)))
        raise refuse(path, f"tensor {shown(name)}", at, f"number {index} is {mean[index]}, no mean of squares", _MAKE)
    return found, mean


def _of_gguf(path: Path) -> dict[str, np.ndarray]:
    file = Container(path)
    kind = file.metadata.get("general.type")
    if kind != "imatrix":
        what = f"is {shown(kind, 40)}, not 'imatrix'{file.metadata.at('general.type')}"
        raise FileFormatError(f"{path}: field 'general.type' {what}; {_MAKE}")
    found: dict[str, np.ndarray] = {}
    for name, info in file.tensors.items():
        base, part = next(((name.removesuffix(end), end) for end in (_SUMS, _COUNTS) if name.endswith(end)), (name, ""))
        size = info.shape[-1]
        rows, other = info.shape[:-1], base + (_COUNTS if part == _SUMS else _SUMS)
        if not part or info.kind.name != "F32" or any(n != 1 for n in rows) or (part == _COUNTS and size != 1):
            what = f"{info.kind.name}{list(info.shape)} is neither sums F32[1, k] nor a count F32[1, 1]"
            raise refuse(path, f"tensor {shown(name)}", info.offset, what, _MAKE)
        if other not in file.tensors:
            raise refuse(path, f"tensor {shown(name)}", info.offset, f"there is no {shown(other)} beside it", _MAKE)
        if part == _SUMS:
            count = float(_floats(file, other)[0])
            matrix, mean = _mean(path, base, info.offset, _floats(file, name), count)
            found[matrix] = mean
    file.close()
    return found


def _floats(file: Container, name: str) -> np.ndarray:
    return file.blocks(name)["v"].astype(np.uint32).view(np.float32).reshape(-1)


def _of_dat(path: Path) -> dict[str, np.ndarray]:
    data, at = read_small(path, MAX_BYTES), 0

    def number(field: str, low: int, high: int) -> int:
        nonlocal at
        if len(data) - at < 4:
            raise refuse(path, field, at, "the file ends", _MAKE)
        (value,) = struct.unpack_from("<i", data, at)
        if not low <= value <= high:
            raise refuse(path, field, at, f"{value} is not from {low} to {high}: no importance matrix", _MAKE)
        at += 4
        return int(value)

    found: dict[str, np.ndarray] = {}
    for i in range(number("number of entries", 1, MAX_ENTRIES)):
        start, field = at, f"entry {i}"
        length = number(field, 1, 256)
        name = data[at : at + length].decode("utf-8", "replace")
        at += length
        count, size = number(field, 1, (1 << 31) - 1), number(field, 1, (1 << 31) - 1)
        if len(data) - at < 4 * size:
            raise refuse(path, field, start, f"{shown(name)} has {size} numbers, and the file ends before", _MAKE)
        matrix, mean = _mean(path, name, start, np.frombuffer(data, "<f4", size, at), count)
        if matrix in found:
            raise refuse(path, field, start, f"{shown(name)} stands here twice", _MAKE)
        found[matrix], at = mean, at + 4 * size
    return found


def check_imatrix(path: Path, found: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """FileFormatError: of a model's matrices, by name, one that is missing here or has another number of inputs."""
    for name, shape in shapes.items():
        if name not in found:
            raise FileFormatError(f"{path}: nothing is listed for tensor '{name}'; {_MAKE}")
        if found[name].shape != shape[-1:]:
            what = f"{found[name].size} numbers are listed for tensor '{name}', which has {shape[-1]} inputs"
            raise FileFormatError(f"{path}: {what}; {_MAKE}")
