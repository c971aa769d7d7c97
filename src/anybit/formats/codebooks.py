"""Published codebooks: the numbers, where they come from, and how they can be computed again."""

from __future__ import annotations

from fractions import Fraction

# Dettmers, Pagnoni, Holtzman, Zettlemoyer 2023, QLoRA, arXiv 2305.14314, appendix E: quantiles of a normal distribution, zero included.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip

# The same construction with 8 entries, its tail at (1/16 + 1/14) / 2; as printed by AFPQ, arXiv 2311.01792.
NF3 = (
    -1.0, -0.5350227355957031, -0.2469314038753510, 0.0, 0.1833375245332718, 0.3819939494132996, 0.6229856610298157, 1.0,
)  # fmt: skip

# Yoshida 2023, "NF4 isn't information theoretically optimal (and that's good)", arXiv 2306.06965: the least expected absolute error
# of normal numbers over the largest magnitude of their block of 64, with -1, 0 and 1 kept.
AF4 = (
    -1.0, -0.69441008, -0.51243739, -0.3736951, -0.25607552, -0.14982478, -0.04934812, 0.0, 0.04273164, 0.12934483, 0.21961274, 0.31675666,
    0.42563882, 0.55496234, 0.72424863, 1.0,
)  # fmt: skip

# llama.cpp, ggml-common.h, kvalues_iq4nl: whole numbers, so that products with int8 stay whole.
IQ4NL = (-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0)


def dynamic() -> tuple[float, ...]:
    """The 256 numbers of the signed dynamic 8-bit map, ascending.

    For each decade 10^-6 .. 1, 2^i midpoints of equal parts of (0.1, 1) times 10^(i - 6), i = 0 .. 6, and their negatives; 0 and 1.
    Source: Dettmers 2016, arXiv 1511.04561, as in bitsandbytes' create_dynamic_map. Differs: exact; there float32 arithmetic leaves the
    last bit of about a quarter of the entries one off.
    """
    found = [Fraction(0), Fraction(1)]
    for i in range(7):
        for j in range(2**i):
            middle = Fraction(1, 10) + Fraction(9, 10) * Fraction(2 * j + 1, 2 ** (i + 1))
            found += [middle * Fraction(10) ** (i - 6), -middle * Fraction(10) ** (i - 6)]
    return tuple(float(x) for x in sorted(found))


PUBLISHED: dict[str, tuple[tuple[float, ...], str]] = {
    "nf4": (NF4, "normal float: 16 quantiles of a normal distribution, -1 to 1, with zero (QLoRA)"),
    "nf3": (NF3, "normal float of 3 bits: 8 quantiles, -1 to 1, with zero"),
    "af4": (AF4, "abnormal float: least absolute error for normal numbers in blocks of 64"),
    "iq4nl": (IQ4NL, "GGUF IQ4_NL: 16 whole numbers from -127 to 113, no zero"),
    "dyn8": (dynamic(), "dynamic 8-bit map of bitsandbytes: a decimal exponent and a fraction, -0.993 to 1"),
}
"""Name: (entries by code, one line). Entries are rounded to float32 where they are used."""
