"""Scale rules: which scale a block of values gets. Each is one small function from a block's extremes to candidate scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from anybit.errors import FormatError
from anybit.formats import Element
from anybit.registry import Registry


@dataclass(frozen=True)
class Range:
    """What a rule sees. low, high: float64, extremes of each block. least, most: the element's values (or, for two's complement, minus the
    largest) that they are brought to. bottom: the element's true least value. count: how many values it has. scale: the element that stores
    the scales."""

    low: np.ndarray
    high: np.ndarray
    least: float
    most: float
    bottom: float
    count: int
    scale: Element

    @property
    def largest(self) -> np.ndarray:
        """The largest magnitude of each block."""
        return np.maximum(self.high, -self.low)


Rule = Callable[[Range], list[np.ndarray]]
"""Candidates, each one scale a block (float64, 0 where a block is zero, negative where the rule mirrors a block). With several, the one
with the least squared error after storing it is taken, block by block; the first also decides the scales of the scales."""

SCALES: Registry[Rule] = Registry("scale rule")

# Up to four values gain by clipping most of a block: their best scale may be a fifth of absmax's.
_STEPS, _COARSE_STEPS = np.r_[1.0, np.linspace(0.6, 1.6, 26)], np.r_[1.0, np.linspace(0.15, 1.2, 36)]


@SCALES.register("absmax")
def absmax(r: Range) -> list[np.ndarray]:
    """The smallest scale that clips nothing: amax / qmax; qmax = 2^(bits-1) - 1 for two's complement, else the element's largest value.

    An element whose two sides differ is scaled by the side that needs more; a side that it lacks is left out.
    """
    scale = np.zeros_like(r.high)
    if r.most > 0:
        scale = np.maximum(scale, r.high / r.most)
    if r.least < 0:
        scale = np.maximum(scale, r.low / r.least)
    return [scale]


@SCALES.register("floor")
def floor(r: Range) -> list[np.ndarray]:
    """2^(floor(log2 amax) - emax), emax the exponent of the element's largest value; the largest values of a block may be clipped.

    Source: OCP Microscaling Formats (MX) Specification v1.0, section 6.3. Differs: an element of any kind, not only floats.
    """
    top = int(np.frexp(max(r.most, -r.least))[1])
    exponent = np.frexp(r.largest)[1] - top
    return [np.where(r.largest > 0, np.ldexp(1.0, exponent), 0.0)]


@SCALES.register("mse")
def mse(r: Range) -> list[np.ndarray]:
    """The least squared error of a search: power-of-two scales s/2, s, 2s around floor's s; others multiples of absmax's.

    27 multiples from 0.6 to 1.6; for elements of at most four values 37 from 0.15 to 1.2.
    """
    if r.scale.bits <= 8 and bool(np.all(np.frexp(r.scale.finite)[0] == 0.5)):
        s = floor(r)[0]
        return [s, s / 2, s * 2]
    base = absmax(r)[0]
    return [base * step for step in (_STEPS if r.count > 4 else _COARSE_STEPS)]


@SCALES.register("signmax")
def signmax(r: Range) -> list[np.ndarray]:
    """The value of largest magnitude goes to the element's least value, by a negative scale where it is positive: d = max / -8 for int4.

    Uses the most negative code of two's complement, which absmax leaves out. Source: GGUF's Q4_0 (llama.cpp, ggml-quants).
    FormatError: the scale has no sign or the element no negative side.
    """
    if not r.scale.signed:
        raise FormatError(f"scale=signmax needs a signed scale, and {r.scale} has no sign; use bf16, fp16 or fp32 scales")
    if not r.bottom < 0 or -r.bottom < r.most:
        raise FormatError("scale=signmax needs an element whose negative side reaches at least as far as its positive one; use absmax")
    return [np.where(-r.low > r.high, r.low, r.high) / r.bottom]
