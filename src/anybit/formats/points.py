"""Points: lists from which several neighbouring weights take their codes together, as GGUF's IQ1 to IQ3 store them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

SHIFT = 0.125
"""What `signs="shift"` adds or takes off."""


@dataclass(frozen=True, eq=False)
class Points:
    """What codes a type can name: `dim` weights are one of a list of points, with signs or a shift; a block shares an odd multiple of d.

        value = +-(magnitude at the weight's place) (2 s + 1) d                    signs "even", "free"
        value = (number at the weight's place +- 1/8) (2 s + 1) d                  signs "shift"

    load: gives uint8[points, dim], for each weight of a point its place in `numbers`; numbers: what places mean, ascending, one apart from
    the next code; signs: "even", as many weights of a group as not are negative, an even number; "free", any; "shift", a group is shifted
    up or down; group: weights that share the parity or shift; block: weights that share s; steps: how many s there are; unit: weights that
    share d. A code is the place, and `len(numbers)` more where the weight is negative or its group shifted down.
    """

    name: str
    load: Callable[[], np.ndarray]
    numbers: tuple[float, ...]
    signs: str
    group: int
    block: int
    steps: int = 16
    unit: int = 256

    @cached_property
    def places(self) -> np.ndarray:
        """uint8[points, dim]."""
        return self.load()

    @property
    def dim(self) -> int:
        """Weights of a point."""
        return int(self.places.shape[1])

    @cached_property
    def _index(self) -> np.ndarray:
        """int16[len(numbers)**dim]: the number of the point with these places (the first weight lowest), or -1."""
        base = len(self.numbers)
        found = np.full(base**self.dim, -1, np.int16)
        found[self._keys(self.places)] = np.arange(len(self.places))
        return found

    def _keys(self, places: np.ndarray) -> np.ndarray:
        key = places[..., -1].astype(np.intp)
        for i in range(places.shape[-1] - 2, -1, -1):
            key *= len(self.numbers)
            key += places[..., i]
        return key

    def codes(self, index: np.ndarray, negative: np.ndarray) -> np.ndarray:
        """uint8[..., points * dim] codes of points by number, and bool for each weight: negative, or shifted down."""
        codes = self.places[index].reshape(negative.shape)
        codes += negative * np.uint8(len(self.numbers))
        return codes

    def parsed(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The way back: int16[..., k / dim] numbers of points, -1 where there is no such point, and bool[..., k]."""
        base = np.uint8(len(self.numbers))
        negative = codes >= base
        places = (codes - negative * base).reshape(*codes.shape[:-1], -1, self.dim)
        return self._index[self._keys(places)], negative

    def refusal(self, codes: np.ndarray, scales: np.ndarray) -> str | None:
        """Why codes [..., k] of the element and first-level scales are none that the list can name; None: they are."""
        index, negative = self.parsed(codes)
        if (index < 0).any():
            return f"{self.dim} weights side by side are not always one of its {len(self.places)} points"
        of_group = negative.reshape(*negative.shape[:-1], -1, self.group)
        if self.signs == "even" and np.logical_xor.reduce(of_group, axis=-1).any():
            return f"{self.group} weights side by side have an odd number of signs"
        if self.signs == "shift" and (of_group != of_group[..., :1]).any():
            return f"{self.group} weights side by side are not all shifted alike"
        if (scales % 2 == 0).any() or (scales >= 2 * self.steps).any():
            return f"a scale is not odd or not below {2 * self.steps}"
        return None
