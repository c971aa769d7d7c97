"""Quantized and dequantized in one native pass, for blocks along the last axis: the values that parts would give, without the parts."""

from __future__ import annotations

from typing import Any

import numpy as np

from anybit.formats import Element, Format, Spec
from anybit.formats.rounding import stochastic_bits
from anybit.kernels.rounding import largest_magnitude, rounding
from anybit.methods.chain import Chain
from anybit.methods.scales import SCALES, Range

_LARGEST = float(np.finfo(np.float32).max)


def round_trip(x: np.ndarray, spec: Spec, out: np.ndarray) -> bool:
    """Writes float32 x's values in the spec's format into contiguous float32 out, which does not share memory with x.

    Returns False, with out undefined, where quantize_parts and dequantize_parts have to do it: another kind of block, scale or rule, NaN,
    infinity, a scale that its element cannot hold.
    """
    fmt, policy = spec.format, spec.policy
    fields = _fields(spec) if x.size and x.dtype == np.float32 else None
    plan = None if fields is None else rounding(fmt.element, policy.round, policy.over, "error")
    if fields is None or plan is None or policy.over == "error":
        return False
    assert fmt.block is not None
    size = min(fmt.block.size or x.shape[-1], x.shape[-1])
    if stochastic_bits(policy.round) is not None and size > 2048:
        return False
    source = np.require(x, np.float32, ["C_CONTIGUOUS", "ALIGNED"])
    outer, factor = 1.0, 1.0
    if len(fmt.levels) == 2:
        top = largest_magnitude(source.reshape(-1))
        if not np.isfinite(top):
            return False
        outer, factor = _outer(spec, top)
        if fields["mantissa"] == 0:
            return False
    rows = (-1, x.shape[-1])
    return plan.blocks(fields | {"size": size, "outer": outer, "factor": factor}, source.reshape(rows), out.reshape(rows), policy.seed)


def _fields(spec: Spec) -> dict[str, Any] | None:
    """What the native pass needs to know about scales; None: it does not serve the spec."""
    fmt = spec.format
    element, rule = fmt.element, spec.scale_rule
    if element.dim > 1 or element.learned or element.bits > 16 or fmt.block is None or not fmt.block.per_row:
        return None
    if fmt.zero is not None or fmt.offset is not None or fmt.pack:
        return None
    if len(fmt.levels) > 2 or (len(fmt.levels) == 2 and str(fmt.levels[0].block) != "tensor"):
        return None
    grid = _scale_grid(fmt.levels[0].element)
    if rule not in ("absmax", "floor") or spec.policy.nonfinite != "error" or element.reach[0] != element.reach[1] or grid is None:
        return None
    if grid["mantissa"] == 0 and rule != "floor":
        return None  # ties between powers of two go to the even code, which the binade decides
    return grid | {
        "power_of_two": rule == "floor", "top": int(np.frexp(element.reach[1])[1]), "most": element.reach[1],
        "limit": _LARGEST / max(element.max, -element.min),
    }  # fmt: skip


def _scale_grid(scale: Element) -> dict[str, Any] | None:
    """Mantissa bits, first binade and ends of a scale's positive values, if they are a minifloat's; None otherwise."""
    fields = scale.fields
    if fields.get("family") != "minifloat":
        return None
    if not fields["subnormals"] and fields["mantissa"] > 0:
        return None
    first = 2.0 ** ((1 if fields["subnormals"] else 0) - fields["bias"])
    return {"mantissa": fields["mantissa"], "first": first, "smallest": scale.smallest, "biggest": scale.max, "end": scale.beyond[1]}


def _outer(spec: Spec, top: float) -> tuple[float, float]:
    """The tensor's own scale as float64 and as float32, for the largest magnitude: as `Chain.settle` chooses it."""
    fmt: Format = spec.format
    shape = (1, 1)
    chain = Chain(fmt, shape, [level.element for level in fmt.levels])
    element, ends = fmt.element, np.array([[top]])
    seen = Range(-ends, ends, -element.reach[0], element.reach[1], element.min, element, fmt.levels[0].element)
    chain.settle([(slice(0, 1), np.abs(SCALES[spec.scale_rule](seen)[0]))])
    rows = slice(0, 1)
    return float(chain.outer(rows)[0, 0]), float(chain.factor(rows)[0, 0])
