"""Experts in GGUF: one tensor of three axes for a layer, as gguf-py writes it and reads what is written here; each expert is a part."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import anybit
from anybit.errors import FileFormatError, UsageError
from anybit.export import prepare, write
from anybit.io.gguf.container import Container
from anybit.io.gguf.kind import KINDS
from anybit.models.spec import Experts
from anybit.verification import Traced, verify
from tests.io.gguf_model import QUANTIZES, hf_directory, permuted, random_blocks, renamed
from tests.io.gguf_model import write_gguf as write_dense

sys.path.insert(0, str(Path(__file__).parents[1]))
from mixtures import MIXTRAL, QWEN, unseen
from small import arrays, write_model

BIG = {"vocab_size": 96, "hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": MIXTRAL | BIG, "qwen": {**QWEN, **BIG, "num_hidden_layers": 2, "moe_intermediate_size": 256, "mlp_only_layers": []},
}  # fmt: skip
Tensors = dict[str, np.ndarray]
EXPERT = re.compile(r"(model\.layers\.\d+)\..*\.experts\.(\d+)\.(\w+)\.weight")
MERGED = dict(zip(("w1", "w3", "w2", "gate_proj", "up_proj", "down_proj"), ("gate", "up", "down") * 2, strict=True))


def theirs(name: str) -> str:
    """The name in a file."""
    found = EXPERT.fullmatch(name)
    if found:
        return f"blk.{found[1].rpartition('.')[2]}.ffn_{MERGED[found[3]]}_exps.weight"
    if name.endswith(("block_sparse_moe.gate.weight", "mlp.gate.weight")):
        return f"blk.{name.split('.')[2]}.ffn_gate_inp.weight"
    return renamed(name)


def write_gguf(
    path: Path, config: dict[str, Any], tensors: Tensors, kind: str = "F32", order: str = "<", skip: tuple[str, ...] = (),
    change: Callable[[Any], None] = lambda w: None, merged: Callable[[np.ndarray], np.ndarray] = lambda a: a,
) -> Tensors:  # fmt: skip
    """As llama.cpp's converter lays a model out; gives the values that gguf-py reads, under our names."""
    llama = config["model_type"] == "mixtral"
    w = gguf.GGUFWriter(path, "llama" if llama else "qwen3moe", endianess=gguf.GGUFEndian.LITTLE if order == "<" else gguf.GGUFEndian.BIG)
    fields = {
        "context_length": config["max_position_embeddings"], "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"], "feed_forward_length": config["intermediate_size"],
        "head_count": config["num_attention_heads"], "head_count_kv": config["num_key_value_heads"], "key_length": config["head_dim"],
        "value_length": config["head_dim"], "layer_norm_rms_eps": config["rms_norm_eps"], "rope_freq_base": config["rope_theta"],
        "expert_count": config.get("num_experts", config.get("num_local_experts")), "expert_used_count": config["num_experts_per_tok"],
    }  # fmt: skip
    if not llama:
        fields["expert_feed_forward_length"] = config["moe_intermediate_size"]
    for name, value in fields.items():
        if name not in skip:
            getattr(w, f"add_{name}")(value)
    change(w)
    groups: dict[str, list[str]] = {}
    for name in tensors:
        groups.setdefault(theirs(name), []).append(name)
    seen: Tensors = {}
    for seed, (there, names) in enumerate(groups.items()):
        chosen = kind if tensors[names[0]].ndim > 1 and "gate_inp" not in there else "F32"
        qtype = gguf.GGMLQuantizationType[chosen]
        raws = []
        for i, name in enumerate(names):
            array = tensors[name]
            reorder = llama and ("q_proj" in name or "k_proj" in name)
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            if chosen in QUANTIZES:
                raw = gguf.quantize(permuted(array, heads) if reorder else np.ascontiguousarray(array), qtype)
            else:
                raw = random_blocks(chosen, array.shape, 100 * seed + i)
            values = np.array(gguf.dequantize(raw, qtype), np.float32).reshape(array.shape)
            if reorder:
                place = permuted(np.arange(len(array)), heads)
                values[place] = values.copy()
            seen[name] = values
            raws.append(raw)
        w.add_tensor(there, merged(np.stack(raws)) if "_exps" in there else raws[0], raw_dtype=qtype)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return seen


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", ["F32 <", "F32 >", "BF16 <", "Q8_0 <", "Q4_K <", "MXFP4 <"])
def test_what_gguf_py_wrote_is_the_model(name: str, kind: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    values = write_gguf(tmp_path / "a.gguf", config, arrays(config), *kind.split())
    opened = anybit.load(tmp_path / "a.gguf")
    dense = anybit.load(hf_directory(tmp_path / "dense", config, values))
    assert opened.spec.layers == dense.spec.layers and opened.spec.family == config["model_type"]
    for each, linear in opened.linears.items():
        assert np.array_equal(linear.weight.dequantize(), values[each]), each
    ids = list(range(3, 50))
    got, want = opened.logits(ids), dense.logits(ids)
    assert np.ptp(want) > 0.1 and np.abs(got - want).max() <= 2e-5 * np.ptp(want)


def turned(array: np.ndarray) -> np.ndarray:
    return array[::-1]


def test_another_order_of_experts_is_another_model(tmp_path: Path) -> None:
    config = CONFIGS["mixtral"]
    for i, merged in enumerate((lambda a: a, turned)):
        write_gguf(tmp_path / f"{i}.gguf", config, arrays(config), merged=merged)
    a, b = (anybit.load(tmp_path / f"{i}.gguf").logits([3, 4, 5]) for i in (0, 1))
    assert np.abs(a - b).max() > 1e-3 * np.ptp(a)


def other(field: str, value: int) -> dict[str, Any]:
    """Another value of a field."""
    return {"skip": (field,), "change": lambda w: getattr(w, f"add_{field}")(value)}


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("mixtral", {"merged": lambda a: a[:4]}, r"tensor 'blk\.0\.ffn_gate_exps\.weight' has shape \[4, 512, 256\], but there are 5 experts"),
    ("mixtral", {"skip": ("expert_used_count",)}, r"field 'llama\.expert_used_count' is missing"),
    ("mixtral", {"skip": ("expert_count",)}, r"tensor 'blk\.0\.ffn_gate_inp\.weight' has no place in a llama model"),
    ("qwen", {"skip": ("expert_feed_forward_length",)}, r"field 'qwen3moe\.expert_feed_forward_length' is missing"),
    ("mixtral", {"change": lambda w: w.add_bool("llama.expert_weights_norm", False)}, r"expert_weights_norm' is False"),
    ("mixtral", {"change": lambda w: w.add_expert_weights_scale(2.5)}, r"expert_weights_scale' is 2\.5"),
    ("qwen", {"change": lambda w: w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)}, r"expert_gating_func' is 2"),
    ("qwen", {"change": lambda w: w.add_expert_shared_count(1)}, r"expert_shared_count' is 1"),
    ("mixtral", {"change": lambda w: w.add_expert_feed_forward_length(64)}, r"expert_feed_forward_length' is not feed_forward_length"),
    ("mixtral", other("expert_count", 1 << 20), r"expert_count' is 1048576, of 2 layers; at most"),
    ("mixtral", other("expert_used_count", 6), r"num_experts_per_tok is 6; .*field 'llama\.expert_used_count'"),
    ("mixtral", other("block_count", 1), r"tensor 'blk\.1\.ffn_gate_exps\.weight' has no place"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "message"), BAD, ids=[message[-30:] for _, _, message in BAD])
