"""Ternary and binary weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from anybit.formats.element import Element
from anybit.formats.family import FAMILIES, Family


@dataclass(frozen=True)
class Signs(Element):
    """`ternary`: codes 0, 1, 2 are -1, 0, 1 in 2 bits, and the unused code 3 decodes like 2. `binary`: codes 0, 1 are -1, 1; no zero.

    Ties go to the even code: 0.5 becomes 1 and -0.5 becomes -1 in ternary; 0 becomes -1 in binary.
    """

    @property
    def fields(self) -> dict[str, Any]:
        return {"family": self.name, "bits": self.bits}

    def decode(self, codes: Any) -> np.ndarray:
        c = self._checked(codes)
        return (np.minimum(c, 2) - 1 if self.bits == 2 else 2 * c - 1).astype(np.float64)


def parse(text: str) -> Signs | None:
    return Signs(text, 2 if text == "ternary" else 1) if text in ("ternary", "binary") else None


FAMILIES.add(
    "ternary",
    Family(
        "ternary",
        "weights that are only signs, with or without zero",
        "ternary, binary",
        parse,
        {"ternary": "-1, 0, 1 in 2 bits (8/5 bits with +pack=base3)", "binary": "-1, 1 in 1 bit"},
    ),
)
