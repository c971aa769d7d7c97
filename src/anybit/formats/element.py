"""Element: what the codes of one number format mean, as one total function; everything else about the format derives from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from anybit.errors import FormatError, NonFiniteError, ShapeError
from anybit.formats.rounding import NONFINITES, OVERS, Switches, check_choice, stochastic_bits
from anybit.formats.stochastic import check_round, check_seed, drawn, stochastic_codes
from anybit.formats.table import Table, derive


@dataclass(frozen=True)
class Element(ABC):
    """A number format of `bits` bits: codes are unsigned integers 0 .. 2**bits - 1, each decodes to one float64.

    A subclass defines `decode` and may override `beyond`, `specials` and `_codes` where it knows a shorter way, and `reach`, `ties` and
    `wraps` where its numbers ask for it. Elements are equal when their names and fields are.
    """

    name: str
    bits: int

    @property
    def dim(self) -> int:
        """How many neighbouring numbers of the last axis one code stands for: 1, or 2, 4, 8 for a `Vector`."""
        return 1

    @property
    def table_shape(self) -> tuple[int, ...] | None:
        """Shape of the float32 values that each array learns and stores beside its codes; None: codes mean something by themselves."""
        return None

    @property
    def learned(self) -> bool:
        """Whether codes mean nothing without a table that was learned from the array: see `bind`."""
        return self.table_shape is not None

    def bind(self, table: np.ndarray) -> Element:
        """The element of one array: this with the values learned for it. FormatError: no such table, or no learned element."""
        raise FormatError(f"{self.name} has values of its own: there is no table to bind")

    @abstractmethod
    def decode(self, codes: Any) -> np.ndarray:
        """float64 values of an integer array of codes, same shape. Total: every code has a value, which may be NaN or infinite.

        FormatError: a code that does not fit in `bits` bits, or codes that are no integers.
        """

    @property
    def fields(self) -> dict[str, Any]:
        """The definition as plain data, for the reference definitions and for reports."""
        return {"family": "listed", "bits": self.bits, "values": self.values.tolist()}

    @property
    def unused(self) -> tuple[int, ...]:
        """Codes that encoding never gives although their value has no smaller code."""
        return ()

    @property
    def code_dtype(self) -> np.dtype:
        """The unsigned integer type that holds a code: uint8, uint16 or uint32."""
        return np.dtype(np.uint8 if self.bits <= 8 else np.uint16 if self.bits <= 16 else np.uint32)

    @cached_property
    def values(self) -> np.ndarray:
        """float64[2**bits], index = code, read-only. FormatError for more than 16 bits: there is no list to make."""
        if self.bits > 16:
            raise FormatError(f"{self.name} has 2**{self.bits} codes; values are listed up to 16 bits")
        values = np.asarray(self.decode(np.arange(1 << self.bits)), dtype=np.float64)
        values.flags.writeable = False
        return values

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        codes = np.setdiff1d(np.flatnonzero(np.isfinite(self.values)), self.unused)
        finite = self.values[codes]
        # Smallest code first among equals: -0 equals 0 and has the larger code.
        order = np.lexsort((codes, finite))
        finite, codes = finite[order] + 0.0, codes[order]
        first = np.r_[True, finite[1:] != finite[:-1]]
        finite, codes = finite[first], codes[first].astype(self.code_dtype)
        finite.flags.writeable = codes.flags.writeable = False
        return finite, codes

    @property
    def finite(self) -> np.ndarray:
        """float64: the finite values, sorted, each once."""
        return self._sorted[0]

    @property
    def finite_codes(self) -> np.ndarray:
        """The code that encoding gives for each of `finite`: the smallest used one of that value."""
        return self._sorted[1]

    @cached_property
    def max(self) -> float:
        """The largest finite value."""
        return float(self.finite[-1])

    @cached_property
    def min(self) -> float:
        """The least finite value, negative for signed elements."""
        return float(self.finite[0])

    @cached_property
    def smallest(self) -> float:
        """The smallest positive value; NaN if there is none."""
        positive = self.finite[self.finite > 0]
        return float(positive[0]) if positive.size else float("nan")

    @property
    def signed(self) -> bool:
        return self.min < 0

    @cached_property
    def has_zero(self) -> bool:
        return bool(np.any(self.finite == 0))

    @property
    def has_inf(self) -> bool:
        return "inf" in self.specials

    @property
    def has_nan(self) -> bool:
        return "nan" in self.specials

    @cached_property
    def specials(self) -> dict[str, int]:
        """Code of each special value that exists: "nan", "inf", "-inf", "-0" (the one that encoding gives)."""
        v = self.values
        tests = {"nan": np.isnan(v), "inf": v == np.inf, "-inf": v == -np.inf, "-0": (v == 0) & np.signbit(v)}
        return {name: int(np.argmax(found)) for name, found in tests.items() if found.any()}

    @cached_property
    def beyond(self) -> tuple[float, float]:
        """Where the grid would go on below and above its ends, as float64; a value that rounds there is out of range."""
        v = self.finite
        return float(2 * v[0] - v[1]), float(2 * v[-1] - v[-2])

    @property
    def reach(self) -> tuple[float, float]:
        """(negative, positive) magnitudes that a block's extremes are scaled to: |min| and max."""
        return max(-self.min, 0.0), max(self.max, 0.0)

    @cached_property
    def ties(self) -> tuple[Fraction, ...]:
        """Where the nearest rounding modes change sides, exactly: the middle of each gap of `finite` with `beyond` at its ends.

        An element whose definition puts them elsewhere (posits) says so here. Modes by direction and stochastic rounding go by value alone.
        """
        chain = [Fraction(v) for v in (self.beyond[0], *self.finite.tolist(), self.beyond[1])]
        return tuple((a + b) / 2 for a, b in pairwise(chain))

    @property
    def ties_are_middles(self) -> bool:
        """Whether `ties` are the exact middles: what is made of them then needs no fractions."""
        return type(self).ties is Element.ties

    @property
    def wraps(self) -> bool:
        """Whether over=wrap has a meaning: codes are numbers modulo 2**bits. `_codes` then does it."""
        return False

    @cached_property
    def table(self) -> Table:
        """What kernels compute with."""
        return derive(self)

    def encode(
        self, x: Any, round: str = "nearest-even", over: str = "saturate", nonfinite: str = "error", seed: int = 0
    ) -> np.ndarray:
        """Codes of x, exactly rounded from its own precision (float64 is not narrowed first).

        Args:
            x: any array of float16, bfloat16, float32, float64 or integers, any shape and strides.
            round: nearest-even (ties to the even code), nearest-away, nearest-zero, zero, up, down, odd; srN, 1 to 32: stochastic with N
                random bits a value (`sr` is sr24), see `formats/stochastic.py`.
            over: a value that rounds beyond the last one becomes the last (saturate), infinity (inf), NaN (nan), or an error; or every
                rounded number keeps its lowest bits (wrap: integers and fixed point).
            nonfinite: NaN and infinities in x are an error, kept (propagate: an infinity becomes NaN where the format has no infinity), or
                become the largest values and, for NaN, zero (saturate).
            seed: of stochastic rounding, 0 to 2^64 - 1; a value's random bits depend on the seed and on its place in x (C order).

        Returns: unsigned integers (uint8, uint16 or uint32 by `bits`), x's shape. A negative value that rounds to zero keeps its sign where
            the format has -0.

        Raises: FormatError: unknown policy, a policy that this format cannot serve, over="error" and a value out of range;
            NonFiniteError: nonfinite="error" and NaN or infinity in x; ShapeError: x is no array of real numbers.

        >>> from anybit.formats import parse_element
        >>> parse_element("fp4_e2m1").encode([0.3, -2.5, 100.0]).tolist()
        [1, 12, 7]
        """
        array = as_real(x)
        if array.ndim == 0:
            return self.encode(array.reshape(1), round, over, nonfinite, seed).reshape(())
        self.check_policy(round, over, nonfinite)
        check_seed(seed)
        bits = stochastic_bits(round)
        word = None if bits is None else drawn(seed, 0, array.size, bits).reshape(array.shape)
        bad = ~np.isfinite(array)
        if not bad.any():
            return self._codes(array, round, over) if word is None else self._stochastic(array, int(bits or 0), over, word)
        if nonfinite == "error":
            raise_non_finite(bad, array, "array")
        good = np.where(bad, array.dtype.type(0 if self.has_zero else self.min), array)  # never out of range: over=error sees the rest
        codes = self._codes(good, round, over) if word is None else self._stochastic(good, int(bits or 0), over, word)
        return np.where(bad, self._non_finite_codes(array, nonfinite), codes)

    def _non_finite_codes(self, x: np.ndarray, nonfinite: str) -> np.ndarray:
        """Codes for the NaN and infinite entries of x (other entries: anything)."""
        special = self.specials
        if nonfinite == "propagate":
            nan = special["nan"] if self.has_nan else 0
            plus, minus = special.get("inf", nan), special.get("-inf", nan)
        else:
            nan = int(self._codes(np.zeros(1), "nearest-even", "saturate")[0])
            plus, minus = (int(c) for c in self._codes(np.array([np.inf, -np.inf]), "nearest-even", "saturate"))
        return np.where(np.isnan(x), nan, np.where(x > 0, plus, minus)).astype(self.code_dtype)

    def check_policy(self, round: str, over: str, nonfinite: str) -> None:
        """Raises FormatError for an unknown policy or one that needs a special value which this format lacks."""
        check_round(round)
        check_choice("over", over, OVERS)
        check_choice("nonfinite", nonfinite, NONFINITES)
        lacks = {"inf": None if self.has_inf else "has no infinity", "nan": None if self.has_nan else "has no NaN",
                 "wrap": None if self.wraps else "is no two's complement or unsigned number to wrap"}  # fmt: skip
        if lacks.get(over):
            has = [o for o in OVERS if not lacks.get(o)]
            raise FormatError(f"over={over}: {self.name} {lacks[over]}; use {', '.join(has)}")
        if nonfinite == "propagate" and not self.has_nan:
            raise FormatError(f"nonfinite=propagate: {self.name} has no NaN; use error or saturate")

    def _codes(self, x: np.ndarray, round: str, over: str) -> np.ndarray:
        """Codes of a float32 or float64 array without NaN; an infinity counts as a value out of range. Policies are checked already."""
        return switches(self, round, over).encode(x)

    def _stochastic(self, x: np.ndarray, bits: int, over: str, word: np.ndarray) -> np.ndarray:
        """Codes of a float32 or float64 array without NaN, by one random word a value."""
        return stochastic_codes(self, x, bits, over, word)

    def _checked(self, codes: Any) -> np.ndarray:
        """Codes as int64. FormatError: not integers, or out of range."""
        array = np.asarray(codes)
        if array.dtype.kind not in "iu":
            raise FormatError(f"codes are unsigned integers, not {array.dtype}")
        if array.size and (int(array.max()) >= 1 << self.bits or int(array.min()) < 0):
            raise FormatError(f"{self.name} has codes 0 to {(1 << self.bits) - 1}, not {int(array.min())} to {int(array.max())}")
        return array.astype(np.int64)

    def __str__(self) -> str:
        return self.name


@lru_cache(maxsize=512)
def switches(element: Element, round: str, over: str) -> Switches:
    """The switch points of an element, made once."""
    return Switches(element, round, over)


def as_real(x: Any) -> np.ndarray:
    """x as a native float32 or float64 array of the same values. ShapeError: complex, text, or wider than float64."""
    array = np.asarray(x)
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "f" and size <= 8:
        return array.astype(np.float32 if size <= 4 else np.float64, copy=False)
    if kind in "iub":
        return array.astype(np.float64)
    if array.dtype.name.startswith(("bfloat16", "float8", "float6", "float4")):
        return array.astype(np.float32)
    raise ShapeError(f"numbers are float16, bfloat16, float32, float64 or integers, not {array.dtype}")


def raise_non_finite(bad: np.ndarray, x: np.ndarray, name: str) -> None:
    """Raises NonFiniteError naming the array, the first index and the count."""
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape))
    raise NonFiniteError(
        f"{name} holds {int(bad.sum())} non-finite value(s), the first {float(x[index])} at index [{', '.join(map(str, index))}];"
        " use nonfinite=saturate or nonfinite=propagate to accept them"
    )
