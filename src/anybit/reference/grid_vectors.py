"""Elements of several weights by explicit grids: all vectors written down, groups placed by trying every one. Shares no code with `formats`
or with the rational reference."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np


def values(definition: Mapping[str, Any]) -> np.ndarray:
    """float64[2**bits, dim]: the vector of each code, built by walking through all combinations. ValueError: a family not defined here."""
    family = definition["family"]
    out = np.full((1 << definition["bits"], definition["dim"]), np.nan)
    if family == "ovp":
        _pairs(definition, out)
    elif family == "signed grid":
        _signed(definition, out)
    elif family == "additive":
        books = [np.array(book) for book in definition["books"]]
        for code, chosen in enumerate(product(*(range(len(book)) for book in reversed(books)))):
            out[code] = sum(book[i] for book, i in zip(books, reversed(chosen), strict=True))
    elif family == "listed":
        out[:] = definition["values"]
    else:
        raise ValueError(f"no reference for the family '{family}'")
    return out


def _pairs(definition: Mapping[str, Any], out: np.ndarray) -> None:
    count = 1 << definition["bits"] // 2
    half = count // 2
    sizes = np.arange(half, dtype=np.float64) if definition["normal"] == "int" else np.array([0.0, 1, 2, 3, 4, 6, 8, 16])
    # int: two's complement, so magnitudes walk down again from the middle; flint: a sign bit. The middle code is no number.
    normal = np.r_[sizes, 0, -sizes[:0:-1]] if definition["normal"] == "int" else np.r_[sizes, 0, -sizes[1:]]
    steps = 1 << definition["mantissa"]
    walk, value, step = [0.0], 2.0 ** (definition["bias"] + definition["mantissa"]), 2.0 ** definition["bias"]
    for i in range(1, half):
        value += step
        walk.append(value)
        if i % steps == 0:
            step *= 2
    outlier = np.r_[walk, [-v for v in walk]]
    for high in range(count):
        for low in range(count):
            victims = (low == half) + 2 * (high == half)
            out[high * count + low] = ((normal[low], normal[high]), (0, outlier[high]), (outlier[low], 0), (0, 0))[victims]


def _signed(definition: Mapping[str, Any], out: np.ndarray) -> None:
    dim, shifts = definition["dim"], [-definition["shift"], definition["shift"]] if definition["shift"] else [0.0]
    code = 0
    for magnitudes, odd in zip(definition["grid"], definition["odd"], strict=True):
        for signs in product((1.0, -1.0), repeat=dim - 1):
            rest = float(np.prod(signs))
            first = -rest if odd else rest
            for shift in shifts:
                out[code] = np.array(magnitudes) * np.array([first, *signs]) + shift
                code += 1


class GridVectors:
    """One element of several weights as a list of vectors; `encode` tries every one for each group."""

    def __init__(self, definition: Mapping[str, Any]) -> None:
        self.values = values(definition)

    def encode(self, x: np.ndarray) -> np.ndarray:
        """int64[m]: codes of finite float64[m, dim], the smallest of equally near ones."""
        return np.array([np.square(self.values - row).sum(axis=1).argmin() for row in x])
