"""Weights of few values: TQ1_0 and TQ2_0 (blocks of 256), Q1_0 (128) and Q2_0 (64), each with one float16 scale.

TQ1_0  48 + 4 bytes hold five (the last four: four) base-3 digits each, byte = ceil(digits * 256 / 243); digit n of bytes m is weight
       32 n + m of 160, then 16 n + m of 80, then 4 n + m of 16          value = (t - 1) d
TQ2_0  64 bytes: bits 2 l of byte 32 h + m are weight 128 h + 32 l + m   value = (q - 1) d; q = 3 gives 2 d, which no quantizer writes
Q1_0   16 bytes of signs, lowest bit first, 1 is +                       value = +-d
Q2_0   16 bytes, four 2-bit fields each, lowest first                    value = (q - 1) d
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from anybit.io.gguf.fields import Fields, Plane, word
from anybit.io.gguf.kind import Parts, bits16, per_block, quarters, register, unquarters, writes

_WIDE = "codebook_-1_0_1_2"
_D = {"scale.0": word("d")}
_SLAB = 1 << 20  # bytes that are looked at at once


def _trits(packed: np.ndarray, count: int) -> np.ndarray:
    """uint8[..., b] to digits uint8[..., count, b]: the n-th is the carry of 3 times (byte * 3^n mod 256)."""
    powers = np.array([1, 3, 9, 27, 81][:count], np.uint8)[:, None]
    shifted = packed[..., None, :] * powers
    return (shifted.astype(np.uint16) * np.uint16(3) >> np.uint16(8)).astype(np.uint8)


@register("TQ1_0", 34, 256, {"qs": "48u1", "qh": "4u1", "d": "<u2"}, "ternary@256:fp16")
def _tq1_0(blocks: np.ndarray) -> Parts:
    pieces = ((blocks["qs"][..., :32], 5), (blocks["qs"][..., 32:], 5), (blocks["qh"], 4))
    codes = [_trits(packed, count).reshape(*blocks.shape, -1) for packed, count in pieces]
    return {"codes": np.concatenate(codes, axis=-1), "scale.0": bits16(blocks["d"])}


def _has_three(blocks: np.ndarray) -> str | None:
    """The format of four values where a tensor uses the fourth."""
    flat = blocks.reshape(-1)
    for start in range(0, len(flat), _SLAB // 64):
        packed = flat[start : start + _SLAB // 64]["qs"]
        if (packed & packed >> np.uint8(1) & np.uint8(0x55)).any():
            return f"{_WIDE}@256:fp16"
    return None


@register("TQ2_0", 35, 256, {"qs": "64u1", "d": "<u2"}, "ternary@256:fp16", refine=_has_three, at=Fields((Plane("qs", 2, 32),), _D))
def _tq2_0(blocks: np.ndarray) -> Parts:
    return {"codes": quarters(blocks["qs"].reshape(*blocks.shape, 2, 32)), "scale.0": bits16(blocks["d"])}


@register("Q1_0", 41, 128, {"d": "<u2", "qs": "16u1"}, "binary@128:fp16", at=Fields((Plane("qs", 1, 1),), _D))
def _q1_0(blocks: np.ndarray) -> Parts:
    codes = np.unpackbits(np.ascontiguousarray(blocks["qs"]), axis=-1, bitorder="little")
    return {"codes": codes, "scale.0": bits16(blocks["d"])}


@register("Q2_0", 42, 64, {"d": "<u2", "qs": "16u1"}, f"{_WIDE}@64:fp16", at=Fields((Plane("qs", 2, 1),), _D))
def _q2_0(blocks: np.ndarray) -> Parts:
    fields = quarters(blocks["qs"][..., None])  # of one byte: [..., 16, 4], in the order of the weights
    return {"codes": fields, "scale.0": bits16(blocks["d"])}


def _untrits(digits: np.ndarray) -> np.ndarray:
    """The inverse of `_trits`: uint8[..., count, b] to bytes uint8[..., b], the least of those that mean the same."""
    value = np.zeros((*digits.shape[:-2], digits.shape[-1]), np.uint16)
    for n in range(5):  # four digits stand where five would, the last one zero
        value = value * np.uint16(3) + (digits[..., n, :] if n < digits.shape[-2] else np.uint16(0))
    return ((value * np.uint16(256) + np.uint16(242)) // np.uint16(243)).astype(np.uint8)


@writes("TQ1_0")
def _tq1_0_back(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    codes = per_block(parts["codes"], blocks)
    blocks["qs"][..., :32] = _untrits(codes[..., :160].reshape(*blocks.shape, 5, 32))
    blocks["qs"][..., 32:] = _untrits(codes[..., 160:240].reshape(*blocks.shape, 5, 16))
    blocks["qh"] = _untrits(codes[..., 240:].reshape(*blocks.shape, 4, 4))
    blocks["d"] = per_block(parts["scale.0"], blocks)[..., 0]


@writes("TQ2_0")
def _tq2_0_back(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    unquarters(parts["codes"].reshape(*blocks.shape, 2, 128), blocks["qs"].reshape(*blocks.shape, 2, 32))
    blocks["d"] = per_block(parts["scale.0"], blocks)[..., 0]


@writes("Q1_0")
def _q1_0_back(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    blocks["qs"] = np.packbits(per_block(parts["codes"], blocks), axis=-1, bitorder="little")
    blocks["d"] = per_block(parts["scale.0"], blocks)[..., 0]


@writes("Q2_0")
def _q2_0_back(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    unquarters(parts["codes"].reshape(*blocks.shape, 16, 4), blocks["qs"][..., None])
    blocks["d"] = per_block(parts["scale.0"], blocks)[..., 0]
