"""GPTQ (AutoGPTQ, GPTQModel), versions 1 and 2: integers of 2, 3, 4 or 8 bits packed along the input.

    qweight int32[k b / 32, n]   codes of a column are a stream of b bits, lowest first
    qzeros  int32[k / g, n b / 32]   zero points of a row of groups, the same along n; version 1 stores z - 1
    scales  float16[k / g, n];  g_idx int32[k], the group of each input, which desc_act mixes: then inputs are permuted      w = (q - z) s

Version 1's z may be 2^b, one beyond the codes: then zero points take one bit more here (refused for 8 bits). Symmetric checkpoints, whose z
are all 2^(b-1), become signed integers without zero points.

Source: AutoGPTQ's and GPTQModel's qlinear, which dequantize in float16; here products are float32, which round to the same.
"""

from __future__ import annotations

import numpy as np

from anybit.io.coded import Coded, of_arrays
from anybit.io.containers.bits import stream
from anybit.io.containers.checkpoint import CONTAINERS, Checkpoint, input_order, integer
from anybit.io.strict_json import shown


@CONTAINERS.register("gptq")
def read(checkpoint: Checkpoint) -> None:
    """Takes every module that has a `qweight`."""
    config = checkpoint.config
    bits = integer(checkpoint, config, "bits", (2, 3, 4, 8))
    group = integer(checkpoint, config, "group_size", range(-1, 1 << 24))
    form = config.get("checkpoint_format", "gptq")
    if form not in ("gptq", "gptq_v2"):
        raise checkpoint.fail(f"quantization_config: checkpoint_format {shown(form, 40)} is not known (known: gptq, gptq_v2)")
    if config.get("dynamic"):
        raise checkpoint.fail("quantization_config: dynamic (modules of other widths) is not supported")
    if group == 0 or config.get("pack_dtype", "int32") != "int32":
        raise checkpoint.fail(
            f"quantization_config: group_size {group}, pack_dtype {shown(config.get('pack_dtype'), 40)} are not supported"
        )
    for module in checkpoint.modules(".qweight"):
        _module(checkpoint, module, bits, group, first=1 if form == "gptq" else 0)


def _module(checkpoint: Checkpoint, module: str, bits: int, group: int, first: int) -> None:
    name, zeros_name, scales_name = (f"{module}.{part}" for part in ("qweight", "qzeros", "scales"))
    info = checkpoint.need(name, "I32")
    if len(info.shape) != 2 or info.shape[0] % bits:
        raise checkpoint.fail(f"tensor {shown(name)} has shape {list(info.shape)}; expected [k * {bits} / 32, n] with k a multiple of 32")
    k, n = info.shape[0] * 32 // bits, info.shape[1]
    size = k if group == -1 else group
    groups = -(-k // size)
    checkpoint.need(zeros_name, "I32", (groups, -(-n * bits // 32)))
    element = checkpoint.scale(scales_name, ((groups, n),))
    order = input_order(checkpoint, f"{module}.g_idx", k, size)

    def read() -> Coded:
        zeros = stream(np.ascontiguousarray(checkpoint.array(zeros_name)).view(np.uint8), bits, n).astype(np.uint16) + np.uint16(first)
        half, beyond = 1 << (bits - 1), int(zeros.max()) >> bits
        symmetric = bool((zeros == half).all())
        if beyond and bits == 8:
            raise checkpoint.fail(f"tensor {shown(zeros_name)} holds the zero point 256, which fits no byte")
        parts = {"scale.0": np.ascontiguousarray(checkpoint.array(scales_name).T)}
        block = "channel" if group == -1 else str(group)
        if symmetric:
            text = f"int{bits}@{block}:{element}"
        else:
            text = f"uint{bits}@{block}:{element}+zp=uint{bits + beyond}"
            parts["zero"] = np.ascontiguousarray(zeros.T.astype(np.uint8))
        shared, packed = of_arrays("", (n, k), parts), checkpoint.array(name)
        flip = np.uint8(half if symmetric else 0)

        def rows(start: int, stop: int) -> dict[str, np.ndarray]:
            columns = np.ascontiguousarray(packed[:, start:stop].T).view(np.uint8)
            codes = stream(columns, bits, k) ^ flip
            return {"codes": codes if order is None else codes[:, order], **shared.rows(start, stop)}

        return Coded(text, (n, k), rows, order=order)

    checkpoint.put(module, (n, k), read, (name, zeros_name, scales_name))
