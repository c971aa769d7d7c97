"""Every format, rule and policy on a device: torch's own operations, forced on CPU tensors, give the host's bits and messages."""

from typing import Any

import numpy as np
import pytest
import torch

import anybit
from anybit import tensor
from anybit.device import encode_on_device, round_on_device
from anybit.device_arrays import arrays_of
from anybit.device_blocks import fake_quantize_on_device, quantize_on_device
from anybit.device_numpy import Placed, ordered_sum
from anybit.errors import AnybitError, FormatError, NonFiniteError, ShapeError
from anybit.formats import Spec
from anybit.methods.rtn import quantize_parts

ZEROS_AND_OFFSETS = [
    "int4@32+zp", "int4@128+zp=uint4", "int4@32+zp=fp16", "uint4@32+off", "uint4@32+off=fp16+scale=mse", "uint2@32+zp+scale=mse",
    "int4@32:fp32+zp=fp16", "int12@32+zp", "int8@64+zp+round=sr24", "uint4@32+zp+round=up", "uint4@32+zp+round=odd", "uint4@8x32+off",
]  # fmt: skip
RULES = [
    "int4@32:fp32+scale=mse", "ternary@32:fp32", "int4@tensor+scale=mse", "int4@8x8+scale=mse", "int3@128x1:fp32+scale=mse",
    "mxfp4+scale=mse", "mxfp4+scale=even", "mxfp4+scale=ceil", "nvfp4+scale=4over6", "fp4_e2m1@32+scale=floor0.75", "int4@32+scale=p90",
    "int4@channel+scale=p99.9", "int4@32:fp32+scale=sigma3", "int4@channel+scale=sigma3", "int4@32+scale=clip", "int4@32+scale=full",
    "q4_0+scale=signmax", "fp4_e2m1@128:e8m0@channel:fp32+scale=down", "posit8@16:fp32+scale=mse",
    "int4@32:fp32+scale=mse+round=sr8+seed=3", "int4@32:fp32+scale=mse+over=error",
]  # fmt: skip
LEVELS = [
    "nf4@64:dyn8@256:fp32", "q4_k", "q4_k+scale=kquant", "q3_k+scale=kquant", "q2_k+scale=mse", "int4@32:uint8@tensor:fp32",
    "uint3@16+off+scale=kquant", "int5@16:int8@256:fp32+scale=kquant", "nvfp4+scale=mse",
]  # fmt: skip
OTHERS = [
    "int4@32+nonfinite=saturate", "fp8_e4m3fn@32+nonfinite=propagate", "int4@32+zp+nonfinite=saturate", "nf4+nonfinite=saturate",
    "int8@32+over=wrap", "int8@128+nest=4.2+open=4", "int8@128+nest=4.2+open=2", "fixed8_f4@32",
]  # fmt: skip
VECTORS = ["ovp4_int@channel", "ovp4_flint@64:fp32+scale=sigma3", "d4", "d4@32", "e8p@channel", "iq2xxs@32:fp32+scale=absmax"]


