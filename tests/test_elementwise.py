"""round, encode, decode: kinds of array, precision, strides, out; torch on the CPU, and its device path forced on CPU tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import anybit
from anybit import device, elementwise, tensor
from anybit.device_blocks import fake_quantize_on_device
from anybit.errors import FormatError, ShapeError, UnknownNameError
from anybit.formats import ROUNDS, Spec, parse_element
from anybit.methods import METHODS

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


BLOCKED = [
    "mxfp4", "nvfp4", "mxint8", "int4@32", "int8@channel", "int4_sym@tensor", "nf4@64", "fp8_e4m3fn@128x128:fp32", "posit8@16",
    "binary@32+scale=absmax", "fp4_e2m1@16:ufp8_e5m3", "int4@7:fp16", "int3@5:ufp7_e4m3@tensor:fp32", "codebook_-0.5_0_1_2_3@8x4",
    "codebook_1_2_4_5_7@16", "ufp4_e2m2@32:fp32", "mxfp4+round=sr24+seed=5", "nvfp4+round=up", "int4@32+round=sr3", "fp8_e5m2@32+over=inf",
    "pot4_nz@32:e8m0", "fp8_e4m3fn", "int8", "bf16", "fp4_e2m1@16:fp8_e4m3fn@tensor", "nf4@64:fp8_e4m3fn@tensor:bf16", "int8@128+nest=4.2",
]  # fmt: skip


def blocks() -> list[np.ndarray]:
    """Zero blocks, tiny and huge values, short last blocks, one axis to three, bfloat16-valued ones, float64."""
    rng = np.random.default_rng(0)
    found = []
    sizes = {(37, 100): 1.0, (3, 5, 64): 1e-3, (129,): 1e-30, (64, 96): 1e30, (9, 33): 1e-40, (2, 300): 3e37, (1, 1): 1.0}
    for shape, size in sizes.items():
        x = (rng.standard_normal(shape) * size).astype(np.float32)
        x[0] = 0
        x.reshape(-1)[-1] = -0.0
        x.reshape(-1)[40:60] *= np.float32(1e-8)
        found += [x, x.astype(np.float64) * (1 + 1e-12), torch.from_numpy(x).bfloat16().float().numpy()]
    return found


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gives, or what it says."""
    try:
        return np.asarray(call())
    except anybit.AnybitError as error:
        return str(error)


@pytest.mark.parametrize("text", BLOCKED)
def test_fake_quantize_on_a_device(text: str) -> None:
    """The bits and the messages of the CPU."""
    spec, done = Spec.parse(text), 0
    bad = np.ones((3, 40), np.float32)
    bad[1, 7] = np.inf
    for x in (*blocks(), bad):
        want = outcome(lambda x=x: anybit.fake_quantize(x, spec))
        got = outcome(lambda x=x: fake_quantize_on_device(torch.from_numpy(x), spec, None).numpy())
        if isinstance(want, str):
            assert got == want
        else:
            assert got.dtype == np.float32 and got.tobytes() == want.tobytes(), x.shape
            done += 1
    assert done > 5


def test_blocks_too_large_on_a_device() -> None:
    """Refused as on the CPU, where the element's largest value would leave float32."""
    for text in ("posit8@32", "posit8@16:fp8_e4m3fn@tensor:fp32"):
        for down in (1.0, 2.0**18, 2.0**20, 2.0**22):
            x = (np.linspace(-1e38, 1e38, 64) / down).astype(np.float32)[None]
            want = outcome(lambda x=x, t=text: anybit.fake_quantize(x, t))
            got = outcome(lambda x=x, t=text: fake_quantize_on_device(torch.from_numpy(x), Spec.parse(t), None).numpy())
            assert isinstance(want, str) == isinstance(got, str) == (down < 2.0**18), (text, down)
            assert got == want if isinstance(want, str) else np.array_equal(got, want)


