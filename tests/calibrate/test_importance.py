"""The importance of input channels: by hand for the first block, and what an export makes of it."""

from pathlib import Path

import numpy as np
import pytest

from anybit.calibrate.importance import importance_of
from anybit.errors import UsageError
from anybit.export import prepare, write
from anybit.recipes.source import FloatSource
from tests.small import CONFIG, arrays, write_model

WIDE = CONFIG | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "tie_word_embeddings": True}
IDS = np.random.default_rng(0).integers(0, WIDE["vocab_size"], (3, 40)).astype(np.int32)


def test_mean_squares_of_inputs(tmp_path: Path) -> None:
    tensors = arrays(WIDE)
    source = FloatSource(write_model(tmp_path / "m", WIDE, tensors))
    found = importance_of(source, IDS)
    x = tensors["model.embed_tokens.weight"][IDS].astype(np.float64)
    normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + WIDE["rms_norm_eps"]) * tensors["model.layers.0.input_layernorm.weight"]
    want = (normed**2).mean((0, 1))
    for name in "qkv":
        assert np.allclose(found[f"model.layers.0.self_attn.{name}_proj.weight"], want, rtol=1e-4)
    widths = {name: array.shape for name, array in found.items()}
    assert widths == {t.name: (t.shape[1],) for t in source.spec.tensors if t.role == "linear"}
    gate, up = (found[f"model.layers.1.mlp.{name}_proj.weight"] for name in ("gate", "up"))
    assert np.array_equal(gate, up) and all((each > 0).all() for each in found.values())


def test_an_export_weighs_errors(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", WIDE)
    weigh = {name: np.geomspace(1, 1e4, len(mean)) for name, mean in importance_of(FloatSource(source), IDS).items()}
    plain, weighed = (prepare(source, "gguf:q4_0", importance=each) for each in (None, weigh))
    for name, importance in weigh.items():
        values = {id(each): each.source.tensors[name].values(0, each.source.tensors[name].shape[0]) for each in (plain, weighed)}
        want = FloatSource(source).array(name)
        a, b = (float((np.square(values[id(each)] - want) * importance).sum()) for each in (plain, weighed))
        assert b < a, name
    assert write(weighed, tmp_path / "w.gguf") == write(plain, tmp_path / "p.gguf")
    with pytest.raises(UsageError, match=r"is quantized already: no codes are chosen, and importance says nothing"):
        prepare(tmp_path / "p.gguf", "gguf:q4_0", importance=weigh)
