"""Kind: a tensor type of GGUF, as a format expression and a conversion of its blocks into logical parts. One file for each family of them.

A conversion moves codes and scales, it computes nothing: the value of every weight is that of the type's own definition, bit for bit in
float32 but for the sign of zeros, because products of the scales are exact there.

Source: ggml's `dequantize_row_*`, which gguf-py repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from anybit.formats.points import Points
from anybit.io.gguf.fields import Fields
from anybit.registry import Registry

Parts = dict[str, np.ndarray]
Convert = Callable[[np.ndarray], Parts]


@dataclass(frozen=True)
class Kind:
    """A tensor type. `weights` share a block of `dtype`'s fields, which are unsigned bits: floats too.

    `convert` takes blocks, structured[rows, blocks] in either byte order, and gives the logical parts of these rows: "codes" in the order
    of the weights and one entry a block of each level of `format`, in any shape that has the rows first. ValueError: a block that `format`
    cannot express, with the reason. `refine` may give a wider format for what a tensor really holds. `fields`: the
    same as data. `points`: the list that its codes must be from, where not every code of `format` is one of the type's.
    """

    name: str
    code: int
    weights: int
    dtype: np.dtype[Any]
    format: str
    convert: Convert
    refine: Callable[[np.ndarray], str | None] | None = None
    fields: Fields | None = None
    points: Points | None = None

    def format_of(self, blocks: np.ndarray) -> str:
        """The expression for a tensor."""
        return (self.refine(blocks) if self.refine else None) or self.format


KINDS: Registry[Kind] = Registry("GGUF tensor type", "anybit.io.gguf")

Write = Callable[[Mapping[str, np.ndarray], np.ndarray], None]
_WRITES: dict[str, Write] = {}


def writes(name: str) -> Callable[[Write], Write]:
    """Declares the inverse of a type's conversion."""

    def add(write: Write) -> Write:
        _WRITES[name] = write
        return write

    return add


def writers() -> Mapping[str, Write]:
    """By type: the inverse of its conversion. A type that is not among them is only read.

    `write(parts, blocks)` fills blocks, structured[rows, blocks] in little endian, from logical parts that have the rows first.
    """
    len(KINDS)  # loads the files that declare them
    return _WRITES


REMOVED = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"}
REFUSED = {9: "Q8_1", 15: "Q8_K"}


def register(
    name: str,
    code: int,
    weights: int,
    fields: Mapping[str, str],
    format: str,
    refine: Callable[[np.ndarray], str | None] | None = None,
    at: Fields | None = None,
    points: Points | None = None,
) -> Callable[[Convert], Convert]:
    """Declares a tensor type: decorates its conversion. `fields`: names and dtypes of a block, in order and without gaps; `at`: where the
    parts lie in them; `points`: the list that codes are from.
    """

    def add(convert: Convert) -> Convert:
        KINDS.add(name, Kind(name, code, weights, np.dtype(list(fields.items())), format, convert, refine, at, points))
        return convert

    return add


@lru_cache(maxsize=1)
def _by_code() -> dict[int, Kind]:
    return {KINDS[name].code: KINDS[name] for name in KINDS}


def kind_of(code: int) -> Kind | str:
    """The type of a number in a file, or why there is none."""
    found = _by_code().get(code)
    if found is not None:
        return found
    if code in REMOVED:
        return f"type {code} ({REMOVED[code]}) was removed from GGUF"
    if code in REFUSED:
        return f"type {code} ({REFUSED[code]}) is for activations, not for weights"
    return f"type {code} is not known; known are {', '.join(sorted(KINDS))}"


def bits16(field: np.ndarray) -> np.ndarray:
    """A 16-bit field of either byte order as uint16 in the machine's."""
    return field.astype(np.uint16)


def halves(packed: np.ndarray) -> np.ndarray:
    """uint8[..., b] to nibbles uint8[..., 2 b]: all low ones, then all high ones."""
    out = np.empty((*packed.shape[:-1], 2, packed.shape[-1]), np.uint8)
    np.bitwise_and(packed, np.uint8(15), out=out[..., 0, :])
    np.right_shift(packed, np.uint8(4), out=out[..., 1, :])
    return out.reshape(*packed.shape[:-1], -1)


def _side_by_side(codes: np.ndarray, count: int, bits: int, out: np.ndarray) -> None:
    """uint8[..., count * b], codes below 1 << bits, into uint8[..., b]: the first b codes lowest. Eight at a time where b is a multiple
    of 8: NumPy takes as long for each run of few bytes as for hundreds."""
    each = codes.shape[-1] // count
    if each % 8:
        np.left_shift(codes[..., (count - 1) * each :], np.uint8(bits * (count - 1)), out=out)
        for i in range(count - 1):
            out |= codes[..., i * each : (i + 1) * each] << np.uint8(bits * i)
        return
    words, size = np.ascontiguousarray(codes).view(np.uint64), each // 8
    made = np.empty((*codes.shape[:-1], size), np.uint64)
    for j in range(size):
        np.left_shift(words[..., (count - 1) * size + j], np.uint64(bits * (count - 1)), out=made[..., j])
        for i in range(count - 1):
            made[..., j] |= words[..., i * size + j] << np.uint64(bits * i)
    whole = f"V{each}"  # copied as one
    out.view(whole)[...] = made.view(whole)


def unhalves(codes: np.ndarray, out: np.ndarray) -> None:
    """The inverse of `halves`: codes below 16, uint8[..., 2 b], into uint8[..., b], whose last axis is contiguous."""
    _side_by_side(codes, 2, 4, out)


def quarters(packed: np.ndarray) -> np.ndarray:
    """uint8[..., b] to 2-bit fields uint8[..., 4 b]: all lowest, ..., all highest."""
    out = np.empty((*packed.shape[:-1], 4, packed.shape[-1]), np.uint8)
    for i in range(4):
        np.right_shift(packed, np.uint8(2 * i), out=out[..., i, :])
    out &= np.uint8(3)
    return out.reshape(*packed.shape[:-1], -1)


def unquarters(codes: np.ndarray, out: np.ndarray) -> None:
    """The inverse of `quarters`: codes below 4, uint8[..., 4 b], into uint8[..., b], whose last axis is contiguous."""
    _side_by_side(codes, 4, 2, out)


def bit_planes(packed: np.ndarray, count: int = 8) -> np.ndarray:
    """uint8[..., b] to bits uint8[..., count, b], lowest first."""
    out = np.empty((*packed.shape[:-1], count, packed.shape[-1]), np.uint8)
    for i in range(count):
        np.right_shift(packed, np.uint8(i), out=out[..., i, :])
    out &= np.uint8(1)
    return out


def from_planes(planes: np.ndarray) -> np.ndarray:
    """The inverse of `bit_planes`: bits uint8[..., count, b] to uint8[..., b]."""
    out = np.zeros((*planes.shape[:-2], planes.shape[-1]), np.uint8)
    for i in range(planes.shape[-2]):
        out |= planes[..., i, :] << np.uint8(i)
    return out


def per_block(part: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """A part with the axes of the blocks first and what a block holds of it last."""
    return part.reshape(*blocks.shape, -1)
