"""Hugging Face's `quantization_config` as a recipe of this tool: that of compressed-tensors, gptq, awq, bitsandbytes and fp8.

A configuration says what a checkpoint stores, and little of how its codes were chosen: where it is silent, the method's own default is
taken and said. Keys that only concern a runtime are listed as not taken over; what cannot be had here is refused with its line.

Source: transformers, utils/quantization_config.py; AutoGPTQ's and GPTQModel's quantize_config, AutoAWQ's quant_config.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from anybit.recipes.given import Given, Lines
from anybit.recipes.llmcompressor import kv_cache
from anybit.recipes.schemes import EMBEDDING, Scheme, _ended, rules, scheme_of, static_steps

_RUNTIME = "it concerns the runtime or how the checkpoint is packed"
_TEXT = "calibration text is given by --calibration"


def recipe(value: Any, file: str, lines: Lines) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The values of a recipe of this tool, for `parse_recipe`, and what was not taken over. `value`: a config.json, or its
    quantization_config alone."""
    top = Given(value, file, lines)
    given = top.inside("quantization_config") if "quantization_config" in top else top
    if given is None or "quant_method" not in given:
        raise top.error((), "neither a quantization_config nor a config.json with one: 'quant_method' is missing")
    method = given.take("quant_method", str)
    if method not in _METHODS:
        raise given.refuse("quant_method", f"there is {', '.join(_METHODS)}")
    found = {"version": 1, "about": f"imported from a quantization_config of {method}", **_METHODS[method](given)}
    given.done()
    return found, tuple(top.notes)


def _pass(given: Given, why: str, *keys: str) -> None:
    for key in keys:
        given.note(key, why)


def _compressed(given: Given) -> dict[str, Any]:
    ignore, groups = given.texts("ignore"), given.inside("config_groups")
    for key in ("sparsity_config", "transform_config"):
        given.only(key, [{}], "no recipe here stands for it; leave it out")
    cache = given.inside("kv_cache_scheme")
    _pass(given, _RUNTIME, "format", "quantization_status", "version", "global_compression_ratio")
    if not groups:
        raise given.error(("config_groups",), "at least one group is needed")
    schemes = []
    for _, inside in groups.each():
        scheme = scheme_of(inside)
        scheme.ignore = ignore
        schemes.append(scheme)
    given.notes.append("the file does not say how codes were chosen: rounded to nearest here, except where weights have an actorder (gptq)")
    made = rules(schemes, lambda s: {"gptq": {"order": s.order}} if s.order else "nearest", given)
    found = {"source": "compressed-tensors", "steps": static_steps(schemes, given), "rules": made}
    return found | ({"kv_cache": kv_cache(cache)} if cache is not None else {})


def _skipped(given: Given, *keys: str) -> str:
    """The beginning of a pattern that leaves out the embedding and modules named by some keys: each name is some whole parts of a path."""
    names = [name for key in keys for name in given.texts(key)]
    return f"^{EMBEDDING}" + "".join(rf"(?!(?:.*\.)?{re.escape(name.strip('.'))}\.)" for name in names)


def _block(given: Given, size: int, key: str) -> str:
    if size != -1 and not 1 <= size < 1 << 24:
        raise given.refuse(key, "it must be a block's length, or -1 for a whole row")
    return "channel" if size == -1 else str(size)


def _gptq_format(given: Given, bits: int, size: int, symmetric: bool) -> str:
    if not 2 <= bits <= 8:
        raise given.refuse("bits", "2 to 8 bits")
    block = _block(given, size, "group_size")
    return f"int{bits}@{block}:fp16+scale=full" if symmetric else f"uint{bits}@{block}:fp16+zp"


def _gptq_order(given: Given, ordered: bool, fixed: bool) -> str:
    if ordered and not fixed:
        raise given.refuse("desc_act", "columns in another order at run time are not stored here; take static_groups: true with it")
    return "activation" if ordered else "natural"


def _gptq(given: Given) -> dict[str, Any]:
    bits, size = given.take("bits", int, 4), given.take("group_size", int, 128)
    symmetric, fixed = given.take("sym", bool, True), given.take("static_groups", bool, False)
    order = _gptq_order(given, given.take("desc_act", bool, False), fixed)
    damp = given.take("damp_percent", (int, float), 0.01)
    if not 0 < damp <= 10:
        raise given.refuse("damp_percent", "it lies above 0, and not above 10")
    given.only("is_marlin_format", [False], "Marlin's packing is of its own kernels")
    given.only("mse", [0, 0.0, False], "its search of scales differs; write scale=mse in a recipe of this tool")
    rounding = {"gptq": {"damp": float(damp), "order": order, "importance": False}}
    true_sequential = given.take("true_sequential", bool, True)
    head = given.take("lm_head", bool, False)
    begin = _skipped(given, "modules_in_block_to_skip") + ("" if head else r"(?!lm_head\.)")
    given.only("modules_in_block_to_quantize", [], "write rules in a recipe of this tool")
    given.only("block_name_to_quantize", ["model.layers"], "other blocks have other names here")
    _pass(given, _TEXT, "dataset", "tokenizer", "model_seqlen", "batch_size", "pad_token_id")
    _pass(given, _RUNTIME, "checkpoint_format", "pack_dtype", "use_exllama", "exllama_config", "max_input_length", "use_cuda_fp16",
          "backend", "meta", "model_name_or_path", "model_file_base_name", "cache_block_outputs", "module_name_preceding_first_block",
          "disable_exllama", "damp_auto_increment", "auto_increment_damp", "version")  # fmt: skip
    given.only("rotation", [], "write a recipe of this tool with rotate_residual")
    given.only("gptaq", [False], "write a recipe of this tool with the rounding gptaq")
    given.only("act_group_aware", [False], "its order of columns differs")
    found = []
    dynamic = given.inside("dynamic")
    for pattern in dynamic.value if dynamic is not None else ():
        assert dynamic is not None
        plain = pattern.removeprefix("+:").removeprefix("-:")
        match = f"{begin}{_ended(plain, dynamic, pattern)}" + r".*\.weight$"
        other = dynamic.inside(pattern) or Given({}, given.file, given.lines, (*dynamic.keys, pattern), given.notes)
        if pattern.startswith("-:"):
            other.done()
            found.append({"match": match, "keep": True})
            continue
        own = _gptq_format(other, other.take("bits", int, bits), other.take("group_size", int, size), other.take("sym", bool, symmetric))
        turn = _gptq_order(other, other.take("desc_act", bool, order == "activation"), fixed or order == "activation")
        other.done()
        found.append({"match": match, "format": own, "rounding": {"gptq": rounding["gptq"] | {"order": turn}}})
    found.append({"match": begin + r".*\.weight$", "format": _gptq_format(given, bits, size, symmetric), "rounding": rounding})
    sequential = "group" if true_sequential else "block"
    return {"source": "GPTQ, arXiv 2210.17323", "calibration": {"sequential": sequential}, "rules": found}


