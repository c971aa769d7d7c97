"""Codebooks: any list of numbers, code = position in the list; some published lists have names (NF4)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from anybit.errors import FormatError
from anybit.formats.codebooks import PUBLISHED
from anybit.formats.element import Element
from anybit.formats.family import FAMILIES, Family

_NUMBER = re.compile(r"-?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})(e-?[0-9]{1,3})?")
_LARGEST, _LEAST = 2.0**64, 2.0**-64


@dataclass(frozen=True)
class Codebook(Element):
    """`entries[code]`; codes past the end of the list decode like its last entry. No -0, no specials, ties to the even position."""

    entries: tuple[float, ...]

    @property
    def fields(self) -> dict[str, Any]:
        return {"family": "codebook", "bits": self.bits, "entries": list(self.entries)}

    def decode(self, codes: Any) -> np.ndarray:
        return np.array(self.entries, dtype=np.float64)[np.minimum(self._checked(codes), len(self.entries) - 1)]


def number_text(value: float) -> str:
    """The shortest decimal that names this float32, without a plus sign (which separates options).

    >>> number_text(0.5), number_text(-1.0), number_text(1e20)
    ('0.5', '-1', '1e20')
    """
    text = str(np.float32(value)).replace("e+", "e")
    return text[:-2] if text.endswith(".0") else text


def make(numbers: list[float]) -> Codebook:
    """A codebook of these numbers, each rounded to float32. FormatError: fewer than two, repeated, or out of scale."""
    with np.errstate(over="ignore"):
        entries = tuple(float(np.float32(x)) + 0.0 for x in numbers)
    if not 2 <= len(entries) <= 1 << 16:
        raise FormatError(f"a codebook has 2 to 65536 entries, not {len(entries)}")
    if not all(np.isfinite(entries)):
        raise FormatError("a codebook has finite entries within float32's range")
    seen: set[float] = set()
    for value in entries:
        if value in seen:
            raise FormatError(f"{number_text(value)} is in the codebook twice (entries are float32)")
        seen.add(value)
    largest = max(abs(v) for v in entries)
    if not _LEAST <= largest <= _LARGEST:
        raise FormatError(f"the largest entry of a codebook lies between 2^-64 and 2^64, not {largest:g}; put the rest into the scale")
    return Codebook("codebook_" + "_".join(map(number_text, entries)), (len(entries) - 1).bit_length(), entries)


def parse(text: str) -> Codebook | None:
    if text in PUBLISHED:
        return replace(make(list(PUBLISHED[text][0])), name=text)
    head, _, rest = text.partition("_")
    if head != "codebook":
        return None
    if not rest:
        raise FormatError("an empty codebook; list its entries, as in codebook_-1_0_1")
    numbers = rest.split("_")
    for number in numbers:
        if not _NUMBER.fullmatch(number):
            raise FormatError(f"'{number[:40]}' is no number; entries are decimals joined by '_', as in codebook_-1_-0.5_0_0.5_1")
    return make([float(number) for number in numbers])


FAMILIES.add(
    "codebook",
    Family(
        "codebook",
        "any list of numbers; a code is a position in the list",
        "codebook_A_B_..., or a name",
        parse,
        {
            **{name: about for name, (_, about) in PUBLISHED.items()},
            "codebook_-1_-0.5_0_0.5_1": "an example of a list; any 2 to 65536 numbers",
        },
    ),
)
