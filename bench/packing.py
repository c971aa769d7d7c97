"""Packing and unpacking of codes, one thread, in GB/s of codes (one byte a code), beside a copy of the same array in the same run.

    python bench/packing.py [--threads N] [--json FILE]

Then lossless bf16: GB/s of decoded weights, and the stored share of normal numbers and of the bundled model. Then GGUF's blocks to tiles,
GB/s of the file's bytes, from a matrix that no cache holds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import anybit
from anybit.formats import Format
from anybit.io.gguf.kind import KINDS
from anybit.kernels import cpu
from anybit.layouts.rows import pack_rows, unpack_rows
from anybit.layouts.tile import pack_codes, tile_blocks, unpack_codes
from anybit.measure.machine import machine, summary
from anybit.native import native
from anybit.tensor import QTensor

SHAPE = (2048, 4096)
REPEATS = 7


def best_s(call: Callable[[], Any]) -> float:
    """The shortest of several runs: what the machine can do when nothing else runs."""
    times = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times)


def packing() -> list[dict[str, Any]]:
    """GB/s of codes for each width, layout and direction."""
    rng, size, found = np.random.default_rng(0), SHAPE[0] * SHAPE[1], []
    copied = np.empty(SHAPE, np.uint8)
    for bits in range(1, 9):
        codes = rng.integers(0, 1 << bits, SHAPE).astype(np.uint8)
        tiles, rows = pack_codes(codes, bits), pack_rows(codes, bits)
        calls = {
            "copy": lambda codes=codes: np.copyto(copied, codes),
            "tile16x4 pack": lambda codes=codes, bits=bits: pack_codes(codes, bits),
            "tile16x4 unpack": lambda tiles=tiles, bits=bits: unpack_codes(tiles, bits, SHAPE),
            "rows pack": lambda codes=codes, bits=bits: pack_rows(codes, bits),
            "rows unpack": lambda rows=rows, bits=bits: unpack_rows(rows, bits, SHAPE[1], np.dtype(np.uint8)),
        }
        found.append({"bits": str(bits)} | {name: size / best_s(call) / 1e9 for name, call in calls.items()})
    trits = rng.integers(0, 3, SHAPE).astype(np.uint8)
    stored = np.asarray(native.pack_tiles(trits, 0)).reshape(-1)
    pack, unpack = best_s(lambda: native.pack_tiles(trits, 0)), best_s(lambda: native.unpack_tiles(stored, 0, *SHAPE))
    found.append({"bits": "8/5", "tile16x4 pack": size / pack / 1e9, "tile16x4 unpack": size / unpack / 1e9})
    return found


def lossless() -> list[dict[str, Any]]:
    """Stored share and GB/s of decoded weights of pack=escape, 16 rows of 2048 at a time: they stay in the cache, as in a product."""
    normal = np.random.default_rng(0).standard_normal((4096, 2048), np.float32)
    weights = anybit.load("pycoder-5m").linears.values()
    codes = np.concatenate([linear.weight.logical()["codes"].reshape(-1) for linear in weights])
    model = codes[: codes.size // 32768 * 32768].reshape(-1, 2048)
    bf16 = {"normal": (normal.view(np.uint32) >> 16).astype(np.uint16), "pycoder-5m": model}
    found = []
    for name, patterns in bf16.items():
        q = QTensor.dense(patterns, Format("bf16+pack=escape"))
        cuts = [q.narrow(row, row + 16).parts for row in range(0, len(patterns), 16)]
        pieces = [(np.ascontiguousarray(part["codes"]), np.ascontiguousarray(part["index"]), 2, 32768, 32768) for part in cuts]

        def decode(pieces: list[Any] = pieces) -> None:
            for piece in pieces:
                native.escape_decode(*piece)

        found.append({"weights": name, "stored": q.nbytes / patterns.nbytes, "decode GB/s": patterns.nbytes / best_s(decode) / 1e9})
    return found


def repacking() -> list[dict[str, Any]]:
    """GB/s of stored bytes: blocks of random bytes, 64 million weights, to tiles."""
    rng, n, k, found = np.random.default_rng(0), 8192, 8192, []
    for kind in (KINDS[name] for name in KINDS):
        if kind.fields is None:
            continue
        data = rng.integers(0, 256, (n, k // kind.weights * kind.dtype.itemsize), np.uint8)
        fmt = Format(kind.format_of(data.reshape(-1).view(kind.dtype)))
        numbers = {part: (made.terms, made.flip, made.item) for part, made in kind.fields.numbers(kind.dtype).items()}
        blocks = kind.dtype.itemsize, kind.weights, kind.fields.plane_table(kind.dtype), kind.fields.flip, numbers, None
        seconds = best_s(partial(tile_blocks, fmt, (n, k), data, *blocks))
        found.append({"type": kind.name, "GB/s": data.nbytes / seconds / 1e9, "G weights/s": n * k / seconds / 1e9})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cpu.set_threads(options.threads)
    result: dict[str, Any] = {"threads": options.threads, "isa": cpu.isa(), "machine": machine()}
    result |= {"packing": packing(), "lossless": lossless(), "repacking": repacking()}
    for rows in (result["packing"], result["lossless"], result["repacking"]):
        names = list(rows[0])
        print("  ".join(f"{name:>15}" for name in names))
        for row in rows:
            cells = (row.get(name, "") for name in names)
            print("  ".join(f"{cell:>15.3g}" if isinstance(cell, float) else f"{cell:>15}" for cell in cells))
        print()
    print(summary(machine()))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
