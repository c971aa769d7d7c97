"""AWQ in the `gemm` order: 4-bit codes and zero points packed along the output, eight columns a word as 0 2 4 6 1 3 5 7.

    qweight int32[k, n / 8], qzeros int32[k / g, n / 8]   nibble j of a word holds column ORDER[j] of its eight
    scales  float16[k / g, n]                                                                                     w = (q - z) s

Source: AutoAWQ's packing_utils, which dequantizes in float16; here products are float32, which round to the same.
"""

from __future__ import annotations

import numpy as np

from anybit.io.coded import Coded, of_arrays
from anybit.io.containers.checkpoint import CONTAINERS, Checkpoint, integer
from anybit.io.strict_json import shown

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def unpack(packed: np.ndarray) -> np.ndarray:
    """int32[r, c] to uint8[8 c, r]: codes by column."""
    out = np.empty((packed.shape[1], 8, packed.shape[0]), np.uint8)
    bits = np.ascontiguousarray(packed.view(np.uint32).T)
    for j, column in enumerate(ORDER):
        out[:, column] = bits >> np.uint32(4 * j) & np.uint32(15)
    return out.reshape(-1, packed.shape[0])


@CONTAINERS.register("awq")
def read(checkpoint: Checkpoint) -> None:
    """Takes every module that has a `qweight`."""
    integer(checkpoint, checkpoint.config, "bits", (4,))
    group = integer(checkpoint, checkpoint.config, "group_size", range(-1, 1 << 24))
    version = str(checkpoint.config.get("version", "gemm")).lower()
    if version != "gemm" or group == 0:
        raise checkpoint.fail(f"quantization_config: version {shown(version, 40)}, group_size {group}; only gemm with groups is supported")
    for module in checkpoint.modules(".qweight"):
        _module(checkpoint, module, group)


def _module(checkpoint: Checkpoint, module: str, group: int) -> None:
    name, zeros_name, scales_name = (f"{module}.{part}" for part in ("qweight", "qzeros", "scales"))
    info = checkpoint.need(name, "I32")
    if len(info.shape) != 2:
        raise checkpoint.fail(f"tensor {shown(name)} has shape {list(info.shape)}; expected two axes")
    k, n = info.shape[0], 8 * info.shape[1]
    groups = -(-k // (k if group == -1 else group))
    checkpoint.need(zeros_name, "I32", (groups, n // 8))
    element = checkpoint.scale(scales_name, ((groups, n),))
    block = "channel" if group == -1 else str(group)

    def read() -> Coded:
        parts = {"scale.0": np.ascontiguousarray(checkpoint.array(scales_name).T), "zero": unpack(checkpoint.array(zeros_name))}
        shared, packed = of_arrays("", (n, k), parts), checkpoint.array(name)

        def rows(start: int, stop: int) -> dict[str, np.ndarray]:
            first = start // 8
            codes = unpack(packed[:, first : -(-stop // 8)])[start - 8 * first : stop - 8 * first]
            return {"codes": codes, **shared.rows(start, stop)}

        return Coded(f"uint4@{block}:{element}+zp", (n, k), rows)

    checkpoint.put(module, (n, k), read, (name, zeros_name, scales_name))
