"""Lossless codes of bf16 and 8-bit floats: each exponent as its rank among the most frequent ones of its block, the rare ones written out.

The codes are cut into blocks of up to 4,096, each decodable alone:

    codes  uint8 [bytes]: the blocks one after the other. A block of width w (1 to 4): chunks of 512 codes, the last one filled up, each
           64 * w bytes of ranks in the bit planes of tile16x4 (code i in byte i % 64 of group i / 64), then 512 bytes of low bits
           (bf16: sign and mantissa) or 256 (8-bit codes: sign and last 3 bits, a plane of width 4); then for each code of rank
           2^w - 1, in order, a byte: its symbol. w = 0: codes as they are
    index  uint8 [blocks, 24]: where the block begins (6 bytes, little-endian), how many codes have the last rank (2), w, the symbols by
           rank (15)
    scale.i, offset.i in block-grid order

The width of each block is the one that takes the fewest bytes, so data without a pattern take 24 bytes a block more than they do unpacked.
Matrices are padded to 16 rows, and blocks start anew every 16; those of bf16 lie in the order of tile16x1, so that a block is 256 k of 16
outputs.
"""

from __future__ import annotations

from fractions import Fraction
from math import prod

import numpy as np

from anybit.errors import ShapeError
from anybit.formats import PACKINGS, Element, Format, Packing
from anybit.layouts.layout import ANY, LAYOUTS, Layout, Parts, Sizes, scale_parts
from anybit.native import native

BLOCK = 4096
ENTRY = 24


def _runs(shape: tuple[int, ...]) -> tuple[int, int]:
    """(codes, codes of a run): matrices in runs of 16 rows, others in one."""
    if len(shape) == 2:
        return -(-shape[0] // 16) * 16 * shape[1], 16 * shape[1]
    return prod(shape), prod(shape)


class Escape(Layout):
    """bf16 and minifloats of 8 bits, any shape."""

    name = "escape"
    tile = (16, 1)

    def accepts(self, fmt: Format, shape: tuple[int, ...]) -> str | None:
        return None if fmt.pack == "escape" else "it holds formats with pack=escape"

    def parts(self, fmt: Format, shape: tuple[int, ...]) -> Sizes:
        count, run = _runs(shape)
        blocks = count // run * -(-run // BLOCK)
        return {"codes": (np.dtype(np.uint8), (ANY,)), "index": (np.dtype(np.uint8), (blocks, ENTRY)), **scale_parts(fmt, shape)}

    def pack(self, fmt: Format, shape: tuple[int, ...], logical: Parts) -> dict[str, np.ndarray]:
        codes, (count, run) = np.ascontiguousarray(logical["codes"]), _runs(shape)
        if len(shape) == 2 and (fmt.element.name == "bf16" or count != codes.size):
            padded = np.zeros((count // run * 16, shape[1]), codes.dtype)
            padded[: shape[0]] = codes
            codes = padded
            if fmt.element.name == "bf16":
                codes = np.ascontiguousarray(padded.reshape(-1, 16, shape[1]).transpose(0, 2, 1))
        stored, index = native.escape_encode(codes.reshape(-1).view(np.uint8), fmt.element.bits // 8, run)
        parts = {"codes": np.asarray(stored), "index": np.asarray(index)}
        return parts | {name: np.ascontiguousarray(logical[name]) for name in scale_parts(fmt, shape)}

    def unpack(self, fmt: Format, shape: tuple[int, ...], stored: Parts) -> dict[str, np.ndarray]:
        count, run = _runs(shape)
        try:
            codes = np.asarray(native.escape_decode(*_arrays(stored), fmt.element.bits // 8, count, run))
        except ValueError as error:
            raise ShapeError(str(error)) from None
        if len(shape) == 2:
            tiled = fmt.element.name == "bf16"
            codes = codes.reshape(-1, shape[1], 16).transpose(0, 2, 1) if tiled else codes.reshape(-1, shape[1])
            codes = np.ascontiguousarray(codes.reshape(-1, shape[1])[: shape[0]])
        return {"codes": codes.reshape(shape)} | {name: stored[name] for name in scale_parts(fmt, shape)}

    def check(self, fmt: Format, shape: tuple[int, ...], stored: Parts) -> None:
        super().check(fmt, shape, stored)
        try:  # reads the index and the ranks, about a quarter of the bytes
            native.escape_check(*_arrays(stored), fmt.element.bits // 8, *_runs(shape))
        except ValueError as error:
            raise ShapeError(str(error)) from None

    def cut(self, fmt: Format, shape: tuple[int, ...], stored: Parts, start: int, stop: int) -> dict[str, np.ndarray]:
        per_run, index = -(-_runs(shape)[1] // BLOCK), stored["index"]
        begins = np.zeros((len(index) + 1, 8), np.uint8)
        begins[:-1, :6] = index[:, :6]
        offsets = begins.view("<u8")[:, 0]
        offsets[-1] = stored["codes"].size
        first, last = start // 16 * per_run, -(-stop // 16) * per_run
        entries = index[first:last].copy()
        entries[:, :6] = (offsets[first:last] - offsets[first]).view(np.uint8).reshape(-1, 8)[:, :6]
        codes = stored["codes"][int(offsets[first]) : int(offsets[last])]
        return super().cut(fmt, shape, stored, start, stop) | {"codes": codes, "index": entries}


def _arrays(stored: Parts) -> tuple[np.ndarray, np.ndarray]:
    return np.ascontiguousarray(stored["codes"]), np.ascontiguousarray(stored["index"])


def _bits(element: Element) -> Fraction:
    """A code's own, which data without a pattern take, and its share of an entry of the index."""
    return element.bits + Fraction(8 * ENTRY, BLOCK)


def _refuses(element: Element) -> str | None:
    minifloat = element.dim == 1 and element.bits == 8 and element.fields["family"] == "minifloat"
    if element.name == "bf16" or (minifloat and element.signed):
        return None
    return f"pack=escape packs exponents of bf16 and of signed 8-bit floats, and {element} is neither"


PACKINGS.add("escape", Packing(_bits, _refuses))
LAYOUTS.add("escape", Escape())
