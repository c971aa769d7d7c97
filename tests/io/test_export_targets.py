"""Directories that we write for other tools: values are those of the codes, for us and for the tools that are installed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import anybit
from anybit.errors import NonFiniteError, UnknownNameError, UsageError
from anybit.export import prepare, write, write_checkpoint
from anybit.io.containers.bits import packed_stream, stream
from anybit.io.safetensors import SafeFile
from anybit.io.targets import TARGETS
from anybit.io.targets.dequantized import rounded
from anybit.linear import Transform
from tests.io.exported import WIDE, differing, export, model, quantized, values
from tests.small import arrays

BF16 = ml_dtypes.bfloat16
UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 3, 8, 9, 31, 32, 33, 100])
def test_packing(bits: int, count: int) -> None:
    """Against the definition: bit i of code j is bit j * bits + i of the row."""
    codes = np.random.default_rng(0).integers(0, 1 << bits, (3, count)).astype(np.uint8)
    made = packed_stream(codes, bits)
    flat = ((codes[..., None] >> np.arange(bits)) & 1).reshape(3, -1).astype(np.uint8)
    want = np.packbits(np.pad(flat, ((0, 0), (0, -flat.shape[1] % 32))), axis=1, bitorder="little")
    assert made.dtype == np.int32
    assert made.tobytes() == want.tobytes()
    assert np.array_equal(stream(made.view(np.uint8), bits, count), codes)


# ---------------------------------------------------------------------------------------------- compressed-tensors
SCHEMES: dict[str, tuple[str | None, str, dict[str, Any]]] = {
    "int4@128": (None, "pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 128}),
    "int2@64": (None, "pack-quantized", {"num_bits": 2}),
    "int3@64": (None, "pack-quantized", {"num_bits": 3}),
    "int5@128": (None, "pack-quantized", {"num_bits": 5}),
    "int6@32": (None, "pack-quantized", {"num_bits": 6}),
    "int7@64": (None, "pack-quantized", {"num_bits": 7}),
    "int8@64": (None, "pack-quantized", {"num_bits": 8}),
    "int4@channel:bf16": (None, "pack-quantized", {"strategy": "channel", "group_size": None}),
    "ternary@64": (None, "pack-quantized", {"num_bits": 2}),
    "int4@64:e8m0": (None, "pack-quantized", {"num_bits": 4}),
    "int4@64:fp16": (None, "pack-quantized", {"num_bits": 4}),
    "int4@128+zp": (None, "pack-quantized", {"symmetric": False}),
    "uint3@64+zp": (None, "pack-quantized", {"symmetric": False, "num_bits": 3}),
    "int4@64": ("int8", "pack-quantized", {"num_bits": 4}),
    "int8@channel:bf16": ("int8", "int-quantized", {"strategy": "channel"}),
    "int8@channel": ("int8", "int-quantized", {"strategy": "channel"}),
    "int8@tensor:bf16": ("int8", "int-quantized", {"strategy": "tensor"}),
    "fp8_e4m3fn@channel:bf16": (None, "float-quantized", {"type": "float", "strategy": "channel"}),
    "fp8_e4m3fn@tensor:bf16": (None, "float-quantized", {"strategy": "tensor"}),
    "fp8_e4m3fn@128x128": (None, "float-quantized", {"strategy": "block", "block_structure": [128, 128]}),
    "nvfp4": (None, "nvfp4-pack-quantized", {"type": "float", "num_bits": 4, "strategy": "tensor_group", "group_size": 16}),
    "mxfp4": (None, "mxfp4-pack-quantized", {"group_size": 32, "scale_dtype": "torch.uint8"}),
    "mxfp8": (None, "mxfp8-quantized", {"num_bits": 8, "group_size": 32}),
}


def loaded(path: Path, want: dict[str, np.ndarray]) -> None:
    """transformers with compressed-tensors holds our values, rounded to the dtype of the model as it rounds them."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("compressed_tensors")
    torch = pytest.importorskip("torch")
    config = transformers.CompressedTensorsConfig(dequantize=True)
    found = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto", quantization_config=config)
    state = found.state_dict()
    assert want.keys() <= state.keys()
    for name, array in want.items():
        assert torch.equal(state[name].float(), torch.from_numpy(np.array(array)).to(found.dtype).float()), name


