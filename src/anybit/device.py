"""Rounding, encoding and decoding arrays where they lie, by torch's or JAX's own operations: the same results as on the CPU, bit for bit.

A number's rank among the switch points is a binary search on the device; stochastic rounding computes the same Philox words in
64-bit integers. Codes of several weights: `device_vectors.py`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NoReturn

import numpy as np

from anybit.device_arrays import LIBRARIES, Arrays, arrays_of
from anybit.device_vectors import nearest_vectors, vectors
from anybit.errors import FormatError, NonFiniteError, ShapeError
from anybit.formats import Element, codes_shape
from anybit.formats.element import switches
from anybit.formats.rounding import OutOfRangeError, stochastic_bits

Policy = tuple[str, str, str]
_CODES = {1: "uint8", 2: "uint16", 4: "uint32"}


def _tables(ops: Arrays, element: Element, policy: Policy, place: str) -> dict[str, Any]:
    """Points, codes by rank and by sign, chain, values and special codes, on the device."""
    return _placed(ops.library, element, *policy, place)


@lru_cache(maxsize=64)
def _placed(library: str, element: Element, round: str, over: str, nonfinite: str, place: str) -> dict[str, Any]:
    if element.bits > 16 or element.dim != 1:
        raise FormatError(f"{element} has {element.bits} bits; on {place} elements have at most 16, so move the array to the CPU")
    if over == "wrap":
        raise FormatError(f"over=wrap: on {place} numbers do not wrap without scales; move the array to the CPU")
    found = switches(element, "nearest-even" if stochastic_bits(round) is not None else round, over)
    codes = found.codes.astype(np.int64)
    negative = codes if found.minus_zero is None else np.where(codes == found.plus_zero, found.minus_zero, codes)
    special = np.zeros(3, np.int64)
    if nonfinite != "error":
        special = element._non_finite_codes(np.array([np.nan, np.inf, -np.inf]), nonfinite).astype(np.int64)
    below, above = element.beyond
    arrays = {
        "points32": found.points32, "points64": found.points, "positive": codes, "negative": negative, "special": special,
        "chain": np.r_[below, element.finite, above], "values": element.values,
    }  # fmt: skip
    ops = LIBRARIES[library]()
    return {name: ops.table(a, place) for name, a in arrays.items()}


def words(ops: Arrays, seed: int, start: int, count: int, bits: int, x: Any) -> Any:
    """int64[count], where x lies: the words of `stochastic.drawn`."""
    upper = _halves(ops, seed, start, count, 0, x) << 16
    return upper if bits <= 16 else upper | _halves(ops, seed, start, count, 1, x)


def _halves(ops: Arrays, seed: int, start: int, count: int, stream: int, x: Any) -> Any:
    """int64[count], below 2^16, as in `stochastic.py`. A product that leaves int64 wraps around: 64 bits stay."""
    low = 0xFFFFFFFF
    k0, k1 = seed & low, seed >> 32
    first, last = start // 128, -(-(start + count) // 128)
    at = ops.places(16 * (last - first), x) + 16 * first
    c0, c1, c2, c3 = at & low, at >> 32, at * 0 + stream, at * 0
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((b >> 32) & low) ^ c1 ^ k0, b & low, ((a >> 32) & low) ^ c3 ^ k1, a & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    found = ops.stack([c0, c1, c2, c3]).reshape(-1, 16, 4).swapaxes(1, 2).reshape(-1)
    return ops.stack([found & 0xFFFF, found >> 16]).reshape(-1)[start - 128 * first :][:count]


def first_index(mask: Any) -> tuple[int, ...]:
    """Where a mask is first true."""
    return tuple(int(i) for i in np.unravel_index(int((mask.reshape(-1) * 1).argmax()), tuple(mask.shape)))


def raise_non_finite(number: Any, finite: Any, advice: str) -> NoReturn:
    """Raises NonFiniteError with the first place and the count."""
    index = first_index(~finite)
    found = f"{int((~finite).sum())} non-finite value(s), the first {float(number[index])} at index {list(index)}"
    raise NonFiniteError(f"array holds {found}; {advice}")


def numbers_of(ops: Arrays, x: Any) -> Any:
    """float32 or float64 of the same values: float64 of what is no float."""
    return ops.cast(x, "float64" if not ops.is_float(x) or ops.name(x) == "float64" else "float32")


def codes_on_device(ops: Arrays, number: Any, element: Element, policy: Policy, seed: int) -> Any:
    """int64 codes of float32 or float64 numbers."""
    round, over, nonfinite = policy
    finite = ops.isfinite(number)
    bad = int((~finite).sum())
    if bad and nonfinite == "error":
        raise_non_finite(number, finite, "use nonfinite=saturate or nonfinite=propagate to accept them")
    bits, word = stochastic_bits(round), None
    if bits is not None:
        word = words(ops, seed, 0, int(np.prod(number.shape)), bits, number).reshape(number.shape)
    if element.dim > 1:
        return finite_codes(ops, ops.where(ops.isnan(number), 0.0, number) if bad else number, element, round, over, word)
    t = _tables(ops, element, policy, ops.place(number))
    held = ops.where(finite, number, 0.0 if element.has_zero else element.min) if bad else number
    codes = finite_codes(ops, held, element, round, over, word)
    if bad:
        special = ops.where(ops.isnan(number), t["special"][0], ops.where(number > 0, t["special"][1], t["special"][2]))
        codes = ops.where(finite, codes, special)
    return codes


def finite_codes(ops: Arrays, number: Any, element: Element, round: str, over: str, word: Any = None) -> Any:
    """int64 codes of finite float32 or float64 numbers; `word`: int64, one for each, for stochastic rounding."""
    if element.dim > 1:
        return nearest_vectors(ops, number, element)
    if element.name == "fp32":
        return _float32_codes(ops, number, round)
    t = _tables(ops, element, (round, over, "error"), ops.place(number))
    if word is None:
        rank = ops.search(t["points64" if ops.name(number) == "float64" else "points32"], number, True)
    else:
        rank = _stochastic_ranks(ops, ops.cast(number, "float64"), t["chain"], int(stochastic_bits(round) or 0), word)
    if over == "error":
        outside = (rank == 0) | (rank == len(t["positive"]) - 1)
        if bool(outside.any()):
            first = first_index(outside)
            place = f" at index ({', '.join(map(str, first))})" if first else ""
            error = OutOfRangeError(
                f"{int(outside.sum())} value(s) outside {element.name}'s range {element.min:g} to {element.max:g}, the first"
                f" {float(number[first]):g}{place}; use over=saturate to clip"
            )
            error.value = float(number[first])
            raise error
    return ops.where(ops.signbit(number), t["negative"][rank], t["positive"][rank])


def _float32_codes(ops: Arrays, number: Any, round: str) -> Any:
    """Bit patterns of numbers in float32's range, as scales are: to nearest, or towards zero."""
    near = ops.cast(number, "float32")
    codes = ops.cast(ops.bits(near, "int32"), "int64")
    if round != "nearest-even":
        assert round == "zero", round
        codes = ops.where(abs(ops.cast(near, "float64")) > abs(number), codes - 1, codes)
    return codes


