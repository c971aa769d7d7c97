"""Logarithmic numbers: powers of a root of two."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import isqrt
from typing import Any

import numpy as np

from anybit.errors import FormatError
from anybit.formats.element import Element
from anybit.formats.elements.pot import LARGEST
from anybit.formats.family import FAMILIES, Family

_FORM = re.compile(r"log([0-9]{1,3})_f([0-9]{1,2})")


@lru_cache(maxsize=32)
def _binade(fraction: int) -> np.ndarray:
    """float64[2^fraction]: the float32 numbers nearest to 2^(j / 2^fraction), j = 0 .. 2^fraction - 1.

    By whole-number square roots with 64 digits to spare. None lies in the middle between two float32 numbers, being irrational.
    """
    digits = 88
    roots = [1 << digits]
    for _ in range(fraction):
        finer = []
        for i, root in enumerate(roots):
            above = roots[i + 1] if i + 1 < len(roots) else 2 << digits
            finer += [root, isqrt(root * above)]
        roots = finer
    half = 1 << (digits - 24)
    found = np.array([float((root + half) >> (digits - 23)) for root in roots]) / 2**23
    found.flags.writeable = False
    return found


@dataclass(frozen=True)
class Logarithmic(Element):
    """`logN_fF`: a sign bit over a field E of N - 1 bits; E = 0 is zero, others 2^((E - 1) / 2^F), as the nearest float32.

    log6_f2 has four steps an octave: 0, 1, 1.19, 1.41, 1.68, 2 ... 181 and negatives. There is a -0. Rounding is by value; exact ties go to
    the even code. The grid goes on with the next power.
    Source: Miyashita, Lee, Murmann 2016, arXiv 1603.01025 (base sqrt 2). Differs: any root of two; ties in the middle of values.
    """

    fraction: int

    @property
    def fields(self) -> dict[str, Any]:
        return {"family": "log", "bits": self.bits, "fraction": self.fraction}

    def _power(self, steps: Any) -> np.ndarray:
        steps = np.asarray(steps, dtype=np.int64)
        return np.ldexp(_binade(self.fraction)[steps & ((1 << self.fraction) - 1)], steps >> self.fraction)

    def decode(self, codes: Any) -> np.ndarray:
        c = self._checked(codes)
        half = 1 << (self.bits - 1)
        step = (c & (half - 1)) - 1
        value = np.where(step < 0, 0.0, self._power(np.maximum(step, 0)))
        return np.where(c >= half, -value, value)

    @cached_property
    def beyond(self) -> tuple[float, float]:
        above = float(self._power((1 << (self.bits - 1)) - 1))
        return -above, above


def parse(text: str) -> Logarithmic | None:
    found = _FORM.fullmatch(text)
    if not found:
        return None
    bits, fraction = int(found[1]), int(found[2])
    if not 3 <= bits <= 16:
        raise FormatError(f"logarithmic numbers have 3 to 16 bits, not {bits}")
    if fraction == 0:
        raise FormatError(f"with F = 0 the base is 2; write pot{bits}")
    if fraction > 10:
        raise FormatError(f"F is 1 to 10, not {fraction}: finer steps than 2^(1/1024) are the business of wider formats")
    if (1 << (bits - 1)) - 2 > LARGEST << fraction:
        least = next(f for f in range(1, 11) if (1 << (bits - 1)) - 2 <= LARGEST << f)
        raise FormatError(f"the largest value would be beyond 2^{LARGEST}; with {bits} bits F is {least} to 10")
    return Logarithmic(f"log{bits}_f{fraction}", bits, fraction)


FAMILIES.add(
    "log",
    Family(
        "log",
        "logarithmic: zero and the powers of 2^(1 / 2^F), as float32",
        "logN_fF with N 3 to 16, F 1 to 10",
        parse,
        {
            "log4_f1": "half-octave steps: 0 1 1.41 2 2.83 ... 8 and negatives",
            "log6_f2": "quarter-octave steps: 0 1 1.19 1.41 ... 181 and negatives",
            "log8_f3": "eighth-octave steps: 0 1 1.09 1.19 ... 55109 and negatives",
        },
    ),
)
