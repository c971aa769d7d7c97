"""Quantized checkpoints of other tools: the values are those of compressed-tensors, GPTQ, AWQ and bitsandbytes; what differs is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import anybit
from anybit.errors import FileFormatError
from anybit.foreign import coded_linear
from anybit.io.containers.awq import ORDER
from anybit.io.containers.bits import stream
from anybit.io.foreign import Foreign, open_foreign
from anybit.io.packed import packed

BF16 = ml_dtypes.bfloat16
RNG = np.random.default_rng(0)
N, K = 24, 256
WEIGHTS: dict[str, Any] = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}


def write(path: Path, quantization: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """A directory that holds one module `m`, or whatever the tensors say; fp8 comes as ml_dtypes arrays."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": quantization}))
    safetensors.numpy.save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path / "model.safetensors")
    return path


def opened(path: Path, quantization: dict[str, Any], tensors: dict[str, np.ndarray]) -> Foreign:
    foreign = open_foreign(write(path, quantization, tensors))
    assert foreign is not None
    return foreign


def values(path: Path, quantization: dict[str, Any], tensors: dict[str, np.ndarray]) -> tuple[anybit.QTensor, np.ndarray]:
    foreign = opened(path, quantization, tensors)
    stored = foreign.tensors["m.weight"]
    tensor = packed(stored.read())
    assert tensor.shape == stored.shape
    stored.release()
    return tensor, tensor.dequantize()


def ct(**weights: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {**WEIGHTS, **weights}, "input_activations": None}},
    }  # fmt: skip


def packed_stream(codes: np.ndarray, bits: int) -> np.ndarray:
    """int32[n, ceil(k b / 32)]: the layout as the documentation has it, bit by bit."""
    each = (codes[..., None] >> np.arange(bits)) & 1
    flat = each.reshape(codes.shape[0], -1)
    flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 32)))
    return np.ascontiguousarray(np.packbits(flat.astype(np.uint8), axis=1, bitorder="little")).view("<i4")


def packed_words(codes: np.ndarray, bits: int) -> np.ndarray:
    per = 32 // bits
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per))).reshape(codes.shape[0], -1, per).astype(np.uint64)
    return (padded << (np.arange(per, dtype=np.uint64) * np.uint64(bits))).sum(axis=-1).astype(np.uint32).view(np.int32)


# ---------------------------------------------------------------------------------------------- streams of bits
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 7, 8, 9, 31, 32, 33, 100])
def test_streams(bits: int, count: int) -> None:
    codes = RNG.integers(0, 1 << bits, (5, count))
    assert np.array_equal(stream(packed_stream(codes, bits).view(np.uint8), bits, count), codes)


