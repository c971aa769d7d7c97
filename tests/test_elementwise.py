"""round, encode, decode: kinds of array, precision, strides, out; torch on the CPU, and its device path forced on CPU tensors."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

import anybit
from anybit import device
from anybit.errors import FormatError, ShapeError
from anybit.formats import ROUNDS, parse_element

NAMES = ["fp8_e4m3fn", "nf4", "int8", "bf16", "tf32", "fp16", "fp8_e5m2"]
MODES = ["nearest-even", "up", "sr24", "sr3"]


def numbers() -> np.ndarray:
    x = (np.random.default_rng(0).standard_normal((37, 501)) * 4).astype(np.float32)
    x[0, :4] = -0.0, 0.0, 1e-42, -3e38
    return x


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", MODES)
def test_numpy(name: str, mode: str) -> None:
    x, element = numbers(), parse_element(name)
    codes = element.encode(x, mode, seed=3)
    want = element.decode(codes)
    got = anybit.round(x, name, mode, seed=3)
    assert got.dtype == np.float32 and np.array_equal(got, want) and np.array_equal(np.signbit(got), np.signbit(want))
    assert np.array_equal(anybit.encode(x, element, mode, seed=3), codes) and np.array_equal(anybit.decode(codes, name), want)
    assert np.array_equal(anybit.round(x.astype(">f4"), name, mode, seed=3), want)
    view = x[::2, ::-3]
    assert np.array_equal(anybit.round(view, name, mode), element.decode(element.encode(view, mode)))
    read_only = x.copy()
    read_only.flags.writeable = False
    assert np.array_equal(anybit.round(read_only, name, mode, seed=3), want)
    double = x.astype(np.float64) * (1 + 2.0**-30)
    assert np.array_equal(anybit.round(double, name, mode, seed=3), element.decode(element.encode(double, mode, seed=3)))
    strided = np.zeros((37, 1002), np.float32)[:, ::2]
    assert anybit.round(x, name, mode, seed=3, out=strided) is strided and np.array_equal(strided, want)
    shifted = np.r_[x.reshape(-1), [0]].astype(np.float32)
    anybit.round(shifted[:-1], name, mode, seed=3, out=shifted[1:])  # overlapping memory
    assert np.array_equal(shifted[1:], want.reshape(-1))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_types(dtype: type) -> None:
    x = numbers()[1:].astype(dtype)
    got = anybit.round(x, "fp8_e4m3fn")
    element = parse_element("fp8_e4m3fn")
    assert got.dtype == x.dtype and np.array_equal(got.astype(np.float64), element.decode(element.encode(x)))
    with pytest.raises(FormatError, match=r"has values that .* does not; give float32"):
        anybit.round(x, "fp32")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", MODES)
def test_torch(name: str, mode: str) -> None:
    x, element = numbers(), parse_element(name)
    want, t = anybit.round(x, name, mode, seed=3), torch.from_numpy(x)
    got, out = anybit.round(t, name, mode, seed=3), torch.empty_like(t)
    assert isinstance(got, torch.Tensor) and np.array_equal(got.numpy(), want)
    assert anybit.round(t, name, mode, seed=3, out=out) is out and np.array_equal(out.numpy(), want)
    codes = anybit.encode(t, name, mode, seed=3)
    assert np.array_equal(codes.numpy(), element.encode(x, mode, seed=3)) and np.array_equal(anybit.decode(codes, name).numpy(), want)
    if name in ("fp8_e4m3fn", "int8"):
        narrow = t.clamp(-1e30, 1e30).to(torch.bfloat16)
        wide = anybit.round(narrow.float().numpy(), name, mode, seed=3)
        assert np.array_equal(anybit.round(narrow, name, mode, seed=3).float().numpy(), wide)
    assert np.array_equal(anybit.fake_quantize(t[1:], "int4@32").numpy(), anybit.fake_quantize(x[1:], "int4@32"))


@pytest.mark.parametrize("name", ["fp8_e4m3fn", "nf4", "int8", "e8m0", "fp8_e5m2", "codebook_1_2_4"])
def test_the_device_path(name: str) -> None:
    """torch's own operations give the native bits: modes, overflow, special values, float64; errors name the same place."""
    element = parse_element(name)
    x = numbers()
    special = x.copy()
    special[3, :3] = np.nan, np.inf, -np.inf
    for mode in (*ROUNDS, "sr1", "sr24", "sr32"):
        for over in ("saturate", "inf", "nan"):
            for nonfinite in ("error", "saturate", "propagate"):
                try:
                    element.check_policy(mode, over, nonfinite)
                except FormatError:
                    continue
                source = x if nonfinite == "error" else special
                for kind in (np.float32, np.float64):
                    t = torch.from_numpy(source.astype(kind))
                    codes = device.encode_on_device(t, element, (mode, over, nonfinite), 9, None)
                    want = element.encode(source.astype(kind), mode, over, nonfinite, 9)
                    assert np.array_equal(codes.numpy(), want), (mode, over, nonfinite)
                    values = device.round_on_device(t, element, (mode, over, nonfinite), 9, None)
                    assert values.dtype == t.dtype and np.array_equal(values.numpy(), element.values[want].astype(kind), equal_nan=True)
                    assert np.array_equal(device.decode_on_device(codes, element, None).numpy(), element.values[want], equal_nan=True)
    for bad, policy in ((special, ("nearest-even", "saturate", "error")), (x[1:] * 1e4, ("nearest-even", "error", "error"))):
        texts = []
        for call in (lambda b=bad, p=policy: device.encode_on_device(torch.from_numpy(b), element, p, 0, None),
                     lambda b=bad, p=policy: element.encode(b, *p)):  # fmt: skip
            try:
                call()
                texts.append("")
            except anybit.AnybitError as error:
                texts.append(str(error))
        assert texts[0] == texts[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_stays_on_the_device() -> None:
    x = numbers()
    for mode in MODES:
        got = anybit.round(torch.from_numpy(x).cuda(), "fp8_e4m3fn", mode, seed=3)
        assert got.is_cuda and np.array_equal(got.cpu().numpy(), anybit.round(x, "fp8_e4m3fn", mode, seed=3))
        codes = anybit.encode(torch.from_numpy(x).cuda(), "nf4", mode, seed=3)
        assert codes.is_cuda and np.array_equal(codes.cpu().numpy(), anybit.encode(x, "nf4", mode, seed=3))


def test_jax() -> None:
    jax = pytest.importorskip("jax")
    x = numbers()
    got = anybit.round(jax.numpy.asarray(x), "fp8_e4m3fn", "sr24", seed=3)
    assert isinstance(got, jax.Array) and np.array_equal(np.asarray(got), anybit.round(x, "fp8_e4m3fn", "sr24", seed=3))
    codes = anybit.encode(jax.numpy.asarray(x), "nf4")
    assert np.array_equal(np.asarray(anybit.decode(codes, "nf4")), anybit.round(x, "nf4"))
    with pytest.raises(ShapeError, match="JAX arrays cannot be written to"):
        anybit.round(got, "nf4", out=got)


def test_refusals() -> None:
    x = numbers()
    with pytest.raises(FormatError, match="int4@32 has scales beside its codes; use quantize, or the element alone: int4"):
        anybit.encode(x, "int4@32")
    with pytest.raises(ShapeError, match=r"out must be float32\[37, 501\], not float64\[3\]"):
        anybit.round(x, "int4", out=np.empty(3))
    with pytest.raises(ShapeError, match="out is read-only"):
        anybit.round(x, "int4", out=np.broadcast_to(np.float32(0), x.shape))
    with pytest.raises(FormatError, match="fp4_e2m1 has codes 0 to 15, not 3 to 16"):
        anybit.decode(np.array([3, 16], np.uint8), "fp4_e2m1")
    with pytest.raises(ShapeError, match="numbers are float16"):
        anybit.round(np.array(["a"]), "int4")
    assert anybit.round(1.3, "int4").shape == () and np.array_equal(anybit.round(x[1:], "mxfp4"), anybit.fake_quantize(x[1:], "mxfp4"))
