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
from anybit.layouts import LAYOUTS, Parts, geometry

PLANES: dict[int, tuple[int, ...]] = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
DENSE = ("fp32", "fp16", "bf16")

Sizes = dict[str, tuple[np.dtype, tuple[int, ...]]]


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
    """uint8[n, k] codes to uint8[n/16, k/32, 64 * bits]. Works through 256 rows at a time, so it needs little beyond its result."""
    n, k = codes.shape
    tiles, chunks = -(-n // 16), -(-k // 32)
    out = np.empty((tiles, chunks, 64 * bits), np.uint8)
    for t0 in range(0, tiles, 16):
        t1 = min(tiles, t0 + 16)
        part = np.zeros((16 * (t1 - t0), 32 * chunks), np.uint8)
        rows = codes[16 * t0 : 16 * t1]
        part[: rows.shape[0], :k] = rows
        low = at = 0
        for width in PLANES[bits]:
            fields = 8 // width
            # [tile, output, chunk, vector, field, j] -> [tile, chunk, vector, output, j, field]
            bitsof = (part >> low) & np.uint8((1 << width) - 1) if bits > width else part
            view = bitsof.reshape(t1 - t0, 16, chunks, width, fields, 4).transpose(0, 2, 3, 1, 5, 4)
            plane = view[..., 0].copy()
            for f in range(1, fields):
                plane |= view[..., f] << np.uint8(f * width)
            out[t0:t1, :, 64 * at : 64 * (at + width)] = plane.reshape(t1 - t0, chunks, 64 * width)
            low, at = low + width, at + width
    return out


def unpack_codes(stored: np.ndarray, bits: int, shape: tuple[int, int]) -> np.ndarray:
    """The inverse of `pack_codes`: uint8[n, k]."""
    n, k = shape
    tiles, chunks = -(-n // 16), -(-k // 32)
    stored = stored.reshape(tiles, chunks, 64 * bits)
    out = np.empty((n, k), np.uint8)
    for t0 in range(0, tiles, 16):
        t1 = min(tiles, t0 + 16)
        part = np.zeros((t1 - t0, 16, chunks, 32), np.uint8)
        low = at = 0
        for width in PLANES[bits]:
            fields = 8 // width
            plane = stored[t0:t1, :, 64 * at : 64 * (at + width)].reshape(t1 - t0, chunks, width, 16, 4)
            view = part.reshape(t1 - t0, 16, chunks, width, fields, 4)
            for f in range(fields):
                field = (plane >> np.uint8(f * width)) & np.uint8((1 << width) - 1)
                view[:, :, :, :, f, :] |= (field << np.uint8(low)).transpose(0, 3, 1, 2, 4)
            low, at = low + width, at + width
        rows = part.reshape(16 * (t1 - t0), 32 * chunks)
        out[16 * t0 : 16 * t1] = rows[: min(n, 16 * t1) - 16 * t0, :k]
    return out


def _tile_rows(grid: np.ndarray) -> np.ndarray:
    """[n, blocks] to [n/16, blocks, 16], padding rows zero."""
    n, blocks = grid.shape
    tiles = -(-n // 16)
    padded = np.zeros((tiles * 16, blocks), grid.dtype)
    padded[:n] = grid
    return np.ascontiguousarray(padded.reshape(tiles, 16, blocks).transpose(0, 2, 1))


class Tile16x4:
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
        return None

    def parts(self, fmt: Format, shape: tuple[int, ...]) -> Sizes:
        n, k = shape
        tiles = -(-n // 16)
        sizes: Sizes = {"codes": (np.dtype(np.uint8), (tiles, -(-k // 32), 64 * fmt.element.bits))}
        per_row = geometry(fmt, shape).rows == 1
        for name, (dtype, grid) in scale_parts(fmt, shape).items():
            sizes[name] = (dtype, (tiles, grid[1], 16) if per_row and _tiled(name) else grid)
        return sizes

    def pack(self, fmt: Format, shape: tuple[int, ...], logical: Parts) -> dict[str, np.ndarray]:
        per_row = geometry(fmt, shape).rows == 1
        stored = {"codes": pack_codes(logical["codes"], fmt.element.bits)}
        for name in scale_parts(fmt, shape):
            stored[name] = _tile_rows(logical[name]) if per_row and _tiled(name) else np.ascontiguousarray(logical[name])
        return stored

    def unpack(self, fmt: Format, shape: tuple[int, ...], stored: Parts) -> dict[str, np.ndarray]:
        n, k = shape
        per_row = geometry(fmt, shape).rows == 1
        logical = {"codes": unpack_codes(stored["codes"], fmt.element.bits, (n, k))}
        for name, (_, grid) in scale_parts(fmt, shape).items():
            if per_row and _tiled(name):
                logical[name] = np.ascontiguousarray(stored[name].transpose(0, 2, 1).reshape(-1, grid[1])[:n])
            else:
                logical[name] = stored[name]
        return logical


class Tile16x1:
    """Dense weights of a matrix: float32, float16 or bfloat16."""

    name = "tile16x1"
    tile = (16, 1)

    def accepts(self, fmt: Format, shape: tuple[int, ...]) -> str | None:
        if len(shape) != 2:
            return f"it holds matrices, not {len(shape)}-dimensional arrays"
        if fmt.block is not None or fmt.element.name not in DENSE:
            return f"it holds {', '.join(DENSE)} without scales"
        return None

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
