"""Whole models in elements of several weights and in learned ones: saved, streamed, opened, explained, attacked."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from small import edit_tensors, write_model

import anybit
from anybit.errors import FileFormatError, NoKernelError, ShapeError
from anybit.formats import Format
from anybit.model import Model, quantize_file

IDS = list(range(1, 12))
UP = "model.layers.0.mlp.up_proj.weight"
CASES = [
    ("kmeans3@24", None), ("kmeans3@24", "int8"), ("kmeans4@12:e8m0", "int8"), ("ovp4_int@24", None), ("ovp8_int@channel", None),
    ("d4@24+scale=absmax", None), ("e8p@channel+scale=absmax", None), ("vq4d8_k2@24", None), ("vq6d2@tensor", None),
]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(source: Path) -> Model:
    return anybit.load(source)


@pytest.mark.parametrize(("fmt", "act"), CASES)
def test_save_stream_and_open(model: Model, source: Path, tmp_path: Path, fmt: str, act: str | None) -> None:
    quantized = model.quantize(fmt, act=act)
    written = quantized.save(tmp_path / "saved")
    assert quantize_file(source, tmp_path / "streamed", fmt, act=act) == written
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "saved" / file).read_bytes() == (tmp_path / "streamed" / file).read_bytes()
    opened = anybit.load(tmp_path / "saved")
    assert opened.logits(IDS).tobytes() == quantized.logits(IDS).tobytes()
    plain = model.logits(IDS)
    assert np.isfinite(opened.logits(IDS)).all() and not np.array_equal(opened.logits(IDS), plain)
    for row in opened.explain():
        if row["name"] in opened.quantized:
            learned = Format(row["format"]).element.learned
            assert row["kernel"] == ("linear_tile16x4" if fmt.startswith("kmeans") else "linear_expanded")
            assert ("table" in opened.linears[row["name"]].weight.parts) == learned
            if row["kernel"] == "linear_expanded":
                assert row["others"]["linear_tile16x4"].startswith("it decodes one weight a code, not")
    weight = opened.linears[UP].weight
    bits = weight.format.size_bits(weight.shape)
    assert 8 * weight.nbytes >= bits and (weight.layout != "rows" or 8 * weight.nbytes == bits)


def test_activations_that_no_kernel_takes(model: Model, source: Path, tmp_path: Path) -> None:
    for quantize in (lambda: model.quantize("ovp4_int@24", act="int8"), lambda: quantize_file(source, tmp_path / "q", "d4@24", act="int8")):
        with pytest.raises(NoKernelError, match="it decodes one weight a code, not"):
            quantize()
    assert not (tmp_path / "q").exists()


def test_rows_that_groups_do_not_fill(tmp_path: Path) -> None:
    from small import CONFIG

    odd = write_model(tmp_path / "odd", {**CONFIG, "intermediate_size": 70})
    for quantize in (lambda: anybit.load(odd).quantize("e8p@channel"), lambda: quantize_file(odd, tmp_path / "q", "e8p@channel")):
        with pytest.raises(ShapeError, match="rows of 70 are no multiple of the 8 weights that e8p codes together; pad them to 72"):
            quantize()
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (struct.pack("<8f", *[0.5] * 8), "holds one value only"),
        (struct.pack("<8f", *[float("nan")] * 8), "not finite"),
        (struct.pack("<8f", *[1e30] * 8), "lies between 2"),
        (struct.pack("<7f", *range(7)), r"part table must be float32\[8\]"),
    ],
)  # fmt: skip
def test_attacked_tables(model: Model, tmp_path: Path, value: bytes, reason: str) -> None:
    model.quantize("kmeans3@24").save(tmp_path / "q")
    edit_tensors(tmp_path / "q", lambda t: t.update({f"{UP}.table": ("F32", [len(value) // 4], value)}))
    with pytest.raises(FileFormatError, match=rf"layer '{UP}': .*{reason}.*save the model again") as error:
        anybit.load(tmp_path / "q")
    assert "\n" not in str(error.value)


def test_a_table_too_many(model: Model, tmp_path: Path) -> None:
    model.quantize("int4@24").save(tmp_path / "q")
    edit_tensors(tmp_path / "q", lambda t: t.update({f"{UP}.table": ("F32", [16], bytes(64))}))
    with pytest.raises(FileFormatError):
        anybit.load(tmp_path / "q")
