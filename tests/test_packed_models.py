"""Models in packed and nested formats: saved, loaded, run, opened, damaged."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from small import edit_tensors, write_model

import anybit
from anybit.cli import main as cli
from anybit.errors import FileFormatError
from anybit.formats import Format
from anybit.model import quantize_file

FORMAT = Format("ternary@256:fp16+pack=base3")


def test_ternary_five_a_byte(tmp_path: Path) -> None:
    original = anybit.load(write_model(tmp_path / "original"))
    model, same = (original.quantize(fmt, act="int8") for fmt in (FORMAT, FORMAT.plain))
    ids = np.arange(40, dtype=np.int32)
    assert np.array_equal(model.logits(ids), same.logits(ids))
    model.save(tmp_path / "m")
    assert np.array_equal(anybit.load(tmp_path / "m").logits(ids), same.logits(ids))
    kernels = {row["kernel"] for row in model.explain() if row["name"] in model.quantized}
    assert kernels == {"linear_base3"}


def test_a_lossless_model_is_the_model(tmp_path: Path) -> None:
    model = anybit.load("pycoder-5m")
    ids = np.arange(50, dtype=np.int32)
    packed = model.quantize("bf16+pack=escape", keep=None)
    assert packed.quantized == frozenset(packed.linears)
    assert 0.69 < packed.nbytes / model.nbytes < 0.72
    assert np.array_equal(packed.logits(ids), model.logits(ids))
    assert {row["kernel"] for row in packed.explain()} == {"linear_escape"}
    packed.save(tmp_path / "a")
    quantize_file("pycoder-5m", tmp_path / "b", "bf16+pack=escape", keep=None)
    for path in ("a", "b"):
        again = anybit.load(tmp_path / path)
        assert again.nbytes == packed.nbytes
        assert np.array_equal(again.logits(ids), model.logits(ids))


def test_a_damaged_file_names_the_layer(tmp_path: Path) -> None:
    model = anybit.load(write_model(tmp_path / "original")).quantize("bf16+pack=escape", keep=None)
    model.save(tmp_path / "m")
    name = "model.layers.1.mlp.up_proj.weight"

    def change(tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
        dtype, shape, data = tensors[f"{name}.index"]
        tensors[f"{name}.index"] = dtype, shape, data[:8] + bytes([9]) + data[9:]  # the first block's width

    edit_tensors(tmp_path / "m", change)
    with pytest.raises(FileFormatError, match=rf"layer '{name}': block 0 of the lossless codes has a width beyond 4"):
        anybit.load(tmp_path / "m")


def test_one_checkpoint_at_every_width(tmp_path: Path) -> None:
    original = write_model(tmp_path / "original")
    quantize_file(original, tmp_path / "nested", "int8@16+nest=4.2", act="int8")
    ids = np.arange(40, dtype=np.int32)
    model = anybit.load(tmp_path / "nested")
    reference = anybit.load(original).logits(ids)
    errors, bits = [], []
    for width in (8, 4, 2):
        opened = anybit.load(tmp_path / "nested", open=width)
        assert np.array_equal(opened.logits(ids), model.open(width).logits(ids))
        errors.append(float(np.square(opened.logits(ids) - reference).mean()))
        assert opened.quantized_bits_per_weight is not None
        bits.append(opened.quantized_bits_per_weight)
        opened.save(tmp_path / f"at{width}")
        assert np.array_equal(anybit.load(tmp_path / f"at{width}").logits(ids), opened.logits(ids))
    assert errors == sorted(errors)
    assert errors[0] > 0
    assert bits == sorted(bits, reverse=True)


def test_the_command_line_opens(tmp_path: Path) -> None:
    def call(*args: str) -> dict[str, float]:
        found = CliRunner().invoke(cli.main, [*args, "--json"], catch_exceptions=False)
        assert found.exit_code == 0, found.output
        result: dict[str, float] = json.loads(found.stdout)
        return result

    nested = str(tmp_path / "q")
    call("quantize", "pycoder-5m", nested, "--format", "int8@128+nest=4.2", "--no-progress")
    at = {width: call("eval", nested, "--open", str(width), "--tokens", "64", "--window", "64", "--no-progress") for width in (8, 4)}
    assert (at[8]["quantized_bits_per_weight"], at[4]["quantized_bits_per_weight"]) == (8.125, 4.125)
    assert at[4]["perplexity"] != at[8]["perplexity"]
    bench = call("bench", nested, "--open", "2", "--prompt", "4", "--tokens", "2", "--repeats", "1", "--no-progress")
    assert bench["model_bytes"] < call("bench", nested, "--prompt", "4", "--tokens", "2", "--repeats", "1", "--no-progress")["model_bytes"]
    assert "text" in call("run", nested, "import os", "--open", "4", "--max-tokens", "2")
