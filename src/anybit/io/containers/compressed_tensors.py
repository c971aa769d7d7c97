"""compressed-tensors: pack-quantized, int-quantized, float-quantized, nvfp4, mxfp4 and mxfp8.

    pack-quantized   weight_packed int32[n, ceil(k b / 32)], a stream of b bits a code, u = q + 2^(b-1); before version 0.18 whole codes a
                     word; weight_scale, weight_shape; weight_zero_point, unsigned and packed along n       w = (u - zu) s
    int-quantized    weight int8[n, k]; weight_scale; weight_zero_point int8                                 w = (q - z) s
    float-quantized  weight E4M3[n, k]; weight_scale a tensor, channel, group or 2-D block                   w = q s
    nvfp4            weight_packed uint8[n, k/2], low nibble first; weight_scale E4M3; weight_global_scale   w = q s / G
    mxfp4, mxfp8     the same packing, or E4M3; weight_scale uint8, E8M0                                     w = q 2^(e - 127)

compressed-tensors rounds each product to the dtype of the scales; here products are float32, which round to the same. NVFP4's global scale
is a divisor there: its reciprocal is rounded to float32 here, as vLLM does on loading, the one place where values are not exact (2^-24).

Source: compressed-tensors 0.20, compressors/. Activations' scales are not used: activations here are float, or int8 a block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from anybit.io.coded import Coded, of_arrays
from anybit.io.containers.bits import stream, words
from anybit.io.containers.checkpoint import CONTAINERS, SCALES, Checkpoint, input_order, integer
from anybit.io.strict_json import shown

_INPUTS = ("input_scale", "input_zero_point", "input_global_scale")
_ONE = np.uint32(0x3F800000)


@dataclass(frozen=True)
class _Scheme:
    """The weights of one config group."""

    bits: int
    kind: str
    symmetric: bool
    strategy: str
    group: int
    block: tuple[int, int]

    def grid(self, n: int, k: int) -> tuple[str, tuple[tuple[int, ...], ...], tuple[int, int]]:
        """Our block, the shapes that its scales may have, and the grid."""
        if self.strategy == "tensor":
            return "tensor", ((1,), (), (1, 1)), (1, 1)
        if self.strategy == "channel":
            return "channel", ((n, 1), (n,)), (n, 1)
        size = self.block if self.strategy == "block" else (1, self.group)
        grid = (-(-n // size[0]), -(-k // size[1]))
        return f"{size[0]}x{size[1]}" if size[0] > 1 else str(size[1]), (grid,), grid


def _schemes(checkpoint: Checkpoint) -> list[_Scheme]:
    groups = checkpoint.config.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise checkpoint.fail("quantization_config: config_groups is no object with entries")
    for key in ("transform_config", "sparsity_config", "kv_cache_scheme"):
        if checkpoint.config.get(key):
            raise checkpoint.fail(f"quantization_config: {key} is set, which is not supported")
    found = []
    for name, group in groups.items():
        weights = group.get("weights") if isinstance(group, dict) else None
        if weights is None:
            continue  # activations alone: nothing is stored
        if not isinstance(weights, Mapping):
            raise checkpoint.fail(f"quantization_config: config_groups.{shown(name)}.weights is no object")
        found.append(_scheme(checkpoint, weights))
    return found


def _scheme(checkpoint: Checkpoint, weights: Mapping[str, Any]) -> _Scheme:
    bits = integer(checkpoint, weights, "num_bits", range(1, 9))
    kind, strategy = weights.get("type", "int"), weights.get("strategy")
    group, block = weights.get("group_size"), weights.get("block_structure")
    if strategy is None:
        strategy = "tensor" if group is None else "channel" if group == -1 else "group"
    if kind not in ("int", "float") or strategy not in ("tensor", "channel", "group", "block", "tensor_group"):
        raise checkpoint.fail(f"quantization_config: weights of type {shown(kind, 40)} by {shown(strategy, 40)} are not known")
    if strategy in ("group", "tensor_group"):
        integer(checkpoint, weights, "group_size", range(1, 1 << 24))
    pair = isinstance(block, list) and len(block) == 2 and all(type(size) is int and 0 < size < 1 << 24 for size in block)
    if strategy == "block" and not pair:
        raise checkpoint.fail(f"quantization_config: block_structure is {shown(block, 40)}; expected two sizes")
    if weights.get("dynamic", False) is not False:
        raise checkpoint.fail("quantization_config: dynamic weights are not stored weights")
    size = (block[0], block[1]) if strategy == "block" and isinstance(block, list) else (1, 1)
    return _Scheme(
        bits, str(kind), weights.get("symmetric", True) is not False, str(strategy), group if isinstance(group, int) else 0, size
    )


@CONTAINERS.register("compressed-tensors")
def read(checkpoint: Checkpoint) -> None:
    """Takes every module that has a `weight_packed` or a `weight_scale`."""
    schemes = _schemes(checkpoint)
    for module in checkpoint.modules(".weight_packed"):
        _take_inputs(checkpoint, module)
        info = checkpoint.need(f"{module}.weight_packed", ("I32", "U8"))
        (_packed_integers if info.dtype == "I32" else _packed_fp4)(checkpoint, module, schemes)
    for module in checkpoint.modules(".weight_scale"):
        _take_inputs(checkpoint, module)
        info = checkpoint.need(f"{module}.weight", ("I8", "F8_E4M3"))
        _plain(checkpoint, module, info.dtype, schemes)


def _take_inputs(checkpoint: Checkpoint, module: str) -> None:
    for name in _INPUTS:
        checkpoint.info(f"{module}.{name}")


def _order(checkpoint: Checkpoint, module: str, k: int, size: int) -> np.ndarray | None:
    """The order that brings the inputs of each group together; -1 anywhere in weight_g_idx says that it is not used."""
    name = f"{module}.weight_g_idx"
    if checkpoint.info(name) is None or (checkpoint.array(name) == -1).any():
        return None
    return input_order(checkpoint, name, k, size)


def _fitting(
    checkpoint: Checkpoint, module: str, schemes: list[_Scheme], n: int, k: int, wanted: Callable[[_Scheme], bool]
) -> tuple[_Scheme, str, tuple[int, int]]:
    """The scheme that a module's tensors fit: there must be one. Gives it with our block and the grid of its scales."""
    scale, zero = checkpoint.info(f"{module}.weight_scale"), checkpoint.info(f"{module}.weight_zero_point")
    if scale is None:
        raise checkpoint.fail(f"tensor {shown(module + '.weight_scale')} is missing")
    fitting = []
    for scheme in dict.fromkeys(schemes):
        block, shapes, grid = scheme.grid(n, k)
        if wanted(scheme) and scale.shape in shapes and (scheme.symmetric or zero is not None):
            fitting.append((scheme, block, grid))
    if zero is None:
        fitting = [item for item in fitting if item[0].symmetric]
    elif any(not item[0].symmetric for item in fitting):
        fitting = [item for item in fitting if not item[0].symmetric]
    # a group as long as the row is a channel: the same blocks by another name
    kinds = {(scheme.bits, scheme.symmetric, grid) for scheme, _, grid in fitting}
    if len(kinds) != 1:
        count = "no" if not kinds else "more than one"
        raise checkpoint.fail(f"module {shown(module)} {[n, k]} with scales {list(scale.shape)} fits {count} group of quantization_config")
    return fitting[0]


