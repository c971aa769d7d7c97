"""Product rules in whole models: the same bits however it is cut, equal to the operators put together by hand, stored and opened again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import anybit
from anybit.cli.main import main
from anybit.engine import Engine
from anybit.errors import FileFormatError, NoKernelError, UsageError
from anybit.linear import ActSpec, Linear
from anybit.models import describe
from anybit.reference import ops
from anybit.reference import products as reference
from anybit.tensor import QTensor, quantize

CASES = [("int4@16", "lmul", None), ("fp32", "lmul3", None), ("ternary@16", "shift", None), ("int4@16", "table=mitchell", "int4"),
         ("int8@16", "table=trunc4", "int8")]  # fmt: skip


def build(
    config: dict[str, Any], arrays: dict[str, np.ndarray], fmt: str, product: str | None, act: str | None, **options: Any
) -> tuple[Engine, dict[str, Any]]:  # fmt: skip
    weights: dict[str, Linear | np.ndarray] = {}
    for tensor in describe(config).tensors:
        if tensor.role == "norm":
            weights[tensor.name] = arrays[tensor.name]
        elif tensor.role != "bias":
            coded = tensor.role == "linear"
            weight = quantize(arrays[tensor.name], fmt) if coded and fmt != "fp32" else QTensor.dense(arrays[tensor.name])
            weights[tensor.name] = Linear(weight, act=ActSpec.named(act) if coded else None, product=product if coded else None)
    return Engine(describe(config), weights, **options), weights


@pytest.mark.parametrize(("fmt", "product", "act"), CASES)
def test_the_same_bits_for_chunks_threads_and_instruction_sets(
    make: Callable[..., Any], machine: Any, fmt: str, product: str, act: str | None
) -> None:  # fmt: skip
    config, arrays = make("llama")
    ids = np.random.default_rng(3).integers(0, 96, 90)
    attention = product if product.startswith("lmul") else None
    want = build(config, arrays, fmt, product, act, attention=attention)[0].forward(ids)
    plain = build(config, arrays, fmt, None, act if act == "int8" else None)[0].forward(ids)
    if product == "shift":
        assert np.array_equal(want, plain), "powers of two: the same product"
    else:
        assert np.abs(want - plain).max() > 1e-4 and np.corrcoef(want.ravel(), plain.ravel())[0, 1] > 0.5, "another product, the same model"
    for isa in machine.native.supported_isas():
        machine.use_isa(isa)
        for threads, chunk in ((1, None), (2, 7), (3, 64)):
            machine.set_threads(threads)
            engine = build(config, arrays, fmt, product, act, attention=attention, chunk=chunk)[0]
            assert np.array_equal(engine.forward(ids), want), (isa, threads, chunk)


def test_equals_the_operators_put_together(make: Callable[..., Any]) -> None:
    """One layer written out: L-Mul in the seven matrices and in attention, multiplication everywhere else."""
    config, arrays = make("llama", num_hidden_layers=1)
    spec = describe(config)
    ids = np.random.default_rng(4).integers(0, 96, 11)
    engine, weights = build(config, arrays, "int4@16", "lmul", None, attention="lmul")
    (layer,), eps = spec.layers, spec.norm_eps
    heads, kv, dim = layer.mixer.heads, layer.mixer.kv_heads, layer.mixer.head_dim

    def times(name: str, x: np.ndarray) -> np.ndarray:
        w = weights[name].weight
        return reference.matmul(x, w.logical(), w.format, w.shape, "lmul")

    x = arrays[spec.embedding][ids]
    h = ops.rmsnorm(x, arrays[layer.mixer_norm], eps)
    q, k, v = (times(name, h).reshape(len(ids), count, dim).swapaxes(0, 1) for name, count in
               ((layer.mixer.q, heads), (layer.mixer.k, kv), (layer.mixer.v, kv)))  # fmt: skip
    cos, sin = ops.rope_table(np.arange(len(ids)), np.asarray(layer.mixer.rope.frequencies, np.float32), layer.mixer.rope.scale)
    mixed = reference.attention(ops.rotate(q, cos, sin), ops.rotate(k, cos, sin), np.ascontiguousarray(v), np.arange(len(ids)), "lmul")
    x = x + times(layer.mixer.o, np.ascontiguousarray(mixed.swapaxes(0, 1)).reshape(len(ids), -1))
    h = ops.rmsnorm(x, arrays[layer.mlp_norm], eps)
    x = x + times(layer.mlp.down, ops.swiglu(times(layer.mlp.gate, h), times(layer.mlp.up, h)))
    head = weights[spec.head].weight
    from anybit.reference.linear import matmul

    want = matmul(ops.rmsnorm(x, arrays[spec.norm], eps), head.logical(), head.format, head.shape)
    assert np.array_equal(engine.forward(ids), want)


def test_a_checkpoint_holds_the_rule(tmp_path: Path) -> None:
    model = anybit.load("pycoder-5m")
    ids = model.tokenize("def main():\n    return 1\n")
    coded = model.quantize("int4@32", product="lmul3")
    dense = model.with_product("lmul")
    lookup = model.quantize("int4@32", act="int4", product="table=mitchell")
    for name, made in (("coded", coded), ("dense", dense), ("lookup", lookup)):
        made.save(tmp_path / name)
        opened = anybit.load(tmp_path / name)
        assert {n: linear.product for n, linear in opened.linears.items()} == {n: linear.product for n, linear in made.linears.items()}
        assert np.array_equal(opened.logits(ids), made.logits(ids)) and not np.array_equal(opened.logits(ids), model.logits(ids))
    anybit.model.quantize_file("pycoder-5m", tmp_path / "file", "int4@32", product="lmul3")
    assert np.array_equal(anybit.load(tmp_path / "file").logits(ids), coded.logits(ids))
    rows = {row["name"]: row for row in coded.explain()}
    row = rows["model.layers.0.mlp.up_proj.weight"]
    assert (row["kernel"], row["product"], row["dot"]) == ("linear_patterns", "lmul3", "pattern")
    assert row["others"]["linear_tile16x4"] == "it knows no product rules of patterns"
    assert rows["model.embed_tokens.weight"]["product"] == "multiplication"


def test_a_checkpoint_stores_attentions_rule(tmp_path: Path) -> None:
    """Saved from memory, or quantized from file to file; written only where there is one; refused where it is none."""
    model, ids = anybit.load("pycoder-5m"), [5, 7, 900, 3, 11, 40]
    made = model.quantize("int4@32").with_attention("lmul4")
    made.save(tmp_path / "a")
    anybit.model.quantize_file("pycoder-5m", tmp_path / "b", "int4@32", attention="lmul4")
    for name in "ab":
        opened = anybit.load(tmp_path / name)
        assert opened.attention == "lmul4" and opened.logits(ids).tobytes() == made.logits(ids).tobytes()
    plain = opened.with_attention(None).logits(ids)
    assert np.array_equal(plain, model.quantize("int4@32").logits(ids)) and not np.array_equal(plain, made.logits(ids))
    opened.with_attention(None).save(tmp_path / "c")
    assert "attention_product" not in (tmp_path / "c" / "config.json").read_text()
    for rule, message in (("shift", "is for weights; attention takes lmul"), ("lmul99", "from 1 to 23"), ("log", "no product rule 'log'")):
        config = json.loads((tmp_path / "a" / "config.json").read_text())
        config["quantization_config"]["attention_product"] = rule
        (tmp_path / "a" / "config.json").write_text(json.dumps(config))
        with pytest.raises(FileFormatError, match=f"attention_product: .*{message}"):
            anybit.load(tmp_path / "a")
    with pytest.raises(UsageError, match="attention takes lmul"):
        anybit.model.quantize_file("pycoder-5m", tmp_path / "d", "int4@32", attention="table=exact")
    assert not (tmp_path / "d").exists()


def test_what_cannot_be_saved_or_run(tmp_path: Path) -> None:
    model = anybit.load("pycoder-5m")
    np.save(tmp_path / "t.npy", np.zeros((16, 16), np.int16))
    own = model.quantize("int4@32", act="int4", product=f"table={tmp_path / 't.npy'}")
    with pytest.raises(UsageError, match="is a file, which no checkpoint holds"):
        own.save(tmp_path / "b")
    assert not (tmp_path / "b").exists()
    with pytest.raises(UsageError, match="attention takes lmul"):
        model.with_attention("shift")
    with pytest.raises(NoKernelError, match="the product rule shift takes codes"):
        model.with_product("shift")
    with pytest.raises(NoKernelError, match="float or int8 activations, not int4"):
        model.quantize("int4@32", act="int4")
    assert model.with_attention("lmul").with_attention(None).attention is None


def test_evaluation_by_command(tmp_path: Path) -> None:
    text = tmp_path / "text.py"
    text.write_text("def add(a, b):\n    return a + b\n" * 40)
    common = ["eval", "pycoder-5m", "--reference", "pycoder-5m", "--text", str(text), "--tokens", "300", "--json", "--no-progress"]

    def run(*more: str) -> dict[str, Any]:
        done = CliRunner().invoke(main, [*common, *more])
        assert done.exit_code == 0, done.output
        return json.loads(done.output)

    none, weights, attention, both = (run(*more) for more in (
        [], ["--product", "lmul"], ["--attention-product", "lmul"], ["--product", "lmul", "--attention-product", "lmul"]))  # fmt: skip
    assert none["kl_mean"] == 0 and none["product"] == "as stored" and none["attention_product"] is None
    assert weights["product"] == "lmul" and both["attention_product"] == "lmul"
    assert 0 < attention["kl_mean"] < both["kl_mean"] and 0 < weights["kl_mean"] < 1
    assert len({result["kl_mean"] for result in (none, weights, attention, both)}) == 4
    done = CliRunner().invoke(main, [*common, "--product", "lmul0"])
    assert isinstance(done.exception, UsageError) and "lmul takes a number from 1 to 23" in str(done.exception)


def test_products_of_layers_that_share_an_input(make: Callable[..., Any]) -> None:
    """q, k and v of one layer with rules of their own: each has the input that it needs."""
    config, arrays = make("llama", num_hidden_layers=1)
    ids = np.random.default_rng(5).integers(0, 96, 9)
    spec = describe(config)
    mixer = spec.layers[0].mixer
    _, weights = build(config, arrays, "int4@16", None, None)
    mixed = dict(weights)
    for name, product in ((mixer.q, "lmul3"), (mixer.k, None), (mixer.v, "lmul")):
        mixed[name] = replace(weights[name], product=product)
    mixed[spec.layers[0].mlp.gate] = replace(weights[spec.layers[0].mlp.gate], product="shift2")
    got = Engine(spec, mixed).forward(ids)
    alone = dict(weights)
    others = []
    for name in (mixer.q, mixer.v, spec.layers[0].mlp.gate):
        alone[name] = mixed[name]
        others.append(Engine(spec, alone).forward(ids))
    assert np.array_equal(others[-1], got)
    assert not np.array_equal(others[0], others[1]) and not np.array_equal(others[1], others[2])
