"""Rotation of the residual stream and of each head's values, folded into the weights: activations without outliers, at no cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from anybit.errors import UsageError
from anybit.methods.rotation import orthogonal, random_hadamard
from anybit.methods.step import STEPS, ModelStep

Arrays = dict[str, np.ndarray]
UNTIED = "lm_head.weight"


@STEPS.register("rotate_residual")
@dataclass(frozen=True)
class RotateResidual(ModelStep):
    """Every x of the residual stream becomes x Q: W Q for what reads it (q, k, v, gate, up, head, routers), Q^T W for what writes it (o and
    down).

    RMS norms commute with Q once their weights are folded into the matrices after them; a tied head is untied for that. `heads`: the
    values of each head are turned too, R^T on v_proj's rows and R on o_proj's columns. `kind`: "hadamard", with random signs, crossed with
    a random orthogonal matrix where the width is no power of two; or "orthogonal". Computed in float64, stored as float32.
    """

    source: ClassVar[str] = (
        "Ashkboos et al., QuaRot, arXiv 2404.00456, stages 1a and 1c; orthogonal: Liu et al., SpinQuant, arXiv 2405.16406, R1 and R2"
    )
    kind: str = "hadamard"
    heads: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("hadamard", "orthogonal"):
            raise ValueError(f"'kind' is '{self.kind}'; there is hadamard and orthogonal")
        if not 0 <= self.seed < 1 << 62:
            raise ValueError(f"'seed' is {self.seed}; it must lie from 0 to 2^62 - 1")

    def matrix(self, n: int, number: int = 0) -> np.ndarray:
        """float64[n, n]: the stream's rotation (number 0), or that of layer number - 1's heads."""
        seed = self.seed + 2 * number
        return orthogonal(n, seed) if self.kind == "orthogonal" else random_hadamard(n, seed)

    def prepare(self, model: Any) -> None:
        """See `ModelStep.prepare`."""
        if self.kind == "orthogonal" and model.width > 8192:
            raise UsageError(f"a random orthogonal matrix of {model.width} channels takes too long; use kind: hadamard")

    def block(self, model: Any, index: int, arrays: Arrays) -> None:
        """See `ModelStep.block`."""
        layer, turn = model.layers[index], self.matrix(model.width)
        attention, mlp = layer.mixer, layer.mlp
        _fold_norm(arrays, layer.mixer_norm, (attention.q, attention.k, attention.v))
        _fold_norm(arrays, layer.mlp_norm, mlp.readers)
        for name in (attention.q, attention.k, attention.v, *mlp.readers):
            arrays[name] = _float32(arrays[name].astype(np.float64) @ turn)
        for name in (attention.o, *(part.down for part in mlp.parts)):
            for each in (name, _bias(name)):
                if each in arrays:
                    arrays[each] = _float32(turn.T @ arrays[each].astype(np.float64))
        if self.heads:
            _turn_heads(arrays, attention, self.matrix(attention.head_dim, 1 + index))

    def ends(self, model: Any, arrays: Arrays) -> None:
        """See `ModelStep.ends`."""
        turn = self.matrix(model.width)
        head = UNTIED if model.tied else model.head
        matrix = arrays[model.head].astype(np.float64) * arrays[model.norm]
        arrays[head] = _float32(matrix @ turn)
        arrays[model.embedding] = _float32(arrays[model.embedding].astype(np.float64) @ turn)
        arrays[model.norm] = np.ones_like(arrays[model.norm])


def _fold_norm(arrays: Arrays, norm: str, readers: Iterable[str]) -> None:
    """A norm's weight into the columns of the matrices that read it."""
    for name in readers:
        arrays[name] = arrays[name] * arrays[norm]
    arrays[norm] = np.ones_like(arrays[norm])


def _turn_heads(arrays: Arrays, attention: Any, turn: np.ndarray) -> None:
    """Each head's values v become v R."""
    dim = attention.head_dim
    for name in (attention.v, _bias(attention.v)):
        if name in arrays:
            heads = arrays[name].astype(np.float64).reshape(-1, dim, arrays[name].size // len(arrays[name]))
            arrays[name] = _float32((turn.T @ heads).reshape(arrays[name].shape))
    o = arrays[attention.o]
    arrays[attention.o] = _float32((o.astype(np.float64).reshape(-1, dim) @ turn).reshape(o.shape))


def _bias(name: str) -> str:
    return f"{name.rpartition('.')[0]}.bias"


def _float32(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32)
