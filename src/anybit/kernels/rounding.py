"""Native rounding of float32 arrays to an element's values and codes: which path serves an element, and its tables.

A path is chosen by what an element's values are (equal steps in each binade, the leading bits of a float32, few values, anything), never by
a name, and is taken only if it gives the element's own codes at and around its switch points.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from anybit.formats import Element
from anybit.formats.element import switches
from anybit.formats.rounding import stochastic_bits
from anybit.kernels.cpu import native  # which sets instruction set and threads from the environment
from anybit.kernels.switch_tables import by_rank, drawn_search, search_tree
from anybit.kernels.tapered import exact_gaps, sides, taper

KINDS = {"steps": 0, "prefix": 1, "tapered": 2, "search": 3, "buckets": 4, "bisect": 5}
STOCHASTIC = 7
"""The native module's number of stochastic rounding; the other modes have their places in ROUNDS."""
_OVERS = ("saturate", "inf", "nan", "error")
_DETERMINISTIC = ("nearest-even", "nearest-away", "nearest-zero", "zero", "up", "down", "odd")


class Rounding:
    """One element under one policy, ready to run. `path` names what serves it."""

    def __init__(self, path: str, native_round: Any, element: Element) -> None:
        self.path, self._native, self.element = path, native_round, element

    def values(self, x: np.ndarray, out: np.ndarray, seed: int = 0, start: int = 0) -> tuple[int, int, int, int]:
        """Writes the values of float32[n] x into float32[n] out, which may be x. `start`: the place of x[0], for stochastic rounding.

        Returns: how many numbers are not finite and may not be, and the first one's index; how many are out of range under over=error,
        and the first. If any are, what out holds is not defined.
        """
        return self._native.values(x, out, int(seed), int(start))

    def codes(self, x: np.ndarray, out: np.ndarray, seed: int = 0, start: int = 0) -> tuple[int, int, int, int]:
        """The same for codes: out is [n] of the element's code type."""
        return self._native.codes(x, out, int(seed), int(start))

    def blocks(self, fields: dict[str, Any], x: np.ndarray, out: np.ndarray, seed: int = 0) -> bool:
        """Writes the values of float32[rows, k] x in blocks with scales into out; `fields` as native/round.h's BlockPlan says.

        Returns: False where some scale would be too large or some number is not finite: out is then undefined.
        """
        return bool(self._native.blocks(fields, x, out, int(seed)))

    def tokens(self, fields: dict[str, Any] | None) -> Any:
        """The native rounding of rows, each by itself; `fields` as native/around.h's Rounding says, None: without scales."""
        return self._native.tokens(fields)

    def cache(self, fields: dict[str, Any] | None, bits: int, scale: int, scale_table: np.ndarray) -> Any:
        """The native format of rows kept as codes of `bits` bits; scale: how scales lie (native/cache.h), and their values."""
        return self._native.cache(fields, bits, scale, scale_table)

    def decode(self, codes: np.ndarray, out: np.ndarray) -> bool:
        """Writes the float32 values of codes [n]; False where some are no codes of the element."""
        return not self._native.decode(codes, out)


def rounding(element: Element, round: str, over: str, nonfinite: str) -> Rounding | None:
    """The native path of an element of at most 16 bits under a checked policy; None: there is none."""
    return _rounding(element, round, over, nonfinite, native.isa() != "generic")


@lru_cache(maxsize=256)
def _rounding(element: Element, round: str, over: str, nonfinite: str, permutes: bool) -> Rounding | None:
    """The same; without permutes buckets are faster than the tapered path."""
    random = stochastic_bits(round)
    if element.bits > 16 or element.dim != 1 or over not in _OVERS or (random is not None and over == "error"):
        return None
    if random is None and round not in _DETERMINISTIC:
        return None
    common = _common(element, round, over, nonfinite)
    steps = _steps(element)
    paths: tuple[tuple[str, Tables], ...] = (
        ("steps", steps), ("prefix", steps), ("search", _search), ("tapered", tapered if permutes else _none), ("buckets", by_rank),
        ("bisect", by_rank),
    )  # fmt: skip
    for path, tables in paths:
        fields = tables(element, path, round, over)
        if fields is None:
            continue
        found = Rounding(path, native.Round(common | fields | {"kind": KINDS[path]}), element)
        if _agrees(found, round, over):
            return found
    return None