def test_over_error_and_out_on_a_device() -> None:
    x = torch.from_numpy(blocks()[0])
    out = torch.empty_like(x)
    assert fake_quantize_on_device(x, Spec.parse("mxfp4"), out) is out
    assert np.array_equal(out.numpy(), anybit.fake_quantize(x.numpy(), "mxfp4"))
    texts = [outcome(call) for call in (lambda: anybit.fake_quantize(x.numpy(), "fp4_e2m1@32:e8m0+over=error"),
                                        lambda: fake_quantize_on_device(x, Spec.parse("fp4_e2m1@32:e8m0+over=error"), None))]  # fmt: skip
    assert texts[0] == texts[1] and "times its block's scale" in texts[0]
    with pytest.raises(ShapeError, match="out must be a tensor like the result"):
        fake_quantize_on_device(x, Spec.parse("mxfp4"), out[1:])
    with pytest.raises(ShapeError, match="at least one axis"):
        fake_quantize_on_device(torch.tensor(1.0), Spec.parse("mxfp4"), None)
    assert fake_quantize_on_device(x[:0], Spec.parse("mxfp4"), None).shape == (0, 100)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("kmeans3@channel", "is learned from the array"),
        ("vq8d2_k2@64", "is learned from the array"),
        ("tf32", "more than 16 bits"),
        ("int4@32:tf32", "more than 16 bits"),
        ("uint4@32+off=tf32", "more than 16 bits"),
        ("fixed8_f4@32+over=wrap", "over=wrap"),
        ("int8+over=wrap", "over=wrap"),
    ],
)
def test_what_a_device_refuses(text: str, reason: str) -> None:
    with pytest.raises(FormatError, match=f"on cpu .*{reason}.*; move the array to the CPU"):
        fake_quantize_on_device(torch.ones(4, 32), Spec.parse(text), None)


