"""Mixtures of experts: logits against transformers', the block by the reference bit for bit, and the same bits whoever shares an expert."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anybit
from anybit.engine import Engine
from anybit.errors import NonFiniteError, ShapeError
from anybit.formats import Format
from anybit.models import Experts, describe
from anybit.models.experts import MOST
from anybit.reference import ops
from anybit.reference.linear import matmul

MIXTRAL: dict[str, Any] = {"hidden_size": 72, "intermediate_size": 56, "num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 16}
QWEN: dict[str, Any] = {
    "hidden_size": 72, "intermediate_size": 80, "moe_intermediate_size": 24, "num_experts": 7, "num_experts_per_tok": 3, "head_dim": 18,
    "norm_topk_prob": True,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", MIXTRAL),
    "mixtral, all experts": ("mixtral", MIXTRAL | {"num_experts_per_tok": 5}),
    "mixtral, one of one, window": ("mixtral", MIXTRAL | {"num_local_experts": 1, "num_experts_per_tok": 1, "sliding_window": 9}),
    "qwen": ("qwen3_moe", QWEN),
    "qwen, plain softmax, one expert": ("qwen3_moe", QWEN | {"norm_topk_prob": False, "num_experts_per_tok": 1}),
    "qwen, some layers dense": ("qwen3_moe", QWEN | {"num_hidden_layers": 4, "mlp_only_layers": [1], "decoder_sparse_step": 2}),
    "qwen, window, biases": ("qwen3_moe", QWEN | {"use_sliding_window": True, "sliding_window": 9, "attention_bias": True}),
}  # fmt: skip


def saved(folder: Path, family: str, changes: dict[str, Any], seed: int = 0) -> tuple[Path, Any]:
    """A model of transformers with weights that make its routers choose variously, as it is saved there."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    given = {
        "vocab_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "bos_token_id": 1, "eos_token_id": 2, **changes,
    }  # fmt: skip
    config = transformers.AutoConfig.for_model(family, **given, attn_implementation="eager")
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.copy_(1 + torch.randn(weight.shape) / 4 if "norm" in name else torch.randn(weight.shape) / 2)
            elif "embed" in name:
                weight.normal_()
            else:
                weight.normal_(std=1.5 * weight.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    return folder, model


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """1e-4 of the range, as for dense families; what it wrote is read name for name."""
    import torch

    path, theirs = saved(tmp_path / "model", *CASES[name], seed=len(name))
    ids = np.random.default_rng(1).integers(0, 96, 150)
    with torch.no_grad():
        want = theirs(torch.from_numpy(ids)[None]).logits[0].numpy()
    ours = anybit.load(path)
    got = ours.logits(ids)
    spread = want.max() - want.min()
    assert spread > 3, "the model must not be trivial"
    assert np.abs(got - want).max() <= 1e-4 * spread
    dense = {i for i, layer in enumerate(ours.spec.layers) if not isinstance(layer.mlp, Experts)}
    assert dense == ({0, 1, 2} if "dense" in name else set())
    for layer in ours.spec.layers:
        if isinstance(layer.mlp, Experts) and len(layer.mlp.experts) > layer.mlp.chosen:
            assert _differs(ours, layer.mlp.router, ids, got) > 1e-3 * spread, "another router is noticed"


def _differs(model: Any, router: str, ids: np.ndarray, want: np.ndarray) -> float:
    turned = model.replace({router: np.roll(model.weights[router], 1, axis=0)})
    return float(np.abs(turned.logits(ids) - want).max())


@pytest.mark.parametrize(
    "change", [{"norm_topk_prob": False}, {"num_experts_per_tok": 2}, {"sliding_window": 140, "use_sliding_window": True}]
)
def test_a_wrong_part_is_noticed(change: dict[str, Any], tmp_path: Path) -> None:
    path, _ = saved(tmp_path / "model", "qwen3_moe", QWEN)
    ids = np.random.default_rng(1).integers(0, 96, 150)
    want = anybit.load(path).logits(ids)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | change))
    assert np.abs(anybit.load(path).logits(ids) - want).max() > 1e-3 * (want.max() - want.min())


def routes(n: int) -> np.ndarray:
    """Logits with ties, of signed zeros too, and some so far apart that their exponentials vanish."""
    rng = np.random.default_rng(n)
    x = rng.standard_normal((40, n), np.float32) * np.float32(3)
    x[:10] = np.round(x[:10])
    x[10:14] = 0.0
    x[12:14, ::2] = -0.0
    x[14:20] *= 100
    return x


