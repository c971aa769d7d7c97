"""The Python API from a stored model to text: against transformers, against hand counts, and against itself in other ways of running."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import CONFIG, arrays, write_model

import anybit
from anybit.errors import DoesNotFitError, FormatError, NoKernelError, NonFiniteError, OutputError, UnknownNameError, UsageError
from anybit.formats import Format, Spec
from anybit.io.manifest import verify_directory
from anybit.kernels import cpu
from anybit.linear import ActSpec, Linear
from anybit.model import KEEP, Model, quantize_file, resolve

PROMPT = "import os\n\n\ndef main("
FORMATS = ["int8@channel", "int4@32", "int3@128", "ternary@256", "mxfp4", "mxfp6", "nvfp4", "nf4@64", "uint4@32+zp", "fp8_e4m3fn"]


@pytest.fixture(scope="module")
def model() -> Model:
    return anybit.load("pycoder-5m")


@pytest.fixture(scope="module")
def coded(model: Model) -> Model:
    return model.quantize("int4@32")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny")


def same(a: Model, b: Model, ids: Any = range(3, 60)) -> bool:
    return a.logits(list(ids)).tobytes() == b.logits(list(ids)).tobytes()


# ---------------------------------------------------------------------------------------------- running
def test_logits_are_those_of_transformers(model: Model) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    oracle = transformers.AutoModelForCausalLM.from_pretrained(resolve("pycoder-5m"), dtype=torch.float32).eval()
    ids = model.tokenize(PROMPT)
    with torch.no_grad():
        want = oracle(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy()
    got = model.logits(ids)
    assert got.dtype == np.float32 and got.shape == (len(ids), 4096)
    assert np.abs(got - want).max() <= 1e-4 * np.ptp(want)


def test_quantized_logits_are_those_of_transformers_with_the_quantized_weights(model: Model, coded: Model) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    oracle = transformers.AutoModelForCausalLM.from_pretrained(resolve("pycoder-5m"), dtype=torch.float32).eval()
    with torch.no_grad():
        for name, value in oracle.named_parameters():
            if name in coded.quantized:
                value.copy_(torch.from_numpy(anybit.fake_quantize(value.numpy(), "int4@32")))
        ids = model.tokenize(PROMPT)
        want = oracle(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy()
    assert np.abs(coded.logits(ids) - want).max() <= 1e-4 * np.ptp(want)
    assert not np.allclose(coded.logits(ids), model.logits(ids), atol=1e-2)


def test_generate_gives_text_or_a_list_and_stream_its_pieces(coded: Model) -> None:
    text = coded.generate(PROMPT, max_tokens=24)
    assert isinstance(text, str) and text and not text.startswith(PROMPT)
    prompts = [PROMPT, "class A:\n", PROMPT]
    assert coded.generate(prompts, max_tokens=24) == [text, coded.generate("class A:\n", max_tokens=24), text]
    assert coded.generate(tuple(prompts), max_tokens=24)[0] == text
    assert coded.generate([], max_tokens=24) == []
    pieces = list(coded.stream(PROMPT, max_tokens=24))
    assert "".join(pieces) == text and len(pieces) > 5 and all(pieces)
    assert coded.generate(PROMPT, max_tokens=0) == ""


def test_the_seed_decides(coded: Model) -> None:
    options: dict[str, Any] = {"max_tokens": 24, "temperature": 1.0, "top_p": 0.95}
    texts = {seed: coded.generate(PROMPT, seed=seed, **options) for seed in range(4)}
    assert len(set(texts.values())) > 1
    assert texts[1] == coded.generate(PROMPT, seed=1, **options) == "".join(coded.stream(PROMPT, seed=1, **options))


def test_a_stop_string_may_be_given_alone(coded: Model) -> None:
    text = coded.generate(PROMPT, max_tokens=24)
    stop = text[5:9]
    for given in (stop, [stop], ("never there", stop)):
        assert coded.generate(PROMPT, max_tokens=24, stop=given) == text[: text.index(stop)]


def test_prompts_and_ids_that_do_not_fit(model: Model) -> None:
    long = "x = 1\n" * 1024
    assert len(model.tokenize(long)) > model.context == 1024
    with pytest.raises(DoesNotFitError, match=r"the prompt has \d+ tokens, but the context is 1024") as error:
        model.generate(long, max_tokens=1)
    assert error.value.exit_code == 3
    with pytest.raises(DoesNotFitError, match="1025 tokens do not fit into the context of 1024"):
        model.logits([5] * 1025)
    with pytest.raises(DoesNotFitError):
        next(iter(model.stream(long)))
    for ids, kind in [([-1], UsageError), ([4096], UsageError), ([], anybit.AnybitError), ([0.5], anybit.AnybitError)]:
        with pytest.raises(kind):
            model.logits(ids)
    for options in [{"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"min_p": 2}, {"max_tokens": -1}, {"seed": -1}]:
        with pytest.raises(UsageError) as usage:
            model.generate(PROMPT, **options)  # type: ignore[arg-type]
        assert usage.value.exit_code == 2 and "\n" not in str(usage.value)


# ---------------------------------------------------------------------------------------------- quantizing
@pytest.mark.parametrize("fmt", FORMATS)
def test_quantize_stores_each_matrix_in_the_format(fmt: str, tiny: Path) -> None:
    model = anybit.load(tiny)
    small = model.quantize(fmt)
    weights = arrays(CONFIG)
    assert small.quantized == {name for name in model.linears if "_proj" in name} and not model.quantized
    for name, linear in small.linears.items():
        if name in small.quantized:
            assert linear.weight.format == Format(fmt)
            assert np.array_equal(linear.weight.dequantize(), anybit.fake_quantize(weights[name], fmt))
        else:
            assert linear.weight is model.linears[name].weight and np.array_equal(linear.weight.dequantize(), weights[name])
    assert small.parameters == sum(array.size for array in weights.values())
    assert float(small.quantized_bits_per_weight or 0) > 0 and model.quantized_bits_per_weight is None


def test_keep_and_progress(tiny: Path) -> None:
    model = anybit.load(tiny)
    seen: list[tuple[int, int, str]] = []
    all_of_it = model.quantize("int8@channel", keep=None, progress=lambda *step: seen.append(step))
    assert [done for done, _, _ in seen] == list(range(1, 17)) and {total for _, total, _ in seen} == {16}
    assert all_of_it.quantized == set(model.linears) == {name for _, _, name in seen}
    some = model.quantize(Spec.parse("int4@32+scale=mse"), keep=rf"{KEEP}|layers\.0|mlp")
    assert len(some.quantized) == 4 and some.policy == "+scale=mse"
    assert model.quantize(Format("bf16")).quantized == frozenset()
    with pytest.raises(UsageError, match="nothing is left to quantize"):
        model.quantize("int4@32", keep=".")
    with pytest.raises(UsageError, match="is no regular expression"):
        model.quantize("int4@32", keep="(")


def test_each_layer_keeps_how_its_codes_were_chosen(tiny: Path) -> None:
    """A second quantize with another keep does not speak for the first one's layers; "auto" is stored by the name of its rule."""
    model = anybit.load(tiny)
    first = model.quantize("mxfp4", keep=rf"{KEEP}|mlp")
    assert first.policy == "+scale=floor" and set(first.policies) == first.quantized
    second = first.quantize("int4@32+round=zero", keep=rf"{KEEP}|attn")
    assert second.policy is None
    expected = {n: "+scale=absmax+round=zero" if "mlp" in n else "+scale=floor" for n in second.quantized}
    assert second.policies == expected and len(set(expected.values())) == 2
    second.save(tiny.parent / "mixed")
    first.save(tiny.parent / "one")
    config = json.loads((tiny.parent / "mixed" / "config.json").read_text())["quantization_config"]
    assert config["policy"] is None and {n: layer["policy"] for n, layer in config["layers"].items() if "policy" in layer} == expected
    config = json.loads((tiny.parent / "one" / "config.json").read_text())["quantization_config"]
    assert config["policy"] == "+scale=floor" and not any("policy" in layer for layer in config["layers"].values())
    assert anybit.load(tiny.parent / "mixed").policies == expected and anybit.load(tiny.parent / "one").policies == first.policies
    again = second.quantize("int4@32+round=zero", keep=KEEP)
    assert again.policy == "+scale=absmax+round=zero"


