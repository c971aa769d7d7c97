"""Opening model directories: what is read, and one clear line for everything that is not a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from anybit.errors import FileFormatError
from anybit.io.hf import Source, open_model
from anybit.io.strict_json import MAX_BYTES, MAX_DEPTH, parse

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4,
    "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"},
    "head_dim": None,
    "eos_token_id": 2,
    "unknown field": [1, {"x": None}],
}
TENSORS = {f"model.layers.{i}.w": np.arange(8, dtype=np.float32).reshape(2, 4).astype(ml_dtypes.bfloat16) * (i + 1) for i in range(4)}


def make(path: Path, shards: int = 1, **config: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (path / "tokenizer.json").write_text("{}")
    if shards == 1:
        safetensors.numpy.save_file(TENSORS, path / "model.safetensors")
        return path
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(TENSORS.items())[number::shards])
        safetensors.numpy.save_file(part, path / name)
        weight_map |= dict.fromkeys(part, name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 64}, "weight_map": weight_map}))
    return path


def check(source: Source) -> None:
    assert source.tensors.keys() == TENSORS.keys() and set(source.dense) == TENSORS.keys()
    for name, array in TENSORS.items():
        view, dtype = source.get(name)
        assert dtype == "BF16" and np.array_equal(view.view(ml_dtypes.bfloat16), array)
        source.release(name)


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_single_and_sharded(tmp_path: Path, shards: int) -> None:
    with open_model(make(tmp_path / "m", shards)) as source:
        check(source)
        assert source.config == CONFIG and source.eos == (2,) and source.quantization is None
        assert source.tokenizer == tmp_path / "m" / "tokenizer.json" == source.require_tokenizer()
        assert source.sidecars == (tmp_path / "m" / "tokenizer.json",)
    with open_model(str(tmp_path / "m")) as source:
        check(source)


def test_links_are_followed(tmp_path: Path) -> None:
    """A hub cache holds links to blobs."""
    make(tmp_path / "blobs")
    (tmp_path / "m").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "m" / path.name).symlink_to(path)
    with open_model(tmp_path / "m") as source:
        check(source)


@pytest.mark.parametrize(("generation", "eos"), [({"eos_token_id": [5, 6]}, (5, 6)), ({"eos_token_id": 0}, (0,)), ({}, (2,)), (None, (2,))])
def test_eos_prefers_the_generation_config(tmp_path: Path, generation: Any, eos: tuple[int, ...]) -> None:
    make(tmp_path / "m")
    if generation is not None:
        (tmp_path / "m" / "generation_config.json").write_text(json.dumps(generation))
    with open_model(tmp_path / "m") as source:
        assert source.eos == eos


def test_missing_tokenizer_matters_only_when_asked_for(tmp_path: Path) -> None:
    make(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").unlink()
    with open_model(tmp_path / "m") as source, pytest.raises(FileFormatError, match=r"no tokenizer\.json"):
        source.require_tokenizer()


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    with open_model(make(tmp_path / "m")) as source:
        for ask in (source.get, source.release, source.parts):
            with pytest.raises(FileFormatError, match=r"'lm_head\.weight'"):
                ask("lm_head.weight")


def text(name: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda m: (m / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def config(**changes: Any) -> Callable[[Path], None]:
    return text("config.json", json.dumps({**CONFIG, **changes}))


def index(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(m: Path) -> None:
        (m / "model.safetensors").unlink()
        shutil.rmtree(m)
        make(m, 2)
        content = json.loads((m / "model.safetensors.index.json").read_text())
        change(content)
        (m / "model.safetensors.index.json").write_text(json.dumps(content))

    return edit


def only_pickle(m: Path) -> None:
    (m / "model.safetensors").rename(m / "pytorch_model.bin")


DAMAGE: list[tuple[str, Callable[[Path], Any], str]] = [
    ("no config", lambda m: (m / "config.json").unlink(), "it has no config.json"),
    ("config is a directory", lambda m: ((m / "config.json").unlink(), (m / "config.json").mkdir()), "not a regular one"),
    ("empty config", text("config.json", ""), "at byte 0"),
    ("cut config", text("config.json", '{"model_type": "llama"'), "at byte 22"),
    ("array config", text("config.json", "[]"), "no object"),
    ("config says nothing", text("config.json", "{}"), "neither 'model_type' nor 'architectures'"),
    (
        "duplicate key",
        text("config.json", '{"model_type": "a", "x": {"model_type": 1}, "model_type": "b"}'),
        "at byte 44: the key 'model_type' occurs twice",
    ),
    ("NaN", text("config.json", '{"model_type": "a", "x": NaN}'), "NaN is no JSON number"),
    ("1e400", text("config.json", '{"model_type": "a", "x": 1e400}'), "out of range"),
    ("many digits", text("config.json", '{"model_type": "a", "x": ' + "9" * 5000 + "}"), "5000 digits"),
    ("deep", text("config.json", '{"x":' * 65 + "1" + "}" * 65), "nested deeper"),
    ("deeper", text("config.json", "[" * 40_000), "nested deeper"),
    ("surrogate", text("config.json", '{"model_type": "\\ud800"}'), "surrogate"),
    ("not UTF-8", text("config.json", b'{"model_type": "\xff"}'), "at byte 16: not UTF-8"),
    ("byte order mark", text("config.json", b'\xef\xbb\xbf{"model_type": "llama"}'), "at byte 0"),
    ("values bomb", text("config.json", '{"x":[' + "[]," * 200_000 + "[]]}"), "more than any model needs"),
    ("eos", config(eos_token_id="</s>"), "eos_token_id"),
    ("eos list", text("generation_config.json", '{"eos_token_id": [1, -1]}'), "generation_config.json: field 'eos_token_id'"),
    ("generation", text("generation_config.json", "[]"), "generation_config.json"),
    ("gptq", config(quantization_config={"quant_method": "gptq", "bits": 4}), "quant_method 'gptq' is not read"),
    ("bitsandbytes of old", config(quantization_config={"load_in_4bit": True}), "'quant_method' is missing"),
    ("later version", config(quantization_config={"quant_method": "anybit", "version": 2}), "version 2 is not known"),
    ("quantization as text", config(quantization_config="int4"), "an object is needed"),
    ("no weights", lambda m: (m / "model.safetensors").unlink(), "looked for model.safetensors and model.safetensors.index.json"),
    ("other weights", lambda m: (m / "model.safetensors").rename(m / "consolidated.safetensors"), "consolidated.safetensors"),
    ("pickle", only_pickle, r"pytorch_model\.bin.*never opens.*save_pretrained"),
    ("cut weights", lambda m: (m / "model.safetensors").write_bytes((m / "model.safetensors").read_bytes()[:-1]), "cut short"),
    ("empty weights", text("model.safetensors", b""), "only 0 bytes"),
    (
        "a pointer instead of weights",
        text("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        "header length",
    ),
    ("no weight map", index(lambda i: i.pop("weight_map")), "weight_map"),
    ("empty weight map", index(lambda i: i.update(weight_map={})), "weight_map"),
    ("missing shard", index(lambda i: i["weight_map"].update(x="model-3.safetensors")), "model-3.safetensors: this shard is listed"),
    ("tensor not in shard", index(lambda i: i["weight_map"].update(x="model-00001-of-00002.safetensors")), "no tensor 'x', although"),
    (
        "shard elsewhere",
        index(lambda i: i["weight_map"].update(x="../m/model-00001-of-00002.safetensors")),
        "is no .safetensors file beside",
    ),
    ("shard in a folder", index(lambda i: i["weight_map"].update(x="a/b.safetensors")), "is no .safetensors file beside"),
    ("shard is a pickle", index(lambda i: i["weight_map"].update(x="pytorch_model.bin")), "is no .safetensors file beside"),
    ("shard is a number", index(lambda i: i["weight_map"].update(x=1)), "is no .safetensors file beside"),
    ("index name", index(lambda i: i["weight_map"].update({"../x": "model-00001-of-00002.safetensors"})), "looks like a path"),
]


@pytest.mark.parametrize(("damage", "says"), [item[1:] for item in DAMAGE], ids=[item[0] for item in DAMAGE])
def test_damage_is_one_clear_line(tmp_path: Path, damage: Callable[[Path], Any], says: str) -> None:
    damage(make(tmp_path / "m"))
    with pytest.raises(FileFormatError, match=says) as error:
        open_model(tmp_path / "m")
    message = str(error.value)
    assert str(tmp_path / "m") in message and "\n" not in message and ";" in message


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("none", r"no such file or directory; a Hugging Face directory holds config\.json"),
        ("m/model.safetensors", "a single file is no model; give its directory: .*/m$"),
        ("m/config.json", "give its directory"),
        ("m/weights.pt", "pickle"),
        ("m/weights.gguf", "not a directory"),
        ("empty", "it has no config.json"),
        ("a\0b", "no usable path"),
        ("x" * 300, "File name too long|no such file"),
    ],
)
def test_what_is_no_directory_of_a_model(tmp_path: Path, path: str, says: str) -> None:
    make(tmp_path / "m")
    for name in ("weights.pt", "weights.gguf"):
        (tmp_path / "m" / name).write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileFormatError, match=says):
        open_model(tmp_path / path)


def test_a_hub_name_gets_the_download_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileFormatError, match=r"downloads nothing.*hf download org/some-model-1\.5B"):
        open_model("org/some-model-1.5B")


def test_json_limits() -> None:
    assert parse(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, "x") is not None
    assert parse(b'{"a": "' + b"[" * 100 + b'\\"", "b": [{"a": 1}, {"a": 2}]}', "x")["b"] == [{"a": 1}, {"a": 2}]
    assert parse(b"[" + b"[1],{}," * 100 + b"0]", "x")[-1] == 0
    assert parse(b'"\\ud83d\\ude00"', "x") == "😀"
    with pytest.raises(FileFormatError, match="limit"):
        parse(b" " * (MAX_BYTES + 1), "x")
