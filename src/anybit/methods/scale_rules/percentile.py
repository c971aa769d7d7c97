"""pN: clips the few largest magnitudes of a block."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from anybit.methods.scale_rules.absmax import absmax
from anybit.methods.scales import Range, scale_rule
from anybit.methods.values import Values


@scale_rule("p", allowed=(1.0, 100.0))
def percentile(r: Range, percent: float) -> list[np.ndarray]:
    """p99.9: absmax of what is left when magnitudes above the 99.9th percentile of their block have been clipped to it.

    The percentile is the smallest magnitude of the block that at least so many percent of its values do not exceed: no interpolation, so
    blocks of 32 lose a value from p96.875 down. Source: percentile calibration (TensorRT, NVIDIA 2017).
    """
    limit = smallest_reaching(r.seen(f"p{percent:g}"), percent / 100)
    return absmax(replace(r, low=np.maximum(r.low, -limit), high=np.minimum(r.high, limit)))


def smallest_reaching(values: Values, share: float) -> np.ndarray:
    """float64: for each block the smallest magnitude that at least this share of its values do not exceed.

    Bisection over bit patterns, which are ordered like magnitudes: 31 counts of float32, 63 of float64, whatever the block's size.
    """
    real, pattern = (np.float32, np.int32) if values.x.dtype == np.float32 else (np.float64, np.int64)
    count = values.sums(lambda x, _: (np.ones(()),))[0]
    # 0.999 * 1000 must not become 1000 by rounding.
    wanted = np.maximum(np.ceil(count * share - 1e-9), 1)
    low: Any = np.zeros_like(count, pattern)
    high: Any = np.full_like(count, np.array(np.finfo(real).max, real).view(pattern), pattern)
    while np.any(low < high):
        middle = low + (high - low) // pattern(2)
        enough = values.sums(lambda x, _, m: (np.abs(x) <= m,), middle.view(real))[0] >= wanted
        low, high = np.where(enough, low, middle + pattern(1)), np.where(enough, middle, high)
    limit: np.ndarray = high.view(real).astype(np.float64)
    return limit
