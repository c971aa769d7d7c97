"""Transforms, branches and rounded activations in whole models: put together by hand, cut in every way, saved, opened, damaged."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anybit
from anybit.activations import ActSpec
from anybit.engine import Engine
from anybit.errors import FileFormatError, NoKernelError, NonFiniteError, ShapeError, UsageError
from anybit.formats import Format
from anybit.linear import Branch, Linear
from anybit.models import describe
from anybit.reference import around, blocks, ops
from anybit.reference.linear import matmul, operands
from anybit.tensor import QTensor, quantize
from anybit.transforms import Transform, fold

sys.path.insert(0, str(Path(__file__).parents[1]))
from small import edit_quantization, edit_tensors, write_model

UP = "model.layers.1.mlp.up_proj.weight"


def surrounded(w: np.ndarray, name: str, fmt: str = "int4@16") -> Linear:
    """A layer that computes nearly what w does, with something around it that its name decides."""
    k = w.shape[1]
    seed = sum(map(ord, name))
    rng = np.random.default_rng(seed)
    shared = Transform("hadamard", 16, seed=5)  # the same for q, k, v; gate and up
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        pre: tuple[Transform, ...] = (shared,)
    elif name.endswith("v_proj.weight"):
        pre = (shared, Transform("scale", data=np.exp(rng.standard_normal(k, np.float32) / 4)))
    elif name.endswith("o_proj.weight"):
        pre = (Transform("permute", data=rng.permutation(k)), Transform("shift", data=rng.standard_normal(k, np.float32) / 8))
    elif name.endswith("down_proj.weight"):
        pre = (Transform("rotate", 8, np.linalg.qr(rng.standard_normal((8, 8)))[0].astype(np.float32)),)
    else:
        pre = ()
    folded, bias = fold(pre, w)
    weight, branches = quantize(folded, fmt), []
    left = folded - weight.dequantize()
    if name.endswith(("gate_proj.weight", "up_proj.weight")):
        index = np.array([1, 7, 30]) if "layers.0" in name else np.array([3])
        branches.append(Branch("columns", quantize(np.ascontiguousarray(folded[:, index]), "fp16"), index=index))
    if name.endswith(("q_proj.weight", "down_proj.weight")):
        u, s, vt = np.linalg.svd(left, full_matrices=False)
        a, b = quantize(vt[:4].astype(np.float32), "int8@16"), quantize((u[:, :4] * s[:4]).astype(np.float32), "bf16")
        branches.append(Branch("low_rank", a, b, source="svd"))
    act = (
        ActSpec.named("mxfp8")
        if name.endswith("o_proj.weight")
        else ActSpec.named("int8", 0.05)
        if "v_proj" in name
        else ActSpec.named("int8")
    )
    if name.endswith(("k_proj.weight", "o_proj.weight")):
        index = np.array([0, 2, 11, 12])
        branches.append(Branch("residual", quantize(np.ascontiguousarray(weight.dequantize()[:, index]), fmt), index=index))
    return Linear(weight, bias, pre, act, tuple(branches))


def build(config: dict[str, Any], arrays: dict[str, np.ndarray], **options: Any) -> tuple[Engine, dict[str, Any]]:
    weights: dict[str, Linear | np.ndarray] = {}
    for tensor in describe(config).tensors:
        array = arrays[tensor.name]
        if tensor.role == "norm":
            weights[tensor.name] = array
        else:
            weights[tensor.name] = surrounded(array, tensor.name) if tensor.role == "linear" else Linear(QTensor.dense(array))
    return Engine(describe(config), weights, **options), weights


def by_hand(linear: Linear, x: np.ndarray) -> np.ndarray:
    """A layer by the reference alone."""
    for t in linear.pre:
        if t.kind == "hadamard":
            assert t.block is not None and t.seed is not None
            x = around.hadamard(around.scale(x, around.signs(t.seed, x.shape[1])), t.block)
        else:
            x = getattr(around, t.kind)(x, t.data)

    def of(weight: QTensor) -> Any:
        return operands(weight.logical(), weight.format, (weight.shape[0], weight.shape[1]))

    def rounded(values: np.ndarray) -> np.ndarray:
        return np.concatenate([blocks.quantize(row[None], Format("mxfp8"), "floor")[1].astype(np.float32) for row in values])

    assert linear.act is not None
    parts = [
        {"kind": b.kind, "a": of(b.a), "b": None if b.b is None else of(b.b), "index": b.index} for b in linear.branches if b.a is not None
    ]
    return around.linear(x, of(linear.weight), linear.act_name or rounded, linear.act.scale, parts, linear.bias)


def test_equals_the_operators_put_together(make: Callable[..., Any]) -> None:
    config, arrays = make("llama", num_hidden_layers=1, head_dim=20, hidden_size=48, intermediate_size=80)
    engine, weights = build(config, arrays)
    spec = describe(config)
    ids = np.random.default_rng(4).integers(0, 96, 9)
    (layer,), eps = spec.layers, spec.norm_eps
    heads, kv, dim = layer.mixer.heads, layer.mixer.kv_heads, layer.mixer.head_dim
    x = arrays[spec.embedding][ids]
    h = ops.rmsnorm(x, arrays[layer.mixer_norm], eps)
    q, k, v = (by_hand(weights[name], h).reshape(len(ids), count, dim).swapaxes(0, 1) for name, count in
               ((layer.mixer.q, heads), (layer.mixer.k, kv), (layer.mixer.v, kv)))  # fmt: skip
    cos, sin = ops.rope_table(np.arange(len(ids)), np.asarray(layer.mixer.rope.frequencies, np.float32), layer.mixer.rope.scale)
    mixed = ops.attention(ops.rotate(q, cos, sin), ops.rotate(k, cos, sin), np.ascontiguousarray(v), np.arange(len(ids)))
    x = x + by_hand(weights[layer.mixer.o], np.ascontiguousarray(mixed.swapaxes(0, 1)).reshape(len(ids), -1))
    h = ops.rmsnorm(x, arrays[layer.mlp_norm], eps)
    x = x + by_hand(weights[layer.mlp.down], ops.swiglu(by_hand(weights[layer.mlp.gate], h), by_hand(weights[layer.mlp.up], h)))
    head = weights[spec.head].weight
    assert np.array_equal(engine.forward(ids), matmul(ops.rmsnorm(x, arrays[spec.norm], eps), head.logical(), head.format, head.shape))


def test_the_same_bits_however_it_is_cut(make: Callable[..., Any], machine: Any) -> None:
    config, arrays = make("llama")
    ids = np.random.default_rng(3).integers(0, 96, 90)
    want = build(config, arrays)[0].forward(ids)
    for isa in machine.native.supported_isas():
        machine.use_isa(isa)
        for threads, chunk in ((1, None), (2, 7), (3, 64)):
            machine.set_threads(threads)
            assert np.array_equal(build(config, arrays, chunk=chunk)[0].forward(ids), want), (isa, threads, chunk)
    engine = build(config, arrays)[0]
    states = [engine.state() for _ in range(3)]
    for state, end in zip(states, (20, 40, 60), strict=True):
        engine.forward(ids[:end], state)
    assert np.array_equal(engine.step(ids[[20, 40, 60]], states), want[[20, 40, 60]]), "a batch of sequences"


def test_what_runs_around_it_is_worth_it(make: Callable[..., Any], engine_of: Callable[..., Engine]) -> None:
    """Nearer to the float model than the bare format: what is around a weight runs on the weight that it was made for."""
    config, arrays = make("llama")
    ids = np.random.default_rng(5).integers(0, 96, 64)
    exact = engine_of(config, arrays).forward(ids)
    assert (
        np.abs(build(config, arrays)[0].forward(ids) - exact).mean()
        < np.abs(engine_of(config, arrays, "int4@16", "int8").forward(ids) - exact).mean()
    )


def test_the_engine_refuses(make: Callable[..., Any]) -> None:
    config, arrays = make("llama")
    _, weights = build(config, arrays)
    spec = describe(config)
    weights[spec.embedding] = replace(weights[spec.embedding], pre=(Transform("hadamard", 16),))
    with pytest.raises(NoKernelError, match="is the embedding: its rows are read as they are"):
        Engine(spec, weights)
    _, weights = build(config, arrays)
    name = spec.layers[1].mlp.down
    weights[name] = replace(weights[name], pre=(Transform("scale", data=np.full(80, 3e38, np.float32)),))
    with pytest.raises(NonFiniteError, match=r"layer 1: the transformed input is not finite at token \d"):
        Engine(spec, weights).forward([1, 2, 3])
    weights[name] = replace(weights[name], pre=(), branches=(), act=ActSpec.named("fp4_e2m1@16:ufp4_e2m2"))
    weights[spec.layers[1].mlp.up] = replace(weights[spec.layers[1].mlp.up], post=(Transform("scale", data=np.full(80, 1e9, np.float32)),))
    with pytest.raises(
        NonFiniteError, match=r"layer 1: the input, rounded to its format, needs a scale that the format does not hold at token 0"
    ):
        Engine(spec, weights).forward([1, 2, 3])


@pytest.fixture
def saved(tmp_path: Path) -> tuple[anybit.Model, Path]:
    """A small model with something around every kind of layer, saved."""
    model = anybit.load(write_model(tmp_path / "m"))
    rebuilt = {name: surrounded(linear.weight.dequantize(), name) for name, linear in model.linears.items() if "proj" in name}
    norm = np.asarray(model.weights["model.norm.weight"]) * 2
    post = (Transform("scale", data=np.full(64, 0.5, np.float32)),)
    head = replace(model.linears["lm_head.weight"], post=post)
    made = model.replace({**rebuilt, "model.norm.weight": norm, "lm_head.weight": head}, policy="by hand")
    made.save(tmp_path / "q")
    return made, tmp_path / "q"


def test_a_checkpoint_holds_all_of_it(saved: tuple[anybit.Model, Path], tmp_path: Path) -> None:
    model, path = saved
    ids = np.arange(40) % 64
    opened = anybit.load(path)
    assert np.array_equal(opened.logits(ids), model.logits(ids)) and opened.policy == "by hand"
    for name, linear in model.linears.items():
        other = opened.linears[name]
        assert (other.pre, other.post, other.act, other.around) == (linear.pre, linear.post, linear.act, linear.around), name
        assert [b.source for b in other.branches] == [b.source for b in linear.branches]
        assert (other.bias is None) == (linear.bias is None) and other.nbytes == linear.nbytes
    assert opened.nbytes == model.nbytes and opened.bits_per_weight > opened.with_act(None).replace({}).linears[UP].weight.bits_per_weight
    opened.save(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (path / "model.safetensors").read_bytes()
    rows = {row["name"]: row for row in opened.explain()}
    assert rows[UP]["around"] == ["columns"] and rows[UP]["act"] == "int8"
    assert rows["model.layers.0.self_attn.o_proj.weight"]["act"] == "fp8_e4m3fn@32:e8m0 (rounded, multiplied as float)"
    assert rows["model.layers.0.self_attn.v_proj.weight"]["act"] == "int8 (one scale)"


def layer(q: dict[str, Any], name: str = UP) -> Any:
    return q["layers"][name]


V, OUT, DOWN = (f"model.layers.1.{part}.weight" for part in ("self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj"))
DAMAGE: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda q: layer(q, V)["pre"][0].update(kind="spin"), r"v_proj.weight': pre\[0\]: transform 'spin' of 48 numbers: it is none of"),
    (lambda q: layer(q, V)["pre"][0].update(block=7), r"pre\[0\]: .*block=7 does not divide it"),
    (lambda q: layer(q, V)["pre"][0].update(seed=-1), "seed=-1 is not from 0"),
    (lambda q: layer(q, V)["pre"][0].update(block="16"), "'block' must be int, not str"),
    (lambda q: layer(q, V)["pre"][0].update(turns=1), r"pre\[0\] has the key 'turns', which is not known here"),
    (lambda q: layer(q, V)["pre"][0].update(data=True), r"part pre\.0\.data must be float32, not missing"),
    (lambda q: layer(q, V)["pre"][1].pop("data"), "it needs data"),
    (lambda q: layer(q, V)["pre"].reverse(), "part pre.0.data must be float32, not missing"),
    (lambda q: layer(q, V).pop("pre"), "part pre.1.data belongs to no transform or branch that is listed"),
    (lambda q: layer(q, V).update(act_scale="0x1p-200"), "'act_scale' is no scale"),
    (lambda q: layer(q, V).update(act_scale=1.5), "'act_scale' is 1.5, which has the wrong type"),
    (lambda q: layer(q, V).update(act_scale="nan"), "'act_scale' is no scale"),
    (lambda q: layer(q, OUT).update(act="fp8_e4m3fn@tensor:fp32"), "depends on the other tokens"),
    (lambda q: layer(q, OUT).update(act=None), "needs dynamic activations, or int8 ones"),
    (lambda q: layer(q)["branches"][0].update(kind="rows"), "it is none of low_rank, columns, residual"),
    (lambda q: layer(q)["branches"][0].pop("a"), r"part .* belongs to no transform|a must be"),
    (lambda q: layer(q)["branches"][0]["a"].update(shape=[72, 2]), "part codes must be"),
    (lambda q: layer(q)["branches"][0]["a"].update(format="int4@16"), r"int4@16.* in layout tile16x1|cannot hold"),
    (lambda q: layer(q)["branches"][0]["a"].update(more=1), r"branches\[0\]\.a has the key 'more'"),
    (lambda q: layer(q, DOWN)["branches"][0].update(kind="columns"), r"part branches\.0\.index must be int64, not missing"),
    (lambda q: layer(q, DOWN)["branches"][0].pop("b"), "belongs to no transform or branch"),
]


@pytest.mark.parametrize("number", range(len(DAMAGE)))
def test_damaged_descriptions(saved: tuple[anybit.Model, Path], number: int) -> None:
    change, says = DAMAGE[number]
    edit_quantization(saved[1], change)
    with pytest.raises(FileFormatError, match=says) as error:
        anybit.load(saved[1])
    assert "\n" not in str(error.value)


def test_damaged_arrays(saved: tuple[anybit.Model, Path]) -> None:
    def replaced(part: str, data: np.ndarray) -> Callable[[Any], None]:
        names = {"float32": "F32", "int64": "I64", "uint32": "U32"}

        def change(tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
            tensors[part] = (names[str(data.dtype)], list(data.shape), data.tobytes())

        return change

    path = saved[1]
    original = {file.name: file.read_bytes() for file in path.iterdir()}
    for part, data, says in [
        (f"{OUT}.pre.0.data", np.zeros(48, np.int64), "must be a permutation"),
        (f"{OUT}.pre.0.data", np.zeros(48, np.float32), "part pre.0.data must be int64"),
        (f"{V}.pre.1.data", np.full(48, np.inf, np.float32), "data must be finite"),
        (f"{V}.pre.1.data", np.ones(47, np.float32), "data must be float32 of shape"),
        (f"{UP}.branches.0.index", np.array([48]), "from 0 to 47"),
        (f"{UP}.branches.0.index", np.array([3], np.uint32), "index must be int64"),
        (f"{OUT}.bias", np.full(48, np.nan, np.float32), "part bias must be"), (f"{OUT}.bias", np.ones(5, np.float32), "part bias must be"),
    ]:  # fmt: skip
        edit_tensors(path, replaced(part, data))
        with pytest.raises(FileFormatError, match=says):
            anybit.load(path)
        for name, content in original.items():
            (path / name).write_bytes(content)


def test_replacing(saved: tuple[anybit.Model, Path]) -> None:
    model = saved[0]
    linear = model.linears[UP]
    for weights, error, says in [
        ({"model.layers.9.x": linear}, UsageError, "has no weight 'model.layers.9.x'"),
        ({DOWN: linear}, ShapeError, r"must be a Linear of shape \[48, 72\], not Linear \[72, 48\]"),
        ({UP: np.zeros((72, 48), np.float32)}, ShapeError, "must be a Linear of shape"),
        ({"model.norm.weight": linear}, ShapeError, r"must be an array of shape \[48\]"),
        ({UP: replace(linear, pre=(Transform("scale"),))}, ShapeError, "it needs data"),
    ]:
        with pytest.raises(error, match=says):
            model.replace(weights)
    same = model.replace({UP: linear})
    assert same.weights[UP] is linear and same.policy == "by hand"
    json.dumps(model.explain())
