"""Keys and values in number formats: every bit by the reference, cut in every way, stored, measured, refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import anybit
from anybit.cache import CacheSpec
from anybit.cli.main import main
from anybit.engine import Engine
from anybit.errors import FormatError, NoKernelError, NonFiniteError, UsageError
from anybit.formats import Format
from anybit.linear import Linear
from anybit.models import describe
from anybit.reference import blocks, ops
from anybit.reference.linear import matmul
from anybit.tensor import QTensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from small import write_model

CASES = ("int8@64", "int8@8", "int4@16:fp16", "fp8_e4m3fn", "mxfp4", "nf4@token:fp32", "fp6_e3m2@7", "ternary@16+scale=absmax",
         "int2@5+scale=absmax", "int4@32:fp8_e4m3fn", "fp8_e3m4@16", "bf16", "fp16", "k=int8@4,v=float", "k=float,v=int4@20",
         "k=fp8_e5m2@token,v=mxfp8,stage=pre_rope",
         "k=float,v=float,stage=pre_rope")  # fmt: skip


def engine(config: dict[str, Any], arrays: dict[str, np.ndarray], cache: str | None, **options: Any) -> Engine:
    spec = describe(config)
    weights: dict[str, Linear | np.ndarray] = {
        tensor.name: arrays[tensor.name] if tensor.role == "norm" else Linear(QTensor.dense(arrays[tensor.name])) for tensor in spec.tensors
    }
    return Engine(spec, weights, cache=CacheSpec.parse(cache), **options)


def rounded(x: np.ndarray, text: Any) -> np.ndarray:
    """Each vector of the last axis by itself, by exact rational arithmetic; plain formats by their elements' own neighbours."""
    if text is None:
        return x
    fmt = text.format
    flat = x.reshape(-1, x.shape[-1])
    if fmt.block is None:
        return fmt.element.decode(fmt.element.encode(flat)).astype(np.float32).reshape(x.shape)
    rule = "floor" if fmt.levels[0].element.name == "e8m0" else "absmax"
    return np.concatenate([blocks.quantize(row[None], fmt, rule)[1].astype(np.float32) for row in flat]).reshape(x.shape)


@pytest.mark.parametrize("text", CASES)
def test_equals_the_operators_put_together(make: Callable[..., Any], machine: Any, text: str) -> None:
    config, arrays = make("llama", num_hidden_layers=1)
    spec, cache = describe(config), CacheSpec.parse(text)
    assert cache is not None and CacheSpec.parse(cache.text) == cache == CacheSpec.of(cache.fields)
    ids = np.random.default_rng(4).integers(0, 96, 9)
    (layer,), eps = spec.layers, spec.norm_eps

    def times(name: str, x: np.ndarray) -> np.ndarray:
        w = QTensor.dense(arrays[name])
        return matmul(x, w.logical(), w.format, (w.shape[0], w.shape[1]))

    x = arrays[spec.embedding][ids]
    h = ops.rmsnorm(x, arrays[layer.mixer_norm], eps)
    dim = layer.mixer.head_dim
    wide = ((layer.mixer.q, layer.mixer.heads), (layer.mixer.k, layer.mixer.kv_heads), (layer.mixer.v, layer.mixer.kv_heads))
    q, k, v = (times(name, h).reshape(len(ids), count, dim).swapaxes(0, 1) for name, count in wide)
    cos, sin = ops.rope_table(np.arange(len(ids)), np.asarray(layer.mixer.rope.frequencies, np.float32), layer.mixer.rope.scale)
    if cache.stage == "pre_rope":
        keys = ops.rotate(rounded(k, cache.keys), cos, sin)
    else:
        keys = rounded(ops.rotate(k, cos, sin), cache.keys)
    mixed = ops.attention(ops.rotate(q, cos, sin), keys, rounded(np.ascontiguousarray(v), cache.values), np.arange(len(ids)))
    x = x + times(layer.mixer.o, np.ascontiguousarray(mixed.swapaxes(0, 1)).reshape(len(ids), -1))
    h = ops.rmsnorm(x, arrays[layer.mlp_norm], eps)
    x = x + times(layer.mlp.down, ops.swiglu(times(layer.mlp.gate, h), times(layer.mlp.up, h)))
    want = times(spec.head, ops.rmsnorm(x, arrays[spec.norm], eps))
    for isa in machine.native.supported_isas():
        machine.use_isa(isa)
        assert np.array_equal(engine(config, arrays, text).forward(ids), want), isa


