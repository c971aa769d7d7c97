"""Packing of codes by NumPy, bit by bit: what the native packers are tested against. Layouts in words: `anybit.layouts`."""

from __future__ import annotations

import numpy as np

PLANES: dict[int, tuple[int, ...]] = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
"""The bit planes of a code of each width in the layout tile16x4, lowest bits first."""


def pack_tiles(codes: np.ndarray, bits: int) -> np.ndarray:
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


def unpack_tiles(stored: np.ndarray, bits: int, shape: tuple[int, int]) -> np.ndarray:
    """The inverse of `pack_tiles`: uint8[n, k]."""
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


def pack_rows(codes: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned codes [..., k] of `bits` bits each to bytes [..., ceil(k * bits / 8)]."""
    each = np.unpackbits(np.ascontiguousarray(codes.astype("<u4"))[..., None].view(np.uint8), axis=-1, count=bits, bitorder="little")
    return np.packbits(each.reshape(*codes.shape[:-1], codes.shape[-1] * bits), axis=-1, bitorder="little")


def unpack_rows(stored: np.ndarray, bits: int, k: int, dtype: np.dtype) -> np.ndarray:
    """The inverse of `pack_rows`."""
    each = np.unpackbits(stored, axis=-1, count=k * bits, bitorder="little").reshape(*stored.shape[:-1], k, bits)
    packed = np.packbits(each, axis=-1, bitorder="little")
    whole = np.zeros((*packed.shape[:-1], 4), np.uint8)
    whole[..., : packed.shape[-1]] = packed
    return whole.view("<u4")[..., 0].astype(dtype)


def pack_trits(codes: np.ndarray) -> np.ndarray:
    """Ternary codes [..., k] to bytes [..., ceil(k / 5)]: ceil(n * 256 / 243), n the number of five digits, the first on top."""
    k = codes.shape[-1]
    digits = np.zeros((*codes.shape[:-1], -(-k // 5) * 5), np.int64)
    digits[..., :k] = np.minimum(codes, 2)
    numbers = digits.reshape(*codes.shape[:-1], -1, 5) @ np.array([81, 27, 9, 3, 1])
    return (-(-numbers * 256 // 243)).astype(np.uint8)


def unpack_trits(stored: np.ndarray, k: int) -> np.ndarray:
    """The inverse of `pack_trits`: digit i of a byte b is floor(3 * frac(b / 256 * 3^i)), for every b."""
    left = stored.astype(np.int64)
    digits = []
    for _ in range(5):
        digits.append(3 * left // 256)
        left = 3 * left % 256
    return np.stack(digits, axis=-1).reshape(*stored.shape[:-1], -1)[..., :k].astype(np.uint8)