def codes(element: Element, x: np.ndarray, round: str, over: str) -> np.ndarray:
    """element._codes of finite numbers, natively where that is possible: the same codes, the same errors."""
    if x.dtype != np.float32 or x.size < _LEAST or not x.dtype.isnative:
        return element._codes(x, round, over)
    plan = rounding(element, round, over, "saturate")
    if plan is None:
        return element._codes(x, round, over)
    flat = np.ascontiguousarray(x).reshape(-1)
    out = np.empty(flat.shape, element.code_dtype)
    if plan.codes(flat, out)[2]:
        return element._codes(x, round, over)  # which says what is out of range
    return out.reshape(x.shape)


SUMS = ("pairs", "scales", "loss", "power")
_LARGEST = float(np.finfo(np.float32).max)


def block_sums(
    element: Element, round: str, over: str, what: str, x: np.ndarray, size: int, scale: np.ndarray, offset: np.ndarray | None = None,
    before: np.ndarray | None = None, weight: np.ndarray | None = None, end: float | None = None, unit: np.ndarray | None = None,
    power: float = 2.0,
) -> np.ndarray | None:  # fmt: skip
    """float64[blocks, sums] of numbers float32[n] in blocks of `size`, one after the other, as native/sums.h says; None: no native way.

    what: of `SUMS`. scale, offset, before: float32, one a block; weight: float64, of as many numbers as repeat; end: where ratios end;
    unit: float64, one a block, and power: for "power".
    """
    plan = rounding(element, round, over, "saturate")
    if plan is None:
        return None
    numbers = (None if each is None else np.ascontiguousarray(each, np.float32).reshape(-1) for each in (scale, offset, before))
    end = _LARGEST if end is None else end
    found: np.ndarray = native.block_sums(plan._native, SUMS.index(what), x, size, *numbers, weight, end, unit, power)
    return found


