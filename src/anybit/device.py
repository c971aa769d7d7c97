"""Rounding, encoding and decoding arrays where they lie, by torch's or JAX's own operations: the same results as on the CPU, bit for bit.

A number's rank among the switch points is a binary search on the device; stochastic rounding computes the same Philox words in
64-bit integers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NoReturn

import numpy as np

from anybit.device_arrays import LIBRARIES, Arrays, arrays_of
from anybit.errors import FormatError, NonFiniteError
from anybit.formats import Element
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


def _words(ops: Arrays, seed: int, count: int, bits: int, x: Any) -> Any:
    """int64[count]: the words of `stochastic.drawn` at places 0 .. count - 1. A product that leaves int64 wraps around: 64 bits stay."""
    low = 0xFFFFFFFF
    k0, k1 = seed & low, seed >> 32
    pieces = 5 if bits <= 24 else 4
    at = ops.places(-(-count // (16 * pieces)) * 16, x)
    c0, c1, c2, c3 = at & low, at >> 32, at * 0, at * 0
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((b >> 32) & low) ^ c1 ^ k0, b & low, ((a >> 32) & low) ^ c3 ^ k1, a & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    found = [c0, c1, c2, c3]
    if pieces == 5:
        found.append(((c0 << 24) ^ (c1 << 16) ^ (c2 << 8)) & low)
    return ops.stack(found).reshape(-1, 16, pieces).swapaxes(1, 2).reshape(-1)[:count]


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
    t = _tables(ops, element, policy, ops.place(number))
    finite = ops.isfinite(number)
    bad = int((~finite).sum())
    if bad and nonfinite == "error":
        raise_non_finite(number, finite, "use nonfinite=saturate or nonfinite=propagate to accept them")
    held = ops.where(finite, number, 0.0 if element.has_zero else element.min) if bad else number
    bits = stochastic_bits(round)
    if bits is None:
        rank = ops.search(t["points64" if ops.name(held) == "float64" else "points32"], held, True)
    else:
        rank = _stochastic_ranks(ops, ops.cast(held, "float64"), t["chain"], bits, seed)
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
    codes = ops.where(ops.signbit(held), t["negative"][rank], t["positive"][rank])
    if bad:
        special = ops.where(ops.isnan(number), t["special"][0], ops.where(number > 0, t["special"][1], t["special"][2]))
        codes = ops.where(finite, codes, special)
    return codes


def _stochastic_ranks(ops: Arrays, value: Any, chain: Any, bits: int, seed: int) -> Any:
    """Ranks by the comparison of `formats/stochastic.py`, in float64 as there."""
    last = len(chain) - 1
    negative = ops.signbit(value)
    upper, lower = ops.search(chain, value, False), ops.search(chain, value, True) - 1
    near = ops.where(negative, upper, lower)
    far = ops.where(negative, near - 1, near + 1).clip(0, last)
    near = near.clip(0, last)
    r = ops.cast(_words(ops, seed, int(np.prod(value.shape)), bits, value) >> (32 - bits), "float64").reshape(value.shape)
    away = r * abs(chain[far] - chain[near]) < abs(value - chain[near]) * 2.0**bits
    return ops.where(away, far, near)


def values_on_device(ops: Arrays, codes: Any, element: Element) -> Any:
    """float64 values of codes that the element has."""
    return _tables(ops, element, ("nearest-even", "saturate", "error"), ops.place(codes))["values"][codes]


def round_on_device(x: Any, element: Element, policy: Policy, seed: int, out: Any) -> Any:
    """Values of a torch tensor or JAX array, its dtype and device. Raises: as `anybit.round`."""
    ops = arrays_of(x)
    with ops.scope():
        values = values_on_device(ops, codes_on_device(ops, numbers_of(ops, x), element, policy, seed), element)
        return ops.written(ops.cast(values, ops.name(x) if ops.is_float(x) else "float64"), out)


def encode_on_device(x: Any, element: Element, policy: Policy, seed: int, out: Any) -> Any:
    """Codes of a torch tensor or JAX array on its device."""
    ops = arrays_of(x)
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
