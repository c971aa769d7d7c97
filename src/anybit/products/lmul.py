"""L-Mul: the sum of two float32 bit patterns in the place of their product."""

from __future__ import annotations

from anybit.products.product import PRODUCTS, PatternProduct, ProductRule, number_after


def parse(text: str) -> PatternProduct | None:
    """`lmul` on float32's 23 mantissa bits, `lmulM` after rounding both operands to M bits.

    (1 + a) 2^i times (1 + b) 2^j becomes (1 + a + b + 2^-l) 2^(i + j), l = M up to 3, 3 for 4, else 4: one integer addition of the
    patterns, whose carry goes into the exponent. Where a + b + 2^-l reaches 1 the addition gives 2 (a + b + 2^-l) 2^(i + j), which is what
    is meant here.
    """
    number = number_after(text, "lmul", 1, 23)
    if number is None:
        return None
    mantissa = 23 if number < 0 else number
    shift = mantissa if mantissa <= 3 else 3 if mantissa == 4 else 4
    return PatternProduct(text, (None,), mantissa, 0x3F800000 - (1 << (23 - shift)))


PRODUCTS.add(
    "lmul",
    ProductRule(
        "lmul", "sums of bit patterns, with a correction", "lmul, lmulM (M mantissa bits, 1 to 23)",
        "Luo and Sun, Addition is All You Need for Energy-efficient Language Models, arXiv 2410.00907, equations 1 and 2", parse,
    ),
)  # fmt: skip
