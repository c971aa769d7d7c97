"""The canonical tile layouts: 16 outputs side by side, so that one vector load feeds 16 accumulators on every instruction set.

`tile16x4` holds codes of 1 to 8 bits. Rows are padded to 16, k to 32; 32 k of 16 rows are a chunk of 64 * bits bytes: its bit planes,
lowest bits first (1 -> 1, 2 -> 2, 3 -> 2+1, 4 -> 4, 5 -> 4+1, 6 -> 4+2, 7 -> 4+2+1, 8 -> 8). A plane of width w is w vectors of 64 bytes;
byte 4*o + j of vector v holds, in bits [f*w, f*w + w), output o at k = 32*chunk + v*(32/w) + 4*f + j.

    codes    uint8 [n/16, k/32, 64 * bits]
    scale.i  level 0, one a row: unsigned [n/16, blocks, 16]; shared by rows, and every other level: [grid rows, grid columns]
    zero     uint8, like level 0's scale     offset.i  like scale.i     table  float32, the values of a learned element

`tile16x1` holds dense weights (float32, float16, bfloat16): codes [n/16, k, 16].
"""

from __future__ import annotations

import numpy as np

from anybit.formats import Format
from anybit.layouts import LAYOUTS, FixedSizes, Parts, Sizes, geometry
from anybit.native import native

DENSE = ("fp32", "fp16", "bf16")


def scale_parts(fmt: Format, shape: tuple[int, ...]) -> Sizes:
    """Names, dtypes and grid shapes of everything but the codes, in logical order."""
    parts: Sizes = {}
    for i, (level, grid) in enumerate(zip(fmt.levels, fmt.grids(shape), strict=True)):
        parts[f"scale.{i}"] = (level.element.code_dtype, grid)
        if fmt.offset is not None:
            parts[f"offset.{i}"] = ((level.element if i else fmt.offset).code_dtype, grid)
    if fmt.zero is not None:
        parts["zero"] = (fmt.zero.code_dtype, fmt.grids(shape)[0])
    if fmt.element.table_shape is not None:
        parts["table"] = (np.dtype(np.float32), fmt.element.table_shape)
    return parts