@pytest.mark.parametrize("text", ["int8@64", "k=mxfp4,v=int4@16,stage=pre_rope"])
def test_the_same_bits_however_it_is_cut(make: Callable[..., Any], machine: Any, text: str) -> None:
    config, arrays = make("qwen3", attention_bias=False, use_sliding_window=True, sliding_window=300, max_window_layers=1)
    ids = np.random.default_rng(2).integers(0, 96, 600)
    want = engine(config, arrays, text).forward(ids)
    assert not np.array_equal(want, engine(config, arrays, None).forward(ids))
    for isa, threads, chunk in (("generic", 3, 64), ("avx2", 1, 100), (machine.isa(), 2, 7)):
        if isa in machine.native.supported_isas():
            machine.use_isa(isa)
            machine.set_threads(threads)
            assert np.array_equal(engine(config, arrays, text, chunk=chunk).forward(ids), want), (isa, threads, chunk)
    runs = engine(config, arrays, text)
    state = runs.state()
    runs.forward(ids[:590], state)
    fork = state.fork()
    assert np.array_equal(runs.forward(ids[590:], state), want[590:]), "token by token over several spans"
    fork.truncate(577)
    runs.forward([5, 6], fork.fork())
    assert np.array_equal(runs.forward(ids[577:], fork), want[577:]), "a fork of a shared page"
    assert np.array_equal(runs.step(ids[[590]], [_at(runs, ids[:590])]), want[590:591])


def _at(runs: Engine, ids: np.ndarray) -> Any:
    state = runs.state()
    runs.forward(ids, state)
    return state


def test_memory_is_what_the_format_says(make: Callable[..., Any]) -> None:
    """Codes and scales of keys and values, no more: heads of 128 fill whole bytes at any width."""
    config, arrays = make("llama", head_dim=128)
    full = engine(config, arrays, None).cache_bytes_per_token
    assert full == 2 * 2 * 2 * 128 * 4, "two layers, two heads, keys and values"
    for text, bits in (("int8@64", 8.25), ("int4@32", 4.5), ("mxfp4", 4.25), ("ternary@64+scale=absmax", 2.25), ("fp8_e4m3fn", 8),
                       ("bf16", 16),
                       ("binary@64+scale=absmax", 1.25), ("fp6_e3m2@64", 8.25)):  # fmt: skip
        runs = engine(config, arrays, text)
        assert runs.cache_bytes_per_token == full * bits / 32, text
        state = _at(runs, np.arange(70) % 96)
        assert state.nbytes == 2 * 64 * runs.cache_bytes_per_token


def test_odd_heads_and_nothing_beyond(make: Callable[..., Any]) -> None:
    """Heads that fill no vector of 16 and codes that fill no byte."""
    for dim in (2, 6, 12, 22, 130):
        config, arrays = make("llama", head_dim=dim, num_hidden_layers=1)
        ids = np.random.default_rng(dim).integers(0, 96, 70)
        for text in ("int8@token:fp32", "int4@3", "k=binary@token+scale=absmax,v=ternary@4+scale=absmax,stage=pre_rope"):
            runs = engine(config, arrays, text, chunk=33)
            assert np.array_equal(runs.forward(ids), engine(config, arrays, text).forward(ids)), (dim, text)


def test_eight_bits_cost_little_and_two_a_lot(make: Callable[..., Any]) -> None:
    config, arrays = make("llama")
    ids = np.random.default_rng(7).integers(0, 96, 100)
    exact = engine(config, arrays, None).forward(ids)
    errors = [
        np.abs(engine(config, arrays, text).forward(ids) - exact).mean() for text in ("fp16", "int8@64", "int4@32", "int2@32+scale=absmax")
    ]
    assert errors == sorted(errors) and 0 < errors[0] < errors[1] / 4 and errors[2] > 4 * errors[1]


