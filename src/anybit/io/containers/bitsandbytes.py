"""bitsandbytes: 4-bit lists of values (NF4, FP4), with scales that are themselves quantized or not, and LLM.int8 weights.

    4-bit  weight uint8[n k / 2, 1], the flat array two codes a byte, high nibble first; weight.quant_map float32[16]; weight.absmax, one
           for each `blocksize` values; weight.quant_state.bitsandbytes__nf4: JSON as bytes (shape, blocksize, nested_*)   w = map[q] absmax
           nested: absmax uint8, weight.nested_quant_map float32[256], weight.nested_absmax: absmax = map[q] nested + offset
    int8   weight int8[n, k]; SCB float32[n]                                                                         w = q SCB / 127

A sum is no product of scales: nested scales are computed once, in float32 and in bitsandbytes' order, and stored as float32 (0.37 more bits
a weight). int8: the factor 1/127 is multiplied into SCB here and into q SCB there, one float32 rounding apart. Blocks that reach over rows
are refused.

Source: bitsandbytes' functional.py (QuantState, dequantize_4bit, int8_vectorwise_dequant).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from anybit.formats import parse_element
from anybit.io import strict_json
from anybit.io.coded import Coded, of_arrays
from anybit.io.containers.checkpoint import CONTAINERS, Checkpoint
from anybit.io.strict_json import shown

_KINDS = ("nf4", "fp4")
_PER_127 = np.float32(7.874015718698502e-3)  # 1/127 as bitsandbytes has it


@CONTAINERS.register("bitsandbytes")
def read(checkpoint: Checkpoint) -> None:
    """Takes every module that has a quant_state or an SCB."""
    for kind in _KINDS:
        for module in checkpoint.modules(f".weight.quant_state.bitsandbytes__{kind}"):
            _four_bits(checkpoint, module, f"{module}.weight.quant_state.bitsandbytes__{kind}")
    for module in checkpoint.modules(".SCB"):
        _int8(checkpoint, module)


def _state(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    info = checkpoint.need(name, "U8")
    if info.nbytes > 1 << 16:
        raise checkpoint.fail(f"tensor {shown(name)} has {info.nbytes} bytes, too many for a description")
    state = strict_json.parse(checkpoint.array(name).tobytes(), f"{info.file}: tensor {shown(name)}, from byte {info.offset} on")
    if not isinstance(state, dict):
        raise checkpoint.fail(f"tensor {shown(name)} holds no JSON object")
    return state


def _four_bits(checkpoint: Checkpoint, module: str, state_name: str) -> None:
    state = _state(checkpoint, state_name)
    name, scale_name, map_name = f"{module}.weight", f"{module}.weight.absmax", f"{module}.weight.quant_map"
    shape, block = state.get("shape"), state.get("blocksize")
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(size) is int and 1 <= size < 1 << 31 for size in shape)):
        raise checkpoint.fail(f"tensor {shown(state_name)}: shape is {shown(shape, 40)}; expected two sizes")
    n, k = shape
    if type(block) is not int or block < 2 or block % 2 or k % block:
        raise checkpoint.fail(f"tensor {shown(state_name)}: blocks of {shown(block, 40)} values reach over rows of {k}")
    info = checkpoint.need(name, "U8")
    if info.nbytes * 2 != n * k:
        raise checkpoint.fail(f"tensor {shown(name)} has {info.nbytes} bytes; {n} x {k} values of 4 bits need {n * k // 2}")
    checkpoint.need(map_name, "F32", (16,))
    count = n * k // block
    nested = f"{module}.weight.nested_absmax"
    if nested in checkpoint.source.tensors:
        second = state.get("nested_blocksize")
        if type(second) is not int or second < 1 or type(state.get("nested_offset")) is not float:
            raise checkpoint.fail(f"tensor {shown(state_name)}: nested_blocksize or nested_offset is missing")
        checkpoint.need(scale_name, "U8", (count,))
        checkpoint.need(f"{module}.weight.nested_quant_map", "F32", (256,))
        checkpoint.need(nested, "F32", (-(-count // second),))
    else:
        checkpoint.need(scale_name, "F32", (count,))

    def read() -> Coded:
        element, translate = _element(checkpoint, map_name)
        scales = _scales(checkpoint, module, state).reshape(n, k // block)
        packed = checkpoint.array(name).reshape(n, k // 2)
        shared = of_arrays("", (n, k), {"scale.0": scales.view(np.uint32)})

        def rows(start: int, stop: int) -> dict[str, np.ndarray]:
            part = packed[start:stop]
            codes = np.stack([part >> np.uint8(4), part & np.uint8(15)], axis=-1).reshape(stop - start, k)
            return {"codes": codes if translate is None else translate[codes], **shared.rows(start, stop)}

        return Coded(f"{element}@{block}:fp32", (n, k), rows)

    checkpoint.put(module, (n, k), read, (name, scale_name))


def _element(checkpoint: Checkpoint, map_name: str) -> tuple[str, np.ndarray | None]:
    """The element of a list of values, and new codes where the list holds a value twice (FP4 has +0 and -0)."""
    bits = checkpoint.array(map_name).reshape(-1)
    with np.errstate(invalid="ignore"):  # NaN is refused below
        values = bits.view(np.float32) + np.float32(0)
    if np.array_equal(values, parse_element("nf4").values):
        return "nf4", None
    entries, translate = np.unique(values, return_inverse=True)
    if not np.isfinite(values).all() or len(entries) < 2 or not 2.0**-64 <= np.abs(entries).max() <= 2.0**64:
        raise checkpoint.fail(f"tensor {shown(map_name)} is no list of values: they are not finite, all equal, or beyond 2^64")
    texts = [str(entry).replace("e+", "e") for entry in entries]
    return "codebook_" + "_".join(texts), translate.astype(np.uint8)


def _scales(checkpoint: Checkpoint, module: str, state: dict[str, Any]) -> np.ndarray:
    """float32[blocks]. FileFormatError: a code beyond the map."""
    absmax = checkpoint.array(f"{module}.weight.absmax").reshape(-1)
    if absmax.dtype != np.uint8:
        return absmax.view(np.float32)
    table = checkpoint.array(f"{module}.weight.nested_quant_map").view(np.float32)
    outer = checkpoint.array(f"{module}.weight.nested_absmax").view(np.float32)
    each = outer[np.arange(absmax.size) // state["nested_blocksize"]]
    with np.errstate(all="ignore"):  # what is not finite is refused when the tensor is used
        return table[absmax] * each + np.float32(state["nested_offset"])


def _int8(checkpoint: Checkpoint, module: str) -> None:
    name, scale_name = f"{module}.weight", f"{module}.SCB"
    info = checkpoint.need(name, "I8")
    if len(info.shape) != 2:
        raise checkpoint.fail(f"tensor {shown(name)} has shape {list(info.shape)}; expected two axes")
    n, k = info.shape
    checkpoint.need(scale_name, "F32", (n,))
    form = checkpoint.info(f"{module}.weight_format")
    if form is not None and checkpoint.array(f"{module}.weight_format").any():
        raise checkpoint.fail(f"tensor {shown(module + '.weight_format')} says that rows are interleaved for a GPU, which is not supported")

    def read() -> Coded:
        scales = checkpoint.array(scale_name).view(np.float32).reshape(n, 1) * _PER_127
        return of_arrays("int8@channel:fp32", (n, k), {"codes": checkpoint.array(name).view(np.uint8), "scale.0": scales.view(np.uint32)})

    checkpoint.put(module, (n, k), read, (name,))