def _tiled(name: str) -> bool:
    return name in ("scale.0", "offset.0", "zero")


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8[n, k] codes to uint8[n/16, k/32, 64 * bits], on the pool of threads."""
    return np.asarray(native.pack_tiles(np.ascontiguousarray(codes, np.uint8), bits))


def unpack_codes(stored: np.ndarray, bits: int, shape: tuple[int, int]) -> np.ndarray:
    """The inverse of `pack_codes`: uint8[n, k]."""
    return np.asarray(native.unpack_tiles(np.ascontiguousarray(stored).reshape(-1), bits, *shape))


def _tile_rows(grid: np.ndarray) -> np.ndarray:
    """[n, blocks] to [n/16, blocks, 16], padding rows zero."""
    n, blocks = grid.shape
    tiles = -(-n // 16)
    padded = np.zeros((tiles * 16, blocks), grid.dtype)
    padded[:n] = grid
    return np.ascontiguousarray(padded.reshape(tiles, 16, blocks).transpose(0, 2, 1))


def tiled_sizes(fmt: Format, shape: tuple[int, ...]) -> Sizes:
    """Names, dtypes and stored shapes of everything but the codes of a tiled matrix."""
    tiles, per_row = -(-shape[0] // 16), geometry(fmt, (shape[0], shape[1])).rows == 1
    grids = scale_parts(fmt, shape).items()
    return {name: (dtype, (tiles, grid[1], 16) if per_row and _tiled(name) else grid) for name, (dtype, grid) in grids}


def tile_scales(fmt: Format, shape: tuple[int, ...], logical: Parts) -> dict[str, np.ndarray]:
    """Everything but the codes, from block grids to how a tiled matrix stores it."""
    per_row = geometry(fmt, (shape[0], shape[1])).rows == 1
    names = scale_parts(fmt, shape)
    return {name: _tile_rows(logical[name]) if per_row and _tiled(name) else np.ascontiguousarray(logical[name]) for name in names}


def untile_scales(fmt: Format, shape: tuple[int, ...], stored: Parts) -> dict[str, np.ndarray]:
    """The inverse of `tile_scales`."""
    per_row = geometry(fmt, (shape[0], shape[1])).rows == 1
    logical = {}
    for name, (_, grid) in scale_parts(fmt, shape).items():
        part = stored[name]
        tiled = per_row and _tiled(name)
        logical[name] = np.ascontiguousarray(part.transpose(0, 2, 1).reshape(-1, grid[1])[: shape[0]]) if tiled else part
    return logical


class Tile16x4(FixedSizes):
    """Codes of 1 to 8 bits of a matrix."""

    name = "tile16x4"
    tile = (16, 4)

    def accepts(self, fmt: Format, shape: tuple[int, ...]) -> str | None:
        if len(shape) != 2:
            return f"it holds matrices, not {len(shape)}-dimensional arrays"
        if fmt.block is None or fmt.element.bits > 8:
            return "it holds codes of 1 to 8 bits with a scale"
        if fmt.element.dim > 1:
            return f"it holds one weight a code, and {fmt.element} codes {fmt.element.dim} together"
        return f"the format says pack={fmt.pack}" if fmt.pack else None

    def parts(self, fmt: Format, shape: tuple[int, ...]) -> Sizes:
        n, k = shape
        codes = (np.dtype(np.uint8), (-(-n // 16), -(-k // 32), 64 * fmt.element.bits))
        return {"codes": codes, **tiled_sizes(fmt, shape)}

    def pack(self, fmt: Format, shape: tuple[int, ...], logical: Parts) -> dict[str, np.ndarray]:
        return {"codes": pack_codes(logical["codes"], fmt.element.bits), **tile_scales(fmt, shape, logical)}

    def unpack(self, fmt: Format, shape: tuple[int, ...], stored: Parts) -> dict[str, np.ndarray]:
        n, k = shape
        return {"codes": unpack_codes(stored["codes"], fmt.element.bits, (n, k)), **untile_scales(fmt, shape, stored)}


class Tile16x1(FixedSizes):
    """Dense weights of a matrix: float32, float16 or bfloat16."""

    name = "tile16x1"
    tile = (16, 1)

    def accepts(self, fmt: Format, shape: tuple[int, ...]) -> str | None:
        if len(shape) != 2:
            return f"it holds matrices, not {len(shape)}-dimensional arrays"
        if fmt.block is not None or fmt.element.name not in DENSE:
            return f"it holds {', '.join(DENSE)} without scales"
        return f"the format says pack={fmt.pack}" if fmt.pack else None

    def parts(self, fmt: Format, shape: tuple[int, ...]) -> Sizes:
        n, k = shape
        return {"codes": (fmt.element.code_dtype, (-(-n // 16), k, 16))}

    def pack(self, fmt: Format, shape: tuple[int, ...], logical: Parts) -> dict[str, np.ndarray]:
        n, k = shape
        codes = logical["codes"]
        tiles = -(-n // 16)
        out = np.empty((tiles, k, 16), codes.dtype)
        whole = n // 16
        out[:whole] = codes[: whole * 16].reshape(whole, 16, k).transpose(0, 2, 1)
        if whole < tiles:
            out[whole] = 0
            out[whole, :, : n - 16 * whole] = codes[16 * whole :].T
        return {"codes": out}

    def unpack(self, fmt: Format, shape: tuple[int, ...], stored: Parts) -> dict[str, np.ndarray]:
        n, k = shape
        return {"codes": np.ascontiguousarray(stored["codes"].transpose(0, 2, 1).reshape(-1, k)[:n])}


LAYOUTS.add("tile16x4", Tile16x4())
LAYOUTS.add("tile16x1", Tile16x1())
