"""The importance of every input channel of a model's matrices: the mean of its squares over a text, as the float model sees it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from anybit.calibrate.forward import FloatBlock, members, run_block
from anybit.calibrate.run import FloatModel, block_tensors
from anybit.methods.statistics import Statistics


def importance_of(model: FloatModel, ids: np.ndarray, progress: Callable[[int, int], object] | None = None) -> dict[str, np.ndarray]:
    """float64[k] by the name of each matrix in a block; embedding and head are left out, and experts that no token reached.

    Args: ids, int32[sequences, length]; progress(done, total) after each block.
    Source: llama.cpp's importance matrix, the diagonal of X^T X. Cost: the hidden states of all tokens, one block's float32 weights.
    """
    spec = model.spec
    embedding = model.array(spec.embedding)
    hidden = [embedding[row] for row in ids]
    del embedding
    found: dict[str, np.ndarray] = {}
    for index, layer in enumerate(spec.layers):
        block = FloatBlock({name: model.array(name) for name in block_tensors(spec, index)})
        seen: dict[str, Statistics] = {}

        def look(role: str, x: np.ndarray, seen: dict[str, Statistics] = seen) -> None:
            seen.setdefault(role, Statistics(x.shape[1], frozenset({"mean", "variance"}))).add(x, f"layer {index}, {role}")  # noqa: B023

        hidden = [run_block(layer, block, x, spec.norm_eps, look) for x in hidden]
        for role, names in members(layer).items():
            mean = seen[role].importance if role in seen else None
            if mean is not None:
                found |= dict.fromkeys(names, mean)
        if progress is not None:
            progress(index + 1, len(spec.layers))
    return found
