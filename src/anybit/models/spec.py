"""What the engine needs to know of a model: frozen data, one value a layer, no code.

A family (llama.py, qwen.py) turns a `config.json` into a `ModelSpec`; the engine runs any spec. A new mixer or MLP is a new
dataclass in the unions `Mixer` and `Mlp` below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from anybit.errors import FileFormatError

Role = Literal["linear", "bias", "norm", "embedding", "head", "router"]
PLAIN = frozenset({"norm", "bias", "router"})
"""Roles of tensors that stay as they are stored, whatever is quantized. A router's logits decide which experts run."""


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: pair i of a head (elements i and i + dim/2) turns by position * frequencies[i].

    `frequencies` are exactly representable in float32. `scale` multiplies cosine and sine. `long`, if not empty, replaces the
    frequencies for every sequence planned to be longer than `original` tokens (longrope).
    """

    kind: str
    theta: float
    dim: int
    frequencies: tuple[float, ...] = field(repr=False)
    scale: float = 1.0
    long: tuple[float, ...] = field(default=(), repr=False)
    original: int = 0


@dataclass(frozen=True)
class Attention:
    """Softmax attention with grouped queries. Names are those of the weight tensors; `window` counts the token itself."""

    q: str
    k: str
    v: str
    o: str
    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope
    window: int | None = None
    q_norm: str | None = None
    k_norm: str | None = None


@dataclass(frozen=True)
class Gated:
    """down(activation(gate(x)) * up(x))"""

    gate: str
    up: str
    down: str
    width: int
    activation: Literal["silu"] = "silu"

    @property
    def parts(self) -> tuple[Gated, ...]:
        """Itself."""
        return (self,)

    @property
    def readers(self) -> tuple[str, ...]:
        """The matrices that read the normed input."""
        return self.gate, self.up


@dataclass(frozen=True)
class Experts:
    """The sum of weight[e] * experts[e](x) over the `chosen` experts with the largest logits router(x), of equal ones the first.

    The weights are the softmax over all experts; with `renormalise` divided by their sum over those that were chosen. All experts are of
    one width.
    Source: Shazeer et al. 2017, arXiv 1701.06538; Jiang et al. 2024, Mixtral, arXiv 2401.04088, section 2.1
    """

    router: str
    experts: tuple[Gated, ...]
    chosen: int
    renormalise: bool = True

    @property
    def parts(self) -> tuple[Gated, ...]:
        """The experts."""
        return self.experts

    @property
    def readers(self) -> tuple[str, ...]:
        """The matrices that read the normed input, the router among them."""
        return (self.router, *(name for part in self.experts for name in part.readers))

    @property
    def width(self) -> int:
        """Inner channels of one expert."""
        return self.experts[0].width


Mixer: TypeAlias = Attention
Mlp: TypeAlias = Gated | Experts


@dataclass(frozen=True)
class Layer:
    """x = x + residual * mixer(norm(x)), then x = x + residual * mlp(norm(x))."""

    mixer: Mixer
    mlp: Mlp
    mixer_norm: str
    mlp_norm: str
    residual: float = 1.0


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that the checkpoint must hold. A bias belongs to the weight of the same module."""

    name: str
    shape: tuple[int, ...]
    role: Role

    @property
    def module(self) -> str:
        """`model.norm.weight` -> `model.norm`."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only transformer. `tensors` is everything that a checkpoint must hold, in the order of execution."""

    family: str
    vocab: int
    width: int
    context: int
    norm_eps: float
    layers: tuple[Layer, ...]
    tensors: tuple[TensorSpec, ...] = field(repr=False)
    embedding: str = "model.embed_tokens.weight"
    norm: str = "model.norm.weight"
    head: str = "lm_head.weight"
    tied: bool = False
    bos: int | None = None
    eos: tuple[int, ...] = ()

    @property
    def shares(self) -> dict[str, float]:
        """For each matrix of an expert, the share of tokens that read it where experts are taken alike; every token reads the others."""
        sparse = [layer.mlp for layer in self.layers if isinstance(layer.mlp, Experts)]
        return {name: mlp.chosen / len(mlp.experts) for mlp in sparse for part in mlp.parts for name in (part.gate, part.up, part.down)}

    def tensor(self, name: str) -> TensorSpec:
        """The expected tensor of that name. KeyError: the model has none."""
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        raise KeyError(name)

    def check_tensors(
        self, shapes: Mapping[str, tuple[int, ...]], file: str = "model", place: Callable[[str], str] = lambda name: ""
    ) -> None:  # fmt: skip
        """Raises FileFormatError for the first tensor that is missing, has another shape, or belongs to no part of the model.

        place: where a tensor lies in `file`, or what lacks it, for messages: ` (at byte 7)`.
        """
        for tensor in self.tensors:
            name = tensor.name
            if name not in shapes:
                what = f"{list(tensor.shape)} is missing{place(name)}"
                raise FileFormatError(f"{file}: tensor '{name}' {what}; a {self.family} model with this config needs it")
            if tuple(shapes[name]) != tensor.shape:
                what = f"has shape {list(shapes[name])}, but the config asks for {list(tensor.shape)}{place(name)}"
                raise FileFormatError(f"{file}: tensor '{name}' {what}; fetch both again")
        known = {tensor.name for tensor in self.tensors}
        for name in shapes:
            # Older exports carry the rotary frequencies, and tied models sometimes a copy of the embedding as head.
            if name in known or name.endswith("rotary_emb.inv_freq") or (self.tied and name == "lm_head.weight"):
                continue
            raise FileFormatError(
                f"{file}: tensor '{name}' is not part of a {self.family} model with this config{place(name)}; "
                "running without it would give other results"
            )
