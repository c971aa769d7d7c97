"""Dense types: F32, F16, BF16 as they are; F64 and integers where the format holds every value exactly."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from anybit.io.gguf.kind import Parts, register, writes


@register("F32", 0, 1, {"v": "<u4"}, "fp32")
def _f32(blocks: np.ndarray) -> Parts:
    return {"codes": blocks["v"].astype(np.uint32)}


@register("F16", 1, 1, {"v": "<u2"}, "fp16")
def _f16(blocks: np.ndarray) -> Parts:
    return {"codes": blocks["v"].astype(np.uint16)}


@register("BF16", 30, 1, {"v": "<u2"}, "bf16")
def _bf16(blocks: np.ndarray) -> Parts:
    return {"codes": blocks["v"].astype(np.uint16)}


@register("I8", 24, 1, {"v": "|u1"}, "int8")
def _i8(blocks: np.ndarray) -> Parts:
    return {"codes": blocks["v"].astype(np.uint8)}


@register("I16", 25, 1, {"v": "<u2"}, "int16")
def _i16(blocks: np.ndarray) -> Parts:
    return {"codes": blocks["v"].astype(np.uint16)}


def _as_float32(values: np.ndarray) -> Parts:
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    # astype, not ==: an int64 beyond 2^53 would be compared after a rounding of its own
    exact = narrow.astype(np.float64) == values if values.dtype.kind == "f" else np.abs(values.astype(object)) <= 1 << 24
    if not (exact | (values != values)).all():
        index = [int(i) for i in np.argwhere(~np.asarray(exact, bool))[0]]
        raise ValueError(f"the value {values[tuple(index)]} at {index} is not exact in float32, the widest format there is")
    return {"codes": narrow.view(np.uint32)}


@register("F64", 28, 1, {"v": "<f8"}, "fp32")
def _f64(blocks: np.ndarray) -> Parts:
    return _as_float32(blocks["v"].astype(np.float64))


@register("I32", 26, 1, {"v": "<i4"}, "fp32")
def _i32(blocks: np.ndarray) -> Parts:
    return _as_float32(blocks["v"].astype(np.int64))


@register("I64", 27, 1, {"v": "<i8"}, "fp32")
def _i64(blocks: np.ndarray) -> Parts:
    return _as_float32(blocks["v"].astype(np.int64))


@writes("F32")
@writes("F16")
@writes("BF16")
def _dense(parts: Mapping[str, np.ndarray], blocks: np.ndarray) -> None:
    blocks["v"] = parts["codes"].reshape(blocks.shape)