@pytest.mark.parametrize("path", ["round", "encode", "fake_quantize"])
def test_tensors_that_are_not_on_the_cpu_take_the_devices_path(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Public functions with every tensor taken for one on a device: the same results, by torch's operations."""
    x = torch.from_numpy(numbers())
    fmt = "mxfp4" if path == "fake_quantize" else "fp8_e4m3fn"
    want = getattr(anybit, path)(x, fmt).numpy()
    for module in (elementwise, tensor):
        monkeypatch.setattr(module, "on_cpu", lambda _: False)
        monkeypatch.setattr(module, "torch_view", None)
    assert np.array_equal(getattr(anybit, path)(x, fmt).numpy(), want)
    if path == "encode":
        assert np.array_equal(anybit.decode(torch.from_numpy(want), fmt).numpy(), parse_element(fmt).values[want])
    if path == "fake_quantize":
        with pytest.raises(UnknownNameError, match="no method named 'other'"):
            anybit.fake_quantize(x, fmt, method="other")
        monkeypatch.setitem(METHODS._items, "other", METHODS["rtn"])
        with pytest.raises(FormatError, match="method other runs on the CPU only"):
            anybit.fake_quantize(x, fmt, method="other")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_stays_on_the_device() -> None:
    x = numbers()
    for mode in MODES:
        got = anybit.round(torch.from_numpy(x).cuda(), "fp8_e4m3fn", mode, seed=3)
        assert got.is_cuda and np.array_equal(got.cpu().numpy(), anybit.round(x, "fp8_e4m3fn", mode, seed=3))
        codes = anybit.encode(torch.from_numpy(x).cuda(), "nf4", mode, seed=3)
        assert codes.is_cuda and np.array_equal(codes.cpu().numpy(), anybit.encode(x, "nf4", mode, seed=3))
    for text in BLOCKED:
        for x in blocks():
            want = outcome(lambda x=x, text=text: anybit.fake_quantize(x, text))
            got = outcome(lambda x=x, text=text: anybit.fake_quantize(torch.from_numpy(x).cuda(), text).cpu().numpy())
            assert got == want if isinstance(want, str) else got.tobytes() == want.tobytes(), text


def test_jax() -> None:
    jax = pytest.importorskip("jax")
    x = numbers()
    got = anybit.round(jax.numpy.asarray(x), "fp8_e4m3fn", "sr24", seed=3)
    assert isinstance(got, jax.Array) and np.array_equal(np.asarray(got), anybit.round(x, "fp8_e4m3fn", "sr24", seed=3))
    codes = anybit.encode(jax.numpy.asarray(x), "nf4")
    assert np.array_equal(np.asarray(anybit.decode(codes, "nf4")), anybit.round(x, "nf4"))
    with pytest.raises(ShapeError, match="JAX arrays cannot be written to"):
        anybit.round(got, "nf4", out=got)


def test_jax_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX's own operations give the native bits, where XLA keeps them: on the CPU it takes subnormals for zero."""
    jax = pytest.importorskip("jax")
    x = numbers()
    x[0, 2:4] = 1e-20, -3e10
    for module in (elementwise, tensor):
        monkeypatch.setattr(module, "on_gpu", lambda _: True)
        monkeypatch.setattr(module, "jax_like", None)
    given = jax.numpy.asarray(x)
    for mode in (*ROUNDS, "sr3", "sr24"):
        got = anybit.round(given, "fp8_e4m3fn", mode, seed=3)
        assert isinstance(got, jax.Array) and got.dtype == "float32" and np.array_equal(got, anybit.round(x, "fp8_e4m3fn", mode, seed=3))
        codes = anybit.encode(given, "nf4", mode, seed=3)
        assert codes.dtype == "uint8" and np.array_equal(codes, anybit.encode(x, "nf4", mode, seed=3))
        assert np.array_equal(anybit.decode(codes, "nf4"), anybit.round(x, "nf4", mode, seed=3))
    some = (x[:, :100], x[1:4, None, :33] * np.float32(1e3), -abs(x[5]))  # XLA compiles every operation for every shape: one each
    for i, text in enumerate(("mxfp4", "nvfp4", "int4@32", "nf4@64", "fp8_e4m3fn@128x128:fp32", "mxfp4+round=sr24+seed=5", "fp8_e4m3fn")):
        values = some[i % 3]
        want = outcome(lambda values=values, text=text: anybit.fake_quantize(values, text))
        got = outcome(lambda values=values, text=text: anybit.fake_quantize(jax.numpy.asarray(values), text))
        assert got == want if isinstance(want, str) else got.tobytes() == want.tobytes(), text
    w = x[1:4, :64]
    for text in ("int4@32:fp32+zp", "mxfp4+scale=mse", "uint4@16:uint8@64:fp32+off"):
        assert np.array_equal(anybit.fake_quantize(jax.numpy.asarray(w), text), anybit.fake_quantize(w, text)), text
    assert np.array_equal(anybit.encode(jax.numpy.asarray(w), "d4"), anybit.encode(w, "d4"))
    with pytest.raises(FormatError, match="gptq takes torch tensors"):
        anybit.quantize(jax.numpy.asarray(w), "int4@32", method="gptq", xtx=w.T @ w)
    narrow = given.astype("bfloat16")
    assert anybit.round(narrow, "int4").dtype == "bfloat16"
    with pytest.raises(FormatError, match="has values that bfloat16 does not"):
        anybit.round(narrow, "fp16")
    with pytest.raises(ShapeError, match="JAX arrays cannot be written to"):
        anybit.fake_quantize(given, "mxfp4", out=given)
    assert not jax.config.jax_enable_x64


def test_arrays_that_hold_no_plain_numbers() -> None:
    """One line of ours instead of another library's trouble, from every public function."""
    one = torch.ones(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a type that torch gives up
        quantized = torch.quantize_per_tensor(one, 0.1, 0, torch.quint8)
    cases: list[tuple[Any, str]] = [
        ([[1], [1, 2]], "lists of different lengths"),
        (np.ma.array([1.0, 2.0], mask=[0, 1]), r"masked numbers, .* x\.filled\(0\)"),
        (one.to_sparse(), r"tensors are dense, not sparse_coo; give x\.to_dense\(\)"),
        (quantized, r"tensors are dense, not a quantized tensor; give x\.dequantize\(\)"),
        (one.to(torch.float8_e4m3fn), r"not torch\.float8_e4m3fn; give x\.float\(\)"),
        (torch.ones(3, device="meta"), "a tensor on the device meta has no numbers"),
        (torch.ones(3, dtype=torch.complex64).conj(), r"x is a conjugated or negated view; give x\.resolve_conj"),
        (torch._neg_view(one), r"x is a conjugated or negated view"),
    ]
    for given, message in cases:
        for call in (anybit.round, anybit.encode, anybit.fake_quantize, anybit.quantize):
            with pytest.raises(ShapeError, match=message):
                call(given, "int4")
    assert np.array_equal(anybit.round(np.ma.array([1.2, 2.0]), "int4"), [1, 2])  # nothing is masked
    for more in ({"round": None}, {"over": None}, {"nonfinite": None}, {"round": 3}):
        with pytest.raises(FormatError, match=f"{next(iter(more))}={next(iter(more.values()))}: use one of"):
            anybit.round([1.0], "int4", **more)


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