@pytest.mark.parametrize(("text", "error", "says"), [
    ("nvfp4", NoKernelError, "one level of scales"), ("uint4@32+zp", NoKernelError, "no zero points"),
    ("int12@32", NoKernelError, "up to 8 bits"), ("e8p@32", NoKernelError, "one number a code"),
    ("int2@32", NoKernelError, "absmax or floor"),
    ("fp10_e5m4", NoKernelError, "but for fp16 and bf16"), ("int44@32", FormatError, "int44"),
    ("k=int8@64,v", UsageError, "'v' is neither"),
    ("k=int8@64,k=int8@64", UsageError, "neither"),
    ("k=int8@64,v=float,stage=late", UsageError, "stage=late"), ("kmeans3@32", NoKernelError, "values of their own"),
    ("fp8_e4m3fn@tensor", NoKernelError, "depends on the other tokens"),
    ("int4@32:fp12_e5m6", NoKernelError, "scales are fp16, bf16, fp32"),
])  # fmt: skip
def test_what_is_refused(text: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        CacheSpec.parse(text)


def test_scales_that_end(make: Callable[..., Any]) -> None:
    config, arrays = make("llama")
    arrays["model.layers.1.self_attn.v_proj.weight"] = arrays["model.layers.1.self_attn.v_proj.weight"] * np.float32(1e5)
    with pytest.raises(NonFiniteError, match="layer 1: a key or value needs a scale that the cache's format does not hold at token 0"):
        engine(config, arrays, "fp4_e2m1@16:fp8_e4m3fn").forward([1, 2, 3])


def test_a_checkpoint_and_the_commands(tmp_path: Path) -> None:
    model = anybit.load(write_model(tmp_path / "m")).quantize("int4@16").with_cache("k=int8@12,v=int4@6,stage=pre_rope")
    model.save(tmp_path / "q")
    opened = anybit.load(tmp_path / "q")
    ids = np.arange(40) % 64
    assert opened.cache == model.cache and np.array_equal(opened.logits(ids), model.logits(ids))
    assert not np.array_equal(opened.with_cache(None).logits(ids), model.logits(ids)) and opened.with_cache(None).cache is None
    stored = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]["kv_cache"]
    assert stored == {"k": "int8@12:bf16", "v": "int4@6:bf16", "stage": "pre_rope"}
    run = ["run", "pycoder-5m", "def main():\n", "--max-tokens", "12", "--json"]
    texts = [json.loads(CliRunner().invoke(main, [*run, *more]).output)["text"] for more in ([], ["--kv", "int8@64"], ["--kv", "float"])]
    assert texts[0] == texts[2] and texts[1]
    done = CliRunner().invoke(
        main, ["bench", "pycoder-5m", "--prompt", "16", "--tokens", "4", "--repeats", "1", "--kv", "int8@32", "--json", "--no-progress"]
    )
    result = json.loads(done.output)
    assert (
        result["kv_cache"] == "k=int8@32:bf16,v=int8@32:bf16"
        and result["kv_bytes_per_token"] < 0.3 * anybit.load("pycoder-5m").engine.cache_bytes_per_token
    )
    assert isinstance(CliRunner().invoke(main, [*run, "--kv", "nvfp4"]).exception, NoKernelError)


def test_nothing_but_blocks_along_a_head() -> None:
    assert Format("int8@2x32").block is not None
    with pytest.raises(NoKernelError, match="in blocks along a row"):
        CacheSpec.parse("int8@2x32")


WINDOWS = ("k=int4@10,v=int4@10,sinks=64", "k=int4@10,v=int4@10,window=64",
           "k=mxfp4,v=int2@20+scale=absmax,stage=pre_rope,sinks=64,window=128")  # fmt: skip