def block_ends(x: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """float32[blocks] twice: the least and the largest of a contiguous float32[n] in blocks of `size`; NaN where one is not finite."""
    low, high = native.block_ends(x, size)
    return low, high


def block_codes(
    element: Element, round: str, x: np.ndarray, size: int, scale: np.ndarray, zero: np.ndarray | None, offset: np.ndarray | None,
    whole: bool, end: float | None,
) -> np.ndarray | None:  # fmt: skip
    """Codes [n] of (x - offset) / scale + zero, each operation rounded to float32, saturating; None: no native way.

    x: finite contiguous float32[n] in blocks of `size`; scale (0: ratios are 0), zero, offset: float32, one a block; whole: ratios are
    rounded to integers, of ties to the even one, before zero is added; end: where ratios end on both sides.
    """
    plan = rounding(element, round, "saturate", "saturate") if len(x) >= _LEAST else None
    if plan is None:
        return None
    out = np.empty(len(x), element.code_dtype)
    numbers = (None if each is None else np.ascontiguousarray(each, np.float32).reshape(-1) for each in (scale, zero, offset))
    native.block_codes(plan._native, x, size, *numbers, whole, _LARGEST if end is None else end, out)
    return out


def block_values(
    table: np.ndarray, codes: np.ndarray, size: int, scale: np.ndarray, zero: np.ndarray | None, offset: np.ndarray | None, out: np.ndarray
) -> bool:  # fmt: skip
    """Writes (table[code] - zero) * scale + offset, each operation rounded to float32, into a contiguous float32[n] `out`.

    table: float32, 2^bits values; codes: a contiguous uint8[n] in blocks of `size`; scale, zero, offset: float32, one a block.
    Returns: False where some code is not in the table: `out` is then undefined.
    """
    padded = np.zeros(256, np.float32)
    padded[: len(table)] = table
    numbers = (None if each is None else np.ascontiguousarray(each, np.float32).reshape(-1) for each in (scale, zero, offset))
    return bool(native.block_values(codes, padded, len(table) <= 16, size, *numbers, out) < len(table))


_LEAST = 1 << 9
"""Numbers from which the native call is worth its way."""


def _common(element: Element, round: str, over: str, nonfinite: str) -> dict[str, Any]:
    """What every path needs: the policy, the values of all codes, what stands for NaN and infinities."""
    random = stochastic_bits(round)
    width = element.code_dtype.itemsize
    decoded = np.resize(element.values.astype(np.float32), 1 << 8 * width)
    special, special_values = np.zeros(3, np.uint32), np.array([np.nan, np.inf, -np.inf], np.float32)  # what is refused stays
    if nonfinite != "error":
        special = element._non_finite_codes(special_values.astype(np.float64), nonfinite)
        special_values = decoded[special]
    first, last = _ends(element, round) if over == "error" else (0.0, 0.0)
    minus_zero = element.specials.get("-0")
    plus_zero = int(element.finite_codes[np.searchsorted(element.finite, 0.0)]) if element.has_zero else -1
    return {
        "mode": STOCHASTIC if random is not None else _DETERMINISTIC.index(round), "random_bits": random or 0, "width": width,
        "decoded": decoded, "codes": (1 << element.bits) - 1, "keep_specials": nonfinite != "error", "refuse_outside": over == "error",
        "fill": 0.0 if element.has_zero else element.min, "first": first, "last": last,
        "special_codes": special.astype(np.int32), "special_values": special_values,
        "minus_zero": minus_zero is not None, "minus_zero_code": -1 if minus_zero is None else minus_zero, "zero_code": plus_zero,
    }  # fmt: skip


def _ends(element: Element, round: str) -> tuple[float, float]:
    """The smallest float32 that is not below the range, and the smallest that is above."""
    points = switches(element, round, "saturate").points
    return _up32(float(points[0])), _up32(float(points[-1]))


def largest_magnitude(x: np.ndarray) -> float:
    """The largest magnitude of a contiguous float32[n]; NaN or infinity if there is one (which of them is not said)."""
    return float(np.uint32(native.largest_magnitude(x)).view(np.float32))


def _up32(x: float) -> float:
    """The smallest float32 that is not less than x."""
    with np.errstate(over="ignore", under="ignore"):
        near = np.float32(x)
    return float(near if float(near) >= x else np.nextafter(near, np.float32(np.inf)))


Tables = Callable[[Element, str, str, str], "dict[str, Any] | None"]


def _steps(element: Element) -> Tables:
    """The paths that compute, for values of equal steps in each binade."""

    def tables(element: Element, path: str, round: str, over: str) -> dict[str, Any] | None:
        grid = _grid(element, path == "prefix")
        if grid is None:
            return None
        return grid | _outside(element, over)

    return tables


def _outside(element: Element, over: str) -> dict[str, Any]:
    """What numbers beyond the ends become."""
    ends = element._codes(np.array([np.inf, -np.inf], np.float32), "nearest-even", "saturate" if over == "error" else over)
    return {
        "out_code": ends.astype(np.int32), "out_value": element.values[ends].astype(np.float32), "clips": over in ("saturate", "error")
    }  # fmt: skip


def _none(element: Element, path: str, round: str, over: str) -> None:
    """The tables of a path that does not pay here."""


def tapered(element: Element, path: str, round: str, over: str) -> dict[str, Any] | None:
    """Tables for values that are the upper bits of a float32, as many as its exponent says."""
    found, bits = sides(element), stochastic_bits(round)
    if found is None or (bits is not None and (bits > 24 or over != "saturate" or not exact_gaps(found))):
        return None
    table = taper(element, found, "down" if bits is not None else round)
    return None if table is None else found.fields | table | _outside(element, over)


def _grid(element: Element, prefix: bool) -> dict[str, Any] | None:
    """Mantissa bits, first binade, ends and the form of the codes; None if the values or codes are others."""
    found = sides(element)
    shape = None if found is None else _prefix_of(found.longer) if prefix else _steps_of(found.longer)
    if found is None or shape is None:
        return None
    mantissa, least, beyond = shape
    up, down = found.count
    if element.beyond[1] != beyond(up) or (down > 1 and element.beyond[0] != -beyond(down)):
        return None
    return found.fields | {"mantissa": mantissa, "least": least, "cap": float(4 * found.longer[-1]) if not prefix else 1.0}


def _steps_of(side: np.ndarray) -> tuple[int, int, Callable[[int], float]] | None:
    """Mantissa bits, float32's exponent field of the first binade, the rule of magnitudes; None: no equal steps that double by binades."""
    step = float(side[1])
    if np.frexp(step)[0] != 0.5:
        return None
    wider = np.flatnonzero(np.diff(side) != step)
    run = int(wider[0]) if wider.size else 1 << max(1, (len(side) - 1).bit_length())
    mantissa = run.bit_length() - 2
    if run < 2 or run & (run - 1) or mantissa > 22:
        return None

    def magnitude(rank: Any) -> Any:
        e = np.maximum(np.asarray(rank) >> mantissa, 1)
        return np.ldexp((np.asarray(rank) - ((e - 1) << mantissa)).astype(np.float64), e - 1) * step

    least = 127 + int(np.frexp(step)[1]) - 1 + mantissa
    if not np.array_equal(magnitude(np.arange(len(side))), side) or least < 64 or side[-1] > 2.0**90:
        return None
    return mantissa, least, magnitude


def _prefix_of(side: np.ndarray) -> tuple[int, int, Callable[[int], float]] | None:
    """The same where a magnitude's code is the upper bits of its float32."""
    bits = side.astype(np.float32).view(np.uint32).astype(np.int64)
    mantissa = 24 - int(bits[1]).bit_length()
    if not 0 <= mantissa <= 22 or not np.array_equal(bits, np.arange(len(side)) << (23 - mantissa)):
        return None

    def magnitude(rank: int) -> float:
        pattern = rank << (23 - mantissa)
        return 2.0**128 if pattern == 0x7F800000 else float(np.uint32(pattern).view(np.float32))

    return mantissa, 1, magnitude


def _search(element: Element, path: str, round: str, over: str) -> dict[str, Any] | None:
    """Tables for at most 16 values; the ends clip."""
    if len(element.finite) > 16 or over not in ("saturate", "error"):
        return None
    bits = stochastic_bits(round)
    if bits is not None:
        return drawn_search(element, bits)
    return search_tree(element, switches(element, round, "saturate").points32[1:-1])


def _agrees(found: Rounding, round: str, over: str) -> bool:
    """Whether a path gives the element's codes at its values, its switch points and their neighbours (of wide elements: a sample)."""
    if stochastic_bits(round) is not None:
        return True  # its tables are those of the other modes, which agree, and its arithmetic is exact
    element = found.element
    chain = np.r_[element.beyond[0], element.finite, element.beyond[1]]
    ties = chain[:-1] / 2 + chain[1:] / 2 if element.ties_are_middles else np.array([float(tie) for tie in element.ties])
    if len(chain) > 1024:
        chain = chain[np.unique(np.r_[:128, np.random.default_rng(0).integers(0, len(chain), 512), -128:0] % len(chain))]
        ties = np.r_[ties[:128], ties[:: len(ties) // 512], ties[-128:]]
    with np.errstate(over="ignore", under="ignore"):
        points = np.r_[chain, chain[:-1] / 2 + chain[1:] / 2, ties, 0.0].astype(np.float32)
        x = np.concatenate([points, *(np.nextafter(points, np.float32(end)) for end in (np.inf, -np.inf)), [np.float32(-0.0)]])
    x = x[np.isfinite(x)]
    if over == "error":
        first, last = _ends(element, round)
        x = x[(x >= first) & (x < last)]
    got = np.empty(x.shape, element.code_dtype)
    found.codes(x, got)
    return bool(np.array_equal(got, element._codes(x, round, over)))
