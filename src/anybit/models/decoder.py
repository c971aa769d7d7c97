"""What the Llama-like families share: a stack of attention and gated MLP blocks under Hugging Face's tensor names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anybit.models.fields import Fields
from anybit.models.rope import read_rope
from anybit.models.spec import Attention, Experts, Gated, Layer, Mlp, ModelSpec, Role, TensorSpec


@dataclass(frozen=True)
class Sparse:
    """Experts in the place of MLPs: how many there are and run for a token, how wide they are, their modules' names, and which layers keep
    one dense MLP."""

    count: int
    chosen: int
    width: int
    renormalise: bool
    module: str = "mlp"
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    dense: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Shape:
    """The differences between families: defaults for absent fields, and which parts exist."""

    family: str
    kv_heads: int | None = None  # default of num_key_value_heads; None: as many as heads
    head_dim: int | None = None  # default of head_dim; None: hidden_size / num_attention_heads
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int | None, ...] = ()  # one per layer; empty: no layer has a window
    norm_eps: float = 1e-6  # default of rms_norm_eps
    theta: float = 10_000.0  # default of rope_theta
    sparse: Sparse | None = None  # None: every layer has one MLP


def layer_count(config: Fields) -> int:
    """num_hidden_layers, bounded so that a hostile config cannot make a list of billions."""
    return int(config.integer("num_hidden_layers", high=4096))


def windows_by_type(config: Fields, types: Sequence[str], window: int | None) -> tuple[int | None, ...]:
    """The window of each layer from its type. Raises FileFormatError: an unknown type, or a sliding layer without a window."""
    result: list[int | None] = []
    for i, kind in enumerate(types):
        if kind not in ("full_attention", "sliding_attention"):
            raise config.fail(f"layer_types[{i}]", f"is {kind!r}; expected full_attention or sliding_attention")
        if kind == "sliding_attention" and window is None:
            raise config.fail(f"layer_types[{i}]", "is sliding_attention, but no sliding_window is in use")
        result.append(window if kind == "sliding_attention" else None)
    return tuple(result)


def _token_ids(config: Fields, name: str, vocab: int) -> tuple[int, ...]:
    value = config.values.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocab:
            raise config.fail(name, f"is {value!r}; expected token ids below {vocab}")
    return tuple(ids)


class _Tensors:
    """Collects expected tensors in the order of execution."""

    def __init__(self) -> None:
        self.list: list[TensorSpec] = []

    def add(self, name: str, shape: tuple[int, ...], role: Role, bias: bool = False) -> str:
        self.list.append(TensorSpec(f"{name}.weight", shape, role))
        if bias:
            self.list.append(TensorSpec(f"{name}.bias", shape[:1], "bias"))
        return f"{name}.weight"

    def gated(self, module: str, names: Sequence[str], width: int, inner: int, bias: bool = False) -> Gated:
        """A gated MLP whose matrices are called `names`: gate, up, down."""
        gate, up, down = (f"{module}.{name}" for name in names)
        return Gated(
            gate=self.add(gate, (inner, width), "linear", bias), up=self.add(up, (inner, width), "linear", bias),
            down=self.add(down, (width, inner), "linear", bias), width=inner,
        )  # fmt: skip

    def experts(self, layer: str, sparse: Sparse, width: int) -> Experts:
        """A router and its experts."""
        module = f"{layer}{sparse.module}"
        router = self.add(f"{module}.gate", (sparse.count, width), "router")
        made = [self.gated(f"{module}.experts.{i}", sparse.names, width, sparse.width) for i in range(sparse.count)]
        return Experts(router, tuple(made), sparse.chosen, sparse.renormalise)


def decoder(config: Fields, shape: Shape) -> ModelSpec:
    """Builds the description. Raises FileFormatError: a field is missing, has the wrong type, or contradicts another."""
    vocab, width = config.integer("vocab_size"), config.integer("hidden_size")
    heads, count = config.integer("num_attention_heads", high=1 << 16), layer_count(config)
    kv_heads = config.integer("num_key_value_heads", shape.kv_heads or heads, high=1 << 16)
    if heads % kv_heads:
        raise config.fail("num_key_value_heads", f"is {kv_heads}; expected a divisor of num_attention_heads, which is {heads}")
    head_dim = config.integer("head_dim", shape.head_dim, high=1 << 12)
    if head_dim is None:
        if width % heads:
            raise config.fail("hidden_size", f"is {width}, no multiple of num_attention_heads ({heads}), and head_dim is missing")
        head_dim = width // heads
    activation = config.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise config.fail("hidden_act", f"is '{activation}'; supported: silu")
    context, sparse = config.integer("max_position_embeddings", high=1 << 31), shape.sparse
    inner = config.integer("intermediate_size") if sparse is None or sparse.dense else 0
    rope = read_rope(config, head_dim, context, shape.theta)
    tied = config.flag("tie_word_embeddings", False)

    tensors = _Tensors()
    embedding = tensors.add("model.embed_tokens", (vocab, width), "embedding")
    layers = []
    for i in range(count):
        at, attn = f"model.layers.{i}.", f"model.layers.{i}.self_attn."
        mixer_norm = tensors.add(f"{at}input_layernorm", (width,), "norm")
        attention = Attention(
            q=tensors.add(f"{attn}q_proj", (heads * head_dim, width), "linear", shape.qkv_bias),
            k=tensors.add(f"{attn}k_proj", (kv_heads * head_dim, width), "linear", shape.qkv_bias),
            v=tensors.add(f"{attn}v_proj", (kv_heads * head_dim, width), "linear", shape.qkv_bias),
            q_norm=tensors.add(f"{attn}q_norm", (head_dim,), "norm") if shape.qk_norm else None,
            k_norm=tensors.add(f"{attn}k_norm", (head_dim,), "norm") if shape.qk_norm else None,
            o=tensors.add(f"{attn}o_proj", (width, heads * head_dim), "linear", shape.o_bias),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rope=rope,
            window=shape.windows[i] if shape.windows else None,
        )
        mlp_norm = tensors.add(f"{at}post_attention_layernorm", (width,), "norm")
        mlp: Mlp
        if sparse is not None and i not in sparse.dense:
            mlp = tensors.experts(at, sparse, width)
        else:
            mlp = tensors.gated(f"{at}mlp", Sparse.names, width, inner, shape.mlp_bias)
        layers.append(Layer(attention, mlp, mixer_norm, mlp_norm))
    norm = tensors.add("model.norm", (width,), "norm")
    head = embedding if tied else tensors.add("lm_head", (vocab, width), "head")
    bos = _token_ids(config, "bos_token_id", vocab)
    return ModelSpec(
        family=shape.family,
        vocab=vocab,
        width=width,
        context=context,
        norm_eps=config.number("rms_norm_eps", shape.norm_eps),
        layers=tuple(layers),
        tensors=tuple(tensors.list),
        embedding=embedding,
        norm=norm,
        head=head,
        tied=tied,
        bos=bos[0] if bos else None,
        eos=_token_ids(config, "eos_token_id", vocab),
    )