def arrays(spec: Spec) -> list[np.ndarray]:
    """Short last blocks, zero and tiny blocks, huge values, one axis to three, float64, a NaN; whole groups where codes need them."""
    rng = np.random.default_rng(0)
    found = []
    for shape, size in {(19, 100): 1.0, (3, 5, 64): 1e-3, (129,): 1e-30, (9, 33): 1e-40, (2, 300): 3e37, (1, 1): 1.0}.items():
        x = (rng.standard_normal(shape) * size).astype(np.float32)
        x[0] = 0
        x.reshape(-1)[-1] = -0.0
        x.reshape(-1)[40:60] *= np.float32(1e-8)
        found.append(x)
    found += [found[0].astype(np.float64) * (1 + 1e-12), found[0].astype(np.float16)]
    bad = found[0].copy()
    bad[1, 7], bad[2, 3], bad[2, 50] = np.inf, np.nan, -np.inf
    cut = (x[..., : x.shape[-1] // spec.format.element.dim * spec.format.element.dim] for x in (*found, bad))
    return [np.ascontiguousarray(x) for x in cut if x.size]


def outcome(call: Any) -> Any:
    """What a call gives, or what it says."""
    try:
        return call()
    except AnybitError as error:
        return type(error), str(error)


@pytest.mark.parametrize("text", [*ZEROS_AND_OFFSETS, *RULES, *LEVELS, *OTHERS, *VECTORS])
def test_the_bits_of_the_host(text: str) -> None:
    spec, done = Spec.parse(text), 0
    for x in arrays(spec):
        t = torch.from_numpy(x)
        want, parts = outcome(lambda x=x: anybit.fake_quantize(x, spec)), outcome(lambda x=x: quantize_parts(x, spec))
        got = outcome(lambda t=t: fake_quantize_on_device(t, spec).numpy())
        coded = outcome(lambda t=t: quantize_on_device(t, spec))
        if isinstance(want, tuple):
            assert got == want and coded == parts
            continue
        assert got.dtype == np.float32 and got.tobytes() == want.tobytes(), x.shape
        assert coded.keys() == parts.keys()
        for name, part in parts.items():
            assert coded[name].dtype == part.dtype and np.array_equal(coded[name], part), (x.shape, name)
        done += 1
    assert done


@pytest.mark.parametrize(
    "text", ["int4@tensor:fp32+scale=mse", "int4@channel:fp32+scale=sigma3", "nvfp4+scale=mse", "int4@700x600:fp32+scale=mse"]
)
def test_arrays_of_several_slabs(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where blocks are cut, or slabs end, nothing shows."""
    from anybit import device_blocks
    from anybit.methods import rtn

    for module, name, value in ((device_blocks, "_SLAB", 9000), (device_blocks, "LIMIT", 1 << 11), (rtn, "LIMIT", 1 << 11)):
        monkeypatch.setattr(module, name, value)
    x = np.random.default_rng(1).standard_normal((61, 520)).astype(np.float32)
    assert np.array_equal(fake_quantize_on_device(torch.from_numpy(x), Spec.parse(text)).numpy(), anybit.fake_quantize(x, text))


def test_importance() -> None:
    x = np.random.default_rng(2).standard_normal((7, 96)).astype(np.float32)
    rng = np.random.default_rng(3)
    for weights in (rng.random(96), rng.random((7, 96)).astype(np.float32)):
        for text in ("int3@32:fp32+scale=wmse", "q4_k+scale=kquant"):
            want = quantize_parts(x, text, importance=weights)
            for given in (weights, torch.from_numpy(weights)):
                got = quantize_on_device(torch.from_numpy(x), Spec.parse(text), importance=given)
                assert all(np.array_equal(got[name], part) for name, part in want.items())
    for given, error in (("wmse", None), ("wmse", np.ones(5)), ("absmax", np.ones(96)), ("wmse", -np.ones(96))):
        spec = Spec.parse(f"int3@32+scale={given}")
        texts = [outcome(lambda s=spec, e=error: quantize_parts(x, s, importance=e)),
                 outcome(lambda s=spec, e=error: quantize_on_device(torch.from_numpy(x), s, importance=e))]  # fmt: skip
        assert texts[0] == texts[1] and texts[0][0] in (FormatError, ShapeError, NonFiniteError)


def test_public_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """quantize gives a tensor of the host's, fake_quantize values on the device, for tensors taken for ones on a device."""
    x = torch.from_numpy(np.random.default_rng(4).standard_normal((16, 64)).astype(np.float32))
    want, q = anybit.fake_quantize(x, "int4@32+zp").numpy(), anybit.quantize(x, "int4@32+zp")
    monkeypatch.setattr(tensor, "on_cpu", lambda _: False)
    monkeypatch.setattr(tensor, "torch_view", None)
    assert np.array_equal(anybit.fake_quantize(x, "int4@32+zp").numpy(), want)
    there = anybit.quantize(x.bfloat16().float(), "int4@32+zp")
    monkeypatch.undo()
    assert np.array_equal(q.dequantize(), want) and np.array_equal(
        there.dequantize(), anybit.fake_quantize(x.bfloat16(), "int4@32+zp").numpy()
    )


@pytest.mark.parametrize("name", ["d4", "ovp4_int", "e8p"])
def test_elements_of_several_weights(name: str) -> None:
    element = anybit.Format(name).element
    x = (np.random.default_rng(5).standard_normal((5, 7, 16)) * 2).astype(np.float32)
    x[0], x[1, 0, :4] = 0, [0.5, -0.5, 1e30, -1e-30]
    policy = ("nearest-even", "saturate", "saturate")
    assert np.array_equal(encode_on_device(torch.from_numpy(x), element, policy, 0, None).numpy(), element.encode(x))
    assert np.array_equal(round_on_device(torch.from_numpy(x), element, policy, 0, None).numpy(), anybit.round(x, name))
    with pytest.raises(ShapeError, match="rows of 15 are no multiple"):
        encode_on_device(torch.from_numpy(x[..., :15].copy()), element, policy, 0, None)


def test_ties_of_vectors_are_the_smallest_code() -> None:
    element = anybit.Format("d4").element
    x = np.array(np.meshgrid(*[np.arange(-3, 3.5, 0.5)] * 4)).reshape(4, -1).T.astype(np.float32)[::7]
    policy = ("nearest-even", "saturate", "error")
    assert np.array_equal(encode_on_device(torch.from_numpy(x), element, policy, 0, None).numpy(), element.encode(x))


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((5, 1, 4, 32), (1, 3)), ((5, 1, 3, 7), (1, 3)), ((2, 1, 1, 5000), (1, 3)), ((2, 8, 3, 4), (1, 3)), ((2, 128, 2, 128), (1, 3)),
     ((1, 37, 1, 100), (1, 3)), ((3, 128, 5, 1), (1, 3)), ((2, 3, 2, 4, 2, 8), (1, 3, 5)), ((2, 3, 2, 4, 2, 1), (1, 3, 5)),
     ((1, 300, 1, 301), (1, 3)), ((4, 9), (1,)), ((1, 1), (1,)), ((3, 1000, 2), (1,))],
)  # fmt: skip
def test_sums_have_numpys_order(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    """Bit for bit, on numbers of many sizes, where another order shows."""
    rng = np.random.default_rng(6)
    x = rng.standard_normal(shape) * np.exp(8 * rng.standard_normal(shape))
    want, got = x.sum(axis=axes), ordered_sum(torch.from_numpy(x), axes).numpy()
    assert got.shape == want.shape and np.array_equal(got, want)
    if x.size > 20 * want.size:
        other = rng.permutation(x, axis=max(axes, key=lambda i: shape[i]))
        assert not np.array_equal(other.sum(axis=axes), want), "any order would do"


def test_nothing_goes_to_the_host_unasked() -> None:
    t = torch.arange(6.0).reshape(2, 3)
    x = Placed(arrays_of(t), t)
    with pytest.raises(TypeError, match="not read by NumPy"):
        np.asarray(x)
    with pytest.raises(TypeError):
        np.cumsum(x)  # type: ignore[call-overload]
    assert np.array_equal((x + np.float64(1)).host(), np.arange(6.0).reshape(2, 3) + 1) and (x + 1.0).dtype == np.float32
    assert (x + np.float64(1)).dtype == np.float64 and np.where(x > 2, x, np.float64(0)).dtype == np.float64


def test_an_opened_round_trip_is_that_of_its_stored_codes() -> None:
    x = np.random.default_rng(7).standard_normal((4, 256)).astype(np.float32)
    for text in ("int8@128+nest=4.2+open=4", "int8@128+nest=4.2+open=2", "uint8@128+nest=4+open=4"):
        assert np.array_equal(anybit.fake_quantize(x, text), anybit.quantize(x, text).dequantize())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("text", [*ZEROS_AND_OFFSETS, *RULES, *LEVELS, *OTHERS, *VECTORS])
def test_cuda(text: str) -> None:
    spec = Spec.parse(text)
    for x in arrays(spec):
        want = outcome(lambda x=x: anybit.fake_quantize(x, spec))
        got = outcome(lambda x=x: anybit.fake_quantize(torch.from_numpy(x).cuda(), spec).cpu().numpy())
        assert isinstance(want, tuple) if isinstance(got, tuple) else got.tobytes() == want.tobytes(), x.shape
