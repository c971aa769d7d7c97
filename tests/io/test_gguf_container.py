"""The GGUF container: both versions and byte orders, every kind of field, any alignment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf_file import Field, Tensor, small

from anybit.errors import FileFormatError
from anybit.io import gguf
from anybit.tensor import QTensor

WORDS = {"a.u8": 200, "a.i8": -3, "a.u16": 60000, "a.i16": -5, "a.u32": 1 << 31, "a.i32": -7, "a.f32": 0.5, "a.bool": True,
         "a.u64": 1 << 63, "a.i64": -(1 << 40), "a.f64": 0.1, "a.text": "a b \u2581", "general.architecture": "llama"}  # fmt: skip


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("order", ["<", ">"])
def test_fields(tmp_path: Path, version: int, order: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(small().changed(version=version, order=order).bytes())
    with gguf.open(path) as file:
        assert (file.container.version, file.container.order) == (version, order)
        scalars = {key: file.metadata[key] for key in WORDS}
        assert scalars == WORDS and all(type(scalars[key]) is type(value) for key, value in WORDS.items())
        numbers = file.metadata["b.numbers"]
        assert numbers.dtype == np.uint32 and numbers.tolist() == [1, 2, 3]
        assert file.metadata["b.flags"] == [False, True]
        assert file.metadata["b.words"] == ["x", "", "\u00e4"] and file.metadata["b.none"] == []
        assert len(file.metadata) == 17 and "a.missing" not in file.metadata


def test_tensors_are_read_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(small().bytes())
    file = gguf.open(path)
    assert list(file) == ["norm.weight", "blk.0.a.weight", "blk.0.b.weight", "blk.0.c.weight"] and len(file) == 4
    assert "norm.weight" in file and "missing" not in file
    info = file.info("blk.0.a.weight")
    assert (info.kind.name, info.shape, info.nbytes) == ("Q4_0", (3, 64), 108)
    with pytest.raises(KeyError):
        file["missing"]
    with pytest.raises(FileFormatError, match=r"no tensor 'missing'; `anybit inspect` lists"):
        file.info("missing")
    norm, coded, cube = file["norm.weight"], file["blk.0.a.weight"], file["blk.0.c.weight"]
    assert isinstance(norm, QTensor) and norm.dequantize().tolist() == [1, 2, 3, 4, 5] and str(norm.format) == "fp32"
    assert (coded.shape, coded.layout, str(coded.format)) == ((3, 64), "tile16x4", "int4@32:fp16") and cube.shape == (3, 2, 4)
    file.container.release("blk.0.a.weight")
    file.close()
    with pytest.raises(ValueError, match=r"a\.gguf is closed"):
        file["norm.weight"]
    assert coded.dequantize().shape == (3, 64), "what was read stays"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_alignment(tmp_path: Path, alignment: int, order: str) -> None:
    base = small()
    file = base.changed(fields=(*base.fields, Field("general.alignment", 4, alignment)), alignment=alignment, order=order)
    (tmp_path / "a").write_bytes(file.bytes())
    with gguf.open(tmp_path / "a") as found:
        assert all(found.info(name).offset % alignment == 0 for name in found)
        logical = found["blk.0.b.weight"].logical()
        assert logical["codes"][0].tolist() == list(range(2, 34)) and logical["codes"][1].tolist() == list(range(36, 68))
        assert logical["scale.0"].reshape(-1).tolist() == ([0x0100, 0x2322] if order == "<" else [0x0001, 0x2223])


def test_long_arrays_are_decoded_on_demand(tmp_path: Path) -> None:
    words = [f"word {i}" for i in range(6000)]
    base = small()
    (tmp_path / "a").write_bytes(
        base.changed(fields=(*base.fields, Field("long", 9, words, 8), Field("ids", 9, list(range(6000)), 5))).bytes()
    )
    with gguf.open(tmp_path / "a") as file:
        assert file.container.metadata.summary()["long"] == "6000 values of str"
        assert file.metadata["long"] == words and file.metadata["long"] is file.metadata["long"]
        ids = file.metadata["ids"]
    assert ids.sum() == 6000 * 5999 // 2, "arrays outlive the file"
    with pytest.raises(ValueError, match="a is closed"):
        with gguf.open(tmp_path / "a") as file:
            pass
        file.metadata["long"]


def test_a_header_of_a_large_model_opens_at_once(tmp_path: Path) -> None:
    """Opening costs what the header costs, however large the data: a sparse file of 8 GB."""
    base = small()
    (tmp_path / "a").write_bytes(base.changed(tensors=(Tensor("big.weight", (1 << 16, 1 << 15), 0, b""),)).bytes())
    with (tmp_path / "a").open("r+b") as file:
        file.truncate(9 << 30)
    with gguf.open(tmp_path / "a") as found:
        assert found.info("big.weight").nbytes == 8 << 30
