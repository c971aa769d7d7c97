"""IQ1, IQ2 and IQ3: groups of 4 or 8 weights named together in a list of points, signs, odd multiples of a float16 a block.

    IQ2_XXS  f16 d; for each 32: 4 bytes that name 8 weights each; 4 x 7 bits of signs, the eighth makes their number even; 4 bits s
    IQ2_XS   f16 d; 32 x 16 bits: 9 that name 8 weights, 7 of signs; 4 bits s for each 16
    IQ2_S    f16 d; 32 bytes that name 8 weights each, lower 8 of 10 bits; 32 bytes of signs; 8 bytes of upper bits; 4 bits s for each 16
    IQ3_XXS  f16 d; 64 bytes that name 4 weights each; for each 32 weights 4 x 7 bits of signs and 4 bits s
    IQ3_S    f16 d; 64 bytes, lower 8 of 9 bits; 8 bytes of upper bits; 32 bytes of signs; 4 bits s for each 32
             IQ2: value = +-point d (2 s + 1) / 8     IQ3_XXS: / 4     IQ3_S: value = +-point d (2 s + 1)
    IQ1_S    f16 d; 32 bytes that name 8 weights each, lower 8 of 11 bits; for each 32: 4 x 3 upper bits, 3 bits s, the sign of 1/8
    IQ1_M    the same by 16, with signs of 1/8 for each 8 weights; d in the upper nibbles of the scales
             value = (point +- 1/8) d (2 s + 1), points of -1, 0, 1

Each weight alone has one of 6 or 16 values, so that a list of values holds it exactly: 3 or 4 bits a weight where the file has 1.6 to 3.4.

Source: ggml's `dequantize_row_iq*`; the points are ggml's tables, see NOTICE.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from anybit.formats.points import Points
from anybit.io.gguf.kind import Parts, bit_planes, bits16, per_block, register, writes

_POINTS = {"IQ2_XXS": (0, 256, 2), "IQ2_XS": (256, 512, 2), "IQ2_S": (768, 1024, 2), "IQ3_XXS": (1792, 256, 4), "IQ3_S": (2048, 512, 4),
           "IQ1": (2560, 2048, 2)}  # fmt: skip
"""First row and number of rows in the file, and bits a weight takes there."""

IQ2 = "codebook_1_3.125_5.375_-1_-3.125_-5.375"
IQ3_XXS = "codebook_1_3_5_7_9_11_13_15.5_-1_-3_-5_-7_-9_-11_-13_-15.5"
IQ3_S = "codebook_1_3_5_7_9_11_13_15_-1_-3_-5_-7_-9_-11_-13_-15"
IQ1 = "codebook_-0.875_0.125_1.125_-1.125_-0.125_0.875"
_IQ2, _IQ3_XXS, _IQ3_S = (1, 3.125, 5.375), (1, 3, 5, 7, 9, 11, 13, 15.5), (1, 3, 5, 7, 9, 11, 13, 15)


@lru_cache(maxsize=8)
def points(name: str) -> np.ndarray:
    """uint8[points, 8 or 4]: for each weight of a point its place in the list of magnitudes."""
    first, count, bits = _POINTS[name]
    packed = np.load(Path(__file__).parents[2] / "data" / "ggml_grids.npy")[first : first + count]
    fields = packed[..., None] >> np.arange(0, 8, bits, dtype=np.uint8) & np.uint8((1 << bits) - 1)
    return fields.reshape(count, -1)


_LISTS = {
    "IQ2_XXS": Points("IQ2_XXS", partial(points, "IQ2_XXS"), _IQ2, "even", group=8, block=32),
    "IQ2_XS": Points("IQ2_XS", partial(points, "IQ2_XS"), _IQ2, "even", group=8, block=16),
    "IQ2_S": Points("IQ2_S", partial(points, "IQ2_S"), _IQ2, "free", group=8, block=16),
    "IQ3_XXS": Points("IQ3_XXS", partial(points, "IQ3_XXS"), _IQ3_XXS, "even", group=8, block=32),
    "IQ3_S": Points("IQ3_S", partial(points, "IQ3_S"), _IQ3_S, "free", group=8, block=32),
    "IQ1_S": Points("IQ1_S", partial(points, "IQ1"), (-1, 0, 1), "shift", group=32, block=32, steps=8),
    "IQ1_M": Points("IQ1_M", partial(points, "IQ1"), (-1, 0, 1), "shift", group=8, block=16, steps=8),
}  # fmt: skip
"""What the codes of each type can be: more than its format says."""


def _even(seven: np.ndarray) -> np.ndarray:
    """7 bits of signs to 8, whose number is even."""
    parity = seven ^ seven >> 4
    parity ^= parity >> 2
    parity ^= parity >> 1
    return (seven | (parity & 1) << 7).astype(np.uint8)


def _signed(codes: np.ndarray, signs: np.ndarray, negative: int) -> np.ndarray:
    """Codes [..., weights] with `negative` added where the bytes of `signs` have a bit, lowest first."""
    bits = np.unpackbits(np.ascontiguousarray(signs), axis=-1, bitorder="little").reshape(*signs.shape[:-1], -1)
    return codes.reshape(bits.shape) + bits * np.uint8(negative)


def _odd(fields: np.ndarray) -> np.ndarray:
    return (2 * fields + 1).astype(np.uint8)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """Low, high, low, high ..."""
    return np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1).reshape(*packed.shape[:-1], -1)


def _sevens(word: np.ndarray) -> np.ndarray:
    """uint32[...] to four bytes of signs [..., 4]."""
    return _even(word[..., None] >> np.arange(0, 28, 7, dtype=np.uint32) & np.uint32(127))


def _words(packed: np.ndarray) -> np.ndarray:
    """Four bytes each, lowest first, as uint32."""
    return np.ascontiguousarray(packed).view("<u4")


@register("IQ2_XXS", 16, 256, {"d": "<u2", "qs": "32<u2"}, f"{IQ2}@32:uint5@256:fp16", points=_LISTS["IQ2_XXS"])
def _iq2_xxs(blocks: np.ndarray) -> Parts:
    qs = bits16(blocks["qs"]).reshape(*blocks.shape, 8, 4)
    named = np.stack([qs[..., 0] & 255, qs[..., 0] >> 8, qs[..., 1] & 255, qs[..., 1] >> 8], axis=-1)
    word = qs[..., 2].astype(np.uint32) | qs[..., 3].astype(np.uint32) << np.uint32(16)
    codes = _signed(points("IQ2_XXS")[named], _sevens(word), 3)
    return {"codes": codes, "scale.0": _odd(word >> np.uint32(28)), "scale.1": bits16(blocks["d"])}


@register("IQ2_XS", 17, 256, {"d": "<u2", "qs": "32<u2", "scales": "8u1"}, f"{IQ2}@16:uint5@256:fp16", points=_LISTS["IQ2_XS"])
def _iq2_xs(blocks: np.ndarray) -> Parts:
    qs = bits16(blocks["qs"])
    codes = _signed(points("IQ2_XS")[qs & 511], _even(qs >> 9), 3)
    return {"codes": codes, "scale.0": _odd(_nibbles(blocks["scales"])), "scale.1": bits16(blocks["d"])}


@register("IQ2_S", 22, 256, {"d": "<u2", "qs": "32u1", "signs": "32u1", "qh": "8u1", "scales": "8u1"}, f"{IQ2}@16:uint5@256:fp16",
          points=_LISTS["IQ2_S"])  # fmt: skip
def _iq2_s(blocks: np.ndarray) -> Parts:
    high = (blocks["qh"][..., None] >> np.arange(0, 8, 2, dtype=np.uint8) & np.uint8(3)).reshape(*blocks.shape, 32)
    codes = _signed(points("IQ2_S")[blocks["qs"] | high.astype(np.uint16) << 8], blocks["signs"], 3)
    return {"codes": codes, "scale.0": _odd(_nibbles(blocks["scales"])), "scale.1": bits16(blocks["d"])}


@register("IQ3_XXS", 18, 256, {"d": "<u2", "qs": "64u1", "signs": "32u1"}, f"{IQ3_XXS}@32:uint5@256:fp16", points=_LISTS["IQ3_XXS"])
def _iq3_xxs(blocks: np.ndarray) -> Parts:
    word = _words(blocks["signs"])
    codes = _signed(points("IQ3_XXS")[blocks["qs"]], _sevens(word), 8)
    return {"codes": codes, "scale.0": _odd(word >> np.uint32(28)), "scale.1": bits16(blocks["d"])}


@register("IQ3_S", 21, 256, {"d": "<u2", "qs": "64u1", "qh": "8u1", "signs": "32u1", "scales": "4u1"}, f"{IQ3_S}@32:uint5@256:fp16",
          points=_LISTS["IQ3_S"])  # fmt: skip
def _iq3_s(blocks: np.ndarray) -> Parts:
    high = bit_planes(blocks["qh"][..., None]).reshape(*blocks.shape, 64)
    codes = _signed(points("IQ3_S")[blocks["qs"] | high.astype(np.uint16) << 8], blocks["signs"], 8)
    return {"codes": codes, "scale.0": _odd(_nibbles(blocks["scales"])), "scale.1": bits16(blocks["d"])}


@register("IQ1_S", 19, 256, {"d": "<u2", "qs": "32u1", "qh": "8<u2"}, f"{IQ1}@32:uint4@256:fp16", points=_LISTS["IQ1_S"])
def _iq1_s(blocks: np.ndarray) -> Parts:
    qh = bits16(blocks["qh"])
    high = (qh[..., None] >> np.arange(0, 12, 3, dtype=np.uint16) & np.uint16(7)).reshape(*blocks.shape, 32)
    below = np.repeat((qh >> 15).astype(np.uint8), 32, axis=-1)
    codes = points("IQ1")[blocks["qs"] | high << 8].reshape(*blocks.shape, 256) + below * np.uint8(3)
    return {"codes": codes, "scale.0": _odd(qh >> 12 & 7), "scale.1": bits16(blocks["d"])}


@register("IQ1_M", 29, 256, {"qs": "32u1", "qh": "16u1", "scales": "8u1"}, f"{IQ1}@16:uint4@256:fp16", points=_LISTS["IQ1_M"])
def _iq1_m(blocks: np.ndarray) -> Parts:
    packed = np.ascontiguousarray(blocks["scales"]).view("<u2").astype(np.uint16)
    d = packed[..., 0] >> 12 | packed[..., 1] >> 8 & 0x00F0 | packed[..., 2] >> 4 & 0x0F00 | packed[..., 3] & 0xF000
    scales = (packed[..., None] >> np.arange(0, 12, 3, dtype=np.uint16) & np.uint16(7)).reshape(*blocks.shape, 16)
    qh = _nibbles(blocks["qh"])  # three upper bits of the name, then the sign of 1/8
    named = blocks["qs"] | (qh & np.uint8(7)).astype(np.uint16) << 8
    codes = points("IQ1")[named].reshape(*blocks.shape, 256) + np.repeat(qh >> np.uint8(3), 8, axis=-1) * np.uint8(3)
    return {"codes": codes, "scale.0": _odd(scales), "scale.1": d}


def _named(name: str, parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each block of `blocks` the numbers of its points, a byte of signs (or shifts) for each 8 weights, and its s."""
    index, negative = _LISTS[name].parsed(per_block(parts["codes"], blocks))
    return index.astype(np.uint16), np.packbits(negative, axis=-1, bitorder="little"), per_block(parts["scale.0"], blocks) >> np.uint8(1)