@pytest.mark.parametrize("fmt", SCHEMES)
def test_compressed_tensors(tmp_path: Path, fmt: str) -> None:
    act, form, args = SCHEMES[fmt]
    source = quantized(tmp_path, fmt, act)
    made = export(source, tmp_path / "out", "compressed-tensors")
    assert not made.plan.refused
    described = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    group = described["config_groups"]["group_0"]
    assert described["format"] == group["format"] == form
    assert group["targets"] == ["Linear"]
    assert described["ignore"] == ["lm_head"]
    assert {key: group["weights"][key] for key in args} == args
    assert (group["input_activations"] or {}).get("strategy") == ("token" if act else None)
    assert differing(source, tmp_path / "out") == [] or fmt == "nvfp4"
    assert not [name for name in SafeFile(tmp_path / "out" / "model.safetensors").tensors if "pad" in name], "others know no filler"
    loaded(tmp_path / "out", values(source))


def test_dtype_of_the_model(tmp_path: Path) -> None:
    """One dtype has to hold scales and dense tensors: float32 where float16 scales lie beside bfloat16 tensors that float16 has not."""
    source = model(tmp_path / "model")
    (source / "model.safetensors").unlink()
    tensors = {name: array.astype(BF16) for name, array in arrays(WIDE).items()}
    tensors["model.norm.weight"][3] = 1e-30
    safetensors.numpy.save_file(tensors, source / "model.safetensors")
    for fmt, dtype, scale in (("int4@64:fp16", "float32", "F32"), ("int4@64", "bfloat16", "BF16")):
        out = tmp_path / dtype
        anybit.load(source).quantize(fmt).save(tmp_path / f"q-{dtype}")
        made = export(tmp_path / f"q-{dtype}", out, "compressed-tensors")
        assert json.loads((out / "config.json").read_text())["torch_dtype"] == dtype
        assert SafeFile(out / "model.safetensors").tensors[f"{UP}.weight_scale"].dtype == scale
        assert bool(made.plan.notes) == (dtype == "float32")


