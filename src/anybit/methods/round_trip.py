"""Quantized and dequantized in one native pass, for blocks along the last axis: the values that parts would give, without the parts."""

from __future__ import annotations

from typing import Any

import numpy as np

from anybit.formats import Element, Format, Spec
from anybit.formats.rounding import stochastic_bits
from anybit.kernels.rounding import Rounding, largest_magnitude, rounding
from anybit.methods.chain import FALL, Chain
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
    if fields["most"] * FALL < fmt.element.max and largest_magnitude(source.reshape(-1)) / fields["most"] > FALL * fields["limit"]:
        return False
    rows = (-1, x.shape[-1])
    return plan.blocks(fields | {"size": size, "outer": outer, "factor": factor}, source.reshape(rows), out.reshape(rows), policy.seed)


def _fields(spec: Spec) -> dict[str, Any] | None:
    """What the native pass needs to know about scales; None: it does not serve the spec."""
    fmt = spec.format
    element, rule = fmt.element, spec.scale_rule
    if element.dim > 1 or element.learned or element.bits > 16 or fmt.block is None or not fmt.block.per_row:
        return None
    if fmt.zero is not None or fmt.offset is not None or fmt.pack or fmt.opened is not None:  # opened: codes are chosen as they are stored
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


def token_rounding(spec: Spec, scale: float | None) -> tuple[Any, str]:
    """The native rounding of rows, each by itself, to a spec; or None and the reason why there is none.

    scale: one for all numbers, of a format of one block in all, or of the second level; None: taken from each row, "tensor" being the row.
    """
    plan, fields, reason = _of_rows(spec, scale)
    return (None, reason) if plan is None else (plan.tokens(fields), "")


def cache_rounding(spec: Spec) -> tuple[Any, str]:
    """The native format of rows that are kept as codes and scales; or None and the reason why there is none."""
    plan, fields, reason = _of_rows(spec, None)
    element, scale = spec.format.element, spec.format.levels[0].element if spec.format.levels else None
    if plan is not None and fields is None and element.bits > 8 and element.name not in ("fp16", "bf16"):
        reason = "codes have up to 8 bits, but for fp16 and bf16"
    elif plan is not None and (fields is not None and (element.bits > 8 or fields["second"])):
        reason = "codes with scales have up to 8 bits and one level of scales"
    elif scale is not None and scale.bits > 8 and scale.name not in _WIDE_SCALES:
        reason = f"scales are {', '.join(_WIDE_SCALES)}, or have up to 8 bits"
    if plan is None or reason:
        return None, reason
    bits = next(width for width in (1, 2, 4, 8, 16) if element.bits <= width)
    kind = 0 if scale is None else _WIDE_SCALES.get(scale.name, 1)
    table = np.full(256, np.nan, np.float32)
    if scale is not None and kind == 1:
        table[: 1 << scale.bits] = scale.values
    return plan.cache(fields, bits, kind, table), ""


_WIDE_SCALES = {"fp16": 2, "bf16": 3, "fp32": 4}


def _of_rows(spec: Spec, scale: float | None) -> tuple[Rounding | None, dict[str, Any] | None, str]:
    """The path that rounds rows, what it needs to know about scales (None: there are none), or the reason why there is no path."""
    fmt, policy = spec.format, spec.policy
    if stochastic_bits(policy.round) is not None or policy.over != "saturate" or policy.nonfinite != "error":
        return None, None, "activations are rounded without random numbers, saturate, and must be finite"
    if fmt.element.dim > 1 or fmt.element.learned or fmt.element.bits > 16:
        return None, None, "elements of activations have up to 16 bits, values of their own, and one number a code"
    plan = rounding(fmt.element, policy.round, policy.over, "error")
    if plan is None:
        return None, None, f"no native path rounds {fmt.element}"
    if fmt.block is None:
        return (None, None, "it has no scale to be given") if scale is not None else (plan, None, "")
    whole = fmt.block.kind == "tensor"
    if whole and scale is None:
        return None, None, "a scale for the whole tensor depends on the other tokens; use @token, or give a scale"
    outer = len(fmt.levels) == 2
    if whole:
        if outer or fmt.zero is not None or fmt.offset is not None or fmt.pack:
            return None, None, "a scale that is given is the only one"
        assert scale is not None
        held = float(np.float32(scale))
        fields: dict[str, Any] | None = {
            "mantissa": 23, "first": 2.0**-126, "smallest": held, "biggest": held, "end": np.inf, "limit": np.inf, "power_of_two": False,
            "top": 0, "most": 1.0,
        }  # fmt: skip
    else:
        fields = _fields(spec)
    if fields is None:
        return None, None, "rounding takes symmetric elements in blocks along a row, no zero points or offsets, scales by absmax or floor"
    if not whole and scale is not None and not outer:
        return None, None, "its scales are taken from the input, a block each; none can be given"
    if outer and fields["mantissa"] == 0:
        return None, None, "scales of one level are powers of two, or there is one level"
    second = {"second": False, "second_top": 1.0, "second_short": 1.0, "outer": 1.0, "factor": 1.0}
    if outer and scale is not None:
        second |= {"outer": float(np.float32(scale)), "factor": float(np.float32(scale))}
    elif outer:
        first = fmt.levels[0].element
        if fmt.levels[1].element.name != "fp32" or first.max >= 2.0**64:
            return None, None, "a second level of activations is fp32, above a first of fewer binades"
        second |= {"second": True, "second_top": first.max, "second_short": (first.max + first.beyond[1]) / 2}
    return plan, fields | {"size": 0 if whole else fmt.block.size or 0} | second, ""