def _awq(given: Given) -> dict[str, Any]:
    bits = given.take("bits", int, given.take("w_bit", int, 4))
    size = given.take("group_size", int, given.take("q_group_size", int, 128))
    zero = given.take("zero_point", bool, True)
    if not 2 <= bits <= 8:
        raise given.refuse("bits", "2 to 8 bits")
    block = _block(given, size, "group_size")
    begin = _skipped(given, "modules_to_not_convert") + r"(?!lm_head\.)"
    _pass(given, _RUNTIME, "version", "backend", "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "exllama_config", "pack_dtype")
    given.notes.append("the file does not say how scales were searched: both forms' product (duo) and clipping, AutoAWQ's defaults")
    form = f"uint{bits}@{block}:fp16+zp" if zero else f"int{bits}@{block}:fp16"
    step = {"awq": {"duo": True, "clip": True}}
    return {"source": "AWQ, arXiv 2306.00978", "steps": [step], "rules": [{"match": begin + r".*\.weight$", "format": form}]}


def _bitsandbytes(given: Given) -> dict[str, Any]:
    eight, four = (given.take(key, bool, False) for key in ("load_in_8bit", "load_in_4bit"))
    eight, four = given.take("_load_in_8bit", bool, eight), given.take("_load_in_4bit", bool, four)
    if eight == four:
        raise given.error((), "one of load_in_8bit and load_in_4bit must be true")
    begin = _skipped(given, "llm_int8_skip_modules") + ("" if given.value.get("llm_int8_skip_modules") else r"(?!lm_head\.)")
    threshold = given.take("llm_int8_threshold", (int, float), 6.0)
    double, kind = given.take("bnb_4bit_use_double_quant", bool, False), given.take("bnb_4bit_quant_type", str, "fp4", ("fp4", "nf4"))
    _pass(given, _RUNTIME, "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage", "llm_int8_enable_fp32_cpu_offload")
    given.only("llm_int8_has_fp16_weight", [False], "weights are stored in 8 bits")
    match = begin + r".*\.weight$"
    if eight:
        steps = [{"outlier_columns": {"threshold": float(threshold)}}] if threshold > 0 else []
        return {"source": "LLM.int8(), arXiv 2208.07339", "steps": steps,
                "rules": [{"match": match, "format": "int8@channel", "act": "int8_sym@token"}]}  # fmt: skip
    if kind == "fp4":
        raise given.refuse("bnb_4bit_quant_type", "this FP4 is a list of values of its own, no E2M1; take nf4")
    if double:
        given.notes.append("bnb_4bit_use_double_quant: scales are quantized as they are, bitsandbytes takes their mean off before")
    form = "nf4@64:dyn8@16384:fp32" if double else "nf4@64:fp32"
    return {"source": "QLoRA, arXiv 2305.14314", "rules": [{"match": match, "format": form}]}


def _fp8(given: Given) -> dict[str, Any]:
    given.only("fmt", ["e4m3"], "E4M3 alone")
    scheme, size = given.take("activation_scheme", str, "dynamic", ("dynamic", "static")), given.take("weight_block_size", list)
    if size is not None and (len(size) != 2 or not all(type(n) is int and 0 < n < 1 << 24 for n in size)):
        raise given.refuse("weight_block_size", "it must be two sizes")
    if size is not None and scheme == "static":
        raise given.refuse("activation_scheme", "static scales are for whole tensors; blocks have dynamic ones")
    begin = _skipped(given, "modules_to_not_convert", "ignored_layers") + r"(?!lm_head\.)"
    _pass(given, _RUNTIME, "scale_fmt", "dequantize")
    form = f"fp8_e4m3fn@{size[0]}x{size[1]}:fp32" if size else "fp8_e4m3fn@tensor"
    act = f"fp8_e4m3fn@{size[1]}:fp32" if size else f"fp8_e4m3fn@{'tensor' if scheme == 'static' else 'token'}"
    steps = static_steps([Scheme(form, act, scheme == "static")], given)
    return {"source": "FP8, arXiv 2209.05433", "steps": steps, "rules": [{"match": begin + r".*\.weight$", "format": form, "act": act}]}


_METHODS: dict[str, Callable[[Given], dict[str, Any]]] = {
    "compressed-tensors": _compressed, "gptq": _gptq, "awq": _awq, "bitsandbytes": _bitsandbytes, "fp8": _fp8,
}  # fmt: skip
