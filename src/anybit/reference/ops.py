"""The operators of a transformer block beside the matrix product, defined to the last bit: NumPy, elementwise IEEE operations only.

Native code mirrors each line. `docs/contract.md` states the same in words, with the constants. "Lanes" are 16 virtual float32
lanes: lane j takes the indices j, j + 16, ... ascending, arrays are padded with +0 to a multiple of 16, and the lanes are folded
8, 4, 2, 1 (lane j gets lane j + half). `maximum(a, b)` is a if a > b else b, so that NaN in b is kept.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from anybit.reference.fma import F32, fma

F64 = npt.NDArray[np.float64]
Step = Callable[[F32, F32, F32], F32]

LANES = 16
TILE = 64  # keys whose softmax is taken together, at absolute positions
SPAN = 8  # tiles merged one after the other; spans are merged after that

LOG2E = np.float32(float.fromhex("0x1.715476p+0"))
LN2_HIGH = np.float32(float.fromhex("0x1.62e430p-1"))
LN2_LOW = np.float32(float.fromhex("-0x1.05c610p-29"))
EXP_LEAST, EXP_MOST = np.float32(-105), np.float32(89)
# exp(r) = 1 + r + r^2 (C2 + C3 r + ...): least relative error 3.1e-9 on |r| <= 0.3467, derived again in the tests, rounded to float32
EXP_C = tuple(np.float32(float.fromhex(c)) for c in ("0x1.fffffcp-2", "0x1.555492p-3", "0x1.5558f2p-5", "0x1.123a0ap-7", "0x1.6a23eep-10"))

LOG2E_64 = float.fromhex("0x1.71547652b82fep+0")
LN2_HIGH_64 = float.fromhex("0x1.62e42feep-1")  # 32 bits, so that times an exponent it is exact
LN2_LOW_64 = float.fromhex("0x1.a39ef35793c76p-33")
SQRT2_64 = float.fromhex("0x1.6a09e667f3bcdp+0")
TWO_OVER_PI = float.fromhex("0x1.45f306dc9c883p-1")
PI2_1 = float.fromhex("0x1.921fb544p+0")  # 33 bits each: n times it is exact for |n| < 2^20
PI2_2 = float.fromhex("0x1.0b4611a6p-34")
PI2_3 = float.fromhex("0x1.3198a2e037073p-69")


def lanes_fold(lanes: npt.NDArray) -> npt.NDArray:
    """[..., 16] -> [...]: adds the upper half onto the lower half, four times."""
    half = LANES // 2
    while half:
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
        half //= 2
    return lanes[..., 0]


def _in_lanes(x: npt.NDArray) -> npt.NDArray:
    """[..., n] -> [..., steps, 16], padded with +0."""
    steps = -(-x.shape[-1] // LANES)
    padded = np.zeros((*x.shape[:-1], steps * LANES), x.dtype)
    padded[..., : x.shape[-1]] = x
    return padded.reshape(*x.shape[:-1], steps, LANES)


def dot(a: F32, b: F32, step: Step = fma) -> F32:
    """Sum over the last axis of a * b: 16 lanes from +0, each an ascending chain of fma (or `step`), then folded."""
    a, b = np.broadcast_arrays(a, b)
    left, right = _in_lanes(a), _in_lanes(b)
    sums = np.zeros((*a.shape[:-1], LANES), np.float32)
    for i in range(left.shape[-2]):
        sums = step(left[..., i, :], right[..., i, :], sums)
    return lanes_fold(sums)


def rmsnorm(x: F32, weight: F32, eps: float) -> F32:
    """x[..., n] over its root mean square: ((x * r) * weight), r = 1 / sqrt(dot(x, x) / n + eps); IEEE square root and divisions."""
    mean = dot(x, x) / np.float32(x.shape[-1])
    r = np.float32(1) / np.sqrt(mean + np.float32(eps))
    return (x * r[..., None]) * weight


def maximum(a: npt.ArrayLike, b: npt.ArrayLike) -> F32:
    """a where a > b, else b: what vmaxps does. A NaN in b stays."""
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    return np.where(a > b, a, b)


def minimum(a: npt.ArrayLike, b: npt.ArrayLike) -> F32:
    """a where a < b, else b."""
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    return np.where(a < b, a, b)


def power_of_two(n: npt.NDArray[np.int32]) -> F32:
    """2^n as float32, -126 <= n <= 127."""
    return ((n + np.int32(127)) << np.int32(23)).astype(np.int32).view(np.float32)


def exp(x: npt.ArrayLike) -> F32:
    """float32 exponential, at most 1 ulp off where the result is normal; gradual underflow; 0 below -104, inf above 88.73, NaN for NaN."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        t = minimum(EXP_MOST, maximum(EXP_LEAST, x))
        n = np.rint(t * LOG2E)
        r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, t))
        p = fma(EXP_C[4], r, EXP_C[3])
        for c in (EXP_C[2], EXP_C[1], EXP_C[0], np.float32(1), np.float32(1)):
            p = fma(p, r, c)
        whole = np.where(np.isnan(n), np.float32(0), n).astype(np.int32)
        half = whole >> np.int32(1)
        return (p * power_of_two(half)) * power_of_two(whole - half)