def test_quantize_refuses_before_it_works(tiny: Path) -> None:
    model = anybit.load(tiny)

    def never(*step: Any) -> None:
        raise AssertionError("work began")

    cases: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        ("int44@32", {}, FormatError, "int44"),
        ("nvpf4", {}, FormatError, "did you mean nvfp4"),
        ("int4@32+over=inf", {}, FormatError, "no infinity"),
        ("int4@32", {"method": "gtpq"}, UnknownNameError, "no method named 'gtpq'"),
        ("int4@32", {"act": "int9"}, NoKernelError, "int9"),
        ("fp8_e4m3fn", {"act": "int8"}, NoKernelError, "float activations"),
        ("bf16", {"act": "int8"}, NoKernelError, "float activations"),
    ]
    for fmt, options, kind, says in cases:
        with pytest.raises(kind, match=says) as error:
            model.quantize(fmt, progress=never, **options)
        assert "\n" not in str(error.value)
        with pytest.raises(kind, match=says):
            quantize_file(tiny, tiny.parent / "out", fmt, progress=never, **options)
    assert [path.name for path in tiny.parent.iterdir()] == ["tiny"]


def test_with_act_changes_the_quantized_layers_only(coded: Model) -> None:
    integer = coded.with_act("int8")
    assert {name for name, linear in integer.linears.items() if linear.act_name == "int8"} == integer.quantized == coded.quantized
    assert not same(integer, coded) and same(integer.with_act("float"), coded) and same(integer.with_act(None), coded)
    assert same(coded.quantize("int4@32", act="int8"), integer), "a model quantized twice"
    with pytest.raises(NoKernelError):
        coded.with_act("fp8")
    rows = {row["name"]: row for row in integer.explain()}
    assert {rows[name]["act"] for name in integer.quantized} == {"int8"} and len(rows) == len(integer.linears)
    assert all("registers" in row["why"] or "by panels: " in row["why"] for row in rows.values())


