"""Language models in GGUF files: the same logits as the model they were made of, the same tokens, and codes that stay codes."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anybit
from anybit.errors import FileFormatError, NonFiniteError
from anybit.io.gguf.kind import KINDS
from anybit.io.manifest import verify_directory
from anybit.linear import Linear
from anybit.model import Model, resolve
from anybit.models import describe

gguf_py = pytest.importorskip("gguf")

from gguf_model import QUANTIZES, bpe_fields, hf_directory, write_gguf  # noqa: E402

SOURCE = resolve("pycoder-5m")
CONFIG = json.loads((SOURCE / "config.json").read_text())
TOKENIZER = json.loads((SOURCE / "tokenizer.json").read_text())
BPE = bpe_fields(TOKENIZER, "gpt-2")
TEXT = 'class Caf\u00e9:\n    """Many  words, 12345 numbers;\tsigns \u2014 and \U0001f600."""\n\n    def __init__(self): return None\n'
TINY: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 48, "intermediate_size": 72,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Model:
    return anybit.load("pycoder-5m")


@pytest.fixture(scope="module")
def weights(model: Model) -> dict[str, np.ndarray]:
    return {name: w.weight.dequantize() if isinstance(w, Linear) else w for name, w in model.weights.items()}


def random_tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        t.name: rng.standard_normal(t.shape, np.float32) * np.float32(0.2) + np.float32(t.role == "norm") for t in describe(config).tensors
    }


def same(a: Model, b: Model, count: int = 60) -> bool:
    ids = list(range(3, 3 + count))
    return a.logits(ids).tobytes() == b.logits(ids).tobytes()


# ---------------------------------------------------------------------------------------------- the same model
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_dense_is_bit_for_bit_the_original(tmp_path: Path, model: Model, weights: dict[str, np.ndarray], kind: str) -> None:
    write_gguf(tmp_path / "a.gguf", CONFIG, weights, lambda name: kind, BPE)
    opened = anybit.load(tmp_path / "a.gguf")
    assert {linear.weight.format.element.name for linear in opened.linears.values()} == {
        {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}[kind]
    }
    if kind != "F16":  # bfloat16 does not fit there
        assert same(opened, model)
    gc.collect()
    assert opened.tokenize(TEXT).tolist() == model.tokenize(TEXT).tolist()
    assert opened.spec.norm_eps == model.spec.norm_eps and opened.context == model.context
    if kind == "BF16":
        assert opened.generate("def main(", 12) == model.generate("def main(", 12)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("F64", "I8", "I16", "I32", "I64", "Q1_0", "Q2_0")])
def test_every_type_predicts_as_its_own_values_do(tmp_path: Path, weights: dict[str, np.ndarray], name: str) -> None:
    """Against a float32 model of gguf-py's values: the order of float32 operations differs, nothing else.

    Products sum up to 768 terms in another order: relative errors of about 1e-6, one layer deep.
    """
    few = {key: value for key, value in weights.items() if ".layers." not in key or ".layers.0." in key}
    config = {**CONFIG, "num_hidden_layers": 1}
    values = write_gguf(tmp_path / "a.gguf", config, few, lambda _: name)
    coded = anybit.load(tmp_path / "a.gguf")
    dense = anybit.load(hf_directory(tmp_path / "dense", config, values))
    if name not in ("F32", "F16", "BF16"):
        assert {linear.weight.format for linear in coded.linears.values()} == {anybit.Format(KINDS[name].format)}
        assert {row["kernel"] for row in coded.explain()} == {"linear_tile16x4"}, "codes run as they are"
    ids = list(range(3, 60))
    got, want = coded.logits(ids), dense.logits(ids)
    assert np.ptp(want) > 0.01 and np.abs(got - want).max() <= 2e-5 * np.ptp(want)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_families(tmp_path: Path, family: str, order: str) -> None:
    config = {
        **TINY,
        "model_type": family,
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "tie_word_embeddings": family == "qwen3",
    }
    tensors = random_tensors(config)
    assert family != "qwen2" or any(name.endswith("q_proj.bias") for name in tensors)
    write_gguf(tmp_path / "a.gguf", config, tensors, order=order)
    opened = anybit.load(tmp_path / "a.gguf")
    assert opened.spec.family == family and opened.spec.tied == (family == "qwen3")
    assert same(opened, anybit.load(hf_directory(tmp_path / "hf", config, tensors)))


def test_llama_with_biases(tmp_path: Path) -> None:
    """q and k biases are reordered with their rows."""
    config = {**TINY, "attention_bias": True, "mlp_bias": True}
    tensors = random_tensors(config)
    write_gguf(tmp_path / "a.gguf", config, tensors)
    assert same(anybit.load(tmp_path / "a.gguf"), anybit.load(hf_directory(tmp_path / "hf", config, tensors)))


def scaling(kind: str) -> tuple[dict[str, Any], Callable[[Any], None]]:
    def linear(w: Any) -> None:
        w.add_rope_scaling_type(gguf_py.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(4.0)

    def yarn(w: Any) -> None:
        w.add_rope_scaling_type(gguf_py.RopeScalingType.YARN)
        w.add_rope_scaling_factor(4.0)
        w.add_rope_scaling_orig_ctx_len(32)

    def factors(w: Any) -> None:
        config = {**TINY, "rope_scaling": scaling("llama3")[0]}
        plain, scaled = (np.array(describe(c).layers[0].mixer.rope.frequencies) for c in (TINY, config))
        w.add_tensor("rope_freqs.weight", (plain / scaled).astype(np.float32))

    return {
        "linear": ({"rope_type": "linear", "factor": 4.0}, linear),
        "yarn": ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, yarn),
        "llama3": (
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
            factors,
        ),
    }[kind]


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_rope_scaling(tmp_path: Path, kind: str) -> None:
    section, extra = scaling(kind)
    config = {**TINY, "rope_scaling": section}
    tensors = random_tensors(config)
    write_gguf(tmp_path / "a.gguf", config, tensors, extra=extra)
    opened, want = anybit.load(tmp_path / "a.gguf"), anybit.load(hf_directory(tmp_path / "hf", config, tensors))
    got, expected = (np.array(m.spec.layers[0].mixer.rope.frequencies) for m in (opened, want))
    # the file stores divisors in float32: two roundings of 2^-24
    assert np.abs(got / expected - 1).max() <= (2**-22 if kind == "llama3" else 0)
    assert opened.spec.layers[0].mixer.rope.scale == want.spec.layers[0].mixer.rope.scale
    assert np.abs(opened.logits(range(3, 60)) - want.logits(range(3, 60))).max() < 1e-4
    opened.save(tmp_path / "saved")
    assert same(anybit.load(tmp_path / "saved"), opened), "the configuration that is saved says the same"


def test_nvfp4_with_a_factor_for_the_tensor(tmp_path: Path) -> None:
    config = {**TINY, "hidden_size": 64, "intermediate_size": 128}

    def extra(w: Any) -> None:
        w.add_tensor("blk.1.ffn_up.scale", np.array([0.3], np.float32))

    write_gguf(tmp_path / "a.gguf", config, random_tensors(config), lambda name: "NVFP4" if "proj" in name else "F32", extra)
    opened = anybit.load(tmp_path / "a.gguf")
    first, second = (opened.linears[f"model.layers.{i}.mlp.up_proj.weight"].weight for i in (0, 1))
    assert second.parts["scale.1"].view(np.float32).item() == np.float32(0.3) and first.parts["scale.1"].view(np.float32).item() == 1


# ---------------------------------------------------------------------------------------------- saved and seen
def test_saving_keeps_codes_and_tokenizer(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    def extra(w: Any) -> None:
        BPE(w)
        w.add_chat_template("{{ messages }}")
        w.add_eos_token_id(0)
        w.add_eot_token_id(7)

    write_gguf(tmp_path / "a.gguf", CONFIG, weights, lambda name: "Q4_0" if "proj" in name else "Q8_0", extra)
    opened = anybit.load(tmp_path / "a.gguf")
    assert opened.spec.eos == (0, 7)
    opened.save(tmp_path / "saved")
    verify_directory(tmp_path / "saved")
    again = anybit.load(tmp_path / "saved")
    assert same(again, opened) and again.nbytes == opened.nbytes and again.spec.eos == (0, 7)
    assert again.tokenize(TEXT).tolist() == opened.tokenize(TEXT).tolist()
    assert (tmp_path / "saved" / "chat_template.jinja").read_text() == "{{ messages }}"
    assert {str(linear.weight.format) for linear in opened.linears.values()} == {"int4@32:fp16", "int8@32:fp16"}


# ---------------------------------------------------------------------------------------------- refused
def changed(tmp_path: Path, extra: Callable[[Any], None], **config: Any) -> Path:
    full = {**TINY, **config}
    write_gguf(tmp_path / "a.gguf", full, random_tensors(full), extra=extra)
    return tmp_path / "a.gguf"


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (lambda w: w.add_expert_count(8), r"field 'llama\.expert_used_count' is missing"),
        (lambda w: w.add_logit_scale(2.0), r"field 'llama\.logit_scale' is 2\.0"),
        (lambda w: w.add_rope_scaling_type(gguf_py.RopeScalingType.LONGROPE), r"scaling\.type' is 'longrope'; supported: none, linear"),
        (lambda w: w.add_uint16("split.count", 3), r"'split\.count' is 3, so it should be called NAME-00001-of-00003\.gguf"),
        (lambda w: w.add_tensor("blk.0.ffn_gate_inp.weight", np.ones((4, 48), np.float32)), r"'blk\.0\.ffn_gate_inp\.weight' has no place"),
        (lambda w: w.add_tensor("blk.7.ffn_up.weight", np.ones((72, 48), np.float32)), r"model\.layers\.7\.mlp\.up_proj\.weight"),
        (lambda w: w.add_tensor("blk.0.ffn_up.scale", np.ones(1, np.float32)), "is a factor that F32 has no place for"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_name(tmp_path: Path, extra: Callable[[Any], None], says: str) -> None:
    with pytest.raises(FileFormatError, match=says) as error:
        anybit.load(changed(tmp_path, extra))
    assert str(error.value).startswith(str(tmp_path / "a.gguf"))


def test_other_architectures(tmp_path: Path) -> None:
    gguf_writer = gguf_py.GGUFWriter(tmp_path / "a.gguf", "mamba")
    gguf_writer.write_header_to_file()
    gguf_writer.write_kv_data_to_file()
    gguf_writer.write_tensors_to_file()
    gguf_writer.close()
    with pytest.raises(
        FileFormatError, match=r"'general\.architecture' is 'mamba', which is not supported \(at byte 24\); supported: llama, qwen2, qwen3"
    ):
        anybit.load(tmp_path / "a.gguf")


def test_missing_tensors_and_numbers_that_are_none(tmp_path: Path) -> None:
    tensors = random_tensors(TINY)
    lost = {name: array for name, array in tensors.items() if "layers.1.mlp.up" not in name}
    write_gguf(tmp_path / "a.gguf", TINY, lost)
    with pytest.raises(FileFormatError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        anybit.load(tmp_path / "a.gguf")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = np.nan
    write_gguf(tmp_path / "b.gguf", TINY, tensors)
    with pytest.raises(NonFiniteError, match=r"'model\.layers\.0\.mlp\.up_proj\.weight' holds 1 non-finite"):
        anybit.load(tmp_path / "b.gguf")
    config = {**TINY, "hidden_size": 64, "intermediate_size": 64}
    with np.errstate(all="ignore"):
        write_gguf(tmp_path / "c.gguf", config, {n: a * (1e9 if "up_proj" in n else 1) for n, a in random_tensors(config).items()},
                   lambda name: "Q8_0" if "proj" in name else "F32")  # fmt: skip
    with pytest.raises(NonFiniteError, match=r"non-finite value\(s\) in part scale\.0"):
        anybit.load(tmp_path / "c.gguf")


def test_types_that_gguf_py_makes_are_here() -> None:
    assert set(QUANTIZES) <= set(KINDS)


def parts(tmp_path: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], numbers: tuple[int, ...] = (0, 1, 2)) -> Path:
    """A model in three files, all fields in each."""
    names = list(tensors)
    for place, number in enumerate(numbers):
        some = {name: tensors[name] for name in names[place::3]}

        def extra(w: Any, number: int = number) -> None:
            w.add_uint16("split.no", number)
            w.add_uint16("split.count", 3)
            w.add_int32("split.tensors.count", len(names))

        write_gguf(tmp_path / f"m-{place + 1:05}-of-00003.gguf", config, some, extra=extra)
    return tmp_path / "m-00001-of-00003.gguf"


def test_a_model_in_several_files(tmp_path: Path) -> None:
    tensors = random_tensors(TINY)
    first = parts(tmp_path, TINY, tensors)
    assert same(anybit.load(first), anybit.load(hf_directory(tmp_path / "hf", TINY, tensors)))
    with pytest.raises(FileFormatError, match=r"one of 3 files and not the first \(at byte \d+\); give m-00001-of-00003\.gguf"):
        anybit.load(tmp_path / "m-00002-of-00003.gguf")
    (tmp_path / "m-00003-of-00003.gguf").rename(tmp_path / "away")
    with pytest.raises(FileFormatError, match=r"m-00003-of-00003\.gguf: cannot be opened"):
        anybit.load(first)
    (tmp_path / "away").rename(tmp_path / "m-00003-of-00003.gguf")
    (tmp_path / "m-00003-of-00003.gguf").write_bytes((tmp_path / "m-00002-of-00003.gguf").read_bytes())
    with pytest.raises(FileFormatError, match=r"do not say 2 of 3"):
        anybit.load(first)
    parts(tmp_path, TINY, dict(list(tensors.items())[:6]) | {"lm_head.weight": tensors["lm_head.weight"]})
    with pytest.raises(FileFormatError, match=r"is missing"):
        anybit.load(first)


# ---------------------------------------------------------------------------------------------- the command line's view
def test_inspecting(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    from anybit.io.inspect import inspect_model

    write_gguf(tmp_path / "a.gguf", CONFIG, weights, lambda name: "Q4_0" if "proj" in name else "F16", BPE)
    found = inspect_model(tmp_path / "a.gguf")
    rows = {row.name: row for row in found.tensors}
    assert found.kind == "gguf" and found.nbytes == (tmp_path / "a.gguf").stat().st_size
    row = rows["blk.0.ffn_up.weight"]
    assert (row.format, row.layout, row.shape, row.nbytes, row.bits_per_element) == ("int4@32:fp16", "Q4_0", (768, 256), 110592, 4.5)
    assert found.metadata["llama.block_count"] == 5 and found.metadata["tokenizer.ggml.tokens"] == "4096 values"


def test_quantizing_a_file(tmp_path: Path, weights: dict[str, np.ndarray], model: Model) -> None:
    write_gguf(tmp_path / "a.gguf", CONFIG, weights, lambda name: "BF16" if "proj" in name else "Q8_0", BPE)
    seen = []
    anybit.model.quantize_file(
        tmp_path / "a.gguf", tmp_path / "out", "int4@32", progress=lambda done, total, name: seen.append((done, total))
    )
    made = anybit.load(tmp_path / "out")
    assert seen[-1] == (36, 36) and {str(linear.weight.format) for linear in made.linears.values()} == {"int4@32", "int8@32:fp16"}
    name = "model.layers.0.self_attn.q_proj.weight"
    assert np.array_equal(made.linears[name].weight.dequantize(), model.quantize("int4@32").linears[name].weight.dequantize())
    with pytest.raises(anybit.errors.UsageError, match=r"'model\.embed_tokens\.weight' is quantized already \(int8@32:fp16\)"):
        anybit.model.quantize_file(tmp_path / "a.gguf", tmp_path / "again", "int4@32", keep=None)
    assert not (tmp_path / "again").exists()


def test_changed_headers_load_or_are_refused(tmp_path: Path) -> None:
    """Random changes of fields' bytes, then load, tokens and one forward pass: a model, or one of the project's errors."""
    tokens = ["<s>", "</s>", *(chr(97 + i) for i in range(24)), "ab", "bc", *(f"t{i}" for i in range(36))]

    def extra(w: Any) -> None:
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("gpt-2")
        w.add_token_list(tokens)
        w.add_token_types([3, 3] + [1] * 62)
        w.add_token_merges(["a b", "b c"])
        w.add_bos_token_id(0)
        w.add_add_bos_token(True)

    config = {**TINY, "num_hidden_layers": 1}
    path = tmp_path / "a.gguf"
    write_gguf(path, config, random_tensors(config), extra=extra)
    whole = path.read_bytes()
    assert anybit.load(path).tokenize("ab").tolist() == [0, tokens.index("ab")]
    head = whole.index(b"token_embd.weight")
    rng = np.random.default_rng(0)
    fine = 0
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(24, head)] = rng.integers(256)
        path.write_bytes(content)
        try:
            loaded = anybit.load(path)
            loaded.logits(loaded.tokenize("abc"))
            fine += 1
        except anybit.AnybitError as error:
            assert str(error)
    assert 10 < fine < 390
