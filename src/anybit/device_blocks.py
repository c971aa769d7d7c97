"""fake_quantize of arrays that lie on a device: scales and codes are chosen there, with the bits that the CPU gives.

For formats of one level of scales, or of two with one number for the whole array above (NVFP4), and the rules absmax and floor. Only the
largest scale of a two-level format is brought to the host, where the level above is chosen. The rest is refused by name.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from anybit.device import codes_on_device, first_index, numbers_of, raise_non_finite, values_on_device
from anybit.device_arrays import Arrays, arrays_of
from anybit.errors import FormatError, ShapeError
from anybit.formats import Block, Spec
from anybit.formats.rounding import OutOfRangeError
from anybit.methods.chain import FALL, Chain, ReachError, ScaleRangeError
from anybit.methods.rtn import BEYOND

_ADVICE = "repair the array, or say nonfinite=saturate or propagate"
_LARGEST = float(np.finfo(np.float32).max)


def fake_quantize_on_device(x: Any, spec: Spec, out: Any) -> Any:
    """float32 values of a torch tensor or JAX array on the format's grid, on its device.

    Raises: as `anybit.fake_quantize`; FormatError: a format, rule or policy that runs on the CPU only.
    """
    ops = arrays_of(x)
    spec.check()
    _check(spec, ops.place(x))
    if not x.shape:
        raise ShapeError("array is a single number; quantizing needs an array of at least one axis")
    policy = (spec.policy.round, spec.policy.over, spec.policy.nonfinite)
    element = spec.format.element
    with ops.scope():
        number = numbers_of(ops, x)
        if 0 in x.shape:
            return ops.written(ops.cast(number, "float32"), out)
        if spec.format.block is None:
            finite = ops.isfinite(number)
            if spec.policy.nonfinite == "error" and not bool(finite.all()):
                raise_non_finite(number, finite, _ADVICE)
            values = values_on_device(ops, codes_on_device(ops, number, element, policy, spec.policy.seed), element)
            return ops.written(ops.cast(values, "float32"), out)
        if ops.name(number) == "float64":  # as `quantize_parts`: equal arrays get equal codes
            narrow = ops.cast(number, "float32")
            number = narrow if bool((ops.cast(narrow, "float64") == number).all()) else number
        scale = _spread(ops, _scales(ops, number, spec), spec.format.blocks[0], tuple(x.shape))
        ratio = (number / ops.where(scale == 0, float("inf"), scale)).clip(-_LARGEST, _LARGEST)  # beyond float32 is beyond every element
        try:
            codes = codes_on_device(ops, ratio, element, policy, spec.policy.seed)
        except OutOfRangeError as error:
            raise FormatError(
                f"array: a value is {error.value:g} times its block's scale, outside {element}'s range"
                f" {element.min:g} to {element.max:g}; use over=saturate or scale=absmax"
            ) from None
        return ops.written(ops.cast(values_on_device(ops, codes, element), "float32") * scale, out)


def _check(spec: Spec, place: str) -> None:
    """FormatError: what has no path on a device, and what would have one."""
    fmt = spec.format
    reason = None
    if fmt.element.learned or fmt.element.dim > 1 or fmt.element.bits > 16:
        reason = f"{fmt.element} is learned, codes several values together, or has more than 16 bits"
    elif fmt.zero is not None or fmt.offset is not None or fmt.opened is not None:
        reason = f"{fmt} has zero points or offsets, or is opened"
    elif fmt.block is not None:
        if len(fmt.levels) > 2 or (len(fmt.levels) == 2 and fmt.blocks[1].kind != "tensor"):
            reason = f"{fmt} has more levels of scales than one and one for the whole array"
        elif fmt.levels[0].element.bits > 16 and fmt.levels[0].element.name != "fp32":
            reason = f"{fmt} has scales of more than 16 bits that are not fp32"
        elif spec.scale_rule not in ("absmax", "floor"):
            reason = f"scale={spec.scale_rule} is neither absmax nor floor"
        elif spec.policy.nonfinite != "error":
            reason = f"nonfinite={spec.policy.nonfinite} with scales is not there"
    if reason is not None:
        raise FormatError(f"on {place} {reason}; move the array to the CPU")


def _scales(ops: Arrays, x: Any, spec: Spec) -> Any:
    """float32: the scale of each first-level block."""
    fmt, shape = spec.format, tuple(x.shape)
    finite = ops.isfinite(x)
    if not bool(finite.all()):
        raise_non_finite(x, finite, _ADVICE)
    low, high = (ops.cast(each, "float64") for each in _extremes(ops, x, fmt.blocks[0]))
    element, first = fmt.element, fmt.levels[0].element
    amax = ops.maximum(high, -low)
    if float(amax.max()) >= BEYOND:
        raise FormatError(
            f"array holds values up to {float(amax.max()):g}, and what codes mean is float32, which ends at 3.4e38; divide the array"
        )
    target = _targets(ops, spec, low, high, amax)
    outer = factor = 1.0
    if len(fmt.levels) == 2:
        chain = Chain(fmt, (1,) * len(shape), [level.element for level in fmt.levels])
        try:
            chain.settle([(slice(0, 1), np.full((1,) * len(shape), float(target.max())))])
        except ScaleRangeError as error:
            raise FormatError(f"array: {error}") from None
        outer, factor = float(chain.outer(slice(0, 1)).item()), float(chain.factor(slice(0, 1)).item())
    limit = _LARGEST / max(element.max, -element.min)
    far = target > FALL * limit
    if bool(far.any()):
        at = first_index(far)
        raise FormatError(f"array: {ReachError(element, at, float(target[at]), limit)}")
    beyond = target.clip(0, limit) / outer >= first.beyond[1]
    if bool(beyond.any()):
        at = first_index(beyond)
        raise FormatError(f"array: {ScaleRangeError('scale', 0, first, at, float(target[at].clip(0, limit)), first.max * outer)}")
    held = (target / outer).clip(first.smallest, first.max)
    if first.bits <= 16:
        held = values_on_device(ops, codes_on_device(ops, held, first, ("nearest-even", "saturate", "error"), 0), first)
    scale = ops.cast(held, "float32") * factor
    too_large = ~(abs(scale) <= limit)
    if bool(too_large.any()):
        lowered = first.decode(first.encode(np.clip(limit / outer, first.smallest, first.max), round="zero")).astype(np.float32)
        scale = ops.where(too_large, float(lowered * np.float32(factor)), scale)
    return scale


def _targets(ops: Arrays, spec: Spec, low: Any, high: Any, amax: Any) -> Any:
    """float64: what `methods/scale_rules` wants as scales."""
    least, most = spec.format.element.reach
    if spec.scale_rule == "absmax":
        above = high / most if most > 0 else high * 0
        return ops.maximum(ops.maximum(above, low / -least if least > 0 else high * 0), high * 0)
    significand, _ = ops.frexp(amax)
    power = amax / ops.where(amax > 0, significand, 1.0)
    return power * 2.0 ** -int(np.frexp(max(most, least))[1])


def _extremes(ops: Arrays, x: Any, block: Block) -> tuple[Any, Any]:
    """Least and largest of each block and zero."""
    shape = tuple(x.shape)
    sizes, grid = block.on(shape), block.grid(shape)
    more = [n * size - length for n, size, length in zip(grid, sizes, shape, strict=True)]
    split = ops.padded(x, more).reshape([n for pair in zip(grid, sizes, strict=True) for n in pair])
    return ops.extremes(split, tuple(range(1, 2 * len(shape), 2)))


def _spread(ops: Arrays, scale: Any, block: Block, shape: tuple[int, ...]) -> Any:
    """Each block's number for each of its values."""
    for axis, size in enumerate(block.on(shape)):
        if size > 1 and scale.shape[axis] > 1:
            scale = ops.repeat(scale, size, axis)[(slice(None),) * axis + (slice(0, shape[axis]),)]
    return scale
