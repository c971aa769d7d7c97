"""FP8 as model makers publish it: E4M3 weights with float scales for blocks of 128 x 128, or one a tensor.

    weight E4M3[n, k]; weight_scale_inv float[ceil(n / a), ceil(k / b)] or weight_scale [1]                        w = q s

`scale_inv` is the factor itself, the inverse of what quantizing multiplied with. Source: transformers' finegrained FP8 integration.
"""

from __future__ import annotations

import numpy as np

from anybit.io.coded import Coded, of_arrays
from anybit.io.containers.checkpoint import CONTAINERS, Checkpoint
from anybit.io.strict_json import shown


@CONTAINERS.register("fp8")
def read(checkpoint: Checkpoint) -> None:
    """Takes every module that has a `weight_scale_inv` or a `weight_scale`."""
    size = checkpoint.config.get("weight_block_size")
    if size is not None and not (isinstance(size, list) and len(size) == 2 and all(type(s) is int and 0 < s < 1 << 24 for s in size)):
        raise checkpoint.fail(f"quantization_config: weight_block_size is {shown(size, 40)}; expected two sizes")
    for suffix in (".weight_scale_inv", ".weight_scale"):
        for module in checkpoint.modules(suffix):
            _module(checkpoint, module, module + suffix, (size[0], size[1]) if size else None)


def _module(checkpoint: Checkpoint, module: str, scale_name: str, size: tuple[int, int] | None) -> None:
    name = f"{module}.weight"
    info = checkpoint.need(name, "F8_E4M3")
    checkpoint.info(f"{module}.input_scale")
    checkpoint.info(f"{module}.activation_scale")
    if len(info.shape) != 2:
        raise checkpoint.fail(f"tensor {shown(name)} has shape {list(info.shape)}; expected two axes")
    n, k = info.shape
    grid = (-(-n // size[0]), -(-k // size[1])) if size else (1, 1)
    element = checkpoint.scale(scale_name, (grid,) if size else ((1,), (), (1, 1)))
    block = f"{size[0]}x{size[1]}" if size else "tensor"

    def read() -> Coded:
        parts = {"codes": checkpoint.array(name).view(np.uint8), "scale.0": checkpoint.array(scale_name).reshape(grid)}
        return of_arrays(f"fp8_e4m3fn@{block}:{element}", (n, k), parts)

    checkpoint.put(module, (n, k), read, (name,))
