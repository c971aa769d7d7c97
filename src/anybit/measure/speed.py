"""How fast the native kernels run: on a generated block of the shape of a 1B model, and on a model.

Decoding reads every weight once a token, so it is measured on enough copies of the block that they do not fit into the cache; prefill
is limited by arithmetic and is measured on one block. Both are medians; the first run is left out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from anybit.engine.engine import Engine
from anybit.formats import Format, Spec
from anybit.layouts import LAYOUTS, sizes_known
from anybit.linear import ActSpec, Linear
from anybit.measure.machine import last_level_cache
from anybit.methods import METHODS
from anybit.methods.rtn import part_shapes
from anybit.models import describe
from anybit.tensor import QTensor

STACK = 16
"""Blocks that speeds are stated for: 16 of them hold 0.7 billion weights, the body of a 1B model."""

BLOCK_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 256,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class BlockSpeed:
    """Speed in a format. Tokens a second are those of a stack of `stack` blocks without embedding and head, one sequence."""

    format: str
    act: str
    prefill_tok_s: float
    decode_tok_s: float
    read_bytes: int  # weights read a decoded token by the whole stack
    read_gb_s: float
    prefill_gop_s: float
    prompt: int
    copies: int
    stack: int = STACK

    def describe(self) -> dict[str, Any]:
        """The same for JSON."""
        return asdict(self)


def generated_weight(spec: Spec, shape: tuple[int, int], seed: int = 0) -> QTensor:
    """A quantized matrix for timing: 128 rows of normal numbers are quantized and their stored parts repeated to `shape[0]` rows.

    Real codes and scales (no NaN codes, no subnormal scales) at a small part of the price of quantizing all rows; each call allocates
    its own memory.
    """
    rows = min(shape[0], 128)
    values = np.random.default_rng(seed).standard_normal((rows, shape[1]), dtype=np.float32) * np.float32(0.02)
    small = QTensor.pack(spec.format, values.shape, METHODS["rtn"](values, spec))
    if not sizes_known(spec.format, shape, small.layout):
        logical, sizes = small.logical(), part_shapes(spec.format, shape)
        return QTensor.pack(spec.format, shape, {name: np.resize(logical[name], size) for name, (_, size) in sizes.items()})
    sizes = LAYOUTS[small.layout].parts(spec.format, shape)
    parts = {name: np.resize(small.parts[name], size) for name, (_, size) in sizes.items()}
    return QTensor.from_stored(spec.format, shape, small.layout, parts)


def generated_blocks(
    fmt: str | Format, act: str | None, blocks: int, config: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration and weights of a model of `blocks` blocks in one format; embedding in bf16."""
    config = (BLOCK_CONFIG if config is None else config) | {"num_hidden_layers": blocks}
    spec = Spec.parse(str(fmt))
    bf16 = Spec.parse("bf16")
    weights: dict[str, Any] = {}
    for tensor in describe(config).tensors:
        if tensor.role == "norm":
            weights[tensor.name] = np.ones(tensor.shape, np.float32)
        elif tensor.role == "linear":
            matrix = generated_weight(spec, (tensor.shape[0], tensor.shape[1]))
            weights[tensor.name] = Linear(matrix, act=None if spec.format.dense else ActSpec.named(act))
        else:
            weights[tensor.name] = Linear(generated_weight(bf16, (tensor.shape[0], tensor.shape[1])))
    return config, weights


def block_speed(fmt: str | Format, act: str | None = "int8", prompt: int = 128, repeats: int = 5) -> BlockSpeed:
    """Measures one format; takes about a second and up to 300 MB.

    Args: act, activations (None: float); prompt, tokens of the prefill; repeats, of which medians are taken (decoding twice as many).
    Raises: NoKernelError: no kernel for this format and these activations.
    """
    config, one = generated_blocks(fmt, act, 1)
    linears = [value for value in one.values() if isinstance(value, Linear)][1:]
    block_bytes = sum(linear.weight.nbytes for linear in linears)
    weights = sum(linear.weight.size for linear in linears)
    ids = np.arange(prompt, dtype=np.int32) % 256
    small = Engine(describe(config), one)
    prefill = median_s(lambda: small.forward(ids, all_logits=False), repeats)

    cache = last_level_cache(32 << 20) or 0
    copies = int(min(STACK, max(2, -(-2 * cache // block_bytes))))
    config, many = generated_blocks(fmt, act, copies)
    engine = Engine(describe(config), many)
    state = engine.state(64)
    engine.forward(ids[:8], state, all_logits=False)
    step = median_s(lambda: engine.step([1], [state]), 2 * repeats) / copies
    return BlockSpeed(
        format=str(fmt), act=act or "float", prefill_tok_s=prompt / (prefill * STACK), decode_tok_s=1 / (step * STACK),
        read_bytes=block_bytes * STACK, read_gb_s=block_bytes / step / 1e9, prefill_gop_s=2 * weights * prompt / prefill / 1e9,
        prompt=prompt, copies=copies,
    )  # fmt: skip


def median_s(work: Callable[[], object], repeats: int) -> float:
    """Median seconds of `repeats` runs after one that is not counted."""
    return statistics.median(times_s(work, repeats))


def times_s(work: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of `repeats` runs after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return times


@dataclass(frozen=True)
class ModelSpeed:
    """Speed of a whole model, one sequence: medians over repeats, tokens a second."""

    prefill_tok_s: float
    decode_tok_s: float
    decode_ms_p95: float
    prompt: int
    generated: int
    read_gb_s: float

    def describe(self) -> dict[str, Any]:
        """The same for JSON."""
        return asdict(self)


def model_speed(
    model: Any, prompt: int = 128, tokens: int = 32, repeats: int = 3, seed: int = 0, progress: Callable[[int, str], None] | None = None
) -> ModelSpeed:
    """Measures a model on random tokens: prefill of `prompt` tokens, then `tokens` single steps, each timed.

    The bytes read a token are all weights as stored but for an untied embedding table, of which decoding reads one row, and experts that a
    token does not take.
    """
    engine, spec = model.engine, model.spec
    ids = np.random.default_rng(seed).integers(0, spec.vocab, prompt, dtype=np.int32)
    prefill: list[float] = []
    steps: list[float] = []
    for repeat in range(repeats + 1):
        state = engine.state(prompt + tokens)
        begun = time.perf_counter()
        engine.forward(ids, state, all_logits=False)
        middle = time.perf_counter()
        times = []
        for i in range(tokens):
            start = time.perf_counter()
            engine.step([int(ids[i % prompt])], [state])
            times.append(time.perf_counter() - start)
        if repeat:  # the first run warms caches and makes native weights
            prefill.append(middle - begun)
            steps += times
        if progress is not None:
            progress(1, "")
    read = model.nbytes - (0 if spec.tied else model.linears[spec.embedding].weight.nbytes)
    read -= sum((1 - share) * model.linears[name].nbytes for name, share in spec.shares.items())
    step = statistics.median(steps)
    return ModelSpeed(
        prompt / statistics.median(prefill), 1 / step, 1e3 * float(np.quantile(steps, 0.95)), prompt, tokens, read / step / 1e9
    )