def _shape(checkpoint: Checkpoint, module: str, rows: int) -> tuple[int, int]:
    checkpoint.need(f"{module}.weight_shape", ("I64", "I32"), (2,))
    n, k = (int(size) for size in checkpoint.array(f"{module}.weight_shape"))
    if n != rows or not 1 <= k < 1 << 31:
        raise checkpoint.fail(f"tensor {shown(module + '.weight_shape')} says {[n, k]}, but {rows} rows are stored")
    return n, k


def _packed_integers(checkpoint: Checkpoint, module: str, schemes: list[_Scheme]) -> None:
    name = f"{module}.weight_packed"
    info = checkpoint.need(name, "I32")
    if len(info.shape) != 2:
        raise checkpoint.fail(f"tensor {shown(name)} has shape {list(info.shape)}; expected two axes")
    n, k = _shape(checkpoint, module, info.shape[0])

    def width(bits: int) -> dict[int, str]:
        return {-(-k // (32 // bits)): "words", -(-k * bits // 32): "stream"}

    scheme, block, grid = _fitting(checkpoint, module, schemes, n, k, lambda s: s.kind == "int" and info.shape[1] in width(s.bits))
    bits = scheme.bits
    if 32 % bits and len(width(bits)) == 1 and k > 32 // bits:
        raise checkpoint.fail(f"tensor {shown(name)}: rows of {k} codes of {bits} bits could be packed in two ways")
    layout = width(bits)[info.shape[1]]
    element = checkpoint.scale(f"{module}.weight_scale", scheme.grid(n, k)[1])
    order = _order(checkpoint, module, k, scheme.group if scheme.strategy == "group" else k)
    zero_name = f"{module}.weight_zero_point"
    zero_shape = (-(-n * bits // 32) if layout == "stream" else -(-n // (32 // bits)), grid[1])
    zero = None if scheme.symmetric else checkpoint.need(zero_name, "I32", zero_shape)

    def unpack(part: np.ndarray, count: int) -> np.ndarray:
        part = np.ascontiguousarray(part)
        return stream(part.view(np.uint8), bits, count) if layout == "stream" else words(part.view(np.uint32), bits, count)

    # u - 2^(b-1) in two's complement is u with its highest bit turned; one bit is -1 or 0
    flip = np.uint8(0 if zero is not None or bits == 1 else 1 << (bits - 1))
    sign = f"uint{bits}" if zero is not None else f"int{bits}" if bits > 1 else "codebook_-1_0"
    text = f"{sign}@{block}:{element}" + ("+zp" if zero is not None else "")

    def read() -> Coded:
        packed = checkpoint.array(name)
        grids = {"scale.0": checkpoint.array(f"{module}.weight_scale").reshape(grid)}
        if zero is not None:
            grids["zero"] = np.ascontiguousarray(unpack(checkpoint.array(zero_name).T, n).T)
        shared = of_arrays("", (n, k), grids)

        def rows(start: int, stop: int) -> dict[str, np.ndarray]:
            codes = unpack(packed[start:stop], k) ^ flip
            return {"codes": codes if order is None else codes[:, order], **shared.rows(start, stop)}

        return Coded(text, (n, k), rows, order=order)

    checkpoint.put(module, (n, k), read, (name,))


def _packed_fp4(checkpoint: Checkpoint, module: str, schemes: list[_Scheme]) -> None:
    name, scale_name = f"{module}.weight_packed", f"{module}.weight_scale"
    info, scale = checkpoint.need(name, "U8"), checkpoint.need(scale_name, ("F8_E4M3", "U8", "F8_E8M0"))
    if len(info.shape) != 2 or not any(scheme.kind == "float" and scheme.bits == 4 for scheme in schemes):
        raise checkpoint.fail(f"tensor {shown(name)} {list(info.shape)} holds bytes, but no group of quantization_config has 4-bit floats")
    n, k = info.shape[0], 2 * info.shape[1]
    _in_order(checkpoint, module)
    size = 16 if scale.dtype == "F8_E4M3" else 32
    checkpoint.need(scale_name, scale.dtype, (n, -(-k // size)))
    factor_name = f"{module}.weight_global_scale"
    if size == 16:
        checkpoint.need(factor_name, "F32")
        if checkpoint.array(factor_name).size != 1:
            raise checkpoint.fail(f"tensor {shown(factor_name)} holds no single number")
    else:
        _no_nan(checkpoint, scale_name)

    def read() -> Coded:
        packed, scales = checkpoint.array(name), checkpoint.array(scale_name)
        grids = {"scale.0": scales}
        if size == 16:
            divisor = checkpoint.array(factor_name).view(np.float32).reshape(1, 1)
            if not (np.isfinite(divisor) & (divisor > 0)).all():
                raise checkpoint.fail(f"tensor {shown(factor_name)} is {float(divisor[0, 0])}, no positive divisor")
            grids["scale.1"] = (np.float32(1) / divisor).view(np.uint32)
        shared = of_arrays("", (n, k), grids)
        text = "fp4_e2m1@16:fp8_e4m3fn@tensor:fp32" if size == 16 else "fp4_e2m1@32:e8m0"
        return Coded(text, (n, k), lambda start, stop: {"codes": stream(packed[start:stop], 4, k), **shared.rows(start, stop)})

    checkpoint.put(module, (n, k), read, (name, scale_name))


def _in_order(checkpoint: Checkpoint, module: str) -> None:
    name = f"{module}.weight_g_idx"
    if checkpoint.info(name) is not None and (np.diff(checkpoint.array(name).astype(np.int64)) < 0).any():
        raise checkpoint.fail(f"module {shown(module)}: weight_g_idx mixes inputs, which only packed integers may have here")


def _no_nan(checkpoint: Checkpoint, name: str) -> None:
    scales = checkpoint.array(name)
    if scales.size and scales.max() == 255:
        raise checkpoint.fail(f"tensor {shown(name)} holds the scale 255, which is NaN")


def _plain(checkpoint: Checkpoint, module: str, dtype: str, schemes: list[_Scheme]) -> None:
    """int-quantized, float-quantized and mxfp8: one byte a weight."""
    name, scale_name, zero_name = f"{module}.weight", f"{module}.weight_scale", f"{module}.weight_zero_point"
    info = checkpoint.need(name, dtype)
    if len(info.shape) != 2:
        raise checkpoint.fail(f"tensor {shown(name)} has shape {list(info.shape)}; expected two axes")
    n, k = info.shape
    _in_order(checkpoint, module)
    kind = "int" if dtype == "I8" else "float"
    scheme, block, grid = _fitting(checkpoint, module, schemes, n, k, lambda s: s.kind == kind and (kind == "int" or s.bits == 8))
    scale = checkpoint.need(scale_name, (*SCALES, "U8", "F8_E8M0"))
    if scale.dtype in SCALES:
        element = checkpoint.scale(scale_name, scheme.grid(n, k)[1])
    else:
        element = "e8m0"
        _no_nan(checkpoint, scale_name)
    zero = checkpoint.info(zero_name) if not scheme.symmetric else None
    if zero is not None:
        checkpoint.need(zero_name, "I8")
        if zero.shape not in scheme.grid(n, k)[1]:
            raise checkpoint.fail(f"tensor {shown(zero_name)} has shape {list(zero.shape)}; expected {list(grid)}")

    def read() -> Coded:
        parts = {"codes": checkpoint.array(name).view(np.uint8), "scale.0": checkpoint.array(scale_name).reshape(grid)}
        if zero is not None:
            parts["zero"] = checkpoint.array(zero_name).view(np.uint8).reshape(grid)
        text = f"{'int8' if kind == 'int' else 'fp8_e4m3fn'}@{block}:{element}" + ("+zp=int8" if zero is not None else "")
        return of_arrays(text, (n, k), parts)

    checkpoint.put(module, (n, k), read, (name,))