@pytest.mark.parametrize("n", [1, 2, 5, 8, 17, 128, 1000, MOST])
@pytest.mark.parametrize("renormalise", [False, True])
def test_routing_equals_the_reference(n: int, renormalise: bool, machine: Any) -> None:
    logits = routes(n)
    for isa in machine.native.supported_isas():
        machine.use_isa(isa)
        for count in sorted({1, min(2, n), n // 2 or 1, n}):
            chosen, weights = machine.native.op_route(logits, count, renormalise)
            want, shares = ops.route(logits, count, renormalise)
            assert np.array_equal(chosen, want) and np.array_equal(weights, shares), (isa, count)
            for row, taken in zip(logits, chosen, strict=True):  # in words
                rest = np.delete(np.arange(n), taken)
                assert len(set(taken.tolist())) == count
                assert not rest.size or all(row[rest].max() < row[i] or (row[rest] == row[i]).any() for i in taken)
                assert all(i < j for i in taken for j in rest if row[i] == row[j])
            exact = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
            exact /= (np.take_along_axis(exact, want, 1) if renormalise else exact).sum(axis=1, keepdims=True)
            assert np.abs(weights - np.take_along_axis(exact, want, 1)).max() < 2e-7 + n * 2.0**-24


def test_equals_the_operators_put_together(make: Callable[..., Any], engine_of: Callable[..., Engine]) -> None:
    config, arrays = make("qwen3_moe", **QWEN, num_hidden_layers=1)
    spec = describe(config)
    ids = np.random.default_rng(4).integers(0, 96, 9)
    (layer,), eps, mixer = spec.layers, spec.norm_eps, spec.layers[0].mixer
    assert isinstance(layer.mlp, Experts) and mixer.q_norm and mixer.k_norm

    def times(name: str, x: np.ndarray) -> np.ndarray:
        w = arrays[name]
        return matmul(x, {"codes": w.view(np.uint32)}, Format("fp32"), w.shape)

    x = arrays[spec.embedding][ids]
    h = ops.rmsnorm(x, arrays[layer.mixer_norm], eps)
    q, k, v = (times(name, h).reshape(len(ids), -1, mixer.head_dim) for name in (mixer.q, mixer.k, mixer.v))
    q, k = ops.rmsnorm(q, arrays[mixer.q_norm], eps), ops.rmsnorm(k, arrays[mixer.k_norm], eps)
    cos, sin = ops.rope_table(np.arange(len(ids)), np.asarray(mixer.rope.frequencies, np.float32), mixer.rope.scale)
    q, k, v = (np.ascontiguousarray(each.swapaxes(0, 1)) for each in (q, k, v))
    mixed = ops.attention(ops.rotate(q, cos, sin), ops.rotate(k, cos, sin), v, np.arange(len(ids)))
    x = x + times(mixer.o, np.ascontiguousarray(mixed.swapaxes(0, 1)).reshape(len(ids), -1))
    h = ops.rmsnorm(x, arrays[layer.mlp_norm], eps)
    chosen, weights = ops.route(times(layer.mlp.router, h), layer.mlp.chosen, layer.mlp.renormalise)
    y = np.zeros_like(x)
    for token in range(len(ids)):
        row = h[token : token + 1]
        for expert, weight in zip(chosen[token], weights[token], strict=True):
            part = layer.mlp.experts[expert]
            out = times(part.down, ops.swiglu(times(part.gate, row), times(part.up, row)))
            y[token] = ops.fma(np.full_like(out[0], weight), out[0], y[token])
    assert len(np.unique(chosen)) > 3
    assert np.array_equal(engine_of(config, arrays).forward(ids), times(spec.head, ops.rmsnorm(x + y, arrays[spec.norm], eps)))


@pytest.mark.parametrize("how", ["fp32", "int4@16", "int4@16 int8"])
@pytest.mark.parametrize("case", ["mixtral", "qwen, some layers dense"])
def test_the_same_bits_however_it_is_cut(
    case: str, how: str, make: Callable[..., Any], engine_of: Callable[..., Engine], machine: Any
) -> None:
    fmt, _, act = how.partition(" ")
    family, changes = CASES[case]
    config, arrays = make(family, **changes)
    ids = np.random.default_rng(2).integers(0, 96, 90)

    def engine(chunk: int | None = None) -> Engine:
        return engine_of(config, arrays, fmt, act or None, chunk=chunk)

    want = engine().forward(ids)
    for isa in machine.native.supported_isas():
        machine.use_isa(isa)
        for threads, chunk in ((1, 1), (2, 7), (3, None)):
            machine.set_threads(threads)
            assert np.array_equal(engine(chunk).forward(ids), want), (isa, threads, chunk)
    one = engine()
    lengths = [1, 33, 64, 89]
    states = [one.state() for _ in lengths]
    for length, state in zip(lengths, states, strict=True):
        one.forward(ids[:length], state)
    for order in ([2, 0, 3, 1], [1, 2], [3, 0, 1]):  # companions change, the rows do not
        forks = [states[i].fork() for i in order]
        together = one.step([int(ids[lengths[i]]) for i in order], forks)
        assert np.array_equal(together, want[[lengths[i] for i in order]])


def test_faults_name_the_token(make: Callable[..., Any], engine_of: Callable[..., Engine]) -> None:
    """Of several tokens the one whose expert overflows, or whose router does."""
    config, arrays = make("mixtral", **MIXTRAL)
    spec = describe(config)
    ids = np.random.default_rng(3).integers(0, 96, 20)
    mlp = spec.layers[1].mlp
    assert isinstance(mlp, Experts)
    for expert in range(5):
        up = mlp.experts[expert].up
        engine = engine_of(config, {**arrays, up: arrays[up] * np.float32(3e38)})
        with pytest.raises(NonFiniteError, match=r"layer 1: the inner activations of the MLP is not finite at token \d+$") as error:
            engine.forward(ids)
        token = int(str(error.value).split()[-1])
        state = engine.state()
        if token:
            engine.forward(ids[:token], state)  # the tokens before it do not take this expert
        with pytest.raises(NonFiniteError, match="at token"):
            engine.step([int(ids[token])], [state])
    with pytest.raises(NonFiniteError, match=r"layer 1: the router's logits is not finite at token 0"):
        engine_of(config, {**arrays, mlp.router: np.full((5, 72), 3e38, np.float32)}).forward(ids)


def test_a_missing_expert_is_named(make: Callable[..., Any], engine_of: Callable[..., Engine]) -> None:
    config, arrays = make("mixtral", **MIXTRAL)
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    arrays[name] = np.zeros((72, 55), np.float32)
    with pytest.raises(ShapeError, match=rf"'{name}' has shape \[72, 55\]; the model needs \[72, 56\]"):
        engine_of(config, arrays)
