"""The canonical tile layouts: 16 outputs side by side, so that one vector load feeds 16 accumulators on every instruction set.

`tile16x4` holds codes of 1 to 8 bits. Rows are padded to 16, k to 32; 32 k of 16 rows are a chunk of 64 * bits bytes: its bit planes,
lowest bits first (1 -> 1, 2 -> 2, 3 -> 2+1, 4 -> 4, 5 -> 4+1, 6 -> 4+2, 7 -> 4+2+1, 8 -> 8). A plane of width w is w vectors of 64 bytes;
byte 4*o + j of vector v holds, in bits [f*w, f*w + w), output o at k = 32*chunk + v*(32/w) + 4*f + j.

    codes    uint8 [n/16, k/32, 64 * bits]
    scale.i  levels 0 and 1, one a row: unsigned [n/16, blocks, 16]; shared by rows, and every other level: [grid rows, grid columns].
             Level 0, one a row, of up to 4 bits: uint8 [n/16, ceil(blocks / 2), 16], block 2 p in the low halves, 2 p + 1 in the high ones
    zero     one a row: [n/16, blocks, 16], a byte each     offset.i  like scale.i     table  float32, the values of a learned element

Checkpoints of before had level 1 as [n, blocks] and level 0 a byte each whatever its width; `renew` brings them up to date.

`tile16x1` holds dense weights (float32, float16, bfloat16): codes [n/16, k, 16].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from anybit.formats import Format
from anybit.layouts.layout import LAYOUTS, Layout, Parts, Sizes, check_codes, geometry, rows_owned, scale_parts, stored_element
from anybit.native import native

DENSE = ("fp32", "fp16", "bf16")

PAIRED_BITS = 4
"""First-level scales and offsets of up to so many bits lie two a byte; zero points, of which there is one a scale, do not."""


def tiled(fmt: Format, shape: tuple[int, ...], name: str) -> bool:
    """Whether a tiled matrix stores this part 16 rows side by side."""
    kind, _, level = name.partition(".")
    if kind in ("codes", "table", "index") or int(level or 0) > 1:
        return False
    return all(geometry(fmt, shape, i).rows == 1 for i in range(int(level or 0) + 1))


def paired(fmt: Format, shape: tuple[int, ...], name: str) -> bool:
    """Whether a tiled matrix stores this part two codes a byte."""
    return name in ("scale.0", "offset.0") and tiled(fmt, shape, name) and stored_element(fmt, name).bits <= PAIRED_BITS


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8[n, k] codes to uint8[n/16, k/32, 64 * bits], on the pool of threads."""
    return np.asarray(native.pack_tiles(np.ascontiguousarray(codes, np.uint8), bits))


def unpack_codes(stored: np.ndarray, bits: int, shape: tuple[int, int]) -> np.ndarray:
    """The inverse of `pack_codes`: uint8[n, k]."""
    return np.asarray(native.unpack_tiles(np.ascontiguousarray(stored).reshape(-1), bits, *shape))


