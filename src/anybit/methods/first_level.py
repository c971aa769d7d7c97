"""The numbers of the first level, scales and offsets, under fixed levels above: from what is wished to what can be stored."""

from __future__ import annotations

import numpy as np

from anybit.formats import Format
from anybit.methods.chain import Chain
from anybit.methods.method import Parts

LARGEST = float(np.finfo(np.float32).max)


class FirstLevel:
    """Those of one kind. `codes`: the part that stores them, to be changed; none is above `limit` in magnitude."""

    def __init__(self, chain: Chain, codes: np.ndarray, limit: float) -> None:
        self.element, self.codes, self.limit = chain.elements[0], codes.copy(), limit
        self.factors = [chain._local(factor, slice(None)) for factor in chain._factors]

    def near(self, wish: np.ndarray, block: int | slice, nonzero: bool) -> tuple[np.ndarray, np.ndarray]:
        """Codes and float32 numbers nearest to wishes (float64) for one column of blocks, or for all. `nonzero`: no zeros, for scales."""
        outer = np.ones(wish.shape)
        for factor in self.factors:
            outer = outer * factor[:, block]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = np.where(outer != 0, np.clip(wish, -self.limit, self.limit) / outer, 0.0)
        e = self.element
        if nonzero:
            ratio = np.where(ratio < 0, np.clip(ratio, e.min, -e.smallest) if e.signed else e.smallest, np.clip(ratio, e.smallest, e.max))
        codes = e.encode(np.clip(ratio, e.min, e.max) + 0.0)
        number = e.decode(codes).astype(np.float32)
        for factor in self.factors:
            number = number * factor[:, block]
        return codes, number



def first_levels(parts: Parts, fmt: Format, shape: tuple[int, int]) -> dict[str, FirstLevel]:
    """By the name of the part: "scale.0", and "offset.0" where there is one."""
    levels = range(1, len(fmt.levels))
    reach = max(abs(fmt.element.max), abs(fmt.element.min)) * (2 if fmt.zero is not None else 1)
    scales = Chain(fmt, shape, [level.element for level in fmt.levels])
    scales.load([parts[f"scale.{i}"] for i in levels])
    found = {"scale.0": FirstLevel(scales, parts["scale.0"], LARGEST / 2 / reach)}
    if fmt.offset is not None:
        offsets = Chain(fmt, shape, [fmt.offset_element(i) for i in range(len(fmt.levels))])
        offsets.load([parts[f"offset.{i}"] for i in levels])
        found["offset.0"] = FirstLevel(offsets, parts["offset.0"], LARGEST / 2)
    return found
