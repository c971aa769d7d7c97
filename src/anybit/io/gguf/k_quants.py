"""K-quants: super-blocks of 256 whose blocks of 16 or 32 have small integer scales, themselves scaled by float16.

    Q2_K  value = d sc q - dmin mn, blocks of 16: 16 bytes of sc (low nibble) and mn (high); 2-bit q
    Q3_K  value = d (sc - 32) q, blocks of 16: q is 2 bits, less 4 where the mask has no bit; 6-bit sc
    Q4_K  value = d sc q - dmin mn, blocks of 32: 6-bit sc and mn; 4-bit q
    Q5_K  the same with a fifth bit
    Q6_K  value = d sc (q - 32), blocks of 16: signed bytes sc; q of 4 + 2 bits

Minima become offsets: mn keeps its code, dmin changes its sign. d sc and dmin mn are exact in float32: the order of factors is free.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from anybit.io.gguf.fields import Fields, Plane, Values, planar, word
from anybit.io.gguf.kind import (
    Parts,
    bit_planes,
    bits16,
    from_planes,
    halves,
    per_block,
    quarters,
    register,
    unhalves,
    unquarters,
    writes,
)

_SIGN = np.uint16(0x8000)
_SUPER = {"scale.1": word("d")}
_SUPERS = _SUPER | {"offset.1": word("dmin", 0x8000)}


def _six(first: int) -> Values:
    """Eight 6-bit numbers of Q4_K's and Q5_K's 12 bytes: four whole ones from byte `first` on, then four cut into nibbles and top bits."""
    low = "scales"
    whole = [((low, first + i, 0, 6, 0),) for i in range(4)]
    cut = [((low, 8 + i, first, 4, 0), (low, first + i, 6, 2, 4)) for i in range(4)]
    nothing = (low, 0, 0, 0, 0)
    return Values(tuple([(*terms, nothing) for terms in whole] + cut))


_SIX = {"scale.0": _six(0), "offset.0": _six(4)}
_NIBBLES = (Plane("scales", 4, 16),)
_Q2_SCALES = {"scale.0": planar(_NIBBLES, 0, 16), "offset.0": planar(_NIBBLES, 16, 32), **_SUPERS}
_Q3_SCALES = {"scale.0": planar((Plane("scales", 4, 8), Plane("scales", 2, 4, 4, skip=8)), 0, 16, 32), **_SUPER}
_Q6_SCALES = {"scale.0": planar((Plane("scales", 8, 16),), 0, 16), **_SUPER}


def _minus(field: np.ndarray) -> np.ndarray:
    return bits16(field) ^ _SIGN


@register("Q2_K", 10, 256, {"scales": "16u1", "qs": "64u1", "d": "<u2", "dmin": "<u2"}, "uint2@16:uint4@256:fp16+off",
          at=Fields((Plane("qs", 2, 32),), _Q2_SCALES))  # fmt: skip
def _q2_k(blocks: np.ndarray) -> Parts:
    scales = blocks["scales"]
    return {
        "codes": quarters(blocks["qs"].reshape(*blocks.shape, 2, 32)),
        "scale.0": scales & np.uint8(15), "scale.1": bits16(blocks["d"]),
        "offset.0": scales >> np.uint8(4), "offset.1": _minus(blocks["dmin"]),
    }  # fmt: skip


@register("Q3_K", 11, 256, {"hmask": "32u1", "qs": "64u1", "scales": "12u1", "d": "<u2"}, "int3@16:int6@256:fp16",
          at=Fields((Plane("qs", 2, 32), Plane("hmask", 1, 32, 2)), _Q3_SCALES, 4))  # fmt: skip
def _q3_k(blocks: np.ndarray) -> Parts:
    codes = quarters(blocks["qs"].reshape(*blocks.shape, 2, 32)).reshape(*blocks.shape, 8, 32)
    # a set bit adds nothing, a clear one takes 4 off: in two's complement of 3 bits it is bit 2
    codes |= (bit_planes(blocks["hmask"]) ^ np.uint8(1)) << np.uint8(2)
    low, high = halves(blocks["scales"][..., :8]), quarters(blocks["scales"][..., 8:])
    scales = (low | high << np.uint8(4)) ^ np.uint8(32)  # two's complement of sc - 32
    return {"codes": codes, "scale.0": scales, "scale.1": bits16(blocks["d"])}


def _scales_and_minima(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """12 bytes to 8 scales and 8 minima of 6 bits: whole ones in bytes 0 to 7, the last four of each cut into nibbles and top bits."""
    first, second, third = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = np.concatenate([first & 63, third & 15 | first >> 2 & 48], axis=-1)
    return scales, np.concatenate([second & 63, third >> 4 | second >> 2 & 48], axis=-1)


def _with_minima(blocks: np.ndarray, codes: np.ndarray) -> Parts:
    scales, minima = _scales_and_minima(blocks["scales"])
    return {
        "codes": codes, "scale.0": scales, "scale.1": bits16(blocks["d"]), "offset.0": minima, "offset.1": _minus(blocks["dmin"]),
    }  # fmt: skip


@register("Q4_K", 12, 256, {"d": "<u2", "dmin": "<u2", "scales": "12u1", "qs": "128u1"}, "uint4@32:uint6@256:fp16+off",
          at=Fields((Plane("qs", 4, 32),), {**_SIX, **_SUPERS}))  # fmt: skip
def _q4_k(blocks: np.ndarray) -> Parts:
    return _with_minima(blocks, halves(blocks["qs"].reshape(*blocks.shape, 4, 32)))


@register("Q5_K", 13, 256, {"d": "<u2", "dmin": "<u2", "scales": "12u1", "qh": "32u1", "qs": "128u1"}, "uint5@32:uint6@256:fp16+off",
          at=Fields((Plane("qs", 4, 32), Plane("qh", 1, 32, 4)), {**_SIX, **_SUPERS}))  # fmt: skip
def _q5_k(blocks: np.ndarray) -> Parts:
    codes = halves(blocks["qs"].reshape(*blocks.shape, 4, 32)).reshape(*blocks.shape, 8, 32)
    codes |= bit_planes(blocks["qh"]) << np.uint8(4)
    return _with_minima(blocks, codes)


@register("Q6_K", 14, 256, {"ql": "128u1", "qh": "64u1", "scales": "16u1", "d": "<u2"}, "int6@16:int8@256:fp16",
          at=Fields((Plane("ql", 4, 64), Plane("qh", 2, 32, 4)), _Q6_SCALES, 32))  # fmt: skip
def _q6_k(blocks: np.ndarray) -> Parts:
    codes = halves(blocks["ql"].reshape(*blocks.shape, 2, 64))
    codes |= quarters(blocks["qh"].reshape(*blocks.shape, 2, 32)) << np.uint8(4)
    codes ^= np.uint8(32)  # two's complement of q - 32
    return {"codes": codes, "scale.0": blocks["scales"].copy(), "scale.1": bits16(blocks["d"])}


@writes("Q2_K")
def _q2_k_back(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    blocks["scales"] = per_block(parts["scale.0"], blocks) | per_block(parts["offset.0"], blocks) << np.uint8(4)
    unquarters(parts["codes"].reshape(*blocks.shape, 2, 128), blocks["qs"].reshape(*blocks.shape, 2, 32))
    _super_scales(parts, blocks)


@writes("Q3_K")
def _q3_k_back(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    codes = per_block(parts["codes"], blocks)
    unquarters((codes & np.uint8(3)).reshape(*blocks.shape, 2, 128), blocks["qs"].reshape(*blocks.shape, 2, 32))
    blocks["hmask"] = from_planes((codes >> np.uint8(2) ^ np.uint8(1)).reshape(*blocks.shape, 8, 32))
    scales = per_block(parts["scale.0"], blocks) & np.uint8(63) ^ np.uint8(32)
    unhalves(scales & np.uint8(15), blocks["scales"][..., :8])
    unquarters(scales >> np.uint8(4), blocks["scales"][..., 8:])
    _super_scales(parts, blocks)


def _super_scales(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    blocks["d"] = per_block(parts["scale.1"], blocks)[..., 0]
    if "offset.1" in parts:
        blocks["dmin"] = per_block(parts["offset.1"], blocks)[..., 0] ^ _SIGN


def _scales_and_minima_back(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    scales, minima = per_block(parts["scale.0"], blocks), per_block(parts["offset.0"], blocks)
    packed, top = blocks["scales"], np.uint8(48)
    packed[..., :4] = scales[..., :4] | (scales[..., 4:] & top) << np.uint8(2)
    packed[..., 4:8] = minima[..., :4] | (minima[..., 4:] & top) << np.uint8(2)
    packed[..., 8:] = scales[..., 4:] & np.uint8(15) | minima[..., 4:] << np.uint8(4)
    _super_scales(parts, blocks)


@writes("Q4_K")
def _q4_k_back(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    unhalves(parts["codes"].reshape(*blocks.shape, 4, 64), blocks["qs"].reshape(*blocks.shape, 4, 32))
    _scales_and_minima_back(parts, blocks)


@writes("Q5_K")
def _q5_k_back(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    codes = parts["codes"].reshape(*blocks.shape, 4, 64)
    unhalves(codes & np.uint8(15), blocks["qs"].reshape(*blocks.shape, 4, 32))
    blocks["qh"] = from_planes((codes >> np.uint8(4)).reshape(*blocks.shape, 8, 32))
    _scales_and_minima_back(parts, blocks)


@writes("Q6_K")
def _q6_k_back(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    codes = (parts["codes"] & np.uint8(63) ^ np.uint8(32)).reshape(*blocks.shape, 2, 128)
    unhalves(codes & np.uint8(15), blocks["ql"].reshape(*blocks.shape, 2, 64))
    unquarters(codes >> np.uint8(4), blocks["qh"].reshape(*blocks.shape, 2, 32))
    blocks["scales"] = per_block(parts["scale.0"], blocks)
    _super_scales(parts, blocks)