def _unnibbles(fields: np.ndarray) -> np.ndarray:
    """The inverse of `_nibbles`."""
    return fields[..., 0::2] | fields[..., 1::2] << np.uint8(4)


def _word(signs: np.ndarray, s: np.ndarray) -> np.ndarray:
    """uint32[..., 8]: the lower seven of each of four bytes of signs, s above them."""
    seven = (signs & np.uint8(127)).astype(np.uint32).reshape(*s.shape, 4) << np.arange(0, 28, 7, dtype=np.uint32)
    return np.bitwise_or.reduce(seven, axis=-1) | s.astype(np.uint32) << np.uint32(28)


@writes("IQ2_XXS")
def _iq2_xxs_back(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    index, signs, s = _named("IQ2_XXS", parts, blocks)
    word = _word(signs, s)
    pairs = (index[..., 0::2] | index[..., 1::2] << np.uint16(8)).reshape(*s.shape, 2)
    halves = np.stack([word & np.uint32(0xFFFF), word >> np.uint32(16)], axis=-1).astype(np.uint16)
    blocks["qs"] = np.concatenate([pairs, halves], axis=-1).reshape(*blocks.shape, 32)
    _outer(parts, blocks)


def _outer(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    blocks["d"] = per_block(parts["scale.1"], blocks)[..., 0]


@writes("IQ2_XS")
def _iq2_xs_back(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    index, signs, s = _named("IQ2_XS", parts, blocks)
    blocks["qs"] = index | (signs & np.uint8(127)).astype(np.uint16) << np.uint16(9)
    blocks["scales"] = _unnibbles(s)
    _outer(parts, blocks)


@writes("IQ2_S")
def _iq2_s_back(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    index, signs, s = _named("IQ2_S", parts, blocks)
    blocks["qs"], blocks["signs"], blocks["scales"] = index & 255, signs, _unnibbles(s)
    high = (index >> 8).astype(np.uint8).reshape(*blocks.shape, 8, 4) << np.arange(0, 8, 2, dtype=np.uint8)
    blocks["qh"] = np.bitwise_or.reduce(high, axis=-1)
    _outer(parts, blocks)


@writes("IQ3_XXS")
def _iq3_xxs_back(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    index, signs, s = _named("IQ3_XXS", parts, blocks)
    blocks["qs"] = index
    blocks["signs"] = _word(signs, s).astype("<u4").view(np.uint8).reshape(*blocks.shape, 32)
    _outer(parts, blocks)


@writes("IQ3_S")
def _iq3_s_back(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    index, signs, s = _named("IQ3_S", parts, blocks)
    blocks["qs"], blocks["signs"], blocks["scales"] = index & 255, signs, _unnibbles(s)
    blocks["qh"] = np.packbits((index >> 8).astype(bool), axis=-1, bitorder="little")
    _outer(parts, blocks)


@writes("IQ1_S")
def _iq1_s_back(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    index, below, s = _named("IQ1_S", parts, blocks)
    high = (index >> 8).reshape(*blocks.shape, 8, 4) << np.arange(0, 12, 3, dtype=np.uint16)
    top = s.astype(np.uint16) << np.uint16(12) | (below[..., 0::4] & np.uint8(1)).astype(np.uint16) << np.uint16(15)
    blocks["qs"], blocks["qh"] = index & 255, np.bitwise_or.reduce(high, axis=-1) | top
    _outer(parts, blocks)


@writes("IQ1_M")
def _iq1_m_back(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    index, below, s = _named("IQ1_M", parts, blocks)
    blocks["qs"] = index & 255
    blocks["qh"] = _unnibbles((index >> 8).astype(np.uint8) | (below & np.uint8(1)) << np.uint8(3))
    threes = s.astype(np.uint16).reshape(*blocks.shape, 4, 4) << np.arange(0, 12, 3, dtype=np.uint16)
    d = per_block(parts["scale.1"], blocks).astype(np.uint16) << np.array([12, 8, 4, 0], np.uint16) & np.uint16(0xF000)
    blocks["scales"] = (np.bitwise_or.reduce(threes, axis=-1) | d).astype("<u2").view(np.uint8).reshape(*blocks.shape, 8)
