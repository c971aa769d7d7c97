"""Everything wrong that a model directory can be: one line, the right class and exit code, and what it is about; never a crash."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import CONFIG, arrays, edit_quantization, edit_tensors, write_model

import anybit
from anybit.errors import AnybitError, FileFormatError, NonFiniteError, OutputError
from anybit.io import checkpoint, output
from anybit.model import quantize_file

UP = "model.layers.1.mlp.up_proj.weight"


def refused(path: Path, says: str, kind: type[AnybitError] = FileFormatError, code: int = 4) -> None:
    """Loading and quantizing both refuse, with one line that begins with the path."""
    for call in (lambda: anybit.load(path), lambda: quantize_file(path, path.parent / "out", "int4@32")):
        with pytest.raises(AnybitError, match=says) as error:
            call()
        assert isinstance(error.value, kind) and error.value.exit_code == code
        assert "\n" not in str(error.value) and str(error.value).startswith(str(path)), str(error.value)
    assert not (path.parent / "out").exists()


# ---------------------------------------------------------------------------------------------- paths and configs
def test_paths_that_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.safetensors").write_bytes(b"")
    (tmp_path / "model.bin").write_bytes(b"")
    refused(tmp_path / "nowhere", "no such file or directory")
    refused(tmp_path / "empty", r"no model: it has no config\.json")
    refused(tmp_path / "file.safetensors", "a single file is no model; give its directory")
    refused(tmp_path / "model.bin", "pickle files can run any code")
    with pytest.raises(FileFormatError, match="downloads nothing"):
        anybit.load("someone/some-model")


CONFIGS: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("architecture", lambda c: c.update(model_type="mamba", architectures=["MambaForCausalLM"]), r"mamba.*llama.*mistral.*qwen2.*qwen3"),
    ("near miss", lambda c: c.update(model_type="lama", architectures=["X"]), "lama.*llama"),
    ("two lines", lambda c: c.update(model_type="lla\nma"), r"is 'lla\\nma', which is not supported"),
    ("no family", lambda c: (c.pop("model_type"), c.pop("architectures")), "neither 'model_type' nor 'architectures'"),
    ("missing field", lambda c: c.pop("hidden_size"), "hidden_size"),
    ("type", lambda c: c.update(hidden_size="48"), "hidden_size is '48'; expected a whole number from 1"),
    ("heads", lambda c: c.update(num_key_value_heads=3), "num_key_value_heads"),
    ("activation", lambda c: c.update(hidden_act="gelu"), "hidden_act"),
    ("billions of layers", lambda c: c.update(num_hidden_layers=1 << 30), "num_hidden_layers"),
    ("more layers", lambda c: c.update(num_hidden_layers=3), r"'model\.layers\.2\.input_layernorm\.weight' \[48\] is missing"),
    ("fewer layers", lambda c: c.update(num_hidden_layers=1), r"'model\.layers\.1\.\S+' is not part of a llama model"),
    ("vocabulary", lambda c: c.update(vocab_size=65), r"'model\.embed_tokens\.weight' has shape \[64, 48\], but .* asks for \[65, 48\]"),
    ("width", lambda c: c.update(intermediate_size=71), r"gate_proj\.weight' has shape \[72, 48\], but the config asks for \[71, 48\]"),
    ("rope", lambda c: c.update(rope_scaling={"rope_type": "magic"}), "magic"),
    ("other quantization", lambda c: c.update(quantization_config={"quant_method": "aqlm"}), "'aqlm' is not read"),
]


@pytest.mark.parametrize(("change", "says"), [case[1:] for case in CONFIGS], ids=[case[0] for case in CONFIGS])
def test_configs(tmp_path: Path, change: Callable[[dict[str, Any]], Any], says: str) -> None:
    path = write_model(tmp_path / "m")
    config = json.loads((path / "config.json").read_text())
    change(config)
    (path / "config.json").write_text(json.dumps(config))
    refused(path, says)


# ---------------------------------------------------------------------------------------------- weights
def test_tensors_that_are_missing_or_foreign(tmp_path: Path) -> None:
    tensors = arrays(CONFIG)
    without = {name: array for name, array in tensors.items() if name != UP}
    refused(write_model(tmp_path / "a", tensors=without), rf"tensor '{UP}' \[72, 48\] is missing")
    refused(write_model(tmp_path / "b", tensors={**tensors, "extra": tensors[UP]}), "tensor 'extra' is not part of a llama model")
    refused(write_model(tmp_path / "c", tensors={**tensors, UP: tensors[UP].T.copy()}), rf"'{UP}' has shape \[48, 72\]")
    narrow = write_model(tmp_path / "d", model_layers_1_mlp_up_proj_weight=np.int8)
    refused(narrow, rf"'{UP}' has dtype I8 \(at byte \d+ of model\.safetensors\); weights must be BF16, F16, F32")
    refused(write_model(tmp_path / "e", model_norm_weight=np.float64), "'model.norm.weight' has dtype F64")


@pytest.mark.parametrize("cut", [0, 4, 8, 100, 3000, -1])
def test_files_cut_short(tmp_path: Path, cut: int) -> None:
    path = write_model(tmp_path / "m")
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    refused(path, r"at byte \d+.*(cut short|damaged)")


def test_files_damaged(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m")
    file = path / "model.safetensors"
    raw = file.read_bytes()
    for damaged in (struct.pack("<Q", 1 << 62) + raw[8:], raw[:8] + b"\xff" + raw[9:], raw.replace(b'"BF16"', b'"BF17"', 1), raw + b"x"):
        file.write_bytes(damaged)
        refused(path, r"m/model\.safetensors: .* at byte \d+")
    file.unlink()
    refused(path, "no weights")
    (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    refused(path, "this shard is listed in model.safetensors.index.json but missing")


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found out beforehand, or in the middle of a write: nothing is left."""
    path = write_model(tmp_path / "m")
    real = checkpoint.shutil.disk_usage
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda where: type("Usage", (), {"free": 100})())
    refused_out(path, "only 100 are free", 3)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", real)
    import os

    write, count = os.write, [0]

    def full(fd: int, data: Any) -> int:
        count[0] += 1
        if count[0] == 20:
            raise OSError(28, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr(output, "PAGE", 512)  # many writes of a small file
    refused_out(path, "the disk is full; free some space or choose another place", 4)


def refused_out(path: Path, says: str, code: int) -> None:
    out = path.parent / "out"
    with pytest.raises(AnybitError, match=says) as error:
        quantize_file(path, out, "int4@32")
    assert error.value.exit_code == code and "\n" not in str(error.value) and ".anybit-tmp" not in str(error.value)
    assert code == 3 or isinstance(error.value, OutputError)
    assert [item.name for item in path.parent.iterdir()] == [path.name]


# ---------------------------------------------------------------------------------------------- checkpoints of our own
@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    quantize_file(write_model(folder / "m"), folder / "q", "uint4@32+zp", act="int8")
    return folder / "q"


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    import shutil

    shutil.copytree(saved, tmp_path / "q")
    return tmp_path / "q"


def weight(quantization: dict[str, Any]) -> dict[str, Any]:
    return quantization["layers"][UP]["weight"]  # type: ignore[no-any-return]


SAYS_LAYER = rf"q: layer '{UP}': "
DESCRIPTIONS: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("version", lambda q: q.update(version=2), r"version 2 is not known, only 1 \(at byte \d+\); update anybit"),
    ("key", lambda q: q.update(rotation=1), "unknown key 'rotation'"),
    ("layer key", lambda q: q["layers"][UP].update(rotation=1), rf"{UP}.*unknown key 'rotation'"),
    ("cache", lambda q: q.update(kv_cache={"k": "int8@token"}), "'kv_cache': has the keys k, not k, v, stage"),
    ("cache's format", lambda q: q.update(kv_cache={"k": "nvfp4", "v": None, "stage": "post_rope"}), "'kv_cache': a cache cannot hold"),
    ("cache's stage", lambda q: q.update(kv_cache={"k": None, "v": None, "stage": "mid_rope"}), "'kv_cache': stage=mid_rope of a cache"),
    ("short table", lambda q: q.update(tables={"codebook_new": ["0x1p+0"]}), "'codebook_new' has 2 to 65536 values, a power of two"),
    ("odd table", lambda q: q.update(tables={"mine": ["0x0p+0", "0x1p+0", "0x1p+1"]}), r"tables\['mine'\]: 'mine' has 2 to 65536 values"),
    ("flat table", lambda q: q.update(tables={"mine": ["0x1p+0", "nan"] * 2}), "'mine' has fewer than two different finite values"),
    ("table of threes", lambda q: q.update(tables={"mine": [["0x1p+0", "0x1p+1", "0x0p+0"]] * 4}), r"vectors of 2, 4 or 8, not \[4, 3\]"),
    ("ragged table", lambda q: q.update(tables={"mine": [["0x1p+0"], []]}), "lists of different lengths"),
    ("endless vectors", lambda q: q.update(tables={"mine": [["0x1p+0", "inf"], ["0x0p+0", "nan"]]}), "vectors that are not finite"),
    ("wide table", lambda q: q.update(tables={"mine": ["0x1p+200", "0x0p+0"]}), "beyond float32's range"),
    ("table's name", lambda q: q.update(tables={"a\n@": ["0x1p+0", "0x0p+0"]}), r"tables\['a\\n@'\]: an element's name consists of"),
    ("other table", lambda q: q.update(tables={"fp4_e2m1": ["0x1p+0"] * 16}), r"\['fp4_e2m1'\]: fp4_e2m1 has other values here \(at byte"),
    ("-0 in a table", lambda q: q.update(tables={"uint1": ["-0x0p+0", "0x1p+0"]}), "uint1 has other values here"),
    ("learned table", lambda q: q.update(tables={"kmeans1": ["0x0p+0", "0x1p+0"]}), "kmeans1 has other values here"),
    ("unlisted", lambda q: weight(q).update(format="mine@32:fp16+off"), "no format named 'mine'"),
    ("rotated", lambda q: q["layers"][UP].update(pre=[{"kind": "hadamard"}]), SAYS_LAYER + r"pre\[0\]: .* need a block"),
    ("spun", lambda q: q["layers"][UP].update(pre=[{"kind": "spin"}]), SAYS_LAYER + r"pre\[0\]: .* it is none of scale, shift"),
    ("branch", lambda q: q["layers"][UP].update(branches=[{"kind": "low_rank"}]), SAYS_LAYER + r"branch 'low_rank' .* a must be"),
    ("product", lambda q: q["layers"][UP].update(product="table"), SAYS_LAYER + "product rule 'table' needs a table"),
    ("no product", lambda q: q["layers"][UP].update(product="exact"), SAYS_LAYER + "no product rule 'exact'"),
    ("other product", lambda q: q["layers"][UP].update(product="shift", act=None), SAYS_LAYER + "the product rule shift takes"),
    ("product of a file", lambda q: q["layers"][UP].update(product="table=/etc/x.npy"), SAYS_LAYER + "its product rule .* is a file"),
    ("act", lambda q: q["layers"][UP].update(act="fp8"), SAYS_LAYER + "no kernel takes 'fp8' activations"),
    ("layout", lambda q: weight(q).update(layout="tile16x5"), SAYS_LAYER + "no layout named 'tile16x5'; did you mean"),
    ("other layout", lambda q: weight(q).update(layout="tile16x1"), SAYS_LAYER + "layout tile16x1 cannot hold"),
    ("rows", lambda q: weight(q).update(layout="rows"), SAYS_LAYER + "part codes must be"),
    ("format", lambda q: weight(q).update(format="int44@32"), SAYS_LAYER + ".*int44"),
    ("two lines", lambda q: weight(q).update(format="int4@32\n\x1b[2J"), SAYS_LAYER + r"int4@32\\n\\x1b\[2J: unexpected"),
    ("layout of two lines", lambda q: weight(q).update(layout="tile\n"), SAYS_LAYER + r"no layout named 'tile\\n'"),
    ("no format", lambda q: weight(q).update(format=""), SAYS_LAYER + "an empty format"),
    ("other format", lambda q: weight(q).update(format="int4@32"), SAYS_LAYER + "int4@32 in layout tile16x4 has the parts"),
    ("other width", lambda q: weight(q).update(format="uint5@32+zp=uint4"), SAYS_LAYER + "part codes must be"),
    ("other block", lambda q: weight(q).update(format="uint4@16+zp"), SAYS_LAYER + "part scale.0 must be"),
    ("huge block", lambda q: weight(q).update(format="uint4@999999999999+zp"), SAYS_LAYER + "part scale.0 must be"),
    ("other grid", lambda q: weight(q).update(format="uint4@8x32+zp"), SAYS_LAYER + "part scale.0 must be"),
    ("dense", lambda q: weight(q).update(format="bf16"), SAYS_LAYER + "layout tile16x4 cannot hold bf16"),
    ("no block", lambda q: weight(q).update(format="uint4"), SAYS_LAYER + "layout tile16x4 cannot hold uint4"),
    ("shape", lambda q: weight(q).update(shape=[71, 48]), r"has shape \[71, 48\], but the config asks for \[72, 48\]"),
    ("rank", lambda q: weight(q).update(shape=[72 * 48]), r"has shape \[3456\]"),
    ("nothing", lambda q: weight(q).update(shape=[0, 48]), r"has shape \[0, 48\]"),
    ("wide", lambda q: weight(q).update(shape=[1 << 47, 1 << 47]), "has shape"),
    ("norm", lambda q: q["layers"].update({"model.norm.weight": q["layers"][UP]}), "there is a plain tensor too"),
    ("foreign", lambda q: q["layers"].update({"other": q["layers"][UP]}), r"'other\.codes' is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "says"), [case[1:] for case in DESCRIPTIONS], ids=[case[0] for case in DESCRIPTIONS])
def test_descriptions_that_do_not_fit(copy: Path, change: Callable[[dict[str, Any]], Any], says: str) -> None:
    edit_quantization(copy, change)
    with pytest.raises(FileFormatError, match=says) as error:
        anybit.load(copy)
    assert error.value.exit_code == 4 and "\n" not in str(error.value)


Tensors = dict[str, tuple[str, list[int], bytes]]


def resize(part: str, dtype: str, shape: list[int]) -> Callable[[Tensors], None]:
    size = int(np.prod(shape)) * {"U8": 1, "I8": 1, "U16": 2, "U32": 4}[dtype]
    return lambda t: t.update({f"{UP}.{part}": (dtype, shape, bytes(size))})


PARTS: list[tuple[str, Callable[[Tensors], Any], str]] = [
    ("codes too small", resize("codes", "U8", [4, 2, 256]), "part codes must be"),
    ("no codes", resize("codes", "U8", [5, 2, 0]), "part codes must be"),
    ("codes flat", resize("codes", "U8", [5 * 2 * 256]), "part codes must be"),
    ("signed codes", resize("codes", "I8", [5, 2, 256]), "part codes must be"),
    ("scales too few", resize("scale.0", "U16", [5, 1, 16]), "part scale.0 must be"),
    ("no scales", resize("scale.0", "U16", [0, 2, 16]), "part scale.0 must be"),
    ("wide scales", resize("scale.0", "U32", [5, 2, 16]), "part scale.0 must be"),
    ("zero points too few", resize("zero", "U8", [5, 2, 15]), "part zero must be"),
    ("zero points too wide", lambda t: t.update({f"{UP}.zero": ("U8", [5, 2, 16], b"\x10" * 160)}), "part zero holds the code 16"),
    ("quantized norm", lambda t: t.update({"x": t.pop("model.norm.weight")}), "'x' is not part of|'model.norm.weight'.* is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "says"), [case[1:] for case in PARTS], ids=[case[0] for case in PARTS])
def test_parts_that_do_not_fit(copy: Path, change: Callable[[Tensors], Any], says: str) -> None:
    edit_tensors(copy, lambda t: None)
    anybit.load(copy)
    edit_tensors(copy, change)
    with pytest.raises(FileFormatError, match=says) as error:
        anybit.load(copy)
    assert error.value.exit_code == 4 and "\n" not in str(error.value)
    assert ": layer " not in str(error.value) or UP in str(error.value)


def test_any_bytes_run_or_are_refused(copy: Path) -> None:
    """Codes and scales of any bits, tensors at odd addresses: logits, or one line that says where numbers ran out."""
    rng = np.random.default_rng(3)
    outcomes = set()

    def scramble(tensors: Tensors) -> None:
        for name, (dtype, shape, data) in list(tensors.items()):
            if "_proj" in name:
                fill = rng.integers(0, 16 if name.endswith("zero") else 256, len(data), dtype=np.uint8)
                if name.endswith("scale.0") and rng.random() < 0.9:
                    fill[1::2] = 0x3C  # bfloat16 around 1/64
                tensors[name] = (dtype, shape, fill.tobytes())
        tensors.update({"a.rotary_emb.inv_freq": ("U8", [1], b"x"), **{name: tensors.pop(name) for name in list(tensors)}})

    for _ in range(8):
        edit_tensors(copy, scramble)
        model = anybit.load(copy)
        assert any(part.ctypes.data % 2 for linear in model.linears.values() for part in linear.weight.parts.values())
        for act in (None, "int8"):
            try:
                outcomes.add(bool(np.isfinite(model.with_act(act).logits([1, 2, 3])).all()))
            except NonFiniteError as error:
                assert "layer" in str(error) and "token" in str(error) and "\n" not in str(error)
                outcomes.add(None)
    assert outcomes == {True, None}


def test_nan_scales_are_found_when_they_are_used(copy: Path) -> None:
    nan = lambda t: t.update({f"{UP}.scale.0": ("U16", [5, 2, 16], b"\xc0\x7f" * 160)})  # noqa: E731
    edit_tensors(copy, nan)
    with pytest.raises(NonFiniteError, match=r"layer 1: .* is not finite at token 0") as error:
        anybit.load(copy).logits([1, 2])
    assert error.value.exit_code == 4


def test_checkpoints_that_are_not_complete(copy: Path) -> None:
    file = copy / "model.safetensors"
    raw = file.read_bytes()
    file.write_bytes(raw[:-1])
    with pytest.raises(FileFormatError, match=r"manifest\.json says \d+ \(at byte \d+ of manifest\.json\): cut short or changed"):
        anybit.load(copy)
    file.write_bytes(raw)
    (copy / "manifest.json").unlink()
    with pytest.raises(FileFormatError, match=r"no manifest\.json, which anybit writes last: incomplete"):
        anybit.load(copy)


def test_tokenizers(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m")
    with pytest.raises(FileFormatError, match=r"no tokenizer\.json"):
        anybit.load(path).generate("x")
    (path / "tokenizer.json").write_text('{"broken": ')
    model = anybit.load(path)
    with pytest.raises(FileFormatError, match=r"tokenizer\.json: JSON at byte 11: expecting value") as error:
        model.tokenize("x")
    assert error.value.exit_code == 4 and "\n" not in str(error.value) and str(error.value).startswith(str(path / "tokenizer.json"))
    assert model.logits([1]).shape == (1, 64)
