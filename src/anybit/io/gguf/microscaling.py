"""MXFP4 (blocks of 32, power-of-two scales) and NVFP4 (blocks of 16, UE4M3 scales, four to a super-block of 64).

    MXFP4  byte e; 16 bytes, low nibbles are weights 0 to 15, high ones 16 to 31          value = e2m1 2^(e - 127)
    NVFP4  4 bytes of scales; 8 bytes for each 16 weights, low nibbles are 0 to 7         value = e2m1 ue4m3

A file's NVFP4 tensor `x.weight` may have a float32 factor `x.scale` beside it: the model's reader puts it into the second level, which is 1
here. Differs: ggml gives code 8 the value +0, e2m1 says -0; ggml reads a scale byte of 255 as 2^128 (MXFP4) or 480 (NVFP4) and ignores the
sign of a UE4M3 scale, where the formats' owners say NaN or leave it open: such blocks are refused. NVFP4's 0x7F is zero in ggml, and here.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from anybit.io.gguf.fields import Fields, Plane, planar
from anybit.io.gguf.kind import Parts, halves, per_block, register, unhalves, writes

ONE = np.float32(1).view(np.uint32)


def _exponents(parts: Parts) -> Parts:
    scales = parts["scale.0"]
    if scales.size and scales.max() == 255:
        raise ValueError("a scale byte is 255, which OCP MX calls NaN and ggml 2^128")
    return parts


def _minifloats(parts: Parts) -> Parts:
    scales = parts["scale.0"]
    if scales.size and scales.max() > 127:
        raise ValueError(f"a scale byte is {scales.max()}, but UE4M3 scales have no sign bit")
    return parts | {"scale.0": np.where(scales == 0x7F, np.uint8(0), scales), "scale.1": np.full((1, 1), ONE)}


_E = {"scale.0": planar((Plane("e", 8, 1),), 0, 1)}
_D = {"scale.0": planar((Plane("d", 8, 4),), 0, 4)}


@register("MXFP4", 39, 32, {"e": "|u1", "qs": "16u1"}, "fp4_e2m1@32:e8m0", at=Fields((Plane("qs", 4, 16),), _E, 0, _exponents))
def _mxfp4(blocks: np.ndarray) -> Parts:
    return _exponents({"codes": halves(blocks["qs"]), "scale.0": blocks["e"].copy()})


@register(
    "NVFP4", 40, 64, {"d": "4u1", "qs": "32u1"}, "fp4_e2m1@16:fp8_e4m3fn@tensor:fp32", at=Fields((Plane("qs", 4, 8),), _D, 0, _minifloats)
)
def _nvfp4(blocks: np.ndarray) -> Parts:
    return _minifloats({"codes": halves(blocks["qs"].reshape(*blocks.shape, 4, 8)), "scale.0": np.ascontiguousarray(blocks["d"])})


@writes("MXFP4")
def _mxfp4_back(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    blocks["e"] = per_block(parts["scale.0"], blocks)[..., 0]
    unhalves(per_block(parts["codes"], blocks), blocks["qs"])


@writes("NVFP4")
def _nvfp4_back(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    blocks["d"] = per_block(parts["scale.0"], blocks)
    unhalves(parts["codes"].reshape(*blocks.shape, 4, 16), blocks["qs"].reshape(*blocks.shape, 4, 8))
