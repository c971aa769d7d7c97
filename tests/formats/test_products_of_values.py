"""Products of all pairs of values, rounded back: every element of up to 8 bits against the grid reference."""

from __future__ import annotations

import numpy as np
import pytest

from anybit.formats import named_formats, parse_element
from anybit.reference.grid import Grid
from anybit.reference.rational import Rational

NAMES = [n.name for n in named_formats() if not n.blocked]
SMALL = [name for name in NAMES if parse_element(name).dim == 1 and not parse_element(name).learned and parse_element(name).bits <= 8]


@pytest.mark.parametrize("name", SMALL)
def test_products_of_all_pairs_round_right(name: str) -> None:
    """a * b is exact in float64 (24-bit values); its code is that of the reference, which is held to fractions on a sample."""
    element = parse_element(name)
    values = element.finite
    assert np.array_equal(values, values.astype(np.float32)), "two of them multiply exactly"
    products = np.unique(np.multiply.outer(values, values))
    grid, exact = Grid(element.fields), Rational(element.fields)
    place = grid.place(products)
    some = np.random.default_rng(0).choice(products, min(300, products.size), replace=False)
    for mode in ("nearest-even", "zero", "up"):
        codes = element.encode(products, round=mode)
        assert np.array_equal(codes, grid.encode(products, mode, "saturate", place)), mode
        assert [exact.encode(float(x), mode) for x in some] == element.encode(some, round=mode).tolist(), mode
