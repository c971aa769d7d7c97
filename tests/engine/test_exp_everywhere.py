"""The exponential at every float32 where it is neither 1 nor 0 nor infinite: a minute or more, so only where ANYBIT_EXHAUSTIVE is set.

Below 2^-26 the result is 1 (the polynomial ends in 1 + r, which rounds to 1), beyond -105 and 89 arguments are clipped: looked at always.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from anybit.kernels.cpu import native

STATED = {"below": 0.8835, "above": 0.8955}  # docs/contract.md: 0.883 and 0.895, rounded to three places
STEP = 1 << 22


def worst(sign: int, first: int, end: int) -> float:
    """The largest error in units of the last place over the float32 patterns [first, end) of one sign, where results are normal."""
    most = 0.0
    for start in range(first, end, STEP):
        x = (np.arange(start, min(end, start + STEP), dtype=np.uint32) | np.uint32(sign << 31)).view(np.float32)
        y = native.op_exp(x).astype(np.float64)
        exact = np.exp(x.astype(np.float64))  # far below a thousandth of a float32's last place off
        normal = (exact >= 2.0**-126) & (exact < 2.0**128 - 2.0**103)
        place = np.exp2(np.floor(np.log2(exact[normal])) - 23)
        if normal.any():
            most = max(most, float((np.abs(y[normal] - exact[normal]) / place).max()))
    return most


def pattern(x: float) -> int:
    return int(np.float32(x).view(np.uint32))


@pytest.mark.skipif("ANYBIT_EXHAUSTIVE" not in os.environ, reason="half a billion numbers; set ANYBIT_EXHAUSTIVE")
def test_every_number() -> None:
    assert worst(1, pattern(2.0**-26), pattern(105) + 1) <= STATED["below"]
    assert worst(0, pattern(2.0**-26), pattern(89) + 1) <= STATED["above"]


def test_where_it_is_trivial() -> None:
    rng = np.random.default_rng(0)
    tiny = np.r_[rng.integers(0, pattern(2.0**-26), 100_000), 0, 1, pattern(2.0**-26) - 1].astype(np.uint32)
    for sign in (0, 1):
        assert (native.op_exp((tiny | np.uint32(sign << 31)).view(np.float32)) == 1).all()
    assert worst(1, pattern(87.0), pattern(87.4)) <= STATED["below"] and worst(0, pattern(88.0), pattern(88.8)) <= STATED["above"], "ends"
    large = np.float32([89, 1e3, 3e38, np.inf])
    assert (native.op_exp(large) == np.inf).all() and (native.op_exp(-large[1:]) == 0).all()