def test_what_is_not_as_it_should_be_is_named(name: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", CONFIGS[name], arrays(CONFIGS[name]), **options)
    with pytest.raises(FileFormatError, match=message):
        anybit.load(tmp_path / "a.gguf")


# ---------------------------------------------------------------------------------------------- what is written here
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", ["", "q8_0", "q4_k", "iq2_s"])
def test_what_is_written_here(name: str, kind: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    source = write_model(tmp_path / "model", config, unseen(config))
    export = prepare(source, f"gguf:{kind}" if kind else "gguf")
    assert write(export, tmp_path / "a.gguf") == (tmp_path / "a.gguf").stat().st_size
    again, original = anybit.load(tmp_path / "a.gguf"), anybit.load(source)
    assert again.spec.layers == original.spec.layers
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    count = config.get("num_experts", config.get("num_local_experts"))
    width = config.get("moe_intermediate_size", config["intermediate_size"])
    assert stored["blk.1.ffn_up_exps.weight"].shape.tolist() == [256, width, count], "innermost first"
    assert stored["blk.1.ffn_down_exps.weight"].shape.tolist() == [width, 256, count]
    assert stored["blk.0.ffn_gate_inp.weight"].tensor_type.name == "F32"
    exported = sum(step.nbytes for step in export.plan.steps)
    assert exported == sum(int(tensor.n_bytes) for tensor in stored.values())
    for layer in original.spec.layers:
        assert isinstance(layer.mlp, Experts)
        assert np.array_equal(again.weights[layer.mlp.router], original.weights[layer.mlp.router])
        for part, which in ((p, w) for p in ("gate", "up", "down") for w in range(count)):
            ours = again.linears[getattr(layer.mlp.experts[which], part)].weight
            assert ours.format == anybit.Format(KINDS[kind.upper()].format) if kind else ours.format == anybit.Format("bf16")
            there = stored[theirs(getattr(layer.mlp.experts[which], part))]
            whole = np.asarray(gguf.dequantize(there.data, there.tensor_type), np.float32)
            assert np.array_equal(ours.dequantize(), whole[which])
    if not kind:
        assert np.array_equal(again.logits(range(40)), original.logits(range(40)))
    checked = verify(export, tmp_path / "a.gguf", Traced(frozenset()))
    assert checked.tensors == len(export.plan.steps)
    assert f"gguf-py ({len(stored)} tensors)" in checked.readers or kind.startswith("iq")


def test_fields(tmp_path: Path) -> None:
    for name, config in CONFIGS.items():
        write(prepare(write_model(tmp_path / name, config, unseen(config)), "gguf"), tmp_path / f"{name}.gguf")
    found = Container(tmp_path / "mixtral.gguf").metadata
    assert [found[f"llama.{key}"] for key in ("expert_count", "expert_used_count", "feed_forward_length")] == [5, 2, 512]
    found = Container(tmp_path / "qwen.gguf").metadata
    keys = ("expert_count", "expert_used_count", "feed_forward_length", "expert_feed_forward_length")
    assert found["general.architecture"] == "qwen3moe" and [found[f"qwen3moe.{key}"] for key in keys] == [6, 2, 512, 256]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_topk_prob": False}, r"weights that do not add up to 1 \(norm_topk_prob is false\) are nothing that GGUF's qwen3moe"),
        ({"mlp_only_layers": [1]}, "some layers have no experts, which GGUF's qwen3moe does not express"),
    ],
)
def test_what_gguf_does_not_express(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = CONFIGS["qwen"] | change
    with pytest.raises(UsageError, match=message):
        prepare(write_model(tmp_path / "model", config, unseen(config)), "gguf")


def test_experts_of_different_formats_and_nvfp4_are_refused(tmp_path: Path) -> None:
    """One tensor has one type: the wider of two where it holds both, otherwise there is none."""
    source = write_model(tmp_path / "model", CONFIGS["mixtral"], unseen(CONFIGS["mixtral"]))
    first = r"experts\.[12]\."
    both = anybit.load(source).quantize("int4@32:fp16", keep=rf"embed|head|{first}")
    both.quantize("int8@32:fp16", keep=r"embed|head|attn|experts\.[034]\.").save(tmp_path / "both")
    export = prepare(tmp_path / "both", "gguf")
    stored = {step.name: step.stored for step in export.plan.steps}
    assert {stored[f"model.layers.0.block_sparse_moe.experts.{i}.w1.weight"] for i in range(5)} == {"Q8_0"}
    anybit.load(source).quantize("q4_0", keep=rf"embed|head|{first}").save(tmp_path / "some")
    with pytest.raises(UsageError, match="experts of a layer are one tensor there, of one type, and here some are stored otherwise"):
        export = prepare(tmp_path / "some", "gguf")
        export.check()
    with pytest.raises(UsageError, match="with a factor for each that is not written here"):
        prepare(source, "gguf:nvfp4").check()


def test_experts_of_an_architecture_without_them(tmp_path: Path) -> None:
    config = {**CONFIGS["qwen"], "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    write_dense(tmp_path / "a.gguf", config, arrays(config), extra=lambda w: w.add_expert_count(8))
    with pytest.raises(FileFormatError, match=r"field 'qwen3\.expert_count' is 8, which this anybit does not run"):
        anybit.load(tmp_path / "a.gguf")
