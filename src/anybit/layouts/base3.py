"""Ternary codes, five a byte: 1.6 bits each.

A byte is ceil(n * 256 / 243), n the number with five codes as ternary digits, the first on top. Three times the byte carries the first
digit out of eight bits and leaves the byte of the rest, so a decoder needs additions and compares only; every byte decodes. (The idea of
GGUF's TQ1_0; its order of codes is another.)

    matrices [n, k]    codes uint8 [n/16, k/20, 64], rows padded to 16, k to 20; byte 4*o + j of vector v holds output o at
                       k = 20*v + 4*f + j, f = 0 to 4; scale.i, offset.i as in tile16x4
    any other shape    codes uint8 [..., ceil(k/5)], five neighbours a byte; scale.i, offset.i in block-grid order

The unused code 3 means what 2 means and is stored as 2.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from anybit.formats import PACKINGS, Element, Format, Packing
from anybit.layouts.layout import LAYOUTS, Parts, Sizes, scale_parts
from anybit.layouts.tile import TiledScales, tile_scales, tiled_sizes, untile_scales
from anybit.native import native


class Base3(TiledScales):
    """Ternary codes of any shape."""

    name = "base3"
    tile = (16, 20)

    def accepts(self, fmt: Format, shape: tuple[int, ...]) -> str | None:
        return None if fmt.pack == "base3" else "it holds ternary codes of formats with pack=base3"

    def parts(self, fmt: Format, shape: tuple[int, ...]) -> Sizes:
        if len(shape) != 2:
            return {"codes": (np.dtype(np.uint8), (*shape[:-1], -(-shape[-1] // 5))), **scale_parts(fmt, shape)}
        codes = (np.dtype(np.uint8), (-(-shape[0] // 16), -(-shape[1] // 20), 64))
        return {"codes": codes, **(tiled_sizes(fmt, shape) if fmt.block else {})}

    def pack(self, fmt: Format, shape: tuple[int, ...], logical: Parts) -> dict[str, np.ndarray]:
        codes = np.ascontiguousarray(logical["codes"], np.uint8)
        if len(shape) != 2:
            return {"codes": _pack_rows(codes), **{name: np.ascontiguousarray(logical[name]) for name in scale_parts(fmt, shape)}}
        return {"codes": np.asarray(native.pack_tiles(codes, 0)), **(tile_scales(fmt, shape, logical) if fmt.block else {})}

    def unpack(self, fmt: Format, shape: tuple[int, ...], stored: Parts) -> dict[str, np.ndarray]:
        if len(shape) != 2:
            return {"codes": _unpack_rows(stored["codes"], shape[-1]), **{name: stored[name] for name in scale_parts(fmt, shape)}}
        codes = np.asarray(native.unpack_tiles(np.ascontiguousarray(stored["codes"]).reshape(-1), 0, *shape))
        return {"codes": codes, **(untile_scales(fmt, shape, stored) if fmt.block else {})}


def _pack_rows(codes: np.ndarray) -> np.ndarray:
    """Five neighbours a byte, through the native packer: digit f of 64 bytes side by side is what it calls four k of 16 outputs."""
    k = codes.shape[-1]
    width = -(-k // 5)
    padded = np.zeros((*codes.shape[:-1], 5 * width), np.uint8)
    padded[..., :k] = codes
    digits = np.zeros((5, -(-padded.size // 320) * 64), np.uint8)
    digits[:, : padded.size // 5] = padded.reshape(-1, 5).T
    tiled = digits.reshape(5, -1, 16, 4).transpose(2, 1, 0, 3).reshape(16, -1)
    return np.asarray(native.pack_tiles(np.ascontiguousarray(tiled), 0)).reshape(-1)[: padded.size // 5].reshape(*codes.shape[:-1], width)


def _unpack_rows(stored: np.ndarray, k: int) -> np.ndarray:
    padded = np.zeros(-(-stored.size // 64) * 64, np.uint8)
    padded[: stored.size] = stored.reshape(-1)
    tiled = np.asarray(native.unpack_tiles(padded, 0, 16, padded.size // 64 * 20))
    digits = tiled.reshape(16, -1, 5, 4).transpose(2, 1, 0, 3).reshape(5, -1)[:, : stored.size]
    return np.ascontiguousarray(np.ascontiguousarray(digits.T).reshape(*stored.shape[:-1], -1)[..., :k])


def _refuses(element: Element) -> str | None:
    return None if element.name == "ternary" else f"pack=base3 packs 5 ternary codes a byte, and {element} is not ternary"


PACKINGS.add("base3", Packing(lambda element: Fraction(8, 5), _refuses))
LAYOUTS.add("base3", Base3())
