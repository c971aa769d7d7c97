"""A language model in a GGUF file, told as Hugging Face would: configuration, tensor names, order of rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from anybit.errors import FileFormatError
from anybit.io.coded import Coded
from anybit.io.foreign import Foreign, Made, Sidecar, Stored
from anybit.io.gguf.container import Container, Metadata
from anybit.io.gguf.experts import EXPERTS, expert_names
from anybit.io.gguf.split import open_all
from anybit.io.gguf.tensors import coded
from anybit.io.gguf.tokenizer import tokenizer_json
from anybit.io.strict_json import shown
from anybit.models.experts import MOST, MOST_IN_ALL
from anybit.models.family import architecture as named


@dataclass(frozen=True)
class Architecture:
    """What `general.architecture` means: the Hugging Face family, and whether rows of q and k are ordered for rotating neighbours.

    llama.cpp rotates elements 2 i and 2 i + 1 of a head in its `llama` models, Hugging Face i and i + d/2; the converter reorders the rows.
    """

    family: str
    interleaved: bool = False
    head_dim: bool = True  # the family's config has a head_dim of its own


ARCHITECTURES = {
    "llama": Architecture("llama", interleaved=True), "qwen2": Architecture("qwen2"), "qwen3": Architecture("qwen3"),
    "qwen3moe": Architecture("qwen3_moe"),
}  # fmt: skip
MIXTRAL = Architecture("mixtral", interleaved=True)
"""A `llama` with experts."""

MODULES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_NAME = re.compile(r"(?:blk\.(0|[1-9][0-9]{0,5})\.)?([a-z0-9_]+)\.(weight|bias)")
_FACTORS = "rope_freqs.weight"
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"

# Keys that change what a model computes and that no description here expresses, with the values at which they do nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_shared_count": (0,), "expert_shared_feed_forward_length": (0,), "expert_weights_norm": (True,),
    "expert_weights_scale": (0.0, 1.0), "expert_gating_func": (0, 1), "expert_group_count": (0, 1), "leading_dense_block_count": (0,),
    "attention.sliding_window": (0,), "attention.causal": (True,), "logit_scale": (1.0, 0.0),
    "residual_scale": (1.0, 0.0), "embedding_scale": (1.0, 0.0), "attention.scale": (0.0,), "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,), "use_parallel_residual": (False,), "rope.scaling.yarn_log_multiplier": (0.0,),
    "final_logit_softcapping": (0.0,), "attn_logit_softcapping": (0.0,), "attention.temperature_length": (0,),
}  # fmt: skip


# The field that says what a key of a configuration does.
_KEYS = {
    "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length", "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv", "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length", "rms_norm_eps": "attention.layer_norm_rms_epsilon", "rope_theta": "rope.freq_base",
    "factor": "rope.scaling.factor", "original_max_position_embeddings": "rope.scaling.original_context_length",
    "num_local_experts": "expert_count", "num_experts": "expert_count", "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length", "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow", "rope_type": "rope.scaling.type",
}  # fmt: skip


class _Fields:
    """Typed reading of a file's metadata under one architecture's prefix."""

    def __init__(self, path: Path, metadata: Metadata, architecture: str) -> None:
        self.path, self.metadata, self.prefix = path, metadata, architecture

    def fail(self, key: str, problem: str) -> FileFormatError:
        field = f"{self.prefix}.{key}"
        return FileFormatError(f"{self.path}: field '{field}' {problem}{self.metadata.at(field)}; convert the model again")

    def take(self, key: str, kinds: type | tuple[type, ...], default: Any = ...) -> Any:
        value = self.metadata.get(f"{self.prefix}.{key}", default)
        if isinstance(value, (list, np.ndarray)) and len(value) and all(item == value[0] for item in value):
            value = value[0].item() if isinstance(value, np.ndarray) else value[0]  # one number a layer, all equal
        if value is ...:
            raise self.fail(key, "is missing")
        if value is not default and (not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool)):
            raise self.fail(key, f"is {shown(value, 60)}, which is not supported")
        return value

    def number(self, key: str, default: Any = ...) -> Any:
        """A float32 as the shortest decimal that means it, so that 1e-5 stays 1e-5."""
        value = self.take(key, (int, float), default)
        return float(str(np.float32(value))) if isinstance(value, float) else value


def _rope(fields: _Fields, file: Container, context: int, dim: int) -> dict[str, Any]:
    """`rope_parameters` of a configuration."""
    section: dict[str, Any] = {"rope_type": "default", "rope_theta": fields.number("rope.freq_base", 10000.0)}
    if section["rope_theta"] == 0.0:
        raise fields.fail("rope.freq_base", "is 0")
    kind = fields.take("rope.scaling.type", str, "none")
    factor = fields.number("rope.scaling.factor", fields.number("rope.scale_linear", 1.0))
    original = fields.take("rope.scaling.original_context_length", int, None)
    factors = _FACTORS in file.tensors
    if kind == "none" and not factors:
        return section
    if factors and kind != "none":
        raise fields.fail("rope.scaling.type", f"is {shown(kind)} beside the tensor {_FACTORS}; only one of them is understood")
    if factors:  # frequencies divided one by one: longrope with one set for all lengths and no temperature
        divisors = np.asarray(_values(file, _FACTORS), np.float32)
        if divisors.shape != (dim // 2,):
            what = f"holds {divisors.size} factors, not {dim // 2}{file.place(_FACTORS)}"
            raise FileFormatError(f"{file.path}: tensor '{_FACTORS}' {what}; convert the model again")
        listed = [float(str(x)) for x in divisors]
        long = {"rope_type": "longrope", "factor": 1.0, "short_factor": listed, "long_factor": listed}
        return section | long | {"original_max_position_embeddings": context}
    if kind == "linear":
        return section | {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        for key in ("beta_fast", "beta_slow"):
            value = fields.number(f"rope.scaling.yarn_{key}", None)
            if value is not None:
                section[key] = value
        for key in ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor"):
            if fields.number(key, 1.0) != 1.0:
                raise fields.fail(key, "is not 1, which is not supported")
        return section | {"rope_type": "yarn", "factor": factor} | ({"original_max_position_embeddings": original} if original else {})
    raise fields.fail("rope.scaling.type", f"is {shown(kind)}; supported: none, linear, yarn")


def _values(file: Container, name: str) -> np.ndarray:
    """float32 values of a small tensor of floats."""
    info = file.info(name)
    if info.kind.name not in ("F32", "F16") or info.nbytes > 1 << 20:
        raise FileFormatError(f"{file.path}: tensor '{name}' has type {info.kind.name}, not F32{file.place(name)}; convert the model again")
    return file.blocks(name)["v"].astype(f"u{info.kind.dtype.itemsize}").view(f"f{info.kind.dtype.itemsize}").astype(np.float32)


def _config(file: Container) -> tuple[dict[str, Any], Architecture]:
    metadata = file.metadata
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        what = f"is {shown(name, 60)}, which is not supported{metadata.at('general.architecture')}"
        raise FileFormatError(f"{file.path}: field 'general.architecture' {what}; supported: {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    fields = _Fields(file.path, metadata, name)
    for key, neutral in _NEUTRAL.items():
        value = fields.take(key, (int, float, bool), neutral[0])
        if value not in neutral:
            raise fields.fail(key, f"is {shown(value, 60)}, which this anybit does not run")
    width, heads = fields.take("embedding_length", int), fields.take("attention.head_count", int)
    if heads < 1 or width < 1:
        raise fields.fail("attention.head_count", f"is {heads} beside an embedding_length of {width}")
    dim = fields.take("attention.key_length", int, width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if fields.take(key, int, dim) != dim:
            raise fields.fail(key, f"is {fields.take(key, int)}, but heads have {dim} elements; only equal ones are supported")
    architecture, experts = _experts(fields, architecture)
    context = fields.take("context_length", int)
    embedding = file.info("token_embd.weight")
    config: dict[str, Any] = {
        "architectures": [named(architecture.family)], "model_type": architecture.family, "hidden_act": "silu", **experts,
        "vocab_size": embedding.shape[0], "hidden_size": width, "intermediate_size": fields.take("feed_forward_length", int),
        "num_hidden_layers": fields.take("block_count", int), "num_attention_heads": heads, "head_dim": dim,
        "num_key_value_heads": fields.take("attention.head_count_kv", int, heads), "max_position_embeddings": context,
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"), "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": _rope(fields, file, context, dim), "use_sliding_window": False,
        "attention_bias": "blk.0.attn_output.bias" in file.tensors, "mlp_bias": "blk.0.ffn_down.bias" in file.tensors,
    }  # fmt: skip
    if config["num_key_value_heads"] < 1:
        raise fields.fail("attention.head_count_kv", f"is {config['num_key_value_heads']}")
    found = [metadata.get(f"tokenizer.ggml.{which}_token_id") for which in ("bos", "eos", "eot", "eom")]
    ids = [i if type(i) is int and 0 <= i < config["vocab_size"] else None for i in found]
    ends = [i for i in dict.fromkeys(ids[1:]) if i is not None]
    return config | {"bos_token_id": ids[0], "eos_token_id": ends or None}, architecture


def _experts(fields: _Fields, architecture: Architecture) -> tuple[Architecture, dict[str, Any]]:
    """The architecture, of a llama with experts another, and what a configuration says of them, whose weights add up to 1."""
    count, layers = fields.take("expert_count", int, 0), fields.take("block_count", int)
    if not 0 <= count <= MOST or count * layers > MOST_IN_ALL:
        raise fields.fail("expert_count", f"is {count}, of {layers} layers; at most {MOST} and in all {MOST_IN_ALL} are supported")
    if architecture.family == "qwen3_moe":
        width = fields.take("expert_feed_forward_length", int)
        more = {"num_experts": count, "moe_intermediate_size": width, "norm_topk_prob": True}
    elif count == 0:
        return architecture, {}
    elif architecture.family == "llama":
        architecture, more, width = MIXTRAL, {"num_local_experts": count}, fields.take("feed_forward_length", int)
        if fields.take("expert_feed_forward_length", int, width) != width:
            raise fields.fail("expert_feed_forward_length", f"is not feed_forward_length ({width}); such experts are not supported")
    else:
        raise fields.fail("expert_count", f"is {count}, which this anybit does not run")
    return architecture, {**more, "num_experts_per_tok": fields.take("expert_used_count", int)}


def row_order(heads: int, rows: int) -> np.ndarray | None:
    """For each row of a matrix in Hugging Face's order, its row in the file; None: the rows do not divide into heads.

    The file has element i + j d/2 of a head at 2 i + j (j is 0 or 1).
    """
    if rows % (2 * heads):
        return None
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).transpose(0, 2, 1).reshape(-1)


def _with_factor(file: Container, name: str, part: int | None = None) -> Coded:
    """A tensor with the factor that lies beside it in the second level of its scales (NVFP4)."""
    made, beside = coded(file, name, part), f"{name.removesuffix('.weight')}.scale"
    if beside not in file.tensors:
        return made
    factor = _values(file, beside)
    if made.format.count("@tensor") != 1 or factor.size != 1:
        what = f"is a factor that {file.info(name).kind.name} has no place for{file.place(beside)}"
        raise FileFormatError(f"{file.path}: tensor '{beside}' {what}; convert the model again")
    stored = factor.reshape(1, 1).view(np.uint32)
    blocks = made.blocks
    if blocks is not None:
        blocks = replace(blocks, finish=lambda parts: made.blocks.finish(parts) | {"scale.1": stored})  # type: ignore[union-attr]
    return replace(made, rows=lambda start, stop: {**made.rows(start, stop), "scale.1": stored}, blocks=blocks)


def new_name(name: str, family: str = "") -> str | None:
    """Hugging Face's name of a tensor; None: it has no place in a model. `family`: whose routers are meant.

    >>> new_name("blk.3.ffn_up.weight")
    'model.layers.3.mlp.up_proj.weight'
    """
    match = _NAME.fullmatch(name)
    layer, module, part = match.groups() if match else (None, "", "")
    new = MODULES.get(module) if layer is not None else WHOLE.get(module)
    if layer is not None and module == "ffn_gate_inp" and family in EXPERTS:
        new = EXPERTS[family].router
    if new is None:
        return None
    return f"{new}.{part}" if layer is None else f"model.layers.{layer}.{new}.{part}"


def _tensors(file: Container, config: Mapping[str, Any], architecture: Architecture) -> dict[str, Stored]:
    """The tensors by Hugging Face's names. FileFormatError: one that the model's description has no place for."""
    found: dict[str, Stored] = {}
    count = config.get("num_local_experts", config.get("num_experts", 0))
    for name, info in file.tensors.items():
        if name in (_FACTORS, _LONG, _SHORT) or name.endswith((".scale", ".input_scale", ".attn_rot_embd")):
            continue
        experts = expert_names(name, architecture.family, info.shape, config["num_hidden_layers"])
        if experts is not None:
            if info.shape[0] != count:
                what = f"has shape {list(info.shape)}, but there are {count} experts{file.place(name)}"
                raise FileFormatError(f"{file.path}: tensor {shown(name)} {what}; convert the model again")
            shape, release, place = info.shape[1:], partial(file.release, name), file.place(name)
            found |= {expert: Stored(shape, partial(_with_factor, file, name, i), release, place) for i, expert in enumerate(experts)}
            continue
        new = new_name(name, architecture.family)
        if new is None:
            what = f"has no place in a {architecture.family} model{file.place(name)}"
            raise FileFormatError(f"{file.path}: tensor {shown(name)} {what}; update anybit")
        module = name.split(".")[-2]
        heads = config["num_attention_heads" if module == "attn_q" else "num_key_value_heads"]
        order = row_order(heads, info.shape[0]) if architecture.interleaved and module in ("attn_q", "attn_k") else None

        def read(name: str = name, order: np.ndarray | None = order) -> Coded:
            made = _with_factor(file, name)
            if order is None:
                return made
            return made.reordered(order) if len(made.shape) > 1 else _reordered_vector(made, order)

        found[new] = Stored(info.shape, read, lambda name=name: file.release(name), file.place(name))  # type: ignore[misc]
    return found


def _reordered_vector(made: Coded, order: np.ndarray) -> Coded:
    """A bias, whose elements belong to rows."""
    return replace(made, rows=lambda start, stop: {"codes": made.rows(0, made.shape[0])["codes"][order][start:stop]})


def open_gguf(path: Path) -> Foreign:
    """Opens a language model, the first of several files with all of them.

    Raises: FileFormatError: a damaged file, an architecture or a field that is not supported (named).
    """
    file = open_all(path)
    config, architecture = _config(file)
    sidecars: list[Sidecar] = []
    if "tokenizer.ggml.model" in file.metadata:
        sidecars.append(Made("tokenizer.json", lambda: tokenizer_json(file)))
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        sidecars.append(Made("chat_template.jinja", template.encode))
    eos = tuple(config["eos_token_id"] or ())
    tensors = _tensors(file, config, architecture)
    return Foreign(
        path, "gguf", config, tensors, tuple(sidecars), eos, file.close, lambda keys: _field(file, keys), file.place("")
    )  # fmt: skip


def _field(file: Container, keys: Sequence[str]) -> str:
    """For messages: where the file says what a key of its configuration does."""
    key = keys[-1]
    if key == "vocab_size":
        return file.place("token_embd.weight")
    prefix = "tokenizer.ggml" if key.endswith("_token_id") else file.metadata.get("general.architecture")
    field = f"{prefix}.{_KEYS.get(key, key)}"
    return f": field '{field}'{file.metadata.at(field)}"
