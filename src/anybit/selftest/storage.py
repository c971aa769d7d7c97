"""Packed codes: each bit is where the layout's description says, and unpacking gives the codes back from any address."""

from __future__ import annotations

from functools import partial

import numpy as np

from anybit.formats import Format
from anybit.layouts import LAYOUTS
from anybit.selftest.check import Check, Step, WrongError

LENGTHS = (*range(35), 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 1000, 1023, 1024, 1025)
PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


def shifted(array: np.ndarray) -> np.ndarray:
    """A copy that begins at an odd address."""
    raw = np.empty(array.nbytes + 1, np.uint8)
    raw[1:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return raw[1:].view(array.dtype).reshape(array.shape)


def rows_step(bits: int) -> int:
    """Layout rows: code i of a row is bits [i * bits, (i + 1) * bits) of a little-endian stream."""
    layout, fmt, compared = LAYOUTS["rows"], Format(f"uint{bits}"), 0
    rng = np.random.default_rng(bits)
    for k in LENGTHS:
        codes = rng.integers(0, 1 << bits, (2, k)).astype(fmt.element.code_dtype)
        stored = layout.pack(fmt, codes.shape, {"codes": codes})["codes"]
        for row, found in zip(codes.tolist(), stored, strict=True):
            number = sum(code << i * bits for i, code in enumerate(row))
            if found.tobytes() != number.to_bytes(-(-k * bits // 8), "little"):
                raise WrongError(f"{k} codes of {bits} bits do not lie as the layout says")
        for source in (stored, shifted(stored)):
            back = layout.unpack(fmt, codes.shape, {"codes": source})["codes"]
            if not np.array_equal(back, codes):
                raise WrongError(f"{k} codes of {bits} bits do not come back")
        compared += 2 * codes.size
    return compared


def tile_step(bits: int) -> int:
    """Layout tile16x4: the place of every field, from the description of its bit planes."""
    layout, fmt, compared = LAYOUTS["tile16x4"], Format(f"uint{bits}@32"), 0
    rng = np.random.default_rng(bits)
    for n, k in ((1, 1), (15, 33), (16, 32), (17, 65), (33, 257), (16, 1025)):
        codes = rng.integers(0, 1 << bits, (n, k)).astype(np.uint8)
        scale = rng.integers(0, 1 << 16, (n, -(-k // 32))).astype(np.uint16)
        stored = dict(layout.pack(fmt, codes.shape, {"codes": codes, "scale.0": scale}))
        back = layout.unpack(fmt, codes.shape, {name: shifted(part) for name, part in stored.items()})
        if not (np.array_equal(back["codes"], codes) and np.array_equal(back["scale.0"], scale)):
            raise WrongError(f"{n} x {k} codes of {bits} bits do not come back")
        read = read_tiles(np.asarray(stored["codes"]), bits)
        want = np.zeros_like(read)
        want[:n, :k] = codes
        if not np.array_equal(read, want):
            raise WrongError(f"{n} x {k} codes of {bits} bits do not lie as the layout says")
        compared += 2 * codes.size
    return compared


def read_tiles(stored: np.ndarray, bits: int) -> np.ndarray:
    """Codes [16 tiles, 32 chunks] field by field: byte 4 o + j of vector v of a plane of width w holds, from bit f w on, output o at
    k = v (32 / w) + 4 f + j of its chunk."""
    tiles, chunks, _ = stored.shape
    codes = np.zeros((tiles, 16, chunks, 32), np.uint8)
    at = low = 0
    for w in PLANES[bits]:
        for v in range(w):
            vector = stored[:, :, 64 * (at + v) : 64 * (at + v + 1)]
            for f in range(8 // w):
                for byte in range(64):
                    o, j = divmod(byte, 4)
                    field = (vector[:, :, byte] >> (f * w)) & ((1 << w) - 1)
                    codes[:, o, :, v * (32 // w) + 4 * f + j] |= (field << low).astype(np.uint8)
        at, low = at + w, low + w
    return codes.reshape(tiles * 16, chunks * 32)


def storage_checks() -> list[Check]:
    """The check of packing."""
    steps = [Step(f"rows, {bits} bits", partial(rows_step, bits), 20) for bits in range(1, 17)]
    steps += [Step(f"tile16x4, {bits} bits", partial(tile_step, bits), 10) for bits in range(1, 9)]
    return [Check("packing", "1 to 16 bits, lengths 0 to 1025, any address: each bit where the layout says, and back", steps)]
