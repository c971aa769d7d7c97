"""Rounding, encoding and decoding torch tensors where they lie, by torch's own operations: the same results as on the CPU, bit for bit.

A number's rank among the switch points is a binary search on the device; stochastic rounding computes the same Philox words in
64-bit integers.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

import numpy as np

from anybit.errors import FormatError, NonFiniteError, ShapeError
from anybit.formats import Element
from anybit.formats.element import switches
from anybit.formats.rounding import stochastic_bits

Policy = tuple[str, str, str]
_CODES = {1: "uint8", 2: "uint16", 4: "uint32"}


def _torch() -> Any:
    return sys.modules["torch"]


@lru_cache(maxsize=64)
def _tables(element: Element, round: str, over: str, nonfinite: str, device: str) -> dict[str, Any]:
    """Points, codes by rank and by sign, chain, values and special codes, on the device."""
    torch = _torch()
    if element.bits > 16 or element.dim != 1:
        raise FormatError(f"{element} has {element.bits} bits; on {device} elements have at most 16, so move the tensor to the CPU")
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
    return {name: torch.from_numpy(np.array(a)).to(device) for name, a in arrays.items()}


def _words(seed: int, count: int, device: Any) -> Any:
    """int64[count]: Philox words of places 0 .. count - 1. A product that leaves int64 wraps around, which keeps its 64 bits."""
    torch = _torch()
    low = 0xFFFFFFFF
    k0, k1 = seed & low, seed >> 32
    at = torch.arange((count + 3) // 4, dtype=torch.int64, device=device)
    c0, c1, c2, c3 = at & low, at >> 32, torch.zeros_like(at), torch.zeros_like(at)
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((b >> 32) & low) ^ c1 ^ k0, b & low, ((a >> 32) & low) ^ c3 ^ k1, a & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return torch.stack([c0, c1, c2, c3], dim=-1).reshape(-1)[:count]


def _codes(x: Any, element: Element, policy: Policy, seed: int) -> Any:
    """int64 codes of a tensor of floats."""
    torch = _torch()
    round, over, nonfinite = policy
    if not x.is_floating_point():
        x = x.to(torch.float64)
    number = x if x.dtype == torch.float64 else x.float()
    t = _tables(element, round, over, nonfinite, str(x.device))
    finite = torch.isfinite(number)
    bad = int((~finite).sum())
    if bad and nonfinite == "error":
        place = np.unravel_index(int(torch.argmax((~finite).reshape(-1).to(torch.uint8))), tuple(x.shape))
        index = [int(i) for i in place]
        raise NonFiniteError(
            f"array holds {bad} non-finite value(s), the first {float(x[tuple(index)])} at index {index};"
            " use nonfinite=saturate or nonfinite=propagate to accept them"
        )
    held = torch.where(finite, number, torch.full((), 0.0 if element.has_zero else element.min, dtype=number.dtype, device=x.device))
    bits = stochastic_bits(round)
    if bits is None:
        points = t["points64"] if held.dtype == torch.float64 else t["points32"]
        rank = torch.bucketize(held.contiguous(), points, right=True)
    else:
        rank = _stochastic_ranks(held.to(torch.float64).contiguous(), t["chain"], bits, seed)
    if over == "error":
        outside = (rank == 0) | (rank == len(t["positive"]) - 1)
        if bool(outside.any()):
            first = [int(i) for i in np.unravel_index(int(torch.argmax(outside.reshape(-1).to(torch.uint8))), tuple(x.shape))]
            raise FormatError(
                f"{int(outside.sum())} value(s) outside {element.name}'s range {element.min:g} to {element.max:g}, the first"
                f" {float(x[tuple(first)]):g} at index ({', '.join(map(str, first))}); use over=saturate to clip"
            )
    codes = torch.where(torch.signbit(held), t["negative"][rank], t["positive"][rank])
    if bad:
        special = torch.where(torch.isnan(number), t["special"][0], torch.where(number > 0, t["special"][1], t["special"][2]))
        codes = torch.where(finite, codes, special)
    return codes


def _stochastic_ranks(value: Any, chain: Any, bits: int, seed: int) -> Any:
    """Ranks by the comparison of `formats/stochastic.py`, in float64 as there."""
    torch = _torch()
    last = len(chain) - 1
    negative = torch.signbit(value)
    upper, lower = torch.bucketize(value, chain), torch.bucketize(value, chain, right=True) - 1
    near = torch.where(negative, upper, lower)
    far = torch.where(negative, near - 1, near + 1).clamp(0, last)
    near = near.clamp(0, last)
    r = (_words(seed, value.numel(), value.device) >> (32 - bits)).to(torch.float64).reshape(value.shape)
    away = r * (chain[far] - chain[near]).abs() < (value - chain[near]).abs() * 2.0**bits
    return torch.where(away, far, near)


def _result(values: Any, out: Any) -> Any:
    if out is None:
        return values
    if not isinstance(out, _torch().Tensor) or out.shape != values.shape or out.dtype != values.dtype or out.device != values.device:
        raise ShapeError(f"out must be a tensor like the result: {values.dtype} {list(values.shape)} on {values.device}")
    return out.copy_(values)


def round_on_device(x: Any, element: Element, policy: Policy, seed: int, out: Any) -> Any:
    """Values of a torch tensor, its dtype and device. Raises: as `anybit.round`."""
    values = _tables(element, *policy, str(x.device))["values"][_codes(x, element, policy, seed)]
    return _result(values.to(x.dtype if x.is_floating_point() else _torch().float64), out)


def encode_on_device(x: Any, element: Element, policy: Policy, seed: int, out: Any) -> Any:
    """Codes of a torch tensor on its device."""
    return _result(_codes(x, element, policy, seed).to(getattr(_torch(), _CODES[element.code_dtype.itemsize])), out)


def decode_on_device(codes: Any, element: Element, out: Any) -> Any:
    """float32 values of a torch tensor of codes on its device. FormatError: codes that the element does not have."""
    torch = _torch()
    index = codes.to(torch.int64)
    if index.numel() and (int(index.max()) >= 1 << element.bits or int(index.min()) < 0):
        raise FormatError(f"{element.name} has codes 0 to {(1 << element.bits) - 1}, not {int(index.min())} to {int(index.max())}")
    table = _tables(element, "nearest-even", "saturate", "error", str(codes.device))["values"]
    return _result(table[index].to(torch.float32), out)
