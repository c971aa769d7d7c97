"""K-sort: the channels of each attention head in the order of their size, so that blocks of cached keys and values are homogeneous."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from anybit.methods.step import STEPS, ModelStep

Arrays = dict[str, np.ndarray]


@STEPS.register("sort_heads")
@dataclass(frozen=True)
class SortHeads(ModelStep):
    """Sorts channels within each head by the norm of their weights' rows; the model computes what it did.

    Values: v_proj's rows by falling norm, o_proj's columns with them. Keys: rotary embedding turns channel i with i + d/2 at a frequency
    of its own, the same in all heads, so that pairs must keep their places; within a pair the larger goes to the first half. That is a
    quarter turn, (a, b) to (b, -a), of the pair in k_proj and in each q_proj head that reads it, which commutes with the embedding's
    turns. Models that normalise keys share their norms' weights over all heads: there keys stay.
    """

    source: ClassVar[str] = (
        "Trukhanov and Soloveychik, Accurate Block Quantization in LLMs with Outliers, arXiv 2403.20137, K-sort;"
        " Differs: rotary pairs keep their places, so that no table of angles has to be sorted with them"
    )
    keys: bool = True
    values: bool = True

    def block(self, model: Any, index: int, arrays: Arrays) -> None:
        """See `ModelStep.block`."""
        attention = model.layers[index].mixer
        if self.values:
            _sort_values(arrays, attention)
        normed = attention.k_norm is not None or attention.q_norm is not None
        if self.keys and not normed and attention.rope.dim == attention.head_dim:
            _sort_keys(arrays, attention)


def _sort_values(arrays: Arrays, attention: Any) -> None:
    dim, repeat = attention.head_dim, attention.heads // attention.kv_heads
    norms = np.linalg.norm(arrays[attention.v].astype(np.float64), axis=1).reshape(-1, dim)
    order = np.argsort(-norms, axis=1, kind="stable")
    rows = (np.arange(len(order))[:, None] * dim + order).reshape(-1)
    for name in (attention.v, _bias(attention.v)):
        if name in arrays:
            arrays[name] = np.ascontiguousarray(arrays[name][rows])
    columns = (np.arange(attention.heads)[:, None] * dim + np.repeat(order, repeat, axis=0)).reshape(-1)
    arrays[attention.o] = np.ascontiguousarray(arrays[attention.o][:, columns])


def _sort_keys(arrays: Arrays, attention: Any) -> None:
    dim, half = attention.head_dim, attention.head_dim // 2
    norms = np.linalg.norm(arrays[attention.k].astype(np.float64), axis=1).reshape(-1, 2, half)
    turned = norms[:, 0] < norms[:, 1]  # [kv heads, pairs]
    for name, heads in ((attention.k, attention.kv_heads), (attention.q, attention.heads)):
        mask = np.repeat(turned, heads // attention.kv_heads, axis=0)[:, :, None]
        for each in (name, _bias(name)):
            if each in arrays:
                pairs = arrays[each].reshape(heads, 2, half, -1)
                a, b = pairs[:, 0], pairs[:, 1]
                made = np.stack([np.where(mask, b, a), np.where(mask, -a, b)], axis=1)
                arrays[each] = np.ascontiguousarray(made.reshape(heads * dim, -1).reshape(arrays[each].shape))


def _bias(name: str) -> str:
    return f"{name.rpartition('.')[0]}.bias"