# ---------------------------------------------------------------------------------------------- compressed-tensors
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("layout", [packed_stream, packed_words])
@pytest.mark.parametrize(
    ("strategy", "symmetric"), [("group", True), ("group", False), ("channel", True), ("channel", False), ("tensor", True)]
)
def test_pack_quantized(tmp_path: Path, bits: int, layout: Callable[..., np.ndarray], symmetric: bool, strategy: str) -> None:
    codes = RNG.integers(0, 1 << bits, (N, K))
    grid = {"group": (N, K // 64), "channel": (N, 1), "tensor": (1,)}[strategy]
    scales = RNG.uniform(0.01, 0.1, grid).astype(BF16)
    zeros = RNG.integers(0, 1 << bits, (N, grid[-1]))
    tensors = {"m.weight_packed": layout(codes, bits), "m.weight_scale": scales, "m.weight_shape": np.array([N, K])}
    if not symmetric:
        tensors["m.weight_zero_point"] = layout(zeros.T, bits).T
    group = {"group_size": 64} if strategy == "group" else {"group_size": None}
    tensor, got = values(tmp_path / "a", ct(num_bits=bits, symmetric=symmetric, strategy=strategy, **group), tensors)
    spread = np.broadcast_to(scales.astype(np.float32).reshape(grid if len(grid) > 1 else (1, 1)), (N, grid[-1]))
    zero = np.full((N, grid[-1]), 1 << (bits - 1)) if symmetric else zeros
    each = K // grid[-1]
    want = (codes - np.repeat(zero, each, axis=1)).astype(np.float32) * np.repeat(spread, each, axis=1)
    assert np.array_equal(got, want)
    block = {"group": "64", "channel": "channel", "tensor": "tensor"}[strategy]
    signed = f"int{bits}" if bits > 1 else "codebook_-1_0"
    assert tensor.format == anybit.Format(f"{signed}@{block}:bf16" if symmetric else f"uint{bits}@{block}:bf16+zp")


def compressors() -> Any:
    return pytest.importorskip("compressed_tensors.compressors")


def decompressed(form: str, weights: dict[str, Any], tensors: dict[str, np.ndarray]) -> np.ndarray:
    """compressed-tensors' own values, float32."""
    compressors()
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    kinds = {BF16: (np.int16, torch.bfloat16), ml_dtypes.float8_e4m3fn: (np.uint8, torch.float8_e4m3fn)}

    def tensor(array: np.ndarray) -> Any:
        for dtype, (bits, kind) in kinds.items():
            if array.dtype == dtype:
                return torch.from_numpy(array.view(bits).copy()).view(kind)
        return torch.from_numpy(np.ascontiguousarray(array).copy())

    state = {name.removeprefix("m."): tensor(array) for name, array in tensors.items()}
    made = BaseCompressor.get_value_from_registry(form).decompress(state, scheme)
    return made["weight"].float().numpy()


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_pack_quantized_as_its_own_reader(tmp_path: Path, bits: int, symmetric: bool) -> None:
    """compressed-tensors rounds the product to bfloat16, so ours, rounded once more, is the same."""
    codes, zeros = RNG.integers(0, 1 << bits, (N, K)), RNG.integers(0, 1 << bits, (N, K // 64))
    tensors = {
        "m.weight_packed": packed_stream(codes, bits), "m.weight_scale": RNG.uniform(0.01, 0.1, (N, K // 64)).astype(BF16),
        "m.weight_shape": np.array([N, K]), "m.weight_zero_point": np.ascontiguousarray(packed_stream(zeros.T, bits).T),
    }  # fmt: skip
    if symmetric:
        del tensors["m.weight_zero_point"]
    weights = {**WEIGHTS, "num_bits": bits, "symmetric": symmetric}
    _, got = values(tmp_path / "a", ct(**weights), tensors)
    assert np.array_equal(got.astype(BF16).astype(np.float32), decompressed("pack-quantized", weights, tensors))


def plain_case(form: str) -> tuple[dict[str, Any], dict[str, np.ndarray], str]:
    """(weights of the scheme, tensors, our format)."""
    integers = RNG.integers(-128, 128, (N, K)).astype(np.int8)
    floats = RNG.standard_normal((N, K)).astype(ml_dtypes.float8_e4m3fn)
    nibbles, scale = RNG.integers(0, 256, (N, K // 2)).astype(np.uint8), RNG.uniform(0.01, 0.1, (N, K)).astype(BF16)
    whole = {"type": "float", "num_bits": 8, "group_size": None}
    exponents = RNG.integers(120, 130, (N, K // 32)).astype(np.uint8)
    return {
        "int8-channel": ({"num_bits": 8, "strategy": "channel", "group_size": None}, {"m.weight": integers, "m.weight_scale": scale[:, :1]},
                         "int8@channel:bf16"),
        "int8-asymmetric": ({"num_bits": 8, "strategy": "channel", "group_size": None, "symmetric": False},
                            {"m.weight": integers, "m.weight_scale": scale[:, :1], "m.weight_zero_point": integers[:, :1]},
                            "int8@channel:bf16+zp=int8"),
        "fp8-tensor": ({**whole, "strategy": "tensor"}, {"m.weight": floats, "m.weight_scale": scale[0, :1].astype(np.float32)},
                       "fp8_e4m3fn@tensor:fp32"),
        "fp8-channel": ({**whole, "strategy": "channel"}, {"m.weight": floats, "m.weight_scale": scale[:, :1]}, "fp8_e4m3fn@channel:bf16"),
        "fp8-block": ({**whole, "strategy": "block", "block_structure": [8, 128]}, {"m.weight": floats, "m.weight_scale": scale[:3, :2]},
                      "fp8_e4m3fn@8x128:bf16"),
        "mxfp8": ({"type": "float", "num_bits": 8, "strategy": "group", "group_size": 32},
                  {"m.weight": floats, "m.weight_scale": exponents}, "fp8_e4m3fn@32:e8m0"),
        "mxfp4": ({"type": "float", "num_bits": 4, "strategy": "group", "group_size": 32},
                  {"m.weight_packed": nibbles, "m.weight_scale": exponents}, "fp4_e2m1@32:e8m0"),
        "nvfp4": ({"type": "float", "num_bits": 4, "strategy": "tensor_group", "group_size": 16},
                  {"m.weight_packed": nibbles, "m.weight_scale": RNG.uniform(1, 400, (N, K // 16)).astype(ml_dtypes.float8_e4m3fn),
                   "m.weight_global_scale": np.array([700.3], np.float32)}, "fp4_e2m1@16:fp8_e4m3fn@tensor:fp32"),
    }[form]  # fmt: skip


FORMS = ["int8-channel", "int8-asymmetric", "fp8-tensor", "fp8-channel", "fp8-block", "mxfp8", "mxfp4", "nvfp4"]
NAMES = {"i": "int-quantized", "f": "float-quantized", "mxfp8": "mxfp8-quantized", "mxfp4": "mxfp4-pack-quantized",
         "nvfp4": "nvfp4-pack-quantized"}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_as_their_own_reader(tmp_path: Path, form: str) -> None:
    weights, tensors, expected = plain_case(form)
    inputs = {"m.input_scale": np.ones(1, np.float32)}
    tensor, got = values(tmp_path / "a", ct(**weights), tensors | inputs)
    assert tensor.format == anybit.Format(expected)
    name = NAMES.get(form) or NAMES[form[0]]
    want = decompressed(name, {**WEIGHTS, **weights}, tensors)
    if form == "nvfp4":  # the reciprocal, the folded scale and two products: four roundings of 2^-24; theirs ends in bfloat16
        assert np.abs(got - want).max() <= np.abs(want).max() * 2**-8
        exact = _nvfp4(tensors)
        assert (np.abs(got - exact) <= np.abs(exact) * 4 * 2**-24).all()
    else:
        rounded = got if tensors["m.weight_scale"].dtype == np.float32 else got.astype(BF16).astype(np.float32)
        assert np.array_equal(rounded, want)


def _nvfp4(tensors: dict[str, np.ndarray]) -> np.ndarray:
    """float64, from the specification."""
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    nibbles = tensors["m.weight_packed"]
    codes = np.stack([nibbles & 15, nibbles >> 4], axis=-1).reshape(N, K)
    signed = table[codes & 7] * np.where(codes > 7, -1, 1)
    return signed * np.repeat(tensors["m.weight_scale"].astype(np.float64), 16, axis=1) / float(tensors["m.weight_global_scale"][0])


# ---------------------------------------------------------------------------------------------- GPTQ
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "checkpoint_format": "gptq"}


def gptq_case(bits: int, first: int, symmetric: bool, group: int = 64) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Tensors of AutoGPTQ's layout, and the values of its formula in float32."""
    groups = K // group
    codes = RNG.integers(0, 1 << bits, (K, N))
    zeros = (
        np.full((groups, N), 1 << (bits - 1)) if symmetric else RNG.integers(first, (1 << bits) + (first if bits < 8 else 0), (groups, N))
    )
    scales = RNG.uniform(0.01, 0.1, (groups, N)).astype(np.float16)
    tensors = {
        "m.qweight": packed_stream(codes.T, bits).T, "m.qzeros": packed_stream(zeros - first, bits), "m.scales": scales,
        "m.g_idx": (np.arange(K) // group).astype(np.int32), "m.bias": np.ones(N, np.float16),
    }  # fmt: skip
    rows = np.arange(K) // group
    want = (codes - zeros[rows]).astype(np.float32) * scales[rows].astype(np.float32)
    return tensors, want.T


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [64, -1])
def test_gptq(tmp_path: Path, bits: int, form: str, symmetric: bool, group: int) -> None:
    tensors, want = gptq_case(bits, int(form == "gptq"), symmetric, K if group == -1 else group)
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric, "desc_act": False, "checkpoint_format": form}
    tensor, got = values(tmp_path / "a", config, tensors)
    assert np.array_equal(got, want)
    assert (tensor.format.zero is None) == symmetric and tensor.format.element.bits == bits
    del tensors["m.g_idx"]
    assert np.array_equal(values(tmp_path / "b", config, tensors)[1], want), "g_idx may be absent"


@pytest.mark.parametrize("tool", ["gptq", "compressed-tensors"])
def test_inputs_in_another_order_are_permuted(tmp_path: Path, tool: str) -> None:
    """desc_act: column i has the scale of group g_idx[i]; here its columns come together, and the layer permutes its input."""
    groups = RNG.permutation(np.arange(K) // 64).astype(np.int32)
    codes, scales = RNG.integers(0, 16, (N, K)), RNG.uniform(0.01, 0.1, (N, K // 64)).astype(np.float16)
    want = (codes - 8).astype(np.float32) * scales.astype(np.float32)[:, groups]
    if tool == "gptq":
        config: dict[str, Any] = {**GPTQ, "desc_act": True, "checkpoint_format": "gptq_v2"}
        tensors = {
            "m.qweight": packed_stream(codes, 4).T, "m.qzeros": packed_stream(np.full((K // 64, N), 8), 4), "m.scales": scales.T.copy(),
            "m.g_idx": groups,
        }  # fmt: skip
    else:
        config = ct(group_size=64, num_bits=4)
        tensors = {
            "m.weight_packed": packed_stream(codes, 4), "m.weight_scale": scales, "m.weight_shape": np.array([N, K]),
            "m.weight_g_idx": groups,
        }  # fmt: skip
    source = opened(tmp_path / "a", config, tensors)
    order = source.tensors["m.weight"].read().order
    assert order is not None and np.array_equal(groups[order], np.arange(K) // 64)
    layer = coded_linear(source, "m.weight")
    assert np.array_equal(layer.weight.dequantize(), want[:, order])
    x = RNG.standard_normal((3, K)).astype(np.float32)
    assert np.array_equal(layer(x), layer.weight.matmul(x[:, order]))


def test_gptq_three_bits_by_the_words(tmp_path: Path) -> None:
    """The 10 + 1 + 10 + 1 + 10 codes of three words, as AutoGPTQ packs them."""
    codes = RNG.integers(0, 8, 32)
    words = [0, 0, 0]
    for i in range(10):
        words[0] |= int(codes[i]) << 3 * i
        words[1] |= int(codes[11 + i]) << 3 * i + 1
        words[2] |= int(codes[22 + i]) << 3 * i + 2
    words[0] |= (int(codes[10]) & 3) << 30
    words[1] |= int(codes[10]) >> 2 | (int(codes[21]) & 1) << 31
    words[2] |= int(codes[21]) >> 1
    column = np.array(words, np.uint32).view(np.int32)
    tensors = {
        "m.qweight": np.repeat(column[:, None], 32, axis=1), "m.qzeros": np.zeros((1, 3), np.int32),
        "m.scales": np.ones((1, 32), np.float16),
    }  # fmt: skip
    config = {"quant_method": "gptq", "bits": 3, "group_size": 32, "checkpoint_format": "gptq_v2"}
    _, got = values(tmp_path / "a", config, tensors)
    assert np.array_equal(got, np.repeat(codes[None].astype(np.float32), 32, axis=0))


# ---------------------------------------------------------------------------------------------- AWQ
def test_awq(tmp_path: Path) -> None:
    codes, zeros = RNG.integers(0, 16, (K, N)), RNG.integers(0, 16, (K // 64, N))
    scales = RNG.uniform(0.01, 0.1, (K // 64, N)).astype(np.float16)

    def pack(q: np.ndarray) -> np.ndarray:
        out = np.zeros((q.shape[0], q.shape[1] // 8), np.uint32)
        for column in range(out.shape[1]):
            for i in range(8):
                out[:, column] |= q[:, column * 8 + ORDER[i]].astype(np.uint32) << np.uint32(4 * i)
        return out.view(np.int32)

    tensors = {"m.qweight": pack(codes), "m.qzeros": pack(zeros), "m.scales": scales}
    config = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
    tensor, got = values(tmp_path / "a", config, tensors)
    rows = np.arange(K) // 64
    assert np.array_equal(got, ((codes - zeros[rows]).astype(np.float32) * scales[rows].astype(np.float32)).T)
    assert tensor.format == anybit.Format("uint4@64:fp16+zp") and ORDER == (0, 2, 4, 6, 1, 3, 5, 7)


# ---------------------------------------------------------------------------------------------- bitsandbytes
def bnb_case(kind: str, nested: bool) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Tensors of a 4-bit module, and bitsandbytes' values: map[q] * absmax in float32."""
    fp4 = np.array([0, 0.0052083333, 0.66666667, 1, 0.33333333, 0.5, 0.16666667, 0.25], np.float32)
    table = anybit.Format("nf4").element.values.astype(np.float32) if kind == "nf4" else np.concatenate([fp4, -fp4])
    flat = RNG.integers(0, 16, N * K)
    count = N * K // 64
    state: dict[str, Any] = {"quant_type": kind, "blocksize": 64, "dtype": "bfloat16", "shape": [N, K]}
    tensors = {"m.weight": (flat[::2] << 4 | flat[1::2]).astype(np.uint8)[:, None], "m.weight.quant_map": table}
    if nested:
        inner = np.sort(RNG.uniform(-1, 1, 256)).astype(np.float32)
        codes, outer = RNG.integers(0, 256, count).astype(np.uint8), RNG.uniform(0.01, 0.1, -(-count // 16)).astype(np.float32)
        state |= {"nested_blocksize": 16, "nested_dtype": "float32", "nested_offset": 0.123}
        tensors |= {"m.weight.absmax": codes, "m.weight.nested_quant_map": inner, "m.weight.nested_absmax": outer}
        absmax = inner[codes] * np.repeat(outer, 16)[:count] + np.float32(0.123)
    else:
        absmax = tensors["m.weight.absmax"] = RNG.uniform(0.01, 0.1, count).astype(np.float32)
    tensors[f"m.weight.quant_state.bitsandbytes__{kind}"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return tensors, (table[flat] * np.repeat(absmax, 64)).reshape(N, K)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False])
def test_bitsandbytes_four_bits(tmp_path: Path, kind: str, nested: bool) -> None:
    tensors, want = bnb_case(kind, nested)
    tensor, got = values(tmp_path / "a", {"quant_method": "bitsandbytes", "load_in_4bit": True}, tensors)
    assert np.array_equal(got, want)
    assert tensor.format.element.name.startswith("nf4" if kind == "nf4" else "codebook_") and tensor.format.element.bits == 4


def test_bitsandbytes_int8(tmp_path: Path) -> None:
    q, scb = RNG.integers(-127, 128, (N, K)).astype(np.int8), RNG.uniform(0.1, 2, N).astype(np.float32)
    tensors = {"m.weight": q, "m.SCB": scb, "m.weight_format": np.zeros((), np.uint8)}
    tensor, got = values(tmp_path / "a", {"quant_method": "bitsandbytes", "load_in_8bit": True}, tensors)
    want = q.astype(np.float32) * scb[:, None] * np.float32(7.874015718698502e-3)
    # q (scb / 127) against (q scb) / 127: two roundings each
    assert (np.abs(got - want) <= np.abs(want) * 4 * 2**-24).all() and tensor.format == anybit.Format("int8@channel:fp32")


# ---------------------------------------------------------------------------------------------- FP8 of model makers
@pytest.mark.parametrize("blocks", [True, False])
def test_fp8(tmp_path: Path, blocks: bool) -> None:
    w = RNG.standard_normal((N, K)).astype(ml_dtypes.float8_e4m3fn)
    scale = RNG.uniform(0.01, 0.1, (2, 2) if blocks else (1,)).astype(np.float32)
    config = {"quant_method": "fp8", **({"weight_block_size": [16, 128]} if blocks else {})}
    tensor, got = values(tmp_path / "a", config, {"m.weight": w, "m.weight_scale_inv" if blocks else "m.weight_scale": scale})
    spread = np.repeat(np.repeat(scale, 16, axis=0)[:N], 128, axis=1) if blocks else scale
    assert np.array_equal(got, w.astype(np.float32) * spread)
    assert tensor.format == anybit.Format("fp8_e4m3fn@16x128:fp32" if blocks else "fp8_e4m3fn@tensor:fp32")


# ---------------------------------------------------------------------------------------------- refused
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"}


@pytest.mark.parametrize(
    ("config", "change", "says"),
    [
        (GPTQ, {"m.g_idx": np.minimum(np.arange(K, dtype=np.int32) // 60, 3)}, r"'m\.g_idx' gives no 64 inputs to each group"),
        (GPTQ, {"m.g_idx": np.arange(K, dtype=np.int32) // 64 + 1}, r"'m\.g_idx' gives no 64 inputs"),
        (GPTQ, {"m.g_idx": -np.ones(K, np.int32)}, r"'m\.g_idx' gives no 64 inputs"),
        ({**GPTQ, "bits": 5}, {}, r"bits is 5; expected 2, 3, 4, 8"),
        ({**GPTQ, "bits": "4"}, {}, "bits is '4'"),
        ({**GPTQ, "checkpoint_format": "marlin"}, {}, "checkpoint_format 'marlin' is not known"),
        ({**GPTQ, "dynamic": {"-:lm_head": {}}}, {}, "dynamic"),
        ({**GPTQ, "group_size": 0}, {}, "group_size 0"),
        ({**GPTQ, "group_size": 128}, {}, r"'m\.qzeros' has shape \[4, 3\]; expected \[2, 3\]"),
        (GPTQ, {"m.qzeros": None}, r"'m\.qzeros' is missing"),
        (GPTQ, {"m.scales": np.ones((4, N), np.int8)}, r"'m\.scales' has dtype I8; expected F32 or F16 or BF16"),
        (GPTQ, {"m.weight": np.ones((N, K), np.float16)}, "has a plain weight beside the quantized one"),
        ({**AWQ, "version": "gemv"}, {}, "only gemm"),
        ({**AWQ, "bits": 8}, {}, "bits is 8; expected 4"),
        ({"quant_method": "bitsandbytes"}, {}, "no module is quantized that way"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, config: dict[str, Any], change: dict[str, np.ndarray | None], says: str) -> None:
    tensors: dict[str, Any] = {**gptq_case(4, 1, False)[0], **change}
    with pytest.raises(FileFormatError, match=says) as error:
        opened(tmp_path / "a", config, {name: array for name, array in tensors.items() if array is not None})
    assert str(error.value).startswith(str(tmp_path / "a"))


def test_a_zero_point_of_256_fits_no_byte(tmp_path: Path) -> None:
    tensors = gptq_case(8, 1, False)[0]
    tensors["m.qzeros"] = np.full_like(tensors["m.qzeros"], -1)
    foreign = opened(tmp_path / "a", {**GPTQ, "bits": 8}, tensors)
    with pytest.raises(FileFormatError, match="holds the zero point 256"):
        foreign.tensors["m.weight"].read()


@pytest.mark.parametrize(
    ("config", "change", "says"),
    [
        (ct() | {"transform_config": {"config_groups": {}}}, {}, "transform_config is set"),
        (ct() | {"kv_cache_scheme": {"num_bits": 8}}, {}, "kv_cache_scheme is set"),
        (ct() | {"config_groups": {}}, {}, "config_groups is no object with entries"),
        (ct(num_bits=9), {}, "num_bits is 9"),
        (ct(num_bits=8), {}, "fits no group"),
        (ct(strategy="attn_head"), {}, "by 'attn_head' are not known"),
        (ct(dynamic=True), {}, "dynamic weights"),
        (ct(strategy="block", block_structure=[0, 1]), {}, "expected two sizes"),
        (ct(group_size=32), {}, "fits no group"),
        (ct(symmetric=False), {}, "fits no group"),
        (ct(), {"m.weight_shape": np.array([N, K + 1])}, "fits no group"),
        (ct(), {"m.weight_shape": np.array([N + 1, K])}, r"says \[25, 256\], but 24 rows are stored"),
        (ct(), {"m.weight_shape": None}, r"'m\.weight_shape' is missing"),
        (ct(), {"m.weight_scale": None}, r"'m\.weight_scale' is missing"),
        (ct(), {"m.weight_g_idx": np.arange(K, dtype=np.int32) // 32}, r"'m\.weight_g_idx' gives no 64 inputs to each group"),
        (ct(), {"m.weight_g_idx": np.zeros(K - 1, np.int32)}, r"'m\.weight_g_idx' has shape \[255\]"),
        (ct(), {"m.weight": np.ones((N, K), np.float32)}, "plain weight beside"),
    ],
)
def test_compressed_tensors_refused(tmp_path: Path, config: dict[str, Any], change: dict[str, Any], says: str) -> None:
    tensors = {
        "m.weight_packed": packed_stream(RNG.integers(0, 16, (N, K)), 4), "m.weight_scale": np.ones((N, 4), BF16),
        "m.weight_shape": np.array([N, K]), **change,
    }  # fmt: skip
    with pytest.raises(FileFormatError, match=says):
        opened(tmp_path / "a", config, {name: array for name, array in tensors.items() if array is not None})


def test_narrow_rows_that_two_layouts_fit(tmp_path: Path) -> None:
    tensors = {"m.weight_packed": np.zeros((N, 2), np.int32), "m.weight_scale": np.ones((N, 1), BF16), "m.weight_shape": np.array([N, 15])}
    with pytest.raises(FileFormatError, match="rows of 15 codes of 3 bits could be packed in two ways"):
        opened(tmp_path / "a", ct(num_bits=3, strategy="channel", group_size=None), tensors)


def test_bitsandbytes_blocks_over_rows(tmp_path: Path) -> None:
    tensors = bnb_case("nf4", False)[0]
    state = {"shape": [N * 2, K // 2 + 0], "blocksize": 96}
    tensors["m.weight.quant_state.bitsandbytes__nf4"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    with pytest.raises(FileFormatError, match="blocks of 96 values reach over rows of 128"):
        opened(tmp_path / "a", {"quant_method": "bitsandbytes"}, tensors)


def cases() -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """One valid checkpoint of each kind."""
    packed4 = {
        "m.weight_packed": packed_stream(RNG.integers(0, 16, (N, K)), 4), "m.weight_scale": np.ones((N, 4), BF16),
        "m.weight_shape": np.array([N, K]), "m.weight_zero_point": np.ascontiguousarray(packed_stream(np.ones((4, N), np.int64), 4).T),
    }  # fmt: skip
    awq = {
        "m.qweight": np.zeros((K, N // 8), np.int32),
        "m.qzeros": np.zeros((4, N // 8), np.int32),
        "m.scales": np.ones((4, N), np.float16),
    }
    int8 = {"m.weight": np.ones((N, K), np.int8), "m.SCB": np.ones(N, np.float32)}
    fp8 = {"m.weight": np.ones((N, K), ml_dtypes.float8_e4m3fn), "m.weight_scale_inv": np.ones((2, 2), np.float32)}
    return [
        (ct(symmetric=False), packed4), (GPTQ, gptq_case(4, 1, False)[0]), (GPTQ | {"bits": 3}, gptq_case(3, 1, True)[0]), (AWQ, awq),
        ({"quant_method": "bitsandbytes"}, bnb_case("nf4", True)[0]), ({"quant_method": "bitsandbytes"}, int8),
        ({"quant_method": "fp8", "weight_block_size": [16, 128]}, fp8), *((ct(**c[0]), c[1]) for c in map(plain_case, FORMS)),
    ]  # fmt: skip


def test_changed_checkpoints_are_read_or_refused(tmp_path: Path) -> None:
    """Random changes of one tensor or one value of the configuration: the one exception, or a tensor."""
    rng = np.random.default_rng(0)
    strange = [None, True, 0, -1, 1, 3, 16, 1 << 31, 1 << 62, 1.5, "", "x", "channel", [], [0, 0], [1, 1 << 40], {}, {"a": 1}]

    def holders(value: Any) -> list[tuple[Any, Any]]:
        inside = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
        return [(value, key) for key, _ in inside] + [pair for _, item in inside for pair in holders(item)]

    found, prepared = {"read": 0, "refused": 0}, cases()
    for number in range(600):
        config, tensors = prepared[number % len(prepared)]
        config, tensors = json.loads(json.dumps(config)), dict(tensors)
        name = list(tensors)[rng.integers(len(tensors))]
        array = tensors[name]
        choice = rng.integers(6)
        if choice == 0:
            holder, key = holders(config)[rng.integers(len(holders(config)))]
            holder[key] = strange[rng.integers(len(strange))] if key != "quant_method" else holder[key]
        elif choice == 1:
            del tensors[name]
        elif choice == 2:
            tensors[name] = array[: rng.integers(0, array.shape[0])] if array.ndim else array
        elif choice == 3:
            tensors[name] = np.zeros(array.shape, [np.int8, np.uint8, np.int32, np.float32, np.int64, np.float16][rng.integers(6)])
        elif choice == 4:
            tensors[name] = array.reshape(-1) if rng.integers(2) else array[None]
        else:
            flat = np.ascontiguousarray(array).view(np.uint8).reshape(-1).copy()
            flat[rng.integers(flat.size)] = rng.integers(256)
            tensors[name] = flat.view(array.dtype).reshape(array.shape)
        try:
            foreign = opened(tmp_path / "a", config, tensors)
            for stored in foreign.tensors.values():
                packed(stored.read())
            found["read"] += 1
        except FileFormatError as error:
            assert str(error).startswith(str(tmp_path / "a")), error
            found["refused"] += 1
    assert min(found.values()) > 100


def test_a_map_of_zeros(tmp_path: Path) -> None:
    tensors = bnb_case("fp4", False)[0]
    tensors["m.weight.quant_map"] = np.zeros(16, np.float32)
    foreign = opened(tmp_path / "a", {"quant_method": "bitsandbytes"}, tensors)
    with pytest.raises(FileFormatError, match=r"'m\.weight\.quant_map' is no list of values"):
        foreign.tensors["m.weight"].read()


def test_unknown_methods_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a", {"quant_method": "aqlm"}, {"m.weight": np.ones((2, 2), np.float32)})
    with pytest.raises(FileFormatError, match="quant_method 'aqlm' is not read"):
        anybit.load(tmp_path / "a")


# ---------------------------------------------------------------------------------------------- whole models
def test_a_model_runs_on_the_codes_and_saves_them(tmp_path: Path) -> None:
    """A tiny llama whose projections are GPTQ: the logits of the same codes quantized here, and a checkpoint that keeps them."""
    from anybit.io.inspect import inspect_model
    from anybit.models import describe

    config: dict[str, Any] = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    plain: dict[str, np.ndarray] = {}
    stored: dict[str, np.ndarray] = {}
    orders: dict[Any, np.ndarray] = {}
    for tensor in describe(config).tensors:
        array = (RNG.standard_normal(tensor.shape) * 0.2 + (tensor.role == "norm")).astype(np.float16)
        if tensor.role != "linear":
            plain[tensor.name] = stored[tensor.name] = array
            continue
        n, k = tensor.shape
        codes, zeros = RNG.integers(0, 16, (k, n)), RNG.integers(1, 17, (k // 32, n))
        scales = RNG.uniform(0.01, 0.03, (k // 32, n)).astype(np.float16)
        module = tensor.name.removesuffix(".weight")
        stored |= {f"{module}.qweight": packed_stream(codes.T, 4).T, f"{module}.qzeros": packed_stream(zeros - 1, 4)}
        stored[f"{module}.bias"] = np.zeros(n, np.float16)  # as AutoGPTQ writes for every module
        rows = np.arange(k) // 32
        if module.startswith("model.layers.1"):  # by desc_act
            rows = orders.setdefault(k if "down" in module else module.rpartition(".")[0], RNG.permutation(rows))
        stored |= {f"{module}.scales": scales, f"{module}.g_idx": rows.astype(np.int32)}
        plain[tensor.name] = ((codes - zeros[rows]) * scales[rows].astype(np.float32)).T.astype(np.float32)
    for path, tensors, extra in ((tmp_path / "gptq", stored, GPTQ | {"group_size": 32}), (tmp_path / "plain", plain, None)):
        write(path, {}, tensors)
        (path / "config.json").write_text(json.dumps(config | ({"quantization_config": extra} if extra else {})))
    assert inspect_model(tmp_path / "gptq").kind == "gptq"
    coded, dense = anybit.load(tmp_path / "gptq"), anybit.load(tmp_path / "plain")
    ids = list(range(3, 60))
    want = dense.logits(ids)
    # the order of float32 operations differs: about 1e-6 a product, a dozen products deep
    assert np.abs(coded.logits(ids) - want).max() <= 2e-5 * np.ptp(want)
    assert len(coded.quantized) == 14 and {str(coded.linears[name].weight.format) for name in coded.quantized} == {"uint4@32:fp16+zp=uint5"}
    stored["model.layers.0.mlp.up_proj.bias"][3] = 1
    write(tmp_path / "biased", {}, stored)
    (tmp_path / "biased" / "config.json").write_text(json.dumps(config | {"quantization_config": GPTQ | {"group_size": 32}}))
    with pytest.raises(FileFormatError, match=r"'model\.layers\.0\.mlp\.up_proj\.bias' is not part of a llama model"):
        anybit.load(tmp_path / "biased")
    coded.save(tmp_path / "saved")
    again = anybit.load(tmp_path / "saved")
    assert again.logits(ids).tobytes() == coded.logits(ids).tobytes() and again.nbytes == coded.nbytes


def test_numbers_that_are_none(tmp_path: Path) -> None:
    from anybit.errors import NonFiniteError
    from anybit.foreign import coded_tensor

    weights, tensors, _ = plain_case("fp8-tensor")
    tensors["m.weight"].view(np.uint8)[3, 5] = 0x7F
    with pytest.raises(NonFiniteError, match=r"'m\.weight' holds 1 non-finite value\(s\) in part codes"):
        coded_tensor(opened(tmp_path / "a", ct(**weights), tensors), "m.weight")
    weights, tensors, _ = plain_case("int8-channel")
    tensors["m.weight_scale"] = tensors["m.weight_scale"].copy()
    tensors["m.weight_scale"][:2] = np.inf
    with pytest.raises(NonFiniteError, match=r"'m\.weight' holds 2 non-finite value\(s\) in part scale\.0"):
        coded_tensor(opened(tmp_path / "b", ct(**weights), tensors), "m.weight")


def test_sizes_that_allocate(tmp_path: Path) -> None:
    """A description cannot ask for more memory than its tensors have."""
    tensors, want = bnb_case("nf4", True)
    name = "m.weight.quant_state.bitsandbytes__nf4"
    state = json.loads(tensors[name].tobytes()) | {"nested_blocksize": 1 << 40}
    tensors[name] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    tensors["m.weight.nested_absmax"] = np.ones(1, np.float32)
    assert values(tmp_path / "a", {"quant_method": "bitsandbytes"}, tensors)[1].shape == want.shape
    with pytest.raises(FileFormatError, match=r"'m\.qweight' has shape \[0, 24\]: it is empty"):
        opened(tmp_path / "b", {**GPTQ, "group_size": -1}, {"m.qweight": np.zeros((0, N), np.int32)})