@pytest.mark.parametrize("isa", cpu.native.supported_isas())
def test_every_instruction_set_and_thread_count_gives_the_same_bits(isa: str, coded: Model) -> None:
    before, threads = cpu.isa(), cpu.native.threads()
    try:
        for act in (None, "int8"):
            want = coded.with_act(act).logits(range_ids := list(range(40)))
            cpu.use_isa(isa)
            cpu.set_threads(1)
            again = Model(**{**fields(coded), "weights": fresh(coded, act)})
            assert again.logits(range_ids).tobytes() == want.tobytes()
            cpu.use_isa(before)
            cpu.set_threads(threads)
    finally:
        cpu.use_isa(before)
        cpu.set_threads(threads)


def fields(model: Model) -> dict[str, Any]:
    return {name: getattr(model, name) for name in model.__dataclass_fields__}


def fresh(model: Model, act: str | None) -> dict[str, Any]:
    """The same weights without their native counterparts, which belong to an instruction set."""
    made: dict[str, Any] = {}
    for name, weight in model.weights.items():
        if not isinstance(weight, Linear):
            made[name] = weight
            continue
        copy = anybit.QTensor.from_stored(weight.weight.format, weight.weight.shape, weight.weight.layout, weight.weight.parts)
        made[name] = Linear(copy, weight.bias, act=ActSpec.named(act) if name in model.quantized else None)
    return made


# ---------------------------------------------------------------------------------------------- saving
def stored_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("act", [None, "int8"])
def test_what_is_saved_comes_back_and_files_quantize_alike(fmt: str, act: str | None, tiny: Path) -> None:
    if fmt == "fp8_e4m3fn" and act:
        pytest.skip("no integer path")
    small = anybit.load(tiny).quantize(fmt, act=act)
    written = small.save(tiny.parent / "a")
    back = anybit.load(tiny.parent / "a")
    assert same(small, back), "other logits"
    assert back.quantized == small.quantized and back.policy == small.policy and back.nbytes == small.nbytes
    assert {n: w.act_name for n, w in back.linears.items()} == {n: w.act_name for n, w in small.linears.items()}
    assert quantize_file(tiny, tiny.parent / "b", fmt, act=act) == written == stored_bytes(tiny.parent / "a")
    back.save(tiny.parent / "c")
    digests = {verify_directory(tiny.parent / name).digest for name in "abc"}
    assert len(digests) == 1, "a file quantized, a model saved, and a loaded one saved again differ"


def test_a_saved_model_runs_in_place(tiny: Path) -> None:
    anybit.load(tiny).quantize("int4@32").save(tiny.parent / "a")
    for linear in anybit.load(tiny.parent / "a").linears.values():
        for part in linear.weight.parts.values():
            assert not part.flags.owndata and not part.flags.writeable and part.ctypes.data % 64 == 0


