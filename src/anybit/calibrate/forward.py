"""A transformer block on NumPy arrays, for calibration: every linear layer's input can be looked at, and its weights replaced.

The matrix products are BLAS's: results are close to the engine's, not equal to its bits. Nothing that is reported is computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from anybit.methods.step import kind_of
from anybit.models.spec import Attention, Gated, Layer

Tap = Callable[[str, np.ndarray], None]
"""tap(role, x): called with the input float32[t, k] of each group, before its transforms."""


class Runs(Protocol):
    """The weights of a block while it runs."""

    arrays: Mapping[str, np.ndarray]

    def prepare(self, role: str, x: np.ndarray) -> np.ndarray:
        """A group's input as its matrices read it: transformed, and rounded to the activations' format."""

    def linear(self, role: str, name: str, x: np.ndarray) -> np.ndarray:
        """One matrix of the group, its bias and branches included, on what `prepare` gave."""


class FloatBlock:
    """The float model's weights, straight."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = arrays

    def prepare(self, role: str, x: np.ndarray) -> np.ndarray:
        """See `Runs.prepare`: nothing happens."""
        return x

    def linear(self, role: str, name: str, x: np.ndarray) -> np.ndarray:
        """See `Runs.linear`."""
        y = x @ self.arrays[name].T
        bias = self.arrays.get(bias_of(name))
        return y if bias is None else y + bias


def bias_of(name: str) -> str:
    """`a.q_proj.weight` -> `a.q_proj.bias`."""
    return f"{name.rpartition('.')[0]}.bias"


def members(layer: Layer) -> dict[str, tuple[str, ...]]:
    """The matrices of each group that reads one input, in the order of execution."""
    a, m = layer.mixer, layer.mlp
    return {"qkv": (a.q, a.k, a.v), "o": (a.o,), "gate_up": (m.gate, m.up), "down": (m.down,)}


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """float32[..., n] over the last axis."""
    mean = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
    return x * (1 / np.sqrt(mean + np.float32(eps))) * weight


def rotary(layer: Attention, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """float32[tokens, dim / 2] cosine and sine at positions 0, 1, ..."""
    rope = layer.rope
    is_long = bool(rope.long) and tokens > rope.original
    frequencies = np.asarray(rope.long if is_long else rope.frequencies, np.float64)
    angles = np.arange(tokens)[:, None] * frequencies
    return (np.cos(angles) * rope.scale).astype(np.float32), (np.sin(angles) * rope.scale).astype(np.float32)


def _turn(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attend(layer: Attention, q: np.ndarray, k: np.ndarray, v: np.ndarray, rows: int = 512) -> np.ndarray:
    """float32[t, heads * dim] of q [t, heads, dim] and k, v [t, kv_heads, dim] (already rotated); `rows` queries at a time."""
    tokens, heads, dim = q.shape
    repeat = layer.heads // layer.kv_heads
    keys, values = k.transpose(1, 2, 0), v.transpose(1, 0, 2)  # [kv, dim, t], [kv, t, dim]
    queries = q.transpose(1, 0, 2).reshape(layer.kv_heads, repeat, tokens, dim)
    out = np.empty((tokens, heads, dim), np.float32)
    place = np.arange(tokens)
    for start in range(0, tokens, rows):
        stop = min(start + rows, tokens)
        part = queries[:, :, start:stop].reshape(layer.kv_heads, -1, dim)
        scores = ((part @ keys[:, :, :stop]) * np.float32(dim**-0.5)).reshape(heads, stop - start, stop)
        hidden = place[None, :stop] > place[start:stop, None]
        if layer.window is not None:
            hidden |= place[None, :stop] <= place[start:stop, None] - layer.window
        scores = np.where(hidden, np.float32(-np.inf), scores)
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = scores.reshape(layer.kv_heads, -1, stop) @ values[:, :stop]
        out[start:stop] = mixed.reshape(heads, stop - start, dim).transpose(1, 0, 2)
    return out.reshape(tokens, heads * dim)


def run_block(layer: Layer, weights: Runs, x: np.ndarray, eps: float, tap: Tap | None = None, stop_after: str | None = None) -> np.ndarray:
    """float32[t, width] after a block, of one sequence float32[t, width]. `stop_after`: a kind of
    input, the last that is needed."""
    attention, mlp = layer.mixer, layer.mlp
    arrays = weights.arrays

    def group(role: str, h: np.ndarray) -> list[np.ndarray]:
        if tap is not None:
            tap(role, h)
        if stop_after == kind_of(role):
            return []
        ready = weights.prepare(role, h)
        return [weights.linear(role, name, ready) for name in members(layer)[role]]

    found = group("qkv", rms_norm(x, arrays[layer.mixer_norm], eps))
    if not found:
        return x
    q, k, v = (y.reshape(len(x), -1, attention.head_dim) for y in found)
    if attention.q_norm is not None and attention.k_norm is not None:
        q, k = rms_norm(q, arrays[attention.q_norm], eps), rms_norm(k, arrays[attention.k_norm], eps)
    cos, sin = (table[:, None, :] for table in rotary(attention, len(x)))
    found = group("o", attend(attention, _turn(q, cos, sin), _turn(k, cos, sin), v))
    if not found:
        return x
    x = x + np.float32(layer.residual) * found[0]
    found = group("gate_up", rms_norm(x, arrays[layer.mlp_norm], eps))
    if not found:
        return x
    found = group("down", gated(mlp, *found))
    return x + np.float32(layer.residual) * found[0] if found else x


def gated(mlp: Gated, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """silu(gate) * up."""
    assert mlp.activation == "silu"
    with np.errstate(over="ignore"):
        return gate / (1 + np.exp(-gate)) * up
