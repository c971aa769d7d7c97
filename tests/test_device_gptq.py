"""GPTQ on a device, forced on CPU tensors, beside the host's: nearly all codes, the loss, the fallbacks, what is refused."""

import warnings

import numpy as np
import pytest
import torch

import anybit
from anybit import tensor
from anybit.device_blocks import dequantize_on_device
from anybit.device_gptq import gptq_on_device
from anybit.errors import FormatError, NonFiniteError, ShapeError, UsageError
from anybit.formats import Spec
from anybit.methods.rtn import dequantize_parts, quantize_parts

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
FORMATS = [
    "int4@32", "int3@32+zp", "uint4@32:fp16+zp=fp16", "int2@24+off", "int8@channel", "int4@tensor:fp32", "int4@8x32",
    "fp4_e2m1@16:fp8_e4m3fn@tensor:fp32", "mxfp4", "nf4@32", "posit6@32:fp32", "fp8_e4m3fn", "int4@32+scale=clip", "int3@32:fp32+scale=mse",
    "int8@32+nest=4.2+open=4",
]  # fmt: skip


def layer(n: int = 64, k: int = 320, tokens: int = 900) -> tuple[np.ndarray, np.ndarray]:
    """float32: weight [n, k] and X^T X of inputs of a few strong directions and channels; more than two blocks of columns."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((k, k)) * np.exp(rng.standard_normal(k))[:, None] / np.sqrt(k)
    x = (rng.standard_normal((tokens, k)) @ mix + rng.standard_normal((tokens, k)) * 0.1).astype(np.float32)
    return (rng.standard_t(5, (n, k)) * 0.05).astype(np.float32), x.T @ x


def loss(w: np.ndarray, q: np.ndarray, h: np.ndarray) -> float:
    e, h = w.astype(np.float64) - q, h.astype(np.float64) + 0.01 * float(h.diagonal().mean()) * np.eye(len(h))
    return float(((e @ h) * e).sum())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("text", FORMATS)
def test_the_hosts_result(text: str, device: str) -> None:
    """At least 99.9 % of the codes and the loss to 1e-6; the scales exactly, which are chosen before."""
    w, h = layer()
    spec = Spec.parse(text)
    want = anybit.quantize(w, spec, method="gptq", xtx=h).logical()
    got = gptq_on_device(torch.from_numpy(w).to(device), spec, torch.from_numpy(h).to(device))
    assert got.keys() == want.keys() and all(np.array_equal(got[name], want[name]) for name in want if name != "codes")
    assert got["codes"].dtype == want["codes"].dtype and (got["codes"] == want["codes"]).mean() >= 0.999
    a, b = (loss(w, dequantize_parts(parts, spec.format, w.shape), h) for parts in (want, got))
    assert abs(a - b) <= 1e-6 * a
    if "fp8" not in text and "int8" not in text:
        assert b < 0.9 * loss(w, dequantize_parts(quantize_parts(w, spec), spec.format, w.shape), h)
    there = dequantize_on_device(got, spec.format, torch.from_numpy(w).to(device))
    assert np.array_equal(there.cpu().numpy(), dequantize_parts(got, spec.format, w.shape))


def test_identity_is_nearest() -> None:
    w, _ = layer()
    for text in ("int4@32", "mxfp4", "int3@32+zp"):
        got = gptq_on_device(torch.from_numpy(w), Spec.parse(text), torch.eye(w.shape[1]))
        assert np.array_equal(got["codes"], quantize_parts(w, text)["codes"])


def test_public_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    w, h = layer(k=96)
    t, x = torch.from_numpy(w), torch.from_numpy(h)
    want = anybit.fake_quantize(w, "int3@32", method="gptq", xtx=h)
    for a, b in ((t, x), (t, h), (w, x)):
        assert np.array_equal(np.asarray(anybit.fake_quantize(a, "int3@32", method="gptq", xtx=b)), want)
    monkeypatch.setattr(tensor, "on_cpu", lambda _: False)
    monkeypatch.setattr(tensor, "torch_view", None)
    got, q = anybit.fake_quantize(t, "int3@32", method="gptq", xtx=x), anybit.quantize(t, "int3@32", method="gptq", xtx=h)
    out = torch.empty_like(t)
    assert isinstance(got, torch.Tensor) and anybit.fake_quantize(t, "int3@32", method="gptq", xtx=x, out=out) is out
    monkeypatch.undo()
    assert torch.equal(out, got) and np.array_equal(q.dequantize(), got.numpy()) and (got.numpy() == want).mean() > 0.999


def test_statistics_that_say_little() -> None:
    """Dead channels, singular and empty statistics: as the host takes them, and said."""
    w, h = layer(k=96)
    dead = h.copy()
    dead[5], dead[:, 5] = 0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = anybit.quantize(w, "int4@32", method="gptq", xtx=dead).logical()["codes"]
    assert (gptq_on_device(torch.from_numpy(w), Spec.parse("int4@32"), dead)["codes"] == want).mean() > 0.999
    nearest = quantize_parts(w, "int4@32")["codes"]
    with pytest.warns(RuntimeWarning, match="zero or not finite: rounded to nearest"):
        assert np.array_equal(gptq_on_device(torch.from_numpy(w), Spec.parse("int4@32"), h * 0)["codes"], nearest)
    bent = h - 0.05 * float(h.diagonal().mean()) * np.eye(96, dtype=np.float32)  # indefinite until more is added
    with pytest.warns(RuntimeWarning, match="damping was raised from 0.01 to 0.1"):
        got = gptq_on_device(torch.from_numpy(w), Spec.parse("int4@32"), bent)["codes"]
    with pytest.warns(RuntimeWarning, match="damping was raised from 0.01 to 0.1"):
        assert (got == anybit.quantize(w, "int4@32", method="gptq", xtx=bent).logical()["codes"]).mean() > 0.999
    with pytest.warns(RuntimeWarning, match="no factor at any damping"):
        assert np.array_equal(
            gptq_on_device(torch.from_numpy(w), Spec.parse("int4@32"), np.eye(96) - 1e3 * np.ones((96, 96)) * (1 - np.eye(96)))["codes"],
            nearest,
        )


def test_refusals() -> None:
    w, h = layer(k=96)
    t, spec = torch.from_numpy(w), Spec.parse("int4@32")
    with pytest.raises(ShapeError, match=r"xtx is \[96, 96\] for a matrix of \[64, 96\], not \[95, 95\]"):
        gptq_on_device(t, spec, h[1:, 1:])
    with pytest.raises(UsageError, match="gptq needs xtx"):
        anybit.quantize(w, "int4@32", method="gptq")
    with pytest.raises(UsageError, match="method rtn takes no xtx"):
        anybit.quantize(w, "int4@32", xtx=h)
    with pytest.raises(UsageError, match="method gptq takes no importance"):
        anybit.quantize(w, "int4@32", method="gptq", xtx=h, importance=np.ones(96))
    with pytest.raises(ShapeError, match="rounds matrices"):
        gptq_on_device(t[0], spec, h)
    with pytest.raises(FormatError, match="on cpu gptq of d4, which codes several weights together"):
        gptq_on_device(t, Spec.parse("d4@32"), h)
    with pytest.raises(FormatError, match="draws codes by chance"):
        gptq_on_device(t, Spec.parse("int4@32+round=sr"), h)
    with pytest.raises(NonFiniteError, match="xtx holds NaN"):
        anybit.quantize(w, "int4@32", method="gptq", xtx=h * np.nan)
    bad = t.clone()
    bad[3, 4] = float("inf")
    with pytest.raises(NonFiniteError, match=r"the first inf at index \[3, 4\]"):
        gptq_on_device(bad, spec, h)
