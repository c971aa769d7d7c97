"""Checkpoints of compressed-tensors, GPTQ, AWQ, bitsandbytes and FP8: their quantization_config, and tensors of other shapes and dtypes."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from anybit.io.foreign import open_foreign
from anybit.io.packed import packed
from anybit.io.safetensors import DTYPES
from malformed.json_damage import damage, damage_bytes, dump, parse

N, K = 16, 64
Tensors = dict[str, tuple[str, list[int], bytes]]


def _random(dtype: str, *shape: int) -> tuple[str, list[int], bytes]:
    size = int(np.prod(shape, dtype=np.int64)) * DTYPES[dtype].itemsize
    if dtype in ("F16", "BF16", "F32"):
        one = {"F16": b"\x00\x2c", "BF16": b"\x80\x3d", "F32": b"\x00\x00\x80\x3d"}[dtype]
        return dtype, list(shape), one * (size // len(one))
    return dtype, list(shape), bytes(i * 7 % 120 for i in range(size))


def _ct(group: dict[str, Any], form: str = "pack-quantized") -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], **group}},
    }


@cache
def bases() -> tuple[tuple[dict[str, Any], Tensors], ...]:
    four = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    shape = ("I64", [2], np.array([N, K]).tobytes())
    state = {"shape": [N, K], "blocksize": 32, "nested_blocksize": 256, "nested_offset": 0.25, "quant_type": "nf4", "dtype": "bfloat16"}
    text = json.dumps(state).encode()
    nf4 = np.array([-1, -0.7, -0.5, -0.4, -0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.55, 0.7, 1], np.float32)
    return (
        (
            _ct({"weights": four, "input_activations": None}),
            {"m.weight_packed": _random("I32", N, K // 8), "m.weight_scale": _random("BF16", N, K // 32), "m.weight_shape": shape},
        ),
        (
            _ct({"weights": {**four, "symmetric": False}}),
            {
                "m.weight_packed": _random("I32", N, K // 8),
                "m.weight_scale": _random("F16", N, K // 32),
                "m.weight_shape": shape,
                "m.weight_zero_point": _random("I32", N // 8, K // 32),
            },
        ),
        (
            _ct({"weights": {**four, "num_bits": 8, "type": "float", "strategy": "block", "block_structure": [8, 32]}}, "float-quantized"),
            {"m.weight": _random("F8_E4M3", N, K), "m.weight_scale": _random("F32", N // 8, K // 32), "m.input_scale": _random("F32", 1)},
        ),
        (
            _ct({"weights": {**four, "type": "float", "strategy": "tensor_group", "group_size": 16}}, "nvfp4-pack-quantized"),
            {
                "m.weight_packed": _random("U8", N, K // 2),
                "m.weight_scale": _random("F8_E4M3", N, K // 16),
                "m.weight_global_scale": _random("F32", 1),
            },
        ),
        (
            {
                "quant_method": "gptq",
                "bits": 4,
                "group_size": 32,
                "desc_act": False,
                "sym": True,
                "checkpoint_format": "gptq",
                "damp_percent": 0.01,
            },
            {
                "m.qweight": _random("I32", K // 8, N),
                "m.qzeros": _random("I32", K // 32, N // 8),
                "m.scales": _random("F16", K // 32, N),
                "m.g_idx": ("I32", [K], (np.arange(K, dtype=np.int32) // 32).tobytes()),
            },
        ),
        (
            {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
            {"m.qweight": _random("I32", K, N // 8), "m.qzeros": _random("I32", K // 32, N // 8), "m.scales": _random("F16", K // 32, N)},
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
            {
                "m.weight": _random("U8", N * K // 2, 1),
                "m.weight.absmax": _random("U8", N * K // 32),
                "m.weight.quant_map": ("F32", [16], nf4.tobytes()),
                "m.weight.nested_quant_map": _random("F32", 256),
                "m.weight.nested_absmax": _random("F32", 1),
                "m.weight.quant_state.bitsandbytes__nf4": ("U8", [len(text)], text),
            },
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_8bit": True},
            {"m.weight": _random("I8", N, K), "m.SCB": _random("F32", N), "m.weight_format": ("U8", [], b"\0")},
        ),
        (
            {"quant_method": "fp8", "weight_block_size": [8, 32], "activation_scheme": "dynamic"},
            {"m.weight": _random("F8_E4M3", N, K), "m.weight_scale_inv": _random("F32", N // 8, K // 32)},
        ),
    )


def _directory(config: str, tensors: Tensors) -> dict[str, bytes]:
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    body = b"".join(data for _, _, data in tensors.values())
    return {"config.json": config.encode("utf-8", "surrogatepass"), "model.safetensors": len(text).to_bytes(8, "little") + text + body}


def _config(quantization: Any) -> Any:
    return {"model_type": "llama", "quantization_config": quantization}


def base() -> dict[str, bytes]:
    quantization, tensors = bases()[0]
    return _directory(json.dumps(_config(quantization)), tensors)


def _tensor(tensors: Tensors, rng: random.Random) -> str:
    name = rng.choice(list(tensors))
    dtype, shape, data = tensors[name]
    kind = rng.randrange(6)
    if kind == 0:
        tensors.pop(name)
        return f"without {name}"
    if kind == 1:
        other = rng.choice(
            (
                name + "x",
                "n." + name,
                name.replace("weight", "Weight"),
                "m.weight",
                "m.weight_scale",
                "m.weight_g_idx",
                "m.qweight",
                "m.SCB",
            )
        )
        tensors[other] = tensors[name] if rng.random() < 0.5 else tensors.pop(name)
        return f"{name} as {other}"
    if kind == 2:  # another dtype and shape over the same bytes
        choices = [d for d in DTYPES if len(data) % DTYPES[d].itemsize == 0]
        dtype = rng.choice(choices or ["U8"])
        shape = [len(data) // DTYPES[dtype].itemsize]
    elif kind == 3:  # other axes
        shape = rng.choice((shape[::-1], [1, *shape], [*shape, 1], [len(data) // DTYPES[dtype].itemsize], [0, *shape]))
        data = b"" if 0 in shape else data
    elif kind == 4:  # other sizes
        shape = [max(0, n + rng.choice((-n, -1, 1, 7, n))) if rng.random() < 0.6 else n for n in shape]
        data = _random(dtype, *shape)[2]
    else:  # hostile values
        pattern = rng.choice((b"\xff", b"\0", b"\x7f", rng.randbytes(8)))
        data = (pattern * len(data))[: len(data)]
    tensors[name] = (dtype, shape, data)
    return f"{name}: {dtype} {shape}"


def variant(rng: random.Random) -> tuple[str, dict[str, bytes]]:
    quantization, tensors = rng.choice(bases())
    tensors, kind = dict(tensors), rng.random()
    tree = parse(json.dumps(_config(quantization)))
    if kind < 0.5:
        what = damage(tree, rng, ("quantization_config",))
    elif kind < 0.55:
        what = damage(tree, rng)
    elif kind < 0.9:
        what = "; ".join(_tensor(tensors, rng) for _ in range(rng.choice((1, 1, 2))) if tensors)
    state = "m.weight.quant_state.bitsandbytes__nf4"
    if kind >= 0.9:
        if state not in tensors:
            quantization, tensors = bases()[6][0], dict(bases()[6][1])
            tree = parse(json.dumps(_config(quantization)))
        inner = parse(tensors[state][2])
        what = damage(inner, rng)
        data = dump(inner).encode("utf-8", "surrogatepass")
        if kind > 0.97:
            what, data = damage_bytes(tensors[state][2], rng)
        tensors[state] = ("U8", [len(data)], data)
    return what, _directory(dump(tree), tensors)


def read(folder: Path) -> None:
    """Opens the directory and reads every tensor in it."""
    foreign = open_foreign(folder)
    if foreign is None:
        from anybit.io.hf import open_model

        open_model(folder).close()
        return
    for stored in foreign.tensors.values():
        packed(stored.read()).dequantize()
        stored.release()
    foreign.close()
