"""A transformer block on NumPy arrays, for calibration: every linear layer's input can be looked at, and its weights replaced.

The matrix products are BLAS's: results are close to the engine's, not equal to its bits. Nothing that is reported is computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from anybit.methods.step import kind_of
from anybit.models.spec import Attention, Experts, Gated, Layer

Tap = Callable[[str, np.ndarray], None]
"""tap(role, x): called with the input float32[t, k] of each group, before its transforms."""


@dataclass
class Routing:
    """Which experts each token of a sequence takes: as the router says, and once that is known, the same in whatever runs after it.

    `experts` int64[t, chosen], ascending; `weights` float32[t, chosen].
    """

    experts: np.ndarray | None = None
    weights: np.ndarray | None = None


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
    """The matrices of each group that reads one input, kind after kind in the order of execution. Each expert has groups of its own."""
    a = layer.mixer
    parts = [(_role("", layer, i), part) for i, part in enumerate(layer.mlp.parts)]
    return {
        "qkv": (a.q, a.k, a.v), "o": (a.o,), **{f"gate_up{number}": (part.gate, part.up) for number, part in parts},
        **{f"down{number}": (part.down,) for number, part in parts},
    }  # fmt: skip


def _role(kind: str, layer: Layer, expert: int) -> str:
    """The role of an MLP's group: with the expert's number where there are experts."""
    return f"{kind}/{expert}" if isinstance(layer.mlp, Experts) else kind


def part_of(layer: Layer, role: str) -> Gated:
    """The MLP, of several the expert, that a group of the role gate_up or down belongs to."""
    return layer.mlp.parts[int(role.partition("/")[2] or 0)]


def route(mlp: Experts, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(experts, weights) of each token as `Routing` has them, from float32[t, experts] logits."""
    chosen = np.sort(np.argsort(-logits, axis=1, kind="stable")[:, : mlp.chosen], axis=1)
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    taken = np.take_along_axis(e, chosen, axis=1)
    return chosen, taken / (taken if mlp.renormalise else e).sum(axis=1, keepdims=True)


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


def run_block(
    layer: Layer, weights: Runs, x: np.ndarray, eps: float, tap: Tap | None = None, stop_after: str | None = None,
    routing: Routing | None = None,
) -> np.ndarray:  # fmt: skip
    """float32[t, width] after a block, of one sequence float32[t, width]. `stop_after`: a kind of
    input, the last that is needed; `routing`: takes down where experts were chosen, or says it."""
    attention, arrays, groups = layer.mixer, weights.arrays, members(layer)

    def group(role: str, h: np.ndarray) -> list[np.ndarray]:
        if tap is not None:
            tap(role, h)
        if stop_after == kind_of(role):
            return []
        ready = weights.prepare(role, h)
        return [weights.linear(role, name, ready) for name in groups[role]]

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
    h = rms_norm(x, arrays[layer.mlp_norm], eps)

    def mlp(expert: int, h: np.ndarray) -> np.ndarray | None:
        found = group(_role("gate_up", layer, expert), h)
        found = found and group(_role("down", layer, expert), gated(layer.mlp.parts[expert], *found))
        return found[0] if found else None

    if not isinstance(layer.mlp, Experts):
        y = mlp(0, h)
        return x if y is None else x + np.float32(layer.residual) * y
    routing = routing or Routing()
    if routing.experts is None or routing.weights is None:
        routing.experts, routing.weights = route(layer.mlp, h @ arrays[layer.mlp.router].T)
    total = np.zeros_like(x)
    for expert in range(len(layer.mlp.experts)):
        tokens, place = np.nonzero(routing.experts == expert)
        y = mlp(expert, h[tokens]) if len(tokens) else None
        if y is not None:
            total[tokens] += routing.weights[tokens, place][:, None] * y
    return x + np.float32(layer.residual) * total


def gated(mlp: Gated, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """silu(gate) * up."""
    assert mlp.activation == "silu"
    with np.errstate(over="ignore"):
        return gate / (1 + np.exp(-gate)) * up
