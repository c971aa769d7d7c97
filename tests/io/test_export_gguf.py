"""GGUF files that we write: bits of every type, what gguf-py reads of them, and what llama.cpp's fields must say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import anybit
from anybit.errors import OutputError, ShapeError, UnknownNameError, UsageError
from anybit.export import prepare, write
from anybit.formats import Format
from anybit.io import gguf as our_gguf
from anybit.io.gguf.container import Container
from anybit.io.gguf.kind import KINDS, writers
from anybit.io.gguf.writer import Entry, Value, header, write_gguf
from anybit.methods.points import quantize_to_points
from anybit.methods.rtn import dequantize_parts
from tests.io.exported import WIDE, differing, export, model, quantized, values

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("name", sorted(writers()))
def test_blocks_come_back(name: str) -> None:
    """Random blocks of a type, unpacked and packed: the same bytes; of TQ1_0, where several bytes mean the same digits, the same codes."""
    kind = KINDS[name]
    blocks = np.frombuffer(RNG.bytes(5 * 7 * kind.dtype.itemsize), kind.dtype).copy().reshape(5, 7)
    if name == "MXFP4":
        blocks["e"] %= 255
    if name == "NVFP4":
        blocks["d"] %= 127
    parts = {part: array if array.shape == (1, 1) else array.reshape(5, -1) for part, array in kind.convert(blocks).items()}
    made = np.zeros_like(blocks)
    writers()[name](parts, made)
    if name == "TQ1_0":
        again = kind.convert(made)
        assert all(np.array_equal(again[part].reshape(-1), parts[part].reshape(-1)) for part in parts)
    else:
        assert made.tobytes() == blocks.tobytes()


# ---------------------------------------------------------------------------------------------- the container
def test_fields_and_tensors(tmp_path: Path) -> None:
    fields = {
        "general.architecture": Value("str", "llama"), "a": Value("u32", 7), "b": Value("f32", 0.5), "c": Value("bool", True),
        "d": Value("str", ["x", "yö"], True), "e": Value("i32", [-1, 2], True), "f": Value("f64", 0.25), "g": Value("f32", [1.5], True),
    }  # fmt: skip
    entries = [Entry("t", KINDS["F32"], (3,)), Entry("u", KINDS["Q8_0"], (2, 32)), Entry("v", KINDS["F16"], (1, 5))]
    data = {"t": np.arange(3, dtype=np.float32), "u": RNG.bytes(68), "v": np.arange(5, dtype=np.float16)}
    with (tmp_path / "x.gguf").open("wb") as file:
        size = write_gguf(file.write, fields, entries, [("t", data["t"][:1]), ("t", data["t"][1:]), ("u", data["u"]), ("v", data["v"])])
    assert size == (tmp_path / "x.gguf").stat().st_size
    found = Container(tmp_path / "x.gguf")
    got = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in found.metadata.items()}
    assert got == {key: value.value for key, value in fields.items()}
    assert [(info.name, info.kind.name, info.shape) for info in found.tensors.values()] == [(e.name, e.kind.name, e.shape) for e in entries]
    assert found.blocks("u").tobytes() == data["u"]
    assert found.blocks("v").tobytes() == np.asarray(data["v"]).tobytes()


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ([Entry("a", KINDS["F32"], (3,)), Entry("a", KINDS["F32"], (3,))], "occurs twice"),
        ([Entry("a" * 64, KINDS["F32"], (3,))], "64 bytes, 63 at most"),
        ([Entry("a", KINDS["Q4_K"], (2, 128))], "whose blocks hold 256"),
    ],
)
def test_bad_entries(entries: list[Entry], match: str) -> None:
    with pytest.raises(ShapeError, match=match):
        header({}, entries)


def test_data_must_match() -> None:
    entry = Entry("a", KINDS["F32"], (3,))
    wrong = (([("a", b"1234")], "8 were missing"), ([("b", bytes(12))], "of 'b' came"), ([("a", bytes(12))] * 2, "after the last"))
    for data, match in wrong:
        with pytest.raises(ShapeError, match=match):
            write_gguf(lambda piece: None, {}, [entry], data)


# ---------------------------------------------------------------------------------------------- models
HOLDS = {
    "int4@128": "Q4_0", "int3@64": "Q4_0", "int5@32:fp16": "Q5_0", "int8@32:fp16": "Q8_0", "uint4@32:fp16+off": "Q4_1",
    "ternary@256": "TQ2_0",
    "uint5@64:fp16+off": "Q5_1", "uint2@16:uint4@256:fp16+off": "Q2_K", "int3@16:int6@256:fp16": "Q3_K", "mxfp4": "MXFP4", "nvfp4": "NVFP4",
    "uint4@32:uint6@256:fp16+off": "Q4_K", "uint5@32:uint6@256:fp16+off": "Q5_K", "int6@16:int8@256:fp16": "Q6_K",
    "iq4nl@32:fp16": "IQ4_NL",
    "iq4nl@32:int6@256:fp16": "IQ4_XS", "binary@128:fp16": "Q1_0", "fp32": "F32", "fp16": "F16",
}  # fmt: skip


@pytest.mark.parametrize("fmt", HOLDS)
def test_formats_go_code_by_code(tmp_path: Path, fmt: str) -> None:
    """Values are the same, in the narrowest type; rows of q and k are permuted and come back; gguf-py reads the same numbers."""
    source = quantized(tmp_path, fmt)
    made = export(source, tmp_path / "out", "gguf")
    kinds = {step.stored for step in made.plan.steps if step.name.endswith("_proj.weight")}
    assert kinds == {HOLDS[fmt]}
    assert all(step.exact for step in made.plan.steps)
    file = tmp_path / "out" / "model.gguf"
    assert differing(source, file) == []
    gguf = pytest.importorskip("gguf")
    from gguf.quants import dequantize

    ours = values(source)
    names = {"blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight", "output_norm.weight": "model.norm.weight"}
    for tensor in gguf.GGUFReader(file).tensors:
        want = ours.get(names.get(tensor.name, ""))
        if tensor.name == "blk.0.attn_q.weight":  # the converter's own formula
            want = ours["model.layers.0.self_attn.q_proj.weight"].reshape(8, 2, 16, 256).swapaxes(1, 2).reshape(256, 256)
        if want is None or (HOLDS[fmt] in ("NVFP4", "Q1_0") and want.ndim > 1):
            continue  # NVFP4's second factor is a tensor of its own; gguf-py does not dequantize Q1_0
        got = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(want.shape)
        assert np.array_equal(got, want), tensor.name


@pytest.mark.parametrize("kind", ["q4_0", "q4_k", "q6_k", "tq1_0", "mxfp4", "nvfp4", "f16"])
def test_kinds_quantize_dense_models(tmp_path: Path, kind: str) -> None:
    source = model(tmp_path / "model")
    made = export(source, tmp_path / "out.gguf", f"gguf:{kind}")
    assert len(made.requantized) == 7
    file = Container(tmp_path / "out.gguf")
    assert file.info("blk.0.ffn_up.weight").kind.name == kind.upper()
    assert file.info("token_embd.weight").kind.name == "BF16"
    loaded = anybit.load(tmp_path / "out.gguf")
    spec = made.target.spec(kind)
    assert spec is not None
    want = anybit.quantize(values(source)["model.layers.0.mlp.up_proj.weight"], spec).dequantize()
    assert np.array_equal(loaded.linears["model.layers.0.mlp.up_proj.weight"].weight.dequantize(), want)


# ---------------------------------------------------------------------------------------------- lists of points
LISTS = [name for name in KINDS if KINDS[name].points is not None]


@pytest.mark.parametrize("name", LISTS)
def test_points_are_searched_written_and_read(tmp_path: Path, name: str) -> None:
    """A dense model goes into the type; gguf-py reads what we meant; what is read goes into another file byte for byte."""
    source = model(tmp_path / "model")
    made = export(source, tmp_path / "one.gguf", f"gguf:{name.lower()}")
    assert len(made.requantized) == 7
    file = Container(tmp_path / "one.gguf")
    assert file.info("blk.0.ffn_up.weight").kind.name == name
    assert file.metadata["general.file_type"] not in (0, 1)
    points, up = KINDS[name].points, "model.layers.0.mlp.up_proj.weight"
    assert points is not None
    w, fmt = values(source)[up], Format(KINDS[name].format)
    want = dequantize_parts(quantize_to_points(w, fmt, points), fmt, w.shape)
    assert np.array_equal(anybit.load(tmp_path / "one.gguf").linears[up].weight.dequantize(), want)
    gguf = pytest.importorskip("gguf")
    for tensor in gguf.GGUFReader(tmp_path / "one.gguf").tensors:
        if tensor.name == "blk.0.ffn_up.weight":
            assert np.array_equal(gguf.dequantize(tensor.data, tensor.tensor_type).reshape(w.shape), want)
    export(tmp_path / "one.gguf", tmp_path / "two.gguf", "gguf")
    again = Container(tmp_path / "two.gguf")
    for key, info in file.tensors.items():
        assert again.info(key).kind.name == info.kind.name, key
        assert again.blocks(key).tobytes() == file.blocks(key).tobytes(), key


def test_importance_reaches_the_search(tmp_path: Path) -> None:
    source, up = model(tmp_path / "model"), "model.layers.0.mlp.up_proj.weight"
    weigh = np.ones(256)
    weigh[::3] = 40.0
    errors = []
    for given in (None, {up: weigh}):
        out = tmp_path / f"{given is None}.gguf"
        export(source, out, "gguf:iq2_xs", importance=given)
        errors.append(float((weigh * np.square(values(out)[up] - values(source)[up])).sum()))
    assert errors[1] < errors[0] * 0.98


def test_codes_that_no_list_has(tmp_path: Path) -> None:
    """The format alone is not enough: weights that were rounded one by one are refused, with what is wrong."""
    source = quantized(tmp_path, KINDS["IQ2_S"].format)
    plan = prepare(source, "gguf")
    assert len(plan.plan.refused) == 7
    with pytest.raises(UsageError, match=r"8 weights side by side are not always one of its 1024 points, in rows 0 to 255"):
        write(plan, tmp_path / "out")
    with pytest.raises(UsageError, match="gptq chooses each by itself; leave --method out"):
        prepare(tmp_path / "model", "gguf:iq2_s", method="gptq")
    short = model(tmp_path / "short", {**WIDE, "intermediate_size": 320})
    with pytest.raises(UsageError, match=r"rows of 320 are no whole blocks of 256"):
        write(prepare(short, "gguf:iq3_s"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_fields_of_a_model(tmp_path: Path) -> None:
    config = {**WIDE, "rope_theta": 500000.0, "rms_norm_eps": 2e-6}
    source = model(tmp_path / "model", config)
    (source / "chat_template.jinja").write_text("{{ messages }}")
    export(source, tmp_path / "out.gguf", "gguf")
    file = our_gguf.open(tmp_path / "out.gguf")
    found = dict(file.metadata)
    assert found["general.architecture"] == "llama"
    assert found["llama.rope.freq_base"] == 500000.0
    assert found["llama.attention.head_count_kv"] == 4
    assert found["tokenizer.ggml.model"] == "gpt2"
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    assert found["tokenizer.ggml.tokens"][:2] == ["<s>", "</s>"]
    assert found["tokenizer.ggml.token_type"][:3].tolist() == [3, 3, 1]
    assert found["tokenizer.ggml.token_type"][-1] == 5, "padding"
    assert found["tokenizer.chat_template"] == "{{ messages }}"
    assert found["tokenizer.ggml.eos_token_id"] == 2
    here, there = anybit.load(source), anybit.load(tmp_path / "out.gguf")
    assert here.spec.norm_eps == there.spec.norm_eps
    ids = here.tokenize("hello world")
    assert np.array_equal(there.tokenize("hello world"), ids)
    assert np.array_equal(here.logits(ids), there.logits(ids))


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral"])
def test_families(tmp_path: Path, family: str) -> None:
    config = {**WIDE, "model_type": family, "architectures": None}
    source = model(tmp_path / "model", config)
    export(source, tmp_path / "out.gguf", "gguf")
    ids = [1, 5, 9, 30]
    assert np.array_equal(anybit.load(source).logits(ids), anybit.load(tmp_path / "out.gguf").logits(ids))


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    ],
)
def test_rope(tmp_path: Path, rope: dict[str, object]) -> None:
    """Frequencies that were divided one by one come back within the rounding of their quotients."""
    source = model(tmp_path / "model", {**WIDE, "rope_parameters": {**rope, "rope_theta": 10000.0}})
    export(source, tmp_path / "out.gguf", "gguf")
    here, there = (anybit.load(path).spec.layers[0].mixer.rope for path in (source, tmp_path / "out.gguf"))
    assert here.scale == there.scale
    np.testing.assert_allclose(there.frequencies, here.frequencies, rtol=2.0**-22)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model_type": "mistral", "architectures": None, "sliding_window": 16}, "layers see 16 of 128 tokens"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}}, "longrope"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.5}}, "yarn with attention_factor"),
    ],
)
def test_what_gguf_does_not_express(tmp_path: Path, change: dict[str, object], match: str) -> None:
    source = model(tmp_path / "model", {**WIDE, **change})
    with pytest.raises(UsageError, match=match):
        prepare(source, "gguf")


def test_tokenizers_that_gguf_does_not_express(tmp_path: Path) -> None:
    source = model(tmp_path / "model")
    content = json.loads((source / "tokenizer.json").read_text())
    for change, match in (
        ({"pre_tokenizer": {"type": "Whitespace"}}, "cuts text with 'Whitespace'"),
        ({"model": {"type": "WordPiece", "vocab": {}}}, "'WordPiece', not BPE"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated"}}, "has no name in GGUF"),
    ):
        (source / "tokenizer.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(UsageError, match=match):
            prepare(source, "gguf")


def test_refusals(tmp_path: Path) -> None:
    source = quantized(tmp_path, "int8@channel")
    plan = prepare(source, "gguf")
    assert len(plan.plan.refused) == 7
    with pytest.raises(UsageError, match=r"gguf holds no int8@channel, as 'model.layers.0.self_attn.q_proj.weight' and 6 more have.*fp16"):
        write(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="is int8@channel already, and q4_k would quantize it again"):
        prepare(source, "gguf:q4_k")
    with pytest.raises(UsageError, match="convert quantizes nothing"):
        prepare(tmp_path / "model", "gguf:q4_k", convert=True)
    with pytest.raises(UnknownNameError, match="did you mean q4_k"):
        prepare(tmp_path / "model", "gguf:q4_kk")
    (tmp_path / "there.gguf").write_bytes(b"")
    with pytest.raises(OutputError, match="exists"):
        write(prepare(tmp_path / "model", "gguf"), tmp_path / "there.gguf")


def test_a_named_type_takes_codes_that_fit(tmp_path: Path) -> None:
    source = quantized(tmp_path, "ternary@256")
    export(source, tmp_path / "out.gguf", "gguf:tq1_0")
    assert Container(tmp_path / "out.gguf").info("blk.0.ffn_up.weight").kind.name == "TQ1_0"
    assert differing(source, tmp_path / "out.gguf") == []
