"""Arrays on a device stay there: on one that is none, whose every operation is recorded (`far_device.py`), with the host's bits."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from far_device import PLACE, Far, FarDevice
from test_device_blocks import LEVELS, OTHERS, RULES, VECTORS, ZEROS_AND_OFFSETS
from test_elementwise import BLOCKED

import anybit
from anybit.errors import AnybitError, FormatError
from anybit.formats import ROUNDS, Spec, named_formats, parse_element

ELEMENTS = [n.name for n in named_formats() if not n.blocked]
ELEMENTS = [name for name in ELEMENTS if not parse_element(name).learned and parse_element(name).bits <= 16]
FORMATS = sorted({*ZEROS_AND_OFFSETS, *RULES, *LEVELS, *OTHERS, *VECTORS, *BLOCKED, *(n.name for n in named_formats() if n.blocked)})
SIZES = ("int4@32+zp", "nvfp4", "q4_k", "mxfp4+scale=mse", "ovp4_int@channel", "int4@tensor+scale=mse")
"""Of which there are arrays of two sizes."""
ELEMENTWISE = 2
"""Times the host may wait for one number in a call of round, encode or decode: is all of it finite (one more asks where not), in range."""
BLOCKS = 64
"""The same for one slab of fake_quantize or quantize: extremes of the slab, and does any scale have to give way, for each candidate of a
rule that searches."""
VECTORS_WAIT = 4
"""For each candidate of codes of several weights: is any group equally near to two vectors."""


@pytest.fixture
def device() -> Iterator[FarDevice]:
    with FarDevice() as found:
        yield found


def sent(x: np.ndarray | torch.Tensor, device: FarDevice) -> Any:
    """An array on the device, and a new record."""
    t = torch.as_tensor(x).to(PLACE)
    assert isinstance(t, Far) and t.device.type == "far"
    device.forget()
    return t


def numbers(rows: int = 24, k: int = 256) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((rows, k)).astype(np.float32)
    x[0] = 0
    x[1, :8] = 0.5, -0.5, 1.5, 1e-40, -0.0, 3e37, -100, 0.25
    x[2] = x[3]
    return x


def back(t: Any) -> np.ndarray:
    assert isinstance(t, Far)
    return t.held.numpy()


def same(got: np.ndarray, want: np.ndarray) -> bool:
    return got.dtype == want.dtype and got.shape == want.shape and got.tobytes() == want.tobytes()


@pytest.mark.parametrize("name", ELEMENTS)
def test_elements(name: str, device: FarDevice) -> None:
    """round, encode and decode of every built-in element of up to 16 bits: single truth values go to the host, no other number."""
    x, element = numbers(), parse_element(name)
    vector = element.dim > 1
    for mode in ("nearest-even",) if vector else ("nearest-even", "up", "sr24"):
        t = sent(x, device)
        codes, values = anybit.encode(t, name, mode, seed=3), anybit.round(t, name, mode, seed=3)
        assert device.taken == 0 and device.scalars <= 2 * ELEMENTWISE + 2 * vector and device.waits <= 2 * vector * VECTORS_WAIT
        assert same(back(codes), anybit.encode(x, name, mode, seed=3)) and same(back(values), anybit.round(x, name, mode, seed=3))
        device.forget()
        decoded = anybit.decode(codes, name)
        assert (device.taken, device.waits) == (0, 0) and device.scalars <= ELEMENTWISE
        assert same(back(decoded), anybit.decode(back(codes), name))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_types(dtype: torch.dtype, device: FarDevice) -> None:
    x = torch.from_numpy(numbers().clip(-6, 6)).to(dtype)
    for mode in (*ROUNDS, "sr8"):
        t = sent(x, device)
        got = anybit.round(t, "fp8_e4m3fn", mode, over="saturate", nonfinite="saturate", seed=9)
        assert device.taken == 0 and device.scalars <= ELEMENTWISE and device.operations > 5
        assert got.device.type == "far" and torch.equal(got.held, anybit.round(x, "fp8_e4m3fn", mode, nonfinite="saturate", seed=9))
    out = torch.empty(x.shape, dtype=got.dtype, device=PLACE)
    assert anybit.round(t, "fp8_e4m3fn", out=out) is out and torch.equal(out.held, anybit.round(x, "fp8_e4m3fn"))
    assert device.taken == 0


@pytest.mark.parametrize("text", FORMATS)
def test_blocks(text: str, device: FarDevice) -> None:
    """fake_quantize: the host's bits or message. To the host go truth values, and a few numbers for each block of a level above the first;
    how often, does not depend on the array's size."""
    spec = Spec.parse(text)
    for rows in (24, 96) if text in SIZES else (24,):
        x = numbers(rows)[3:] if "error" in text or "posit" in text else numbers(rows)
        if spec.policy.nonfinite != "error":
            x[1, 3:6] = np.nan, np.inf, -np.inf
        t = sent(x, device)
        try:
            want: Any = anybit.fake_quantize(x, spec)
        except AnybitError as error:
            with pytest.raises(type(error)) as found:
                anybit.fake_quantize(t, spec)
            want, got = str(error), str(found.value)
            assert got == want and device.taken <= above(spec, x.shape)
            continue
        got = anybit.fake_quantize(t, spec)
        assert same(back(got), want)
        assert device.taken <= above(spec, x.shape), (device.taken, above(spec, x.shape))
        vector = spec.format.element.dim > 1
        assert device.scalars <= BLOCKS * (2 if vector else 1) and device.waits <= vector * VECTORS_WAIT * BLOCKS, device.scalars


