"""Bipolar integers: every bit counts +1 or -1 times its power of two, so that products are sums of XNORs; there is no zero."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from anybit.errors import FormatError
from anybit.formats.element import Element
from anybit.formats.family import FAMILIES, Family

_FORM = re.compile(r"bipolar([0-9]{1,3})")


@dataclass(frozen=True)
class Bipolar(Element):
    """`bipolarN`: the code with bits b_i is sum (2 b_i - 1) 2^i, the odd numbers from -(2^N - 1) to 2^N - 1. No zero, no specials.

    Ties (the even numbers) go to the even code: 0 becomes 1, whose code is 2^(N-1), but -1 in bipolar1, which is binary.
    Source: the bipolar-INT format of arXiv 2409.17870 (arbitrary-precision matrix products of large language models on tensor cores).
    """

    @property
    def fields(self) -> dict[str, Any]:
        return {"family": "bipolar", "bits": self.bits}

    def decode(self, codes: Any) -> np.ndarray:
        return (2 * self._checked(codes) - ((1 << self.bits) - 1)).astype(np.float64)


def parse(text: str) -> Bipolar | None:
    found = _FORM.fullmatch(text)
    if not found:
        return None
    bits = int(found[1])
    if not 1 <= bits <= 16:
        raise FormatError(f"bipolar integers have 1 to 16 bits, not {bits}")
    return Bipolar(f"bipolar{bits}", bits)


FAMILIES.add(
    "bipolar",
    Family(
        "bipolar",
        "odd whole numbers: every bit counts +1 or -1 times its power of two; no zero",
        "bipolarN with N 1 to 16",
        parse,
        {f"bipolar{n}": f"odd numbers {1 - (1 << n)} to {(1 << n) - 1}" for n in (2, 3, 4, 8)},
    ),
)
