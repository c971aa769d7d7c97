"""Searches: candidate scales around a simple rule's, of which the loss picks one for each block."""

from __future__ import annotations

import numpy as np

from anybit.errors import FormatError
from anybit.formats.vector import Vector
from anybit.methods.scale_rules.absmax import absmax
from anybit.methods.scale_rules.floor import floor
from anybit.methods.scales import Range, scale_rule

# Up to four values gain by clipping most of a block: their best scale may be a fifth of absmax's.
_STEPS, _COARSE_STEPS = np.r_[1.0, np.linspace(0.6, 1.6, 26)], np.r_[1.0, np.linspace(0.15, 1.2, 36)]


@scale_rule("mse", searches=True)
def mse(r: Range) -> list[np.ndarray]:
    """The least squared error of a search: power-of-two scales s/2, s, 2s around floor's s; others multiples of absmax's.

    27 multiples from 0.6 to 1.6; for elements of at most four values 37 from 0.15 to 1.2. Where an element of several weights a code
    would have to take an even block for its few outermost vectors, these are multiples of the scale that brings the block's root mean
    square to that of the element's numbers, up to 4 times absmax's for e8p. Importance, if given, weighs the errors.
    """
    if r.power_of_two:
        s = floor(r)[0]
        return [s, s / 2, s * 2]
    base = absmax(r)[0]
    if r.count <= 4:
        return [base * step for step in _COARSE_STEPS]
    wide = _even(r, base)
    return [base, *(wide * step for step in _STEPS[1:])]


def _even(r: Range, base: np.ndarray) -> np.ndarray:
    """absmax's scale, or for several weights a code the one that brings a block's root mean square to the vectors', if that is larger."""
    if not isinstance(r.element, Vector) or r.values is None:
        return base
    largest = np.where(r.largest > 0, r.largest, 1.0)
    count, squares = r.values.sums(lambda x, _, m: (np.ones(()), np.square(x / m, dtype=np.float64)), largest)
    mean = largest * np.sqrt(squares / np.maximum(count, 1))
    return np.maximum(base, mean / r.element.typical)


@scale_rule("wmse", searches=True, weighted=True)
def wmse(r: Range) -> list[np.ndarray]:
    """mse with importance, and refused without: sum of importance x squared error. The mean of x^2 of each input is the usual importance.

    Source: the importance matrix of llama.cpp, which is the diagonal of GPTQ's Hessian.
    """
    return mse(r)


@scale_rule("lp", allowed=(0.1, 10.0), powered=True, searches=True)
def lp(r: Range, p: float) -> list[np.ndarray]:
    """The least sum of |error|^p of a search: lp2.4 shrinks absmax's scale s in 100 steps, s (1 - 0.8 i / 100).

    Power-of-two scales: s/2, s, 2s around floor's. Source: the "mse" observers of GPTQ's successors and of FP-Quant (arXiv 2509.23202),
    which take p = 2.4.
    """
    if r.power_of_two:
        return mse(r)
    base = absmax(r)[0]
    return [base * (1 - 0.008 * i) for i in range(100)]


@scale_rule("sigma", allowed=(0.5, 20.0), searches=True)
def sigma(r: Range, n: float) -> list[np.ndarray]:
    """sigma3: alpha = max |mean +- 3 sigma| of a block goes to the element's largest value; the least squared error of 0.75 to 1.5 alpha.

    Source: OliVe (arXiv 2304.07493) and ANT (arXiv 2208.14286), which search in steps of 2 %.
    """
    values = r.seen(f"sigma{n:g}")
    count, total = values.sums(lambda x, _: (np.ones(()), x))
    mean = total / np.maximum(count, 1)
    spread = np.sqrt(values.sums(lambda x, _, m: (np.square(x - m, dtype=np.float64),), mean)[0] / np.maximum(count, 1))
    base = np.where(r.largest > 0, np.maximum(np.abs(mean + n * spread), np.abs(mean - n * spread)), 0.0) / max(r.most, -r.least)
    return [base, *(base * (0.75 + 0.02 * i) for i in range(38))]


@scale_rule("4over6", searches=True)
def four_over_six(r: Range) -> list[np.ndarray]:
    """A block's largest magnitude goes to the element's largest value or to the next below, 6 or 4 for FP4: which has less squared error.

    Source: Four Over Six (2025), arXiv 2512.02010, for NVFP4. Differs: the scale of the whole tensor is left as absmax has it, so the block
    that holds its largest value keeps 6.
    """
    if r.power_of_two or r.count < 3:
        raise FormatError("scale=4over6 moves scales by less than a factor of two and needs an element of more than two values; use mse")
    r.seen("4over6")
    top = max(r.most, -r.least)
    below = np.abs(r.element.finite if r.element.bits <= 16 else np.array([top]))
    below = below[(below < top) & (below > 0)]
    base = absmax(r)[0]
    return [base, base * (top / below.max())] if below.size else [base]
