"""Shift and add: weights that are sums of few powers of two, each a sum on the activation's exponent."""

from __future__ import annotations

from anybit.products.product import PRODUCTS, PatternProduct, ProductRule, number_after


def parse(text: str) -> PatternProduct | None:
    """`shift` for powers of two (and zero), `shiftK` for sums of up to K of them.

    A power's exponent is added to that of the activation: exact, and equal to multiplication, as long as both the activation and the result
    are at least 2^-126; below they are zero, beyond float32 the result is infinite. K powers are K products, largest first, each added for
    itself.
    """
    number = number_after(text, "shift", 1, 4)
    return None if number is None else PatternProduct(text, (None,), saturates=False, terms=1 if number < 0 else number)


PRODUCTS.add(
    "shift",
    ProductRule(
        "shift", "powers of two added to exponents", "shift, shiftK (K powers of two a weight, 1 to 4)",
        "You and others, ShiftAddNet, arXiv 2010.12785; Li and others, DenseShift, arXiv 2208.09708", parse,
    ),
)  # fmt: skip
