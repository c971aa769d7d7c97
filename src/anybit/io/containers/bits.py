"""Streams of bits in bytes, as other tools pack codes: element i of a row lies in bits [i * bits, (i + 1) * bits), lowest first."""

from __future__ import annotations

import numpy as np


def stream(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """uint8[n, count] codes of 1 to 8 bits from the bytes of little-endian rows, uint8[n, at least ceil(count * bits / 8)].

    >>> stream(np.array([[0b11010001, 0]], np.uint8), 3, 3).tolist()
    [[1, 2, 3]]
    """
    n = packed.shape[0]
    if bits == 8:
        return packed[:, :count]
    groups = -(-count // 8)
    padded = np.zeros((n, groups * bits), np.uint8)
    used = min(packed.shape[1], groups * bits)
    padded[:, :used] = packed[:, :used]
    out = np.empty((n, groups, 8), np.uint8)
    if 8 % bits == 0:
        each = padded.reshape(n, groups, bits, 1)
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        np.right_shift(each, shifts, out=out.reshape(n, groups, bits, 8 // bits))
        out &= np.uint8((1 << bits) - 1)
    else:  # eight codes are `bits` bytes: one integer of up to 56 bits
        whole = np.zeros((n, groups, 8), np.uint8)
        whole[..., :bits] = padded.reshape(n, groups, bits)
        values = whole.view("<u8")
        out[...] = values >> (np.arange(8, dtype=np.uint64) * np.uint64(bits)) & np.uint64((1 << bits) - 1)
    return out.reshape(n, groups * 8)[:, :count]


def words(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The same from uint32[n, words] that hold whole codes only: 32 // bits of them, the highest bits unused."""
    per = 32 // bits
    shifts = np.arange(per, dtype=np.uint32) * np.uint32(bits)
    out = (packed[..., None] >> shifts & np.uint32((1 << bits) - 1)).astype(np.uint8)
    return out.reshape(packed.shape[0], -1)[:, :count]


def packed_stream(codes: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of `stream` for rows that end at 32-bit words: int32[n, ceil(count * bits / 32)], unused bits zero.

    >>> packed_stream(np.array([[1, 2, 3]], np.uint8), 3).tolist() == [[0b011010001]]
    True
    """
    n, count = codes.shape
    words = -(-count * bits // 32)
    if bits == 8 and count % 4 == 0:
        return np.ascontiguousarray(codes, np.uint8).view("<i4")
    groups = -(-count // 8)
    if count % 8:
        codes = np.pad(codes, ((0, 0), (0, 8 * groups - count)))
    out = np.zeros((n, max(groups * bits, 4 * words)), np.uint8)
    if 8 % bits == 0:
        lanes = np.ascontiguousarray(codes, np.uint8).view(f"<u{8 // bits}").reshape(n, groups * bits)  # the codes of one byte
        made = lanes.copy()
        for i in range(1, 8 // bits):
            made |= lanes >> (i * (8 - bits))
        out[:, : groups * bits] = made  # its lowest byte: no code is larger than its bits
    else:  # eight codes are `bits` bytes: one integer of up to 56 bits
        each = np.ascontiguousarray(codes).reshape(n, groups, 8)
        whole = np.zeros((n, groups), np.uint64)
        for i in range(8):
            whole |= each[..., i].astype(np.uint64) << np.uint64(i * bits)
        out[:, : groups * bits] = whole[..., None].view(np.uint8)[..., :bits].reshape(n, -1)
    return np.ascontiguousarray(out[:, : 4 * words]).view("<i4")