@pytest.mark.parametrize("text", WINDOWS)
def test_sinks_and_a_window_are_exact(make: Callable[..., Any], machine: Any, text: str) -> None:
    """Each query against keys and values that are rounded but where it sees them in float32; written out query by query."""
    config, arrays = make("llama", num_hidden_layers=1)
    spec, cache = describe(config), CacheSpec.parse(text)
    assert cache is not None and CacheSpec.parse(cache.text) == cache == CacheSpec.of(cache.fields)
    length = 300
    ids = np.random.default_rng(4).integers(0, 96, length)
    (layer,), eps = spec.layers, spec.norm_eps

    def times(name: str, x: np.ndarray) -> np.ndarray:
        return QTensor.dense(arrays[name]).matmul(x)

    x = arrays[spec.embedding][ids]
    h = ops.rmsnorm(x, arrays[layer.mixer_norm], eps)
    wide = ((layer.mixer.q, layer.mixer.heads), (layer.mixer.k, layer.mixer.kv_heads), (layer.mixer.v, layer.mixer.kv_heads))
    q, k, v = (np.ascontiguousarray(times(name, h).reshape(length, n, layer.mixer.head_dim).swapaxes(0, 1)) for name, n in wide)
    cos, sin = ops.rope_table(np.arange(length), np.asarray(layer.mixer.rope.frequencies, np.float32), layer.mixer.rope.scale)
    q, exact = ops.rotate(q, cos, sin), ops.rotate(k, cos, sin)

    def values_of(x: np.ndarray, held: Any) -> np.ndarray:  # the reference itself was compared above; here it would take minutes
        return anybit.fake_quantize(np.ascontiguousarray(x).reshape(-1, x.shape[-1]), str(held)).reshape(x.shape)

    keys = ops.rotate(values_of(k, cache.keys), cos, sin) if cache.stage == "pre_rope" else values_of(exact, cache.keys)
    values = values_of(v, cache.values)
    tile = np.arange(length) // 64
    mixed = np.empty_like(q)
    for own in range(tile[-1] + 1):
        seen = (tile * 64 < cache.sinks) | (tile > own - cache.window // 64)
        here = np.flatnonzero(tile == own)
        chosen = (np.where(seen[:, None], a, b) for a, b in ((exact, keys), (v, values)))
        mixed[:, here] = ops.attention(np.ascontiguousarray(q[:, here]), *chosen, here)
    x = x + times(layer.mixer.o, np.ascontiguousarray(mixed.swapaxes(0, 1)).reshape(length, -1))
    h = ops.rmsnorm(x, arrays[layer.mlp_norm], eps)
    x = x + times(layer.mlp.down, ops.swiglu(times(layer.mlp.gate, h), times(layer.mlp.up, h)))
    want = times(spec.head, ops.rmsnorm(x, arrays[spec.norm], eps))
    for threads, chunk in ((2, None), (3, 37), (1, 64)):
        machine.set_threads(threads)
        runs = engine(config, arrays, text, chunk=chunk)
        assert np.array_equal(runs.forward(ids), want), (threads, chunk)
    state = runs.state()
    runs.forward(ids[:250], state)
    fork = state.fork()
    assert all(np.array_equal(runs.step([token], [state])[0], row) for token, row in zip(ids[250:], want[250:], strict=True))
    assert np.array_equal(runs.forward(ids[250:], fork), want[250:]), "the fork's float32 tiles are its own"
    held = 1 + cache.sinks // 64 + max(0, cache.window // 64 - 1) if cache.window else cache.sinks // 64
    assert state.nbytes == 5 * 64 * runs.cache_bytes_per_token + held * 64 * engine(config, arrays, None).cache_bytes_per_token
    if cache.window:
        with pytest.raises(UsageError, match=r"cannot go back from 300 tokens to 100: .*; fork or snapshot before"):
            state.truncate(100)
        assert state.length == 300
    state.truncate(299)
    assert np.array_equal(runs.step(ids[299:], [state])[0], want[299])


def test_a_failure_leaves_a_windowed_state_as_it_was(make: Callable[..., Any]) -> None:
    config, arrays = make("llama")
    name = describe(config).embedding
    arrays[name][95] = 3e38  # a token whose norm overflows
    runs = engine(config, arrays, "k=int4@10,v=int4@10,window=64", chunk=64)
    ids = np.random.default_rng(1).integers(0, 95, 400)
    want, state = runs.forward(ids), runs.state()
    runs.forward(ids[:70], state)
    with pytest.raises(NonFiniteError, match="token 369"):
        runs.forward(np.r_[ids[70:369], 95], state)
    assert state.length == 70 and np.array_equal(runs.forward(ids[70:], state), want[70:])


def test_sinks_and_windows_that_are_none() -> None:
    for text in ("k=int8@64,sinks=32", "k=int8@64,window=-64", "k=int8@64,window=x", f"k=int8@64,window={1 << 21}"):
        with pytest.raises(UsageError, match="is no multiple of 64 up to"):
            CacheSpec.parse(text)
