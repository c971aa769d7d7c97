"""Power-of-two scales: how the shared exponent of a block is rounded."""

from __future__ import annotations

import numpy as np

from anybit.methods.scale_rules.absmax import absmax
from anybit.methods.scales import Range, scale_rule


def _power(exponent: np.ndarray, r: Range) -> np.ndarray:
    return np.where(r.largest > 0, np.ldexp(1.0, exponent), 0.0)


def _top(r: Range) -> tuple[float, int]:
    """The magnitude that a block's largest is brought to, and its exponent as frexp counts it."""
    top = max(r.most, -r.least)
    return top, int(np.frexp(top)[1])


@scale_rule("floor", allowed=(0.5, 1.0), number=1.0)
def floor(r: Range, divisor: float = 1.0) -> list[np.ndarray]:
    """2^(floor(log2 amax) - emax), emax the exponent of the element's largest value; the largest values of a block may be clipped.

    With a number, this over the number: floor0.75 never clips FP4, and needs scales that are no powers of two (or a second level, which
    then holds the 4/3).
    Source: OCP Microscaling Formats (MX) Specification v1.0, section 6.3; floor0.75: FP-Quant (MR-GPTQ, arXiv 2509.23202). Differs: an
    element of any kind, not only floats.
    """
    return [_power(np.frexp(r.largest)[1] - _top(r)[1], r) / divisor]


@scale_rule("ceil")
def ceil(r: Range) -> list[np.ndarray]:
    """2^ceil(log2(amax / qmax)): the smallest power of two that clips nothing.

    Source: ARCQuant (2026); torchao names it RCEIL; ZeroQuant-FP, arXiv 2307.09782, constraint M1.
    """
    significand, exponent = np.frexp(r.largest / _top(r)[0])
    return [_power(exponent - (significand == 0.5), r)]


@scale_rule("down", round="down")
def down(r: Range) -> list[np.ndarray]:
    """absmax's scale, rounded towards zero where it is stored: power-of-two scales under one of each row are smax / 2^ceil(log2(smax / s)).

    Up to half of a block's range is clipped. Source: ZeroQuant-FP, arXiv 2307.09782, constraint M2, as fp4_e2m1@128:e8m0@channel:fp32.
    """
    return absmax(r)


@scale_rule("even")
def even(r: Range) -> list[np.ndarray]:
    """floor, after amax has been rounded to the element's precision: for FP4 the exponent goes up from 1.75 on.

    Source: the MX rule of compressed-tensors; torchao and AMD Quark name it even. An amax half way up goes up.
    """
    top, exponent = _top(r)
    step = 1.0  # of integers under a zero point, whose ends move
    if r.values is not None:
        below = np.sort(np.abs(r.element.finite if r.element.bits <= 16 else np.array([0.0, top])))
        step = top - below[below < top][-1] if np.any(below < top) else top
    bump = 1 - step / np.ldexp(1.0, exponent) / 2  # of frexp's significand, which lies in [1/2, 1)
    significand, found = np.frexp(r.largest)
    return [_power(found - exponent + (significand >= bump), r)]
