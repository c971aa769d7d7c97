"""The plain layout for any shape and width: each row (last axis) a little-endian stream of bits, rows padded to whole bytes.

    codes  uint8 [..., ceil(k / dim * bits / 8)]; code i of a row lies in bits [i * bits, (i + 1) * bits) of its stream
    scale.i, offset.i, zero  in block-grid order, one unsigned integer each
    table  float32, the values of a learned element

For interchange, and for tensors that the tile layouts do not hold (other than two dimensions, codes of more than 8 bits or of several
weights).
"""

from __future__ import annotations

from math import prod

import numpy as np

from anybit.formats import Format, cut_reason
from anybit.layouts.layout import LAYOUTS, Layout, Parts, Sizes, scale_parts
from anybit.native import native


def pack_rows(codes: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned codes [..., k] of `bits` bits each (1 to 32) to bytes [..., ceil(k * bits / 8)], on the pool of threads.

    >>> pack_rows(np.array([[1, 2, 3]], np.uint8), 3).tolist()
    [[209, 0]]
    """
    dtype = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
    flat = np.ascontiguousarray(codes, dtype).reshape(prod(codes.shape[:-1]), codes.shape[-1])
    return np.asarray(native.pack_rows(flat, bits)).reshape(*codes.shape[:-1], -(-codes.shape[-1] * bits // 8))


def unpack_rows(stored: np.ndarray, bits: int, k: int, dtype: np.dtype) -> np.ndarray:
    """The inverse of `pack_rows`."""
    flat = np.ascontiguousarray(stored).reshape(prod(stored.shape[:-1]), stored.shape[-1])
    return np.asarray(native.unpack_rows(flat, bits, k)).reshape(*stored.shape[:-1], k).astype(dtype, copy=False)


class Rows(Layout):
    """Any shape, any width."""

    name = "rows"
    tile = (1, 1)
    priority = 0

    def accepts(self, fmt: Format, shape: tuple[int, ...]) -> str | None:
        return f"the format says pack={fmt.pack}" if fmt.pack else cut_reason(fmt.element, shape)

    def parts(self, fmt: Format, shape: tuple[int, ...]) -> Sizes:
        width = -(-shape[-1] // fmt.element.dim * fmt.element.bits // 8)
        return {"codes": (np.dtype(np.uint8), (*shape[:-1], width)), **scale_parts(fmt, shape)}

    def pack(self, fmt: Format, shape: tuple[int, ...], logical: Parts) -> dict[str, np.ndarray]:
        stored = {"codes": pack_rows(logical["codes"], fmt.element.bits)}
        return stored | {name: np.ascontiguousarray(logical[name]) for name in scale_parts(fmt, shape)}

    def unpack(self, fmt: Format, shape: tuple[int, ...], stored: Parts) -> dict[str, np.ndarray]:
        codes = unpack_rows(stored["codes"], fmt.element.bits, shape[-1] // fmt.element.dim, fmt.element.code_dtype)
        return {"codes": codes} | {name: stored[name] for name in scale_parts(fmt, shape)}


LAYOUTS.add("rows", Rows())
