"""Ranking formats by what they cost and what they keep: exact bits a weight and signal-to-noise ratio on one source of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from anybit.errors import FileFormatError, UsageError, near_misses
from anybit.formats import Spec
from anybit.methods.quality import SOURCES, sample, scaled, sqnr_db_of

NUMBERS = 1 << 18
"""How many numbers of a named source are quantized: rows of 4,096."""


@dataclass(frozen=True)
class Ranked:
    """One format. name: as it was given; spec: what was measured; bits: exact bits a weight on the array; pareto: no other has both."""

    name: str
    spec: Spec
    bits: Fraction
    sqnr_db: float
    pareto: bool


def load_source(source: str, seed: int = 0) -> np.ndarray:
    """The numbers to quantize: a named source, or the array of a .npy file (float16, float32, float64, any shape).

    UsageError: no such source. FileFormatError: a file that is no array of real numbers, or empty; NonFiniteError comes with quantizing.
    """
    if source in SOURCES:
        return sample(source, NUMBERS, seed)
    path = Path(source)
    if path.suffix != ".npy":
        close = near_misses(source, SOURCES)
        raise UsageError(f"--on {source}: there is {', '.join(SOURCES)}, or the path of a .npy file{close}")
    try:
        array = np.load(path)  # which takes no pickled objects unless told to
    except OSError as error:
        raise FileFormatError(f"{path}: {error.strerror or error}") from None
    except (ValueError, EOFError):
        raise FileFormatError(f"{path}: no .npy array of numbers; write one with numpy.save") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        raise FileFormatError(f"{path}: an array of real numbers is needed, not {getattr(array, 'dtype', type(array).__name__)}")
    if array.size == 0 or array.ndim == 0:
        raise FileFormatError(f"{path}: its shape is {list(array.shape)}; at least one axis and one number are needed")
    return array


def rank(names: Sequence[str], x: np.ndarray, source: str) -> list[Ranked]:
    """Formats by ascending bits, the better one first among equals. FormatError: one that cannot be read or cannot serve its policy."""
    specs = [scaled(name) for name in names]
    bits = [Fraction(spec.format.size_bits(x.shape), x.size) for spec in specs]
    found = [sqnr_db_of(x, spec, source) for spec in specs]
    pairs = list(zip(bits, found, strict=True))
    beaten = [math.isnan(s) or any(bits_ <= b and s_ >= s and (bits_, s_) != (b, s) for bits_, s_ in pairs) for b, s in pairs]
    rows = [Ranked(name, spec, b, s, not lost) for name, spec, b, s, lost in zip(names, specs, bits, found, beaten, strict=True)]
    return sorted(rows, key=lambda r: (r.bits, -r.sqnr_db if not math.isnan(r.sqnr_db) else math.inf))
