"""Rows of a stored matrix: those of the whole matrix, without reading it; a bad number is named where it lies."""

from pathlib import Path

import numpy as np
import pytest

from anybit.errors import NonFiniteError
from anybit.io.safetensors_writer import write_safetensors
from anybit.recipes.source import FloatSource
from anybit.stored import resolve

NAME = "model.embed_tokens.weight"


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_rows(dtype: str, tmp_path: Path) -> None:
    held = FloatSource("pycoder-5m")
    values = {t.name: held.array(t.name) for t in held.spec.tensors}
    values[NAME][7, 3] = np.inf
    stored = {name: (a.view(np.uint32) >> 16).astype(np.uint16) if dtype == "BF16" else a for name, a in values.items()}
    (tmp_path / "config.json").write_bytes((resolve("pycoder-5m") / "config.json").read_bytes())
    write_safetensors(tmp_path / "model.safetensors", [(n, dtype, a.shape) for n, a in stored.items()], iter(stored.items()))
    source, index = FloatSource(tmp_path), np.array([[5, 0], [4095, 5]], np.int32)
    rows = source.rows(NAME, index)
    assert rows.dtype == np.float32 and np.array_equal(rows, values[NAME][index]) and np.array_equal(rows, held.rows(NAME, index))
    other = "model.layers.0.mlp.up_proj.weight"
    array = source.array(other)
    assert array.flags.writeable and np.array_equal(array, held.array(other))
    for wrong in (lambda: source.rows(NAME, np.array([7])), lambda: source.array(NAME)):
        with pytest.raises(NonFiniteError, match=r"embed_tokens.weight' holds 1 non-finite value\(s\), the first inf at index \[7, 3\]"):
            wrong()
