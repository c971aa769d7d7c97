"""IQ4_NL and IQ4_XS: 16 values that are denser near zero, by their number in a list.

IQ4_NL  blocks of 32: f16 d; 16 bytes, low nibbles are weights 0 to 15, high ones 16 to 31        value = d list[q]
IQ4_XS  super-blocks of 256: f16 d; 16 bits with the upper 2 of eight 6-bit scales; their lower nibbles in 4 bytes; nibbles as above for
        each 32 weights                                                                           value = d (sc - 32) list[q]
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from anybit.io.gguf.fields import Fields, Plane, planar, word
from anybit.io.gguf.kind import Parts, bits16, halves, per_block, register, unhalves, writes

ELEMENT = "iq4nl"
_NIBBLES = (Plane("qs", 4, 16),)
_SIX = (Plane("low", 4, 1), Plane("high", 2, 1, 4))


@register("IQ4_NL", 20, 32, {"d": "<u2", "qs": "16u1"}, f"{ELEMENT}@32:fp16", at=Fields(_NIBBLES, {"scale.0": word("d")}))
def _iq4_nl(blocks: np.ndarray) -> Parts:
    return {"codes": halves(blocks["qs"]), "scale.0": bits16(blocks["d"])}


@register("IQ4_XS", 23, 256, {"d": "<u2", "high": "<u2", "low": "4u1", "qs": "128u1"}, f"{ELEMENT}@32:int6@256:fp16",
          at=Fields(_NIBBLES, {"scale.0": planar(_SIX, 0, 8, 32), "scale.1": word("d")}))  # fmt: skip
def _iq4_xs(blocks: np.ndarray) -> Parts:
    low = np.stack([blocks["low"] & 15, blocks["low"] >> 4], axis=-1).reshape(*blocks.shape, 8)
    high = (bits16(blocks["high"])[..., None] >> np.arange(0, 16, 2, dtype=np.uint16) & np.uint16(3)).astype(np.uint8)
    scales = (low | high << np.uint8(4)) ^ np.uint8(32)  # two's complement of sc - 32
    return {"codes": halves(blocks["qs"].reshape(*blocks.shape, 8, 16)), "scale.0": scales, "scale.1": bits16(blocks["d"])}


@writes("IQ4_NL")
def _iq4_nl_back(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    blocks["d"] = per_block(parts["scale.0"], blocks)[..., 0]
    unhalves(per_block(parts["codes"], blocks), blocks["qs"])


@writes("IQ4_XS")
def _iq4_xs_back(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    scales = per_block(parts["scale.0"], blocks) & np.uint8(63) ^ np.uint8(32)
    blocks["low"] = scales[..., 0::2] & np.uint8(15) | scales[..., 1::2] << np.uint8(4)
    high = (scales >> np.uint8(4)).astype(np.uint16) << np.arange(0, 16, 2, dtype=np.uint16)
    blocks["high"] = np.bitwise_or.reduce(high, axis=-1)
    blocks["d"] = per_block(parts["scale.1"], blocks)[..., 0]
    unhalves(parts["codes"].reshape(*blocks.shape, 8, 32), blocks["qs"].reshape(*blocks.shape, 8, 16))
