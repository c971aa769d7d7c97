"""The byte that a refusal names is where the file says what is refused; of what is missing, where the list begins that lacks it."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_model import write_gguf

import anybit
from anybit.errors import AnybitError, FileFormatError
from anybit.io import strict_json
from anybit.model import quantize_file
from anybit.recipes import strict_yaml
from tests.small import CONFIG, arrays, edit_quantization, write_model

PLACE = re.compile(r"at byte (\d+)(?: of ([\w.-]+))?")
NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"


def there(path: Path, default: str) -> tuple[str, bytes]:
    """Opens a model that is refused; gives the message and the bytes that it points at."""
    with pytest.raises(AnybitError) as error:
        anybit.load(path)
    found = PLACE.search(str(error.value))
    assert found is not None, str(error.value)
    file = path if path.is_file() else path / (found[2] or default)
    return str(error.value), file.read_bytes()[int(found[1]) :]


CONFIGS: list[tuple[Callable[[dict[str, Any]], Any], bytes]] = [
    (lambda c: c.update(num_key_value_heads=3), b"3,"),
    (lambda c: c.update(hidden_act="gelu"), b'"gelu"'),
    (lambda c: c.update(rope_scaling={"rope_type": "linear", "factor": -2}), b"-2}"),
    (lambda c: c.update(rope_scaling={"rope_type": "linear"}), b'{"rope_type": "linear"}'),
    (lambda c: c.pop("hidden_size"), b'{"model_type"'),
    (lambda c: (c.pop("model_type"), c.pop("architectures")), b'{"vocab_size"'),
    (lambda c: c.update(architectures=["MistralForCausalLM"]), b'["MistralForCausalLM"]'),
    (lambda c: c.update(model_type="llama\u00e9"), b'"llama\\u00e9"'),
]


@pytest.mark.parametrize(("change", "bytes_there"), CONFIGS)
def test_fields_of_a_configuration(tmp_path: Path, change: Callable[[dict[str, Any]], Any], bytes_there: bytes) -> None:
    config = dict(CONFIG)
    change(config)
    path = write_model(tmp_path / "m", None)
    (path / "config.json").write_text(json.dumps(config))
    assert there(path, "config.json")[1].startswith(bytes_there)


def test_tensors_of_a_directory(tmp_path: Path) -> None:
    """Of one that has another shape its data; of one that is missing the header."""
    tensors = arrays(CONFIG)
    bad = write_model(tmp_path / "shape", None, tensors | {NORM: np.full(47, 3.0, np.float32)})
    assert there(bad, "")[1].startswith(struct.pack("<HH", 0x4040, 0x4040))
    nan = write_model(tmp_path / "nan", None, tensors | {NORM: np.full(48, np.nan, np.float32)})
    assert there(nan, "")[1].startswith(struct.pack("<HH", 0x7FC0, 0x7FC0))
    del tensors[NORM]
    message, bytes_there = there(write_model(tmp_path / "missing", None, tensors), "")
    assert "not in the header at byte 8 of model.safetensors" in message and bytes_there.startswith(b'{"')


LAYERS: list[tuple[Callable[[dict[str, Any]], Any], bytes]] = [
    (lambda q: q["layers"][UP]["weight"].update(layout="tiles"), b'{"weight"'),
    (lambda q: q["layers"][UP]["weight"].update(shape=[72, 96]), b'{"weight"'),
    (lambda q: q["layers"][UP]["weight"]["parts"].update(more={"dtype": "U8", "shape": [1]}), b'{"dtype": "U8", "shape": [1]}'),
    (lambda q: q.update(kv_cache={"k": "int99"}), b'{"k": "int99"}'),
    (lambda q: q.update(attention_product="none"), b'"none"'),
    (lambda q: q.update(tables={"fp4_e2m1": ["0x1p+0"] * 16}), b'["0x1p+0"'),
]


@pytest.mark.parametrize(("change", "bytes_there"), LAYERS)
def test_layers_of_a_checkpoint(tmp_path: Path, change: Callable[[dict[str, Any]], Any], bytes_there: bytes) -> None:
    path = tmp_path / "q"
    quantize_file(write_model(tmp_path / "m"), path, "int4@32")
    edit_quantization(path, change)
    assert there(path, "")[1].startswith(bytes_there)


def test_sizes_of_a_manifest(tmp_path: Path) -> None:
    path = tmp_path / "q"
    quantize_file(write_model(tmp_path / "m"), path, "int4@32")
    size = (path / "model.safetensors").stat().st_size
    with (path / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert there(path, "manifest.json")[1].startswith(b"%d," % size)


def test_files_that_are_too_large(tmp_path: Path) -> None:
    """Where the limit lies."""
    (tmp_path / "x.json").write_bytes(b" " * 30)
    with pytest.raises(FileFormatError, match=r"x\.json: 30 bytes are more than the limit of 20 for such a file, passed at byte 20;"):
        strict_json.read_small(tmp_path / "x.json", 20)
    (tmp_path / "x.yaml").write_bytes(b"#\n" * (1 << 19) + b"#")
    with pytest.raises(FileFormatError, match=r"x\.yaml: line 524289: larger than 1048576 bytes"):
        strict_yaml.read(tmp_path / "x.yaml")


FIELDS: list[tuple[dict[str, Any], Callable[[Any], Any], str]] = [
    ({"max_position_embeddings": 1 << 31 | 1}, lambda w: None, "llama.context_length"),
    ({}, lambda w: w.add_float32("llama.logit_scale", 0.5), "llama.logit_scale"),
    ({"rms_norm_eps": -1.0}, lambda w: None, "llama.attention.layer_norm_rms_epsilon"),
]


@pytest.mark.parametrize(("change", "extra", "field"), FIELDS)
def test_fields_of_a_gguf_file(tmp_path: Path, change: dict[str, Any], extra: Callable[[Any], Any], field: str) -> None:
    """`rms_norm_eps`: a field that the description refuses under the name that a configuration has for it."""
    file = tmp_path / "m.gguf"
    write_gguf(file, CONFIG | change, arrays(CONFIG), extra=extra)
    message, bytes_there = there(file, "")
    assert bytes_there.startswith(struct.pack("<Q", len(field)) + field.encode()), message


def test_tensors_of_a_gguf_file(tmp_path: Path) -> None:
    file, tensors = tmp_path / "m.gguf", arrays(CONFIG)
    write_gguf(file, CONFIG, tensors | {NORM: np.full(47, 3.0, np.float32)})
    assert there(file, "")[1].startswith(struct.pack("<2f", 3, 3))
    del tensors[NORM]
    write_gguf(file, CONFIG, tensors)
    first = "token_embd.weight"
    message, bytes_there = there(file, "")
    assert "not in the list of tensors at byte" in message and bytes_there.startswith(struct.pack("<Q", len(first)) + first.encode())