def silu(x: F32) -> F32:
    """x / (1 + exp(-x))."""
    return x / (np.float32(1) + exp(-x))


def swiglu(gate: F32, up: F32) -> F32:
    """silu(gate) * up."""
    return silu(gate) * up


def route(logits: F32, count: int, renormalise: bool) -> tuple[npt.NDArray[np.int64], F32]:
    """(experts int64[..., count] ascending, weights float32) of float32[..., n] logits: the largest, of equal ones the first.

    e = exp(fl(logits - largest)); weight = fl(e / sum), the sum +0 + e[i] + ... ascending over all experts, or those that were chosen.
    """
    chosen = np.sort(np.argsort(-logits, axis=-1, kind="stable")[..., :count], axis=-1)
    e = exp(logits - logits.max(axis=-1, keepdims=True))
    taken = np.take_along_axis(e, chosen, axis=-1)
    total = np.zeros(logits.shape[:-1], np.float32)
    for each in np.moveaxis(taken if renormalise else e, -1, 0):
        total = total + each
    return chosen, taken / total[..., None]


def rotate(x: F32, cos: F32, sin: F32) -> F32:
    """Rotary embedding of x[..., d]: element i pairs with i + d / 2. a' = fma(a, cos, -(b * sin)); b' = fma(b, cos, a * sin).

    cos, sin: float32[..., d / 2]. A rotary width smaller than the head leaves the rest as it is: slice before.
    """
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([fma(a, cos, -(b * sin)), fma(b, cos, a * sin)], axis=-1)


def rope_table(positions: npt.NDArray[np.int64], inverse: F32, factor: float = 1.0) -> tuple[F32, F32]:
    """cos and sin, float32[t, d / 2]: angle = fl32(position * inverse), float64 sine and cosine, rounded to float32, times factor.

    The angle is float32 because published models were trained with it so; a position is below 2^20.
    """
    angle = positions.astype(np.float32)[:, None] * inverse[None, :]
    sin, cos = sincos(angle.astype(np.float64))
    return cos.astype(np.float32) * np.float32(factor), sin.astype(np.float32) * np.float32(factor)


def rope_inverse(base: float, width: int) -> F32:
    """base^(-2 i / width) for i < width / 2: fl32(exp64(-((2 i / width) * log64(base))))."""
    exponent = np.arange(0, width, 2, dtype=np.float64) / np.float64(width)
    return exp64(-(exponent * log64(np.float64(base)))).astype(np.float32)


