"""Blocks of 32 with one float16 scale, or a scale and a minimum: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.

Q4_0  f16 d; 16 bytes, low nibbles are weights 0 to 15, high ones 16 to 31         value = (q - 8) d
Q4_1  f16 d, m; the same nibbles                                                   value = q d + m
Q5_0  f16 d; 32 bits, bit j is the fifth of weight j; the same nibbles             value = (q - 16) d
Q5_1  f16 d, m; the same                                                           value = q d + m
Q8_0  f16 d; 32 signed bytes                                                       value = q d
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from anybit.io.gguf.fields import Fields, Plane, word
from anybit.io.gguf.kind import Parts, bits16, halves, per_block, register, unhalves, writes

_NIBBLES = (Plane("qs", 4, 16),)
_FIVE = (*_NIBBLES, Plane("qh", 1, 1, 4))
_SCALE = {"scale.0": word("d")}
_BOTH = _SCALE | {"offset.0": word("m")}


@register("Q4_0", 2, 32, {"d": "<u2", "qs": "16u1"}, "int4@32:fp16", at=Fields(_NIBBLES, _SCALE, 8))
def _q4_0(blocks: np.ndarray) -> Parts:
    codes = halves(blocks["qs"])
    codes ^= np.uint8(8)  # two's complement of q - 8
    return {"codes": codes, "scale.0": bits16(blocks["d"])}


@register("Q4_1", 3, 32, {"d": "<u2", "m": "<u2", "qs": "16u1"}, "uint4@32:fp16+off", at=Fields(_NIBBLES, _BOTH))
def _q4_1(blocks: np.ndarray) -> Parts:
    return {"codes": halves(blocks["qs"]), "scale.0": bits16(blocks["d"]), "offset.0": bits16(blocks["m"])}


def _five(blocks: np.ndarray) -> np.ndarray:
    codes = halves(blocks["qs"])
    high = np.unpackbits(np.ascontiguousarray(blocks["qh"]), axis=-1, bitorder="little")
    codes |= np.left_shift(high, 4, out=high)
    return codes


@register("Q5_0", 6, 32, {"d": "<u2", "qh": "4u1", "qs": "16u1"}, "int5@32:fp16", at=Fields(_FIVE, _SCALE, 16))
def _q5_0(blocks: np.ndarray) -> Parts:
    codes = _five(blocks)
    codes ^= np.uint8(16)
    return {"codes": codes, "scale.0": bits16(blocks["d"])}


@register("Q5_1", 7, 32, {"d": "<u2", "m": "<u2", "qh": "4u1", "qs": "16u1"}, "uint5@32:fp16+off", at=Fields(_FIVE, _BOTH))
def _q5_1(blocks: np.ndarray) -> Parts:
    return {"codes": _five(blocks), "scale.0": bits16(blocks["d"]), "offset.0": bits16(blocks["m"])}


@register("Q8_0", 8, 32, {"d": "<u2", "qs": "32u1"}, "int8@32:fp16", at=Fields((Plane("qs", 8, 32),), _SCALE))
def _q8_0(blocks: np.ndarray) -> Parts:
    return {"codes": np.ascontiguousarray(blocks["qs"]), "scale.0": bits16(blocks["d"])}


@writes("Q4_0")
@writes("Q4_1")
def _four(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    blocks["d"] = per_block(parts["scale.0"], blocks)[..., 0]
    codes = per_block(parts["codes"], blocks)
    if "offset.0" in parts:
        blocks["m"] = per_block(parts["offset.0"], blocks)[..., 0]
    unhalves(codes if "offset.0" in parts else codes ^ np.uint8(8), blocks["qs"])


@writes("Q5_0")
@writes("Q5_1")
def _five_back(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    blocks["d"] = per_block(parts["scale.0"], blocks)[..., 0]
    codes = per_block(parts["codes"], blocks)
    if "offset.0" in parts:
        blocks["m"] = per_block(parts["offset.0"], blocks)[..., 0]
    else:
        codes = codes ^ np.uint8(16)
    unhalves(codes & np.uint8(15), blocks["qs"])
    blocks["qh"] = np.packbits(codes >> np.uint8(4), axis=-1, bitorder="little")


@writes("Q8_0")
def _eight(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    blocks["d"] = per_block(parts["scale.0"], blocks)[..., 0]
    blocks["qs"] = per_block(parts["codes"], blocks)
