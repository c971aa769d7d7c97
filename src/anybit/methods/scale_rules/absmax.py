"""absmax, clip, full: a block's largest magnitude goes to an end of the element."""

from __future__ import annotations

import numpy as np

from anybit.errors import FormatError
from anybit.methods.scales import Range, scale_rule


@scale_rule("absmax")
def absmax(r: Range) -> list[np.ndarray]:
    """The smallest scale that clips nothing: amax / qmax; qmax = 2^(bits-1) - 1 for two's complement, else the element's largest value.

    An element whose two sides differ is scaled by the side that needs more; a side that it lacks is left out. The scale is then rounded to
    nearest in its own element: a coarse one (E4M3, E8M0) may clip after all.
    """
    scale = np.zeros_like(r.high)
    if r.most > 0:
        scale = np.maximum(scale, r.high / r.most)
    if r.least < 0:
        scale = np.maximum(scale, r.low / r.least)
    return [scale]


@scale_rule("clip", symmetric=True)
def clip(r: Range) -> list[np.ndarray]:
    """absmax, and no code beyond -(2^(bits-1) - 1): where a coarse scale was rounded down, absmax would use the most negative one.

    Source: symmetric clipping of "INT v.s. FP" (2025), arXiv 2510.25602: without it training at block scales is biased. As an element
    intN_sym does the same with every rule.
    """
    if r.values is None:
        raise FormatError("scale=clip is symmetric, and zero points are not; use absmax or mse")
    return absmax(r)


@scale_rule("full")
def full(r: Range) -> list[np.ndarray]:
    """amax over half the element's width: amax / 7.5 for int4, which uses -8 and clips up to half a step of the largest positive values.

    Source: the symmetric integer rule of compressed-tensors.
    """
    if not r.least < 0 < r.most:
        return absmax(r)
    return [r.largest / ((r.most - r.bottom) / 2)]
