"""Writes language models as GGUF with gguf-py: names, order of rows and fields as llama.cpp's converter has them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from anybit.io.gguf.kind import KINDS

MODULES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
QUANTIZES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "TQ1_0", "TQ2_0")
"""Types that gguf-py can make of floats."""


def renamed(name: str) -> str:
    base, _, part = name.rpartition(".")
    if base in WHOLE:
        return f"{WHOLE[base]}.{part}"
    _, _, layer, module = base.split(".", 3)
    return f"blk.{layer}.{MODULES[module]}.{part}"


def permuted(w: np.ndarray, heads: int) -> np.ndarray:
    """The converter's own formula."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def random_blocks(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """uint8 rows of a type that gguf-py cannot make: random codes, scales such that the weights are about 0.05."""
    kind, rng = KINDS[name], np.random.default_rng(seed)
    blocks = np.frombuffer(rng.bytes(shape[0] * shape[1] // kind.weights * kind.dtype.itemsize), kind.dtype).copy()
    largest = {"Q2_K": 15 * 3, "Q3_K": 31 * 4, "Q4_K": 63 * 15, "Q5_K": 63 * 31, "Q6_K": 127 * 31, "IQ4_NL": 127, "IQ4_XS": 31 * 127}
    largest |= dict.fromkeys(("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S"), 80) | {"IQ3_XXS": 240, "IQ3_S": 465}
    for field in ("d", "dmin"):
        if field in (kind.dtype.names or ()) and kind.dtype[field] == np.dtype("<u2"):
            blocks[field] = np.float16(0.1 / largest[name]).view(np.uint16)
    if name == "IQ1_M":  # the float16 0.00167 is 0x16d7: a nibble in each of four words
        words = blocks["scales"].view("<u2")
        words[...] = words & 0x0FFF | np.array([0x7000, 0xD000, 0x6000, 0x1000], np.uint16)
    if name == "NVFP4":
        blocks["d"] = rng.integers(8, 12, blocks["d"].shape)
    return blocks.view(np.uint8).reshape(shape[0], -1)


def write_gguf(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], kind: Callable[[str], str] = lambda name: "F32",
    extra: Callable[[Any], None] = lambda writer: None, order: str = "<",
) -> dict[str, np.ndarray]:  # fmt: skip
    """Writes a model; gives its float32 weights as gguf-py reads them, under the old names in the old order."""
    import gguf

    arch = config["model_type"]
    w = gguf.GGUFWriter(path, arch, endianess=gguf.GGUFEndian.LITTLE if order == "<" else gguf.GGUFEndian.BIG)
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    w.add_context_length(config["max_position_embeddings"])
    w.add_embedding_length(config["hidden_size"])
    w.add_block_count(config["num_hidden_layers"])
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_layer_norm_rms_eps(config["rms_norm_eps"])
    w.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    w.add_key_length(config["head_dim"])
    w.add_value_length(config["head_dim"])
    w.add_rope_dimension_count(config["head_dim"])
    extra(w)
    seen = {}
    for seed, (name, array) in enumerate(tensors.items()):
        reorder = arch == "llama" and ".q_proj." in name, arch == "llama" and ".k_proj." in name
        stored = permuted(array, heads) if reorder[0] else permuted(array, kv) if reorder[1] else array
        chosen = kind(name) if array.ndim > 1 else "F32"
        qtype = gguf.GGMLQuantizationType[chosen]
        if chosen in QUANTIZES:
            raw = gguf.quantize(np.ascontiguousarray(stored, np.float32), qtype)
        else:
            raw = random_blocks(chosen, array.shape, seed)
        w.add_tensor(renamed(name), raw, raw_dtype=qtype)
        values = np.asarray(gguf.dequantize(raw, qtype), np.float32).reshape(array.shape)
        rows = array.shape[0]
        if any(reorder):  # row i of the model lies where the converter's formula puts it
            place = permuted(np.arange(rows), heads if reorder[0] else kv)
            back = np.empty_like(values)
            back[place] = values
            values = back
        seen[name] = values
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return seen


def bpe_fields(tokenizer: Mapping[str, Any], pre: str) -> Callable[[Any], None]:
    """Fields of a byte-level BPE tokenizer from its tokenizer.json."""

    def extra(w: Any) -> None:
        model = tokenizer["model"]
        added = {item["id"]: item for item in tokenizer["added_tokens"]}
        words = dict(model["vocab"]) | {item["content"]: index for index, item in added.items()}
        listed = sorted(words, key=words.__getitem__)
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre(pre)
        w.add_token_list(listed)
        w.add_token_types([3 if i in added and added[i]["special"] else 1 for i in range(len(listed))])
        w.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])

    return extra


def hf_directory(path: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Path:
    """The same model as a Hugging Face directory of float32."""
    import safetensors.numpy

    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}, path / "model.safetensors"
    )
    return path