def softmax_tile(s: F32, visible: npt.NDArray[np.bool_], v: F32, step: Step = fma) -> tuple[F32, F32, F32]:
    """One tile: scores s[..., 64], mask, values v[..., 64, d] -> (maximum, sum, weighted values), over the visible keys only."""
    top = np.max(np.where(visible, s, np.float32(-np.inf)), axis=-1)
    e = np.where(visible, exp(s - top[..., None]), np.float32(0))
    groups = e.reshape(*e.shape[:-1], TILE // LANES, LANES)
    lanes = groups[..., 0, :]
    for group in range(1, TILE // LANES):
        lanes = lanes + groups[..., group, :]
    out = np.zeros((*s.shape[:-1], v.shape[-1]), np.float32)
    for key in range(TILE):
        out = np.where(visible[..., key, None], step(e[..., key, None], v[..., key, :], out), out)
    return top, lanes_fold(lanes), out


def softmax_merge(a: tuple[F32, F32, F32], b: tuple[F32, F32, F32]) -> tuple[F32, F32, F32]:
    """State a with the later state b: both scaled to the larger maximum by exp; x = fma(x_b, scale_b, x_a * scale_a)."""
    top = maximum(a[0], b[0])
    scale_a, scale_b = exp(a[0] - top), exp(b[0] - top)
    total = fma(b[1], scale_b, a[1] * scale_a)
    return top, total, fma(b[2], scale_b[..., None], a[2] * scale_a[..., None])


def attention(q: F32, k: F32, v: F32, positions: npt.NDArray[np.int64], window: int | None = None, step: Step = fma) -> F32:
    """Causal softmax attention. q[heads, t, d], k and v[kv_heads, length, d] from position 0, positions int[t] -> [heads, t, d].

    A query at position p sees keys max(0, p - window + 1) .. p. Score = dot(q, k) * fl32(1 / fl32(sqrt(d))). Tiles of 64 keys at
    absolute positions, the first visible one starts a state, later ones are merged into it ascending inside a span of 8 tiles;
    span states are merged ascending; output = o * (1 / sum). A tile without a visible key takes no part. `step` takes the place of fma in
    the products q k and p v alone.
    """
    heads, count, d = q.shape
    scale = np.float32(1) / np.sqrt(np.float32(d))
    group = heads // k.shape[0]
    total: list[_State] = []
    for span_start in range(0, k.shape[1], SPAN * TILE):
        span: list[_State] = []
        for start in range(span_start, min(span_start + SPAN * TILE, k.shape[1]), TILE):
            at = np.arange(start, start + TILE)
            visible = (at <= positions[:, None]) & (at < k.shape[1])
            if window is not None:
                visible &= at > positions[:, None] - window
            seen = np.broadcast_to(visible, (heads, count, TILE))
            keys, values = (_tile(x, start, group) for x in (k, v))
            s = dot(q[:, :, None, :], keys[:, None, :, :], step) * scale
            with np.errstate(invalid="ignore"):
                _accept(span, softmax_tile(s, seen, values[:, None], step), np.any(seen, axis=-1, keepdims=True)[..., 0])
        with np.errstate(invalid="ignore"):
            _accept(total, *span[0])
    state = total[0][0]
    return state[2] * (np.float32(1) / state[1])[..., None]


_State = tuple[tuple[F32, F32, F32], npt.NDArray[np.bool_]]  # (maximum, sum, values) and which of its queries have seen a key


def _tile(x: F32, start: int, group: int) -> F32:
    """Rows start .. start + 64 of each key head, repeated for its query heads; what is past the end is zero and masked."""
    tile = np.zeros((x.shape[0], TILE, x.shape[2]), np.float32)
    rows = x[:, start : start + TILE]
    tile[:, : rows.shape[1]] = rows
    return np.repeat(tile, group, axis=0)


def _accept(states: list[_State], new: tuple[F32, F32, F32], seen: npt.NDArray[np.bool_]) -> None:
    """Merges a state into the one held, query by query: taken over where nothing was seen before, left alone where it saw nothing."""
    if not states:
        states.append((new, seen))
        return
    old, before = states[0]
    merged = softmax_merge(old, new)
    chosen = []
    for o, n, m in zip(old, new, merged, strict=True):
        b, s = (before, seen) if o.ndim == before.ndim else (before[..., None], seen[..., None])
        chosen.append(np.where(b & s, m, np.where(s, n, o)))
    states[0] = ((chosen[0], chosen[1], chosen[2]), before | seen)


def logsumexp(logits: F32) -> F64:
    """log(sum(exp(row))) of float32[..., n] in float64: m = maximum, float32 exp(x - m), 16 float64 lanes ascending, fold, m + log64."""
    top = np.max(logits, axis=-1)
    groups = _in_lanes(exp(logits - top[..., None]).astype(np.float64))  # padded with 0, not exp(0)
    lanes = np.zeros((*logits.shape[:-1], LANES), np.float64)
    for step in range(groups.shape[-2]):
        lanes = lanes + groups[..., step, :]
    return top.astype(np.float64) + log64(lanes_fold(lanes))


def divergence(reference: F32, logits: F32) -> F64:
    """Kullback-Leibler divergence of rows of logits from reference rows, float32[..., n], in float64.

    p = float32 exp(reference - maximum); sum over 16 float64 lanes of p ((reference - lse) - (logits - lse')), over the lanes' sum of p.
    """
    top = np.max(reference, axis=-1)
    difference = (reference.astype(np.float64) - logsumexp(reference)[..., None]) - (
        logits.astype(np.float64) - logsumexp(logits)[..., None]
    )
    weights, differences = _in_lanes(exp(reference - top[..., None]).astype(np.float64)), _in_lanes(difference)
    sums, terms = np.zeros((2, *reference.shape[:-1], LANES), np.float64)
    for step in range(weights.shape[-2]):
        sums = sums + weights[..., step, :]
        terms = terms + weights[..., step, :] * differences[..., step, :]
    return lanes_fold(terms) / lanes_fold(sums)


def exp64(x: npt.ArrayLike) -> F64:
    """float64 exponential for |x| <= 700, below 2 ulp: Cody-Waite in two steps, Taylor to r^14 by Horner, separate * and +."""
    x = np.asarray(x, np.float64)
    n = np.rint(x * LOG2E_64)
    r = (x - n * LN2_HIGH_64) - n * LN2_LOW_64
    p = np.full(x.shape, 1 / _factorial(14))
    for k in range(13, -1, -1):
        p = p * r + 1 / _factorial(k)
    whole = n.astype(np.int64)
    half = whole >> 1
    return (p * _power_of_two_64(half)) * _power_of_two_64(whole - half)


def log64(x: npt.ArrayLike) -> F64:
    """float64 natural logarithm of a finite positive normal number, below 2 ulp: x = m 2^e with m in (sqrt(1/2), sqrt(2)].

    s = (m - 1) / (m + 1), z = s s, q = 1/3 + z/5 + ... + z^9/21 by Horner; result = e LN2_HIGH + (e LN2_LOW + (2 s + 2 s (z q))).
    """
    x = np.asarray(x, np.float64)
    bits = np.ascontiguousarray(x).reshape(x.shape).view(np.int64)
    e = (bits >> 52) - 1023
    m = ((bits & ((1 << 52) - 1)) | (1023 << 52)).view(np.float64)
    large = m > SQRT2_64
    m, e = np.where(large, m * 0.5, m), np.where(large, e + 1, e).astype(np.float64)
    s = (m - 1) / (m + 1)
    z = s * s
    q = np.full(x.shape, 1 / 21)
    for k in range(19, 1, -2):
        q = q * z + 1 / k
    twice = s + s
    return e * LN2_HIGH_64 + (e * LN2_LOW_64 + (twice + twice * (z * q)))


def sincos(x: npt.ArrayLike) -> tuple[F64, F64]:
    """Sine and cosine in float64 for |x| <= 2^20, within 1e-15: Cody-Waite by pi/2 in three parts, Taylor to r^15 and r^16 by Horner."""
    x = np.asarray(x, np.float64)
    n = np.rint(x * TWO_OVER_PI)
    r = ((x - n * PI2_1) - n * PI2_2) - n * PI2_3
    z = r * r
    s, c = np.full(x.shape, -1 / _factorial(15)), np.full(x.shape, 1 / _factorial(16))
    for k in range(13, 1, -2):
        s = s * z + (1 if k % 4 == 1 else -1) / _factorial(k)
    for k in range(14, 0, -2):
        c = c * z + (1 if k % 4 == 0 else -1) / _factorial(k)
    s, c = r + r * (z * s), 1 + z * c
    quadrant = n.astype(np.int64) & 3
    sin = np.where(quadrant & 1, c, s)
    cos = np.where(quadrant & 1, s, c)
    return np.where(quadrant & 2, -sin, sin), np.where((quadrant + 1) & 2, -cos, cos)


def _factorial(n: int) -> float:
    result = 1
    for i in range(2, n + 1):
        result *= i
    return float(result)


def _power_of_two_64(n: npt.NDArray[np.int64]) -> F64:
    return ((n + 1023) << 52).view(np.float64)
