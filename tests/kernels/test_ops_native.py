"""The native operators equal the reference bit for bit, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from anybit.kernels import cpu
from anybit.reference import ops
from anybit.reference.philox import philox

native = cpu.native
WIDTHS = (1, 2, 7, 15, 16, 17, 31, 33, 63, 64, 65, 127, 1000)


def same(a: object, b: np.ndarray) -> bool:
    """Equal bits; any NaN equals any NaN."""
    got = np.asarray(a)
    bits = np.uint32 if b.dtype == np.float32 else np.uint64
    return got.dtype == b.dtype and bool(np.all((got.view(bits) == b.view(bits)) | (np.isnan(got) & np.isnan(b))))


def floats(step: int) -> np.ndarray:
    """Every step-th float32 bit pattern, all kinds among them."""
    return np.arange(0, 2**32, step, dtype=np.uint32).view(np.float32)


def test_exp_over_all_magnitudes(isa: str) -> None:
    x = np.concatenate([floats(40_009), np.linspace(-105, 90, 100_003, dtype=np.float32)])
    assert same(native.op_exp(x), ops.exp(x))


@pytest.mark.parametrize("n", WIDTHS)
def test_swiglu(isa: str, n: int) -> None:
    rng = np.random.default_rng(n)
    gate, up = (rng.standard_normal(n) * 30).astype(np.float32), rng.standard_normal(n).astype(np.float32)
    gate[: n // 8] *= np.float32(1e30)
    with np.errstate(over="ignore"):
        assert same(native.op_swiglu(gate, up), ops.swiglu(gate, up))


@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("size", [1, 2.0**-70, 2.0**50])
def test_rmsnorm(isa: str, n: int, size: float) -> None:
    rng = np.random.default_rng(n)
    x = (rng.standard_normal((3, n)) * size).astype(np.float32)
    weight = rng.standard_normal(n).astype(np.float32)
    for eps in (1e-5, 1e-6):
        assert same(native.op_rmsnorm(x, weight, eps), ops.rmsnorm(x, weight, eps))


def test_rmsnorm_of_zeros_and_signs(isa: str) -> None:
    x = np.zeros((2, 33), np.float32)
    x[1] = -0.0
    assert same(native.op_rmsnorm(x, -np.ones(33, np.float32), 1e-5), ops.rmsnorm(x, -np.ones(33, np.float32), 1e-5))


@pytest.mark.parametrize("width", [2, 6, 32, 64, 128])
def test_rope(isa: str, width: int) -> None:
    rng = np.random.default_rng(width)
    positions = np.concatenate([np.arange(70), rng.integers(0, 2**20, 60), [2**20 - 1]])
    for base, factor in ((10_000.0, 1.0), (1e6, 1.1386294)):
        inverse = ops.rope_inverse(base, width)
        cos, sin = native.op_rope_table(positions, inverse, factor)
        want = ops.rope_table(positions, inverse, factor)
        assert same(cos, want[0]) and same(sin, want[1])
        x = rng.standard_normal((len(positions), width)).astype(np.float32)
        x[:2] = 0
        x[1] = -0.0
        assert same(native.op_rotate(x, *want), ops.rotate(x, *want))


@pytest.mark.parametrize("window", [None, 1, 63, 64, 65, 600])
@pytest.mark.parametrize(("length", "dim"), [(1, 16), (63, 8), (64, 32), (65, 33), (513, 16), (1100, 24)])
def test_attention(isa: str, length: int, dim: int, window: int | None) -> None:
    rng = np.random.default_rng(length)
    q = (rng.standard_normal((6, 5, dim)) * 3).astype(np.float32)
    k, v = (rng.standard_normal((2, length, dim)).astype(np.float32) for _ in range(2))
    positions = np.sort(rng.integers(0, length, 5))
    positions[-1] = length - 1
    assert same(native.op_attention(q, k, v, positions, window or 0), ops.attention(q, k, v, positions, window))


def test_attention_where_weights_underflow(isa: str) -> None:
    rng = np.random.default_rng(7)
    q, k, v = ((rng.standard_normal((1, n, 16)) * size).astype(np.float32) for n, size in ((4, 12), (700, 12), (700, 2.0**-110)))
    positions = np.array([100, 300, 650, 699])
    assert same(native.op_attention(q, k, v, positions, 0), ops.attention(q, k, v, positions))


@pytest.mark.parametrize("n", [*WIDTHS, 4099])
def test_logsumexp(isa: str, n: int) -> None:
    rng = np.random.default_rng(n)
    logits = (rng.standard_normal((5, n)) * 10).astype(np.float32)
    targets = rng.integers(0, n, 5).astype(np.int32)
    nll, top = native.row_nll(logits, targets)
    assert same(nll, ops.logsumexp(logits) - logits[np.arange(5), targets].astype(np.float64))
    assert np.array_equal(top, logits.argmax(1))


def test_divergence(isa: str) -> None:
    """Equal to the reference, which is near float64 arithmetic throughout."""
    rng = np.random.default_rng(8)
    a = (rng.standard_normal((6, 1000)) * 4).astype(np.float32)
    b = a + (rng.standard_normal(a.shape) * np.geomspace(1e-4, 1, 6)[:, None]).astype(np.float32)
    _, _, kl, _, _ = native.row_stats(a, b, np.zeros(6, np.int32))
    assert same(kl, ops.divergence(a, b))
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    log_a = wide_a - np.log(np.exp(wide_a).sum(1, keepdims=True))
    log_b = wide_b - np.log(np.exp(wide_b).sum(1, keepdims=True))
    want = (np.exp(log_a) * (log_a - log_b)).sum(1)
    np.testing.assert_allclose(kl, want, rtol=1e-4, atol=1e-8)


def test_philox() -> None:
    rng = np.random.default_rng(9)
    for _ in range(50):
        counter, key = rng.integers(0, 2**32, 4).tolist(), rng.integers(0, 2**32, 2).tolist()
        assert native.op_philox(counter, key) == philox(counter, key).tolist()