def test_biases_sidecars_and_other_dtypes_survive(tmp_path: Path) -> None:
    config = {**CONFIG, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True}
    config.pop("head_dim")
    path = write_model(tmp_path / "m", config, model_norm_weight=np.float32, model_layers_0_mlp_up_proj_weight=np.float16)
    (path / "generation_config.json").write_text('{"eos_token_id": [5, 2]}')
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (path / name).write_text("{}")
    (path / "README.md").write_text("not copied")
    model = anybit.load(path)
    assert model.spec.eos == (5, 2) and model.spec.tied and model.linears["model.layers.1.self_attn.q_proj.weight"].bias is not None
    quantize_file(path, tmp_path / "q", "int4@32", keep="embed|up_proj")
    small = anybit.load(tmp_path / "q")
    assert same(small, model.quantize("int4@32", keep="embed|up_proj"))
    assert small.spec.eos == (5, 2) and not (tmp_path / "q" / "README.md").exists()
    formats = {name: str(linear.weight.format) for name, linear in small.linears.items()}
    assert formats["model.layers.0.mlp.up_proj.weight"] == "fp16" and formats["model.layers.1.mlp.up_proj.weight"] == "bf16"
    assert {dtype for dtype, _ in small.plain.values()} == {"BF16", "F32"}
    written = {path.name for path in (tmp_path / "q").iterdir()}
    assert written == {
        "config.json", "manifest.json", "model.safetensors", "generation_config.json", "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip


def test_sizes_are_those_of_the_files(tiny: Path) -> None:
    """Bytes reported are bytes stored; bits a weight by a count of tiles, chunks and blocks."""
    small = anybit.load(tiny).quantize("int4@32")
    small.save(tiny.parent / "a")
    with (tiny.parent / "a" / "model.safetensors").open("rb") as file:
        head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    stored = {name: e["data_offsets"][1] - e["data_offsets"][0] for name, e in head.items() if not name.startswith("__")}
    padding = sum(e["data_offsets"][1] - e["data_offsets"][0] for name, e in head.items() if name.startswith("__pad__"))
    assert small.nbytes == sum(stored.values())
    assert stored_bytes(tiny.parent / "a") - small.nbytes - padding < 16 << 10, "nothing but the header is on top"
    for name, linear in small.linears.items():
        assert linear.weight.nbytes == sum(size for key, size in stored.items() if key.startswith(f"{name}."))
    counted = weights = 0
    for n, k in [(48, 48), (24, 48), (24, 48), (48, 48), (72, 48), (72, 48), (48, 72)] * 2:
        tiles, chunks, blocks = -(-n // 16), -(-k // 32), -(-k // 32)
        counted += tiles * (chunks * 64 * 4 + blocks * 16 * 2)
        weights += n * k
    assert small.quantized_bits_per_weight == Fraction(8 * counted, weights)
    dense = 2 * (2 * 64 * 48 + 5 * 48)
    assert small.bits_per_weight == Fraction(8 * (counted + dense), weights + dense // 2)


def test_output_that_exists_and_sources_that_are_quantized(tiny: Path) -> None:
    small = anybit.load(tiny).quantize("int4@32")
    (tiny.parent / "there").write_text("mine")
    for call in (lambda p: small.save(p), lambda p: quantize_file(tiny, p, "int4@32")):
        with pytest.raises(OutputError, match="there exists; remove it or choose another name") as error:
            call(tiny.parent / "there")
        assert error.value.exit_code == 4
        with pytest.raises(OutputError, match="exists"):
            call(tiny)
        with pytest.raises(OutputError, match="does not exist; create it first"):
            call(tiny.parent / "no" / "where")
    assert (tiny.parent / "there").read_text() == "mine"
    small.save(tiny.parent / "a")
    with pytest.raises(UsageError, match="quantized already"):
        quantize_file(tiny.parent / "a", tiny.parent / "b", "int4@32")
    again = anybit.load(tiny.parent / "a").quantize("int8@channel")
    assert {str(again.linears[name].weight.format) for name in again.quantized} == {"int8@channel"}
    assert sorted(path.name for path in tiny.parent.iterdir()) == ["a", "there", "tiny"]


def test_kept_tensors_are_checked_too(tmp_path: Path) -> None:
    for number, name in enumerate(["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.mlp.down_proj.weight"]):
        tensors = arrays(CONFIG)
        flat = tensors[name].reshape(-1)
        flat[[7, 11]] = [np.inf, np.nan]
        index = [int(i) for i in np.unravel_index(7, tensors[name].shape)]
        path = write_model(tmp_path / str(number), tensors=tensors)
        says = rf"tensor '{name}' holds 2 non-finite value\(s\), the first inf at index {index}".replace("[", r"\[").replace("]", r"\]")
        for call in (lambda path=path: anybit.load(path), lambda path=path: quantize_file(path, tmp_path / "out", "int4@32")):
            with pytest.raises(NonFiniteError, match=says) as error:
                call()
            assert str(error.value).startswith(str(path)) and error.value.exit_code == 4
    assert not (tmp_path / "out").exists() and len(list(tmp_path.iterdir())) == 3


def test_repr_and_public_names(model: Model) -> None:
    assert repr(model) == "Model(pycoder-5m, llama, 4983552 weights, 16.000 bits a weight)"
    for name in anybit.__all__:
        assert getattr(anybit, name) is not None
    with pytest.raises(AttributeError):
        anybit.nothing  # noqa: B018
