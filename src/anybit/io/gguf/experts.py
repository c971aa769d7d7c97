"""Names of experts: a GGUF file has the matrices of all experts of a layer as one tensor [experts, n, k], Hugging Face one each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

WHICH = ("gate", "up", "down")
_NAME = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.ffn_(gate|up|down)_exps\.weight")


@dataclass(frozen=True)
class ExpertNames:
    """Names below a layer: of its router, and of the experts' matrices gate, up and down."""

    router: str
    module: str
    names: tuple[str, str, str]


EXPERTS = {
    "mixtral": ExpertNames("block_sparse_moe.gate", "block_sparse_moe.experts", ("w1", "w3", "w2")),
    "qwen3_moe": ExpertNames("mlp.gate", "mlp.experts", ("gate_proj", "up_proj", "down_proj")),
}
"""By family, names below a layer."""


def expert_names(name: str, family: str, shape: tuple[int, ...], layers: int) -> Iterator[str] | None:
    """Hugging Face's names of the matrices of all experts in one tensor; None: it is none of these, or of no layer.

    >>> list(expert_names("blk.3.ffn_up_exps.weight", "mixtral", (2, 64, 32), 4))[1]
    'model.layers.3.block_sparse_moe.experts.1.w3.weight'
    """
    match = _NAME.fullmatch(name)
    if match is None or family not in EXPERTS or int(match[1]) >= layers or len(shape) != 3:
        return None
    own = EXPERTS[family]
    last = own.names[WHICH.index(match[2])]
    return (f"model.layers.{match[1]}.{own.module}.{expert}.{last}.weight" for expert in range(shape[0]))
