"""How much of a signal a format keeps, without any model: SQNR on a normal source."""

from __future__ import annotations

import math

import numpy as np

from anybit.formats import Spec
from anybit.methods import METHODS, dequantize_parts

ROWS, COLUMNS = 256, 1024


def sqnr_db(spec: Spec, seed: int = 0) -> float:
    """Signal to quantization noise in decibels: 10 log10(sum x^2 / sum (x - q)^2) for 256 x 1024 standard normal numbers, round to nearest.

    Infinite when nothing is lost. The random numbers cost about 0.01 dB of uncertainty.
    """
    x = np.random.default_rng(seed).standard_normal((ROWS, COLUMNS), dtype=np.float32)
    q = dequantize_parts(METHODS["rtn"](x, spec), spec.format, x.shape)
    noise = float(np.sum(np.square(x.astype(np.float64) - q)))
    return math.inf if noise == 0 else 10 * math.log10(float(np.sum(np.square(x.astype(np.float64)))) / noise)