def tile_blocks(
    fmt: Format,
    shape: tuple[int, ...],
    data: np.ndarray,
    size: int,
    weights: int,
    planes: np.ndarray,
    flip: int,
    numbers: Mapping[str, tuple[np.ndarray, int, int]],
    order: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """Codes, scales and offsets of a matrix straight from another container's blocks, on the pool of threads.

    Args: data, uint8[rows, blocks * size]; weights, those of a block; planes, int64[planes, 4]: offset in the block, width, group, up
        (native/pack.h), and flip, xored to each code; numbers, for each part (terms, flip, bytes a number), terms int64[numbers, terms, 4]:
        byte of the block, lowest bit, bits, up; order, int64[n]: the rows to take, None: all.
    """
    parts = [(*fields, paired(fmt, shape, name)) for name, fields in numbers.items()]
    codes, made = native.block_tiles(data, size, weights, planes, flip, fmt.element.bits, parts, order)
    return {"codes": np.asarray(codes)} | {name: np.asarray(part) for name, part in zip(numbers, made, strict=True)}


def tile_rows(grid: np.ndarray, two: bool = False) -> np.ndarray:
    """[n, blocks] to [n/16, blocks, 16], padding rows zero; `two` blocks a byte: uint8[n/16, ceil(blocks / 2), 16]."""
    n, blocks = grid.shape
    tiles = -(-n // 16)
    padded = np.zeros((tiles * 16, blocks + (blocks % 2 if two else 0)), grid.dtype)
    padded[:n, :blocks] = grid
    if two:
        padded = padded[:, 0::2] | padded[:, 1::2] << np.uint8(4)
    return np.ascontiguousarray(padded.reshape(tiles, 16, -1).transpose(0, 2, 1))


def untile_rows(stored: np.ndarray, n: int, blocks: int, two: bool = False) -> np.ndarray:
    """The inverse of `tile_rows`; a view where there is one code a byte."""
    rows = stored.transpose(0, 2, 1)
    if two:
        rows = np.stack([rows & np.uint8(15), rows >> np.uint8(4)], axis=-1).reshape(len(stored), 16, -1)[..., :blocks]
    return rows.reshape(-1, blocks)[:n]


def tiled_sizes(fmt: Format, shape: tuple[int, ...]) -> Sizes:
    """Names, dtypes and stored shapes of everything but the codes of a tiled matrix."""
    tiles, sizes = -(-shape[0] // 16), scale_parts(fmt, shape)
    for name, (dtype, grid) in sizes.items():
        if tiled(fmt, shape, name):
            sizes[name] = (dtype, (tiles, -(-grid[1] // 2) if paired(fmt, shape, name) else grid[1], 16))
    return sizes


def tile_scales(fmt: Format, shape: tuple[int, ...], logical: Parts) -> dict[str, np.ndarray]:
    """Everything but the codes, from block grids to how a tiled matrix stores it."""
    return {
        name: tile_rows(logical[name], paired(fmt, shape, name)) if tiled(fmt, shape, name) else np.ascontiguousarray(logical[name])
        for name in scale_parts(fmt, shape)
    }


def untile_part(fmt: Format, shape: tuple[int, ...], name: str, part: np.ndarray) -> np.ndarray:
    """One part of a tiled matrix on its block grid, as a view where it can be one."""
    if not tiled(fmt, shape, name):
        return part
    blocks = scale_parts(fmt, shape)[name][1][1]
    return untile_rows(part, shape[0], blocks, paired(fmt, shape, name))


def untile_scales(fmt: Format, shape: tuple[int, ...], stored: Parts) -> dict[str, np.ndarray]:
    """The inverse of `tile_scales`."""
    return {name: np.ascontiguousarray(untile_part(fmt, shape, name, stored[name])) for name in scale_parts(fmt, shape)}


def renew_scales(fmt: Format, shape: tuple[int, ...], stored: Parts) -> Parts:
    """Parts of a tiled matrix with those of an older version as this one stores them."""
    renewed, tiles = dict(stored), -(-shape[0] // 16)
    for name, (dtype, grid) in scale_parts(fmt, shape).items():
        part = stored[name]
        if part.dtype != dtype or not tiled(fmt, shape, name):
            continue
        if paired(fmt, shape, name) and grid[1] > 1 and part.shape == (tiles, grid[1], 16):
            check_codes(name, part, stored_element(fmt, name))
            renewed[name] = tile_rows(untile_rows(part, shape[0], grid[1]), True)
        elif part.shape == grid:
            renewed[name] = tile_rows(part)
    return renewed


class Grids(Parts):
    """Scales, offsets and zero points of a tiled matrix on their block grids, each untiled when it is asked for.

    Kernels read nearly all formats' scales as they lie; untiling them all would read and copy every scale of a model that is loaded.
    """

    def __init__(self, fmt: Format, shape: tuple[int, ...], stored: Parts) -> None:
        self._format, self._shape, self._stored = fmt, shape, stored
        self._names = tuple(scale_parts(fmt, shape))

    def __getitem__(self, name: str) -> np.ndarray:
        return untile_part(self._format, self._shape, name, self._stored[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class TiledScales(Layout):
    """Layouts that keep the scales of a matrix beside their tile rows, and any other array's on their grids."""

    def grids(self, fmt: Format, shape: tuple[int, ...], stored: Parts) -> Parts:
        """`Grids` of matrices."""
        return Grids(fmt, shape, stored) if len(shape) == 2 and fmt.block is not None else super().grids(fmt, shape, stored)

    def renew(self, fmt: Format, shape: tuple[int, ...], stored: Parts) -> Parts:
        """`renew_scales` for matrices with scales."""
        return renew_scales(fmt, shape, stored) if len(shape) == 2 and fmt.block is not None else stored

    def check_scales(self, fmt: Format, shape: tuple[int, ...], stored: Parts) -> None:
        for name in scale_parts(fmt, shape):
            if name != "table":
                check_codes(name, stored[name], stored_element(fmt, name), len(shape) == 2 and paired(fmt, shape, name))

    def cut(self, fmt: Format, shape: tuple[int, ...], stored: Parts, start: int, stop: int) -> dict[str, np.ndarray]:
        left = (stop - start, shape[1])
        owned, grids, parts = rows_owned(fmt, shape), scale_parts(fmt, left), {}
        for name, (_, size) in self.parts(fmt, left).items():
            if name == "codes" or tiled(fmt, shape, name):
                parts[name] = stored[name][start // self.tile[0] :][: size[0]]
                continue
            part = stored[name][start // owned.get(name, shape[0]) :][: grids[name][1][0]]
            # where a block of rows has only one left, its scale lies as one row's own
            parts[name] = tile_rows(part, paired(fmt, left, name)) if tiled(fmt, left, name) else part
        return parts


class Tile16x4(TiledScales):
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


class Tile16x1(Layout):
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
