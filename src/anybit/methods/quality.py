"""How well a format keeps numbers of a known distribution: signal-to-noise ratio on synthetic sources."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from anybit.errors import UsageError, near_misses
from anybit.formats import Format, Spec
from anybit.methods.rtn import dequantize_parts, quantize_parts

SOURCES = ("normal", "laplace", "t4")
ROW = 4096


def sample(source: str, n: int, seed: int = 0) -> np.ndarray:
    """float32[ceil(n / 4096), 4096] of unit-scale numbers: normal, Laplace, or Student's t with 4 degrees of freedom.

    UsageError: no such source.
    """
    if source not in SOURCES:
        raise UsageError(f"no source named '{source}'; there is {', '.join(SOURCES)}{near_misses(source, SOURCES)}")
    rng, shape = np.random.default_rng(seed), (-(-n // ROW), ROW)
    if source == "normal":
        return rng.standard_normal(shape, dtype=np.float32)
    return (rng.laplace(size=shape) if source == "laplace" else rng.standard_t(4, size=shape)).astype(np.float32)


@lru_cache(maxsize=1024)
def _sqnr_db(spec: Spec, source: str, seed: int, n: int) -> float:
    return sqnr_db_of(sample(source, n, seed), spec, source)


def sqnr_db_of(x: np.ndarray, spec: Spec, name: str = "array") -> float:
    """For any array 10 log10(sum x^2 / sum (q - x)^2): infinite when nothing is lost, NaN when all of x is zero and becomes something."""
    with np.errstate(over="ignore", invalid="ignore"):
        error = dequantize_parts(quantize_parts(x, spec, name=name), spec.format, x.shape) - x.astype(np.float64)
        noise, signal = (float(np.square(v, dtype=np.float64).sum()) for v in (error, x))
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else math.nan


def scaled(fmt: Format | Spec | str) -> Spec:
    """A Spec that can be measured: elements of up to 8 bits without a block get one float32 scale a row."""
    spec = Spec.parse(fmt)
    if spec.format.block is None and not spec.format.dense:
        return Spec(Format(f"{spec.format.element}@channel"), spec.policy)
    return spec


def sqnr_db(fmt: Format | Spec | str, source: str = "normal", seed: int = 0, n: int = 1 << 16) -> float:
    """Signal-to-quantization-noise ratio in dB of a format (or a Spec, with its scale rule) on n independent numbers.

    An element of up to 8 bits without a block is given one float32 scale a 4,096 numbers: by itself it has no scale to fit a source.

    >>> round(sqnr_db("int8@channel"), 1) > round(sqnr_db("int4@32"), 1)
    True
    """
    return _sqnr_db(scaled(fmt), source, seed, n)
