"""The reference operators against independent arithmetic: libm at higher precision, decimals, float64 definitions."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from minimax import exp_coefficients

from anybit.reference import ops
from anybit.reference.philox import philox, uniform


def ulps(got: np.ndarray, want: np.ndarray, dtype: type) -> np.ndarray:
    """Distance in units of the last place of the wanted value, 80-bit `want`."""
    smallest = np.finfo(dtype).tiny
    unit = np.spacing(np.maximum(np.abs(want), smallest).astype(dtype)).astype(np.longdouble)
    return np.abs(got.astype(np.longdouble) - want) / unit


def test_exp_coefficients_are_the_minimax_fit() -> None:
    fit, error = exp_coefficients(Decimal("0.3467"), 4)
    assert error < Decimal("3.1e-9")
    assert [np.float32(float(c)) for c in fit] == list(ops.EXP_C)


@pytest.mark.parametrize(("low", "high"), [(-104, 88.7), (-87.3, -20), (-1, 1), (-0.01, 0.01), (0, 88.7)])
def test_exp_is_within_one_ulp(low: float, high: float) -> None:
    x = np.concatenate([np.linspace(low, high, 300_001), np.random.default_rng(0).uniform(low, high, 100_000)]).astype(np.float32)
    assert ulps(ops.exp(x), np.exp(x.astype(np.longdouble)), np.float32).max() < 0.9


def test_exp_at_half_integers_of_the_reduction() -> None:
    """Where n changes: float32 neighbours of (n + 1/2) ln 2, on both sides."""
    middle = ((np.arange(-149, 128) + 0.5) * np.log(2)).astype(np.float32)
    x = np.concatenate([(middle.view(np.int32) + d).view(np.float32) for d in range(-8, 9)])
    assert ulps(ops.exp(x), np.exp(x.astype(np.longdouble)), np.float32).max() < 0.9


def test_exp_ends() -> None:
    x = np.array([0, -0.0, -104, -103.98, -105, -1e9, -np.inf, 88.73, 100, np.inf, np.nan], np.float32)
    want = np.array([1, 1, 0, 0, 0, 0, 0, np.inf, np.inf, np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(ops.exp(x), want)
    assert not np.signbit(ops.exp(x[2:7])).any()
    least = np.float32(np.log(2.0) * -149)
    assert ops.exp(least) == np.float32(2.0**-149)


def test_silu() -> None:
    x = np.concatenate([np.linspace(-100, 100, 20_001), [0.0, -0.0, 1e30, -1e30]]).astype(np.float32)
    wide = x.astype(np.longdouble)
    with np.errstate(over="ignore"):
        want = wide / (1 + np.exp(-wide))
    normal = np.abs(want) > 2.0**-120  # beyond, exp(-x) is near its overflow
    assert ulps(ops.silu(x), want, np.float32)[normal].max() < 3
    assert np.isfinite(ops.silu(x)).all()


def test_float64_functions() -> None:
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.uniform(-700, 700, 50_000), rng.uniform(-1, 1, 50_000), [0.0]])
    assert ulps(ops.exp64(x), np.exp(x.astype(np.longdouble)), np.float64).max() < 2
    y = np.concatenate([np.exp(rng.uniform(-700, 700, 50_000)), rng.uniform(0.5, 1.5, 50_000), [1.0, 2.0**-1022, 2.0**1023]])
    want = np.log(y.astype(np.longdouble))
    assert ulps(ops.log64(y), want, np.float64)[want != 0].max() < 2
    assert ops.log64(1.0) == 0


def test_sincos() -> None:
    """Error below 1e-15 up to 2^20, also where the angle is nearest to a multiple of pi / 2; against decimals and 80-bit libm."""
    rng = np.random.default_rng(2)
    near = np.rint(rng.uniform(-667_000, 667_000, 20_000)) * (np.pi / 2)
    x = np.concatenate([rng.uniform(-(2**20), 2**20, 50_000), rng.uniform(-7, 7, 20_000), near, np.arange(-8.0, 9.0), [2.0**20]])
    sin, cos = ops.sincos(x)
    # libm's 80-bit functions reduce exactly (Payne-Hanek), NumPy calls them
    assert np.abs(sin - np.sin(x.astype(np.longdouble))).max() < 1e-15
    assert np.abs(cos - np.cos(x.astype(np.longdouble))).max() < 1e-15


def test_constants_split_exactly() -> None:
    """Each reduction constant has the trailing zeros that make its product with n exact, and the parts sum to the number."""
    ln2 = Decimal(2).ln()
    assert abs(Decimal(float(ops.LN2_HIGH)) + Decimal(float(ops.LN2_LOW)) - ln2) < Decimal(2) ** -53
    assert abs(Decimal(ops.LN2_HIGH_64) + Decimal(ops.LN2_LOW_64) - ln2) < Decimal(2) ** -86
    half_pi = Decimal("1.5707963267948966192313216916397514420985846996875529104874722961")
    assert abs(Decimal(ops.PI2_1) + Decimal(ops.PI2_2) + Decimal(ops.PI2_3) - half_pi) < Decimal(2) ** -120
    for constant, bits in ((ops.PI2_1, 33), (ops.PI2_2, 33), (ops.LN2_HIGH_64, 32)):
        mantissa = int(constant.hex().split("p")[0].replace("0x1.", "1"), 16)
        assert mantissa % 2 ** (53 - bits) == 0


def test_rope_table_is_near_the_published_definition() -> None:
    inverse = ops.rope_inverse(10000.0, 64)
    want = 1 / 10000.0 ** (np.arange(0, 64, 2) / 64)
    assert np.abs(inverse / want - 1).max() < 1e-7
    cos, sin = ops.rope_table(np.array([0, 1, 511, 131_071]), inverse)
    angle = np.array([0, 1, 511, 131_071], np.float32)[:, None] * inverse
    np.testing.assert_allclose(cos, np.cos(angle.astype(np.float64)), atol=6e-8)
    np.testing.assert_allclose(sin, np.sin(angle.astype(np.float64)), atol=6e-8)


def test_rotate_is_a_rotation() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((5, 32)).astype(np.float32)
    cos, sin = ops.rope_table(np.arange(5), ops.rope_inverse(10000.0, 32))
    y = ops.rotate(x, cos, sin)
    a, b = x[:, :16].astype(np.float64), x[:, 16:].astype(np.float64)
    np.testing.assert_allclose(y, np.concatenate([a * cos - b * sin, b * cos + a * sin], -1), atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 33, 64, 127])
def test_dot_and_rmsnorm(n: int) -> None:
    rng = np.random.default_rng(n)
    x, w = (rng.standard_normal((7, n)).astype(np.float32) for _ in range(2))
    exact = (x.astype(np.float64) * w).sum(-1)
    mass = np.abs(x.astype(np.float64) * w).sum(-1)
    assert (np.abs(ops.dot(x, w) - exact) <= mass * (n / 16 + 5) * 2.0**-24).all()
    want = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5) * w[0]
    np.testing.assert_allclose(ops.rmsnorm(x, w[0], 1e-5), want, rtol=(n / 16 + 10) * 2.0**-24)


def test_lanes_have_the_stated_order() -> None:
    """2^24 swallows a 1 that is added to it, so the sum shows who met whom: lane 0 holds 0 and 16, lane 8 joins it first."""
    x = np.zeros(32, np.float32)
    one = np.ones(32, np.float32)
    x[[0, 16, 8]] = 2**24, 1, 1
    assert ops.dot(x, one) == 2**24  # (2^24 + 1) then + 1: both lost
    x[:] = 0
    x[[0, 8, 24]] = 2**24, 1, 1
    assert ops.dot(x, one) == 2**24 + 2  # the ones meet in lane 8 before the fold


def softmax_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, positions: np.ndarray, window: int | None) -> np.ndarray:
    """The textbook formula in float64."""
    group = q.shape[0] // k.shape[0]
    k, v = (np.repeat(x, group, axis=0).astype(np.float64) for x in (k, v))
    s = np.einsum("htd,hkd->htk", q.astype(np.float64), k) / np.sqrt(q.shape[-1])
    at = np.arange(k.shape[1])
    visible = at <= positions[:, None]
    if window is not None:
        visible &= at > positions[:, None] - window
    s = np.where(visible, s, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    return (p / p.sum(-1, keepdims=True)) @ v


@pytest.mark.parametrize("window", [None, 1, 64, 100])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 700])
def test_attention(length: int, window: int | None) -> None:
    rng = np.random.default_rng(length)
    q = rng.standard_normal((4, 3, 24)).astype(np.float32)
    k, v = (rng.standard_normal((2, length, 24)).astype(np.float32) for _ in range(2))
    positions = np.array([length - 1, length // 2, 0])
    got = ops.attention(q, k, v, positions, window)
    np.testing.assert_allclose(got, softmax_attention(q, k, v, positions, window), atol=2e-6)


def test_attention_does_not_see_chunks_or_what_is_masked() -> None:
    rng = np.random.default_rng(5)
    q = rng.standard_normal((2, 6, 16)).astype(np.float32)
    k, v = (rng.standard_normal((1, 600, 16)).astype(np.float32) for _ in range(2))
    positions = np.array([10, 63, 64, 300, 512, 599])
    together = ops.attention(q, k, v, positions, 200)
    for i, p in enumerate(positions):
        keys, values = k[:, : p + 1].copy(), v[:, : p + 1].copy()
        if p >= 200:
            keys[:, : p - 199] = np.nan
            values[:, : p - 199] = np.nan
        alone = ops.attention(q[:, i : i + 1], keys, values, positions[i : i + 1], 200)
        np.testing.assert_array_equal(together[:, i : i + 1].view(np.uint32), alone.view(np.uint32))


def test_attention_with_scores_far_apart() -> None:
    """One key outweighs the others by more than exp can tell: the others' weights underflow and the result is that key's value."""
    q = np.full((1, 1, 16), 30, np.float32)
    k = np.full((1, 200, 16), -1, np.float32)
    k[0, 70] = 1
    v = np.arange(200 * 16, dtype=np.float32).reshape(1, 200, 16)
    np.testing.assert_array_equal(ops.attention(q, k, v, np.array([199])), v[:, 70:71])


def test_logsumexp() -> None:
    rng = np.random.default_rng(6)
    x = (rng.standard_normal((20, 4099)) * 4).astype(np.float32)
    wide = x.astype(np.longdouble)
    want = np.log(np.exp(wide).sum(-1))
    assert np.abs(ops.logsumexp(x) - want).max() < 5e-8


@pytest.mark.parametrize(
    ("counter", "key", "want"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter: list[int], key: list[int], want: list[int]) -> None:
    """The vectors that Random123 publishes for philox4x32-10."""
    assert philox(counter, key).tolist() == want
    assert philox([counter, counter], key).tolist() == [want, want]


def test_uniform_is_a_function_of_seed_and_position() -> None:
    draws = [uniform(7, position) for position in range(2000)]
    assert len(set(draws)) == 2000 and min(draws) >= 0 and max(draws) < 1
    assert abs(np.mean(draws) - 0.5) < 5 * (1 / 12 / 2000) ** 0.5
    assert all((u * 2.0**53).is_integer() for u in draws)
    assert uniform(7, 2**32) not in draws and uniform(7 + 2**32, 0) not in draws and uniform(8, 0) not in draws
    words = philox([5, 1, 0, 0], [9, 2])
    assert uniform(2**33 + 9, 2**32 + 5) == ((int(words[0]) >> 5) * 2**26 + (int(words[1]) >> 6)) / 2**53