def _stochastic_ranks(ops: Arrays, value: Any, chain: Any, bits: int, word: Any) -> Any:
    """Ranks by the comparison of `formats/stochastic.py`, in float64 as there."""
    last = len(chain) - 1
    negative = ops.signbit(value)
    upper, lower = ops.search(chain, value, False), ops.search(chain, value, True) - 1
    near = ops.where(negative, upper, lower)
    far = ops.where(negative, near - 1, near + 1).clip(0, last)
    near = near.clip(0, last)
    r = ops.cast(word >> (32 - bits), "float64")
    away = r * abs(chain[far] - chain[near]) < abs(value - chain[near]) * 2.0**bits
    return ops.where(away, far, near)


def values_on_device(ops: Arrays, codes: Any, element: Element) -> Any:
    """float64 values of int64 codes that the element has; of a vector along a further axis."""
    if element.name == "fp32":
        return ops.cast(ops.bits(ops.cast(codes, "int32"), "float32"), "float64")
    if element.dim > 1:
        return vectors(ops.library, element, ops.place(codes))[codes]
    return _tables(ops, element, ("nearest-even", "saturate", "error"), ops.place(codes))["values"][codes]


def check_groups(element: Element, shape: tuple[int, ...]) -> None:
    """ShapeError: numbers that groups do not fill. FormatError: more than 16 bits a code of several."""
    if element.dim > 1:
        if not shape:
            raise ShapeError(f"{element.name} codes {element.dim} numbers together, not a single one")
        codes_shape(element, shape)
        if element.bits > 16:
            raise FormatError(f"{element} has {element.bits} bits; on a device codes have at most 16, so move the array to the CPU")


def round_on_device(x: Any, element: Element, policy: Policy, seed: int, out: Any) -> Any:
    """Values of a torch tensor or JAX array, its dtype and device. Raises: as `anybit.round`."""
    ops = arrays_of(x)
    check_groups(element, tuple(x.shape))
    with ops.scope():
        values = values_on_device(ops, codes_on_device(ops, numbers_of(ops, x), element, policy, seed), element)
        return ops.written(ops.cast(values.reshape(x.shape), ops.name(x) if ops.is_float(x) else "float64"), out)


def encode_on_device(x: Any, element: Element, policy: Policy, seed: int, out: Any) -> Any:
    """Codes of a torch tensor or JAX array on its device."""
    ops = arrays_of(x)
    check_groups(element, tuple(x.shape))
    with ops.scope():
        codes = codes_on_device(ops, numbers_of(ops, x), element, policy, seed)
        return ops.written(ops.cast(codes, _CODES[element.code_dtype.itemsize]), out)


def decode_on_device(codes: Any, element: Element, out: Any) -> Any:
    """float32 values of a torch tensor or JAX array of codes on its device. FormatError: codes that the element does not have."""
    ops = arrays_of(codes)
    with ops.scope():
        index = ops.cast(codes, "int64")
        if index.shape and 0 not in index.shape and (int(index.max()) >= 1 << element.bits or int(index.min()) < 0):
            raise FormatError(f"{element.name} has codes 0 to {(1 << element.bits) - 1}, not {int(index.min())} to {int(index.max())}")
        return ops.written(ops.cast(values_on_device(ops, index, element), "float32"), out)