def above(spec: Spec, shape: tuple[int, ...]) -> int:
    """Numbers that may go to the host: 2 for each block of the second level, scales and offsets apart; by kquant a loss for each of 15."""
    fmt = spec.format
    if len(fmt.blocks) < 2:
        return 0
    each = (2 + (15 if spec.policy.scale == "kquant" else 0)) * (2 if fmt.offset is not None else 1)
    return each * prod(-(-n // size) for n, size in zip(shape, fmt.blocks[1].on(shape), strict=True))


@pytest.mark.parametrize("text", ["int4@32", "nvfp4", "uint4@32+zp", "q4_k", "d4@channel", "fp8_e4m3fn", "int8@128+nest=4.2+open=4"])
def test_quantize_takes_what_is_stored(text: str, device: FarDevice) -> None:
    """A QTensor lies in host memory: its codes, scales, zero points and offsets are taken there, each once, and nothing else."""
    x, spec = numbers(), Spec.parse(text)
    x[1, 5] = 3
    q = anybit.quantize(sent(x, device), text)
    want = anybit.quantize(x, text)
    parts = want.logical()
    assert all(same(q.parts[name], part) for name, part in want.parts.items())
    stored = sum(part.size for name, part in parts.items() if name in ("codes", "scale.0", "zero", "offset.0"))
    assert stored <= device.taken <= stored + above(spec, x.shape)


@pytest.mark.parametrize("text", [
    "kmeans3@channel", "vq8d2_k2@64", "tf32", "fp32", "int4@32:tf32", "uint4@32+off=tf32", "int8+over=wrap",
])  # fmt: skip
def test_what_is_refused_is_not_taken(text: str, device: FarDevice) -> None:
    t = sent(numbers(), device)
    name, over = text.split("+")[0], Spec.parse(text).policy.over
    calls = [lambda: anybit.fake_quantize(t, text), lambda: anybit.quantize(t, text)]
    if Spec.parse(text).format.block is None:
        calls += [lambda: anybit.round(t, name, over=over), lambda: anybit.encode(t, name, over=over)]
    for call in calls:
        with pytest.raises(FormatError, match=rf"on {PLACE} .*; (so )?move the array to the CPU|, so move the array to the CPU"):
            call()
    assert device.taken == 0 and device.scalars <= len(calls)


def test_errors_are_the_hosts(device: FarDevice) -> None:
    """They name the place: that costs a few numbers more."""
    x = numbers()
    x[5, 7] = np.nan
    for call in (lambda a: anybit.round(a, "int4"), lambda a: anybit.encode(a, "d4"), lambda a: anybit.fake_quantize(a, "int4@32")):
        with pytest.raises(AnybitError) as want:
            call(x)
        with pytest.raises(AnybitError) as got:
            call(sent(x, device))
        assert type(got.value) is type(want.value) and str(got.value) == str(want.value) and device.taken == 0 and device.scalars < 12


def test_the_record_sees_what_leaves(device: FarDevice) -> None:
    """Each way in which a tensor could reach the host shows, or is an error."""
    t = sent(numbers(), device)
    bool((t > 0).any()), float(t[3, 3])
    assert (device.scalars, device.taken, device.waits) == (2, 0, 0)
    t.cpu()
    assert device.taken == t.numel()
    torch.empty(t.shape).copy_(t)
    assert device.taken == 2 * t.numel()
    t[t > 0], torch.nonzero(t)
    assert device.waits == 2
    for wrong in (lambda: t.numpy(), lambda: np.asarray(t), lambda: t + torch.ones(t.shape), lambda: t[torch.zeros(3, dtype=torch.int64)]):
        with pytest.raises((TypeError, AssertionError, RuntimeError)):
            wrong()