def test_fused_modules_share_a_global_scale(tmp_path: Path) -> None:
    """vLLM takes one of q, k, v and of gate, up: made of dense weights they are equal, and of codes a note says that they are not."""
    source = model(tmp_path / "model")
    export(source, tmp_path / "out", "compressed-tensors:nvfp4")
    file = SafeFile(tmp_path / "out" / "model.safetensors")
    tensors = {name: file.tensor(name) for name in file.tensors}
    scales = {name.split(".")[-2]: float(array.view(np.float32)[0]) for name, array in tensors.items() if name.endswith("global_scale")}
    assert scales["q_proj"] == scales["k_proj"] == scales["v_proj"]
    assert scales["gate_proj"] == scales["up_proj"]
    assert scales["q_proj"] != scales["o_proj"]
    names = [f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkv"]
    dense = values(source)
    together = anybit.quantize(np.concatenate([dense[name] for name in names]), "nvfp4+scale=mse").dequantize()
    got = values(tmp_path / "out")
    np.testing.assert_allclose(np.concatenate([got[name] for name in names]), together, rtol=2.0**-23)
    assert [note for note in prepare(quantized(tmp_path, "nvfp4"), "compressed-tensors").plan.notes if "vLLM takes the largest" in note]


def test_mixed_schemes(tmp_path: Path) -> None:
    source = model(tmp_path / "model")
    both = anybit.load(source).quantize("int4@64", keep="mlp|embed|head").quantize("fp8_e4m3fn@channel:bf16", keep="attn|embed|head")
    both.save(tmp_path / "q")
    export(tmp_path / "q", tmp_path / "out", "compressed-tensors")
    described = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert described["format"] == "mixed-precision"
    targets = {group["format"]: group["targets"] for group in described["config_groups"].values()}
    assert "model.layers.0.mlp.down_proj" in targets["float-quantized"]
    assert "model.layers.0.self_attn.q_proj" in targets["pack-quantized"]
    assert differing(tmp_path / "q", tmp_path / "out") == []


@pytest.mark.parametrize(
    ("fmt", "keep", "match"),
    [
        ("nf4@64", "embed|head", "no integers|not all among"),
        ("uint4@32:uint6@256:fp16+off", "embed|head", "no offsets"),
        ("int4@48", "embed|head", "no whole groups of 48"),
        ("int4@64", "head", "embeddings are stored dense"),
        ("posit8_es1@32", "embed|head", "missing"),
    ],
)
def test_what_compressed_tensors_does_not_hold(tmp_path: Path, fmt: str, keep: str, match: str) -> None:
    made = prepare(quantized(tmp_path, fmt, keep=keep), "compressed-tensors")
    assert made.plan.refused
    with pytest.raises(UsageError, match=match):
        write(made, tmp_path / "out")


def test_nothing_to_compress(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing is quantized; name what to make"):
        prepare(model(tmp_path / "model"), "compressed-tensors")


# ---------------------------------------------------------------------------------------------- GPTQ
def column_codes(packed: np.ndarray, bits: int) -> np.ndarray:
    """uint[k, n] from int32[k * bits / 32, n]: the bits of a column, lowest first, cut into codes."""
    columns = np.ascontiguousarray(packed.T).view(np.uint8)
    flat = np.unpackbits(columns, axis=1, bitorder="little").reshape(columns.shape[0], -1, bits)
    return (flat * (1 << np.arange(bits))).sum(axis=-1).T


@pytest.mark.parametrize(
    "fmt", ["int4@128:fp16", "int3@64:fp16", "int2@32:fp16", "int8@channel:fp16", "uint4@64:fp16+zp", "uint3@64:fp16+zp"]
)
def test_gptq(tmp_path: Path, fmt: str) -> None:
    """(q - z) s of the stored tensors, by the layout's definition, is what our codes mean; our reader says so too."""
    source = quantized(tmp_path, fmt)
    export(source, tmp_path / "out", "gptq")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    bits, group = config["bits"], config["group_size"]
    assert config["checkpoint_format"] == "gptq_v2"
    assert config["sym"] == ("zp" not in fmt)
    tensors = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    q = column_codes(tensors[f"{UP}.qweight"], bits)
    z = column_codes(np.ascontiguousarray(tensors[f"{UP}.qzeros"].T), bits).T
    index = tensors[f"{UP}.g_idx"]
    assert np.array_equal(index, np.arange(256) // (256 if group == -1 else group))
    got = (q - z[index]).astype(np.float32) * tensors[f"{UP}.scales"].astype(np.float32)[index]
    assert np.array_equal(got.T, values(source)[f"{UP}.weight"])
    assert differing(source, tmp_path / "out") == []


@pytest.mark.parametrize(
    ("fmt", "match"),
    [
        ("int5@64:fp16", None),
        ("mxfp4", "0.5 is missing"),
        ("int4@64:fp32", "is not exact in fp16"),
        ("int4@16x16", "one float16 scale a group"),
    ],
)
def test_what_gptq_does_not_hold(tmp_path: Path, fmt: str, match: str | None) -> None:
    made = prepare(quantized(tmp_path, fmt), "gptq")
    if match is None:  # in eight bits
        assert {step.stored for step in made.plan.steps if "proj" in step.name} == {"gptq int8@64:fp16"}
        return
    with pytest.raises(UsageError, match=match):
        write(made, tmp_path / "out")


def test_gptq_has_one_width(tmp_path: Path) -> None:
    source = model(tmp_path / "model")
    both = anybit.load(source).quantize("int4@64", keep="mlp|embed|head").quantize("int8@64", keep="attn|embed|head")
    both.save(tmp_path / "q")
    with pytest.raises(UsageError, match="one width and group for a whole model, and this one has 4 bits, groups of 64 in"):
        prepare(tmp_path / "q", "gptq")


# ---------------------------------------------------------------------------------------------- plain floats, and between containers
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_dequantized(tmp_path: Path, dtype: str) -> None:
    source = quantized(tmp_path, "nf4@64")
    made = export(source, tmp_path / "out", f"dequantized:{dtype}")
    kinds = {"f32": np.float32, "f16": np.float16, "bf16": BF16}
    found = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    for name, want in values(source).items():
        assert np.array_equal(found[name].astype(np.float32), want.astype(kinds[dtype]).astype(np.float32)), name
    exact = {step.name for step in made.plan.steps if step.exact}
    assert (f"{UP}.weight" in exact) == (dtype == "f32")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.parametrize("shape", [(0,), (7,), (1 << 15,), (3, (1 << 15) - 1)])
def test_rounding_to_sixteen_bits(shape: tuple[int, ...]) -> None:
    """Any finite bits, in arrays of less and more than one piece."""
    bits = np.random.default_rng(1).integers(0, 1 << 32, shape, np.uint32)
    x = np.where(bits >> 23 & 255 == 255, np.uint32(0x3F808000), bits).astype(np.uint32).view(np.float32)
    with np.errstate(over="ignore"):
        for element, dtype in (("bf16", BF16), ("fp16", np.float16)):
            assert np.array_equal(rounded(x, element), x.astype(dtype).view(np.uint16))
    assert np.array_equal(rounded(x, "fp32"), x.view(np.uint32))


def test_dequantized_beyond_float16(tmp_path: Path) -> None:
    source = model(tmp_path / "model")
    tensors = {name: array.astype(BF16) for name, array in arrays(WIDE).items()}
    tensors[f"{UP}.weight"][0, 0] = 1e5
    safetensors.numpy.save_file(tensors, source / "model.safetensors")
    with pytest.raises(NonFiniteError, match="beyond 65504"):
        export(source, tmp_path / "out", "dequantized:f16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"], "nothing is left behind"
    with pytest.raises(UnknownNameError, match="no dtype named 'f8'"):
        prepare(source, "dequantized:f8")


def test_round_the_houses(tmp_path: Path) -> None:
    """The same codes through every container and back: the checkpoint that comes out is the one that went in."""
    source = quantized(tmp_path, "int4@32:fp16")
    export(source, tmp_path / "a.gguf", "gguf", convert=True)
    write_checkpoint(tmp_path / "a.gguf", tmp_path / "b")
    export(tmp_path / "b", tmp_path / "c", "gptq", convert=True)
    export(tmp_path / "c", tmp_path / "d", "compressed-tensors", convert=True)
    write_checkpoint(tmp_path / "d", tmp_path / "e")
    assert differing(source, tmp_path / "e") == []
    first, last = (anybit.load(tmp_path / name).linears[f"{UP}.weight"].weight for name in ("quantized", "b"))
    assert first.format == last.format
    assert all(np.array_equal(first.parts[name], last.parts[name]) for name in first.parts)


# ---------------------------------------------------------------------------------------------- inputs in another order
def permuted(folder: Path, fmt: str) -> tuple[Path, dict[str, np.ndarray]]:
    """A checkpoint of ours whose layers but down_proj permute their inputs, q, k, v alike; and every tensor's values by inputs."""
    source, out, rng = model(folder / "model"), folder / "permuted", np.random.default_rng(0)
    made = anybit.load(source).quantize(fmt)
    orders: dict[str, np.ndarray] = {}
    layers, want = {}, values(source)
    for name, linear in made.linears.items():
        if name not in made.quantized:
            continue
        want[name] = linear.weight.dequantize()
        if "down" in name:
            continue
        shared = "qkv" if name.split(".")[-2][0] in "qkv" else name.split(".")[-2]
        order = orders.setdefault(shared, rng.permutation(linear.weight.shape[1]))
        layers[name] = replace(linear, pre=(Transform("permute", data=order),))
        want[name][:, order] = linear.weight.dequantize()
    made.replace(layers).save(out)
    return out, want


def same(want: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> None:
    assert want.keys() == got.keys()
    for name in want:
        assert np.array_equal(want[name], got[name]), name


@pytest.mark.parametrize("fmt", ["int4@64:fp16", "int3@32:fp16", "uint4@128:fp16+zp", "int8@64:fp16"])
def test_permuted_layers_to_gptq(tmp_path: Path, fmt: str) -> None:
    """(q - z) s with the scale of g_idx, by the layout's definition; our reader, and the same logits of a checkpoint made of it."""
    source, want = permuted(tmp_path, fmt)
    same(want, values(source))
    export(source, tmp_path / "out", "gptq", convert=True)
    described = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert described["desc_act"] is True
    tensors = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    q = column_codes(tensors[f"{UP}.qweight"], described["bits"])
    z = column_codes(np.ascontiguousarray(tensors[f"{UP}.qzeros"].T), described["bits"]).T
    index = tensors[f"{UP}.g_idx"]
    assert not np.array_equal(index, np.sort(index)), "mixed"
    got = (q - z[index]).astype(np.float32) * tensors[f"{UP}.scales"].astype(np.float32)[index]
    assert np.array_equal(got.T, want[f"{UP}.weight"])
    same(want, values(tmp_path / "out"))
    write_checkpoint(tmp_path / "out", tmp_path / "back")
    same(want, values(tmp_path / "back"))
    ids = np.arange(20)
    logits = [anybit.load(path).logits(ids) for path in (source, tmp_path / "out", tmp_path / "back")]
    assert np.array_equal(logits[1], logits[2])
    # inputs of a group may come in another order: sums of float32
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-5 * np.abs(logits[0]).max())


@pytest.mark.parametrize("to", ["dequantized:f32", "dequantized:bf16"])
def test_permuted_layers_to_floats(tmp_path: Path, to: str) -> None:
    source, want = permuted(tmp_path, "uint4@32:uint6@256:fp16+off")
    export(source, tmp_path / "out", to)
    kind = np.float32 if to.endswith("f32") else BF16
    same({name: array.astype(kind).astype(np.float32) for name, array in want.items()}, values(tmp_path / "out"))


@pytest.mark.parametrize(
    ("to", "fmt", "match"),
    [
        ("gguf", "int4@32:fp16", r"another order \(desc_act\), which no GGUF type has"),
        ("onnx", "int4@32", r"another order \(desc_act\), which no operator"),
        ("compressed-tensors", "int4@64", r"another order \(desc_act\), which compressed-tensors dropped; --to gptq writes it"),
    ],
)
def test_permuted_layers_that_have_no_place(tmp_path: Path, to: str, fmt: str, match: str) -> None:
    made = prepare(permuted(tmp_path, fmt)[0], to)
    with pytest.raises(UsageError, match=match):
        write(made, tmp_path / "out")


def test_product_rules_stay_at_home(tmp_path: Path) -> None:
    source = model(tmp_path / "model")
    anybit.load(source).quantize("int4@64", product="lmul").save(tmp_path / "q")
    with pytest.raises(UsageError, match="product rule 'lmul', which no other tool has"):
        prepare(tmp_path / "q", "dequantized")


def test_targets_have_words() -> None:
    assert set(TARGETS) >= {"gguf", "compressed-tensors", "gptq", "dequantized"}
    for name in TARGETS:
        assert TARGETS[name].name == name
        assert TARGETS[name].about
        assert TARGETS[name].form.startswith(name)
