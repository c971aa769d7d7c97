"""llama.cpp's importance matrices, both forms, written by gguf-py and by hand as llama-imatrix lays them out."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_model import renamed

from anybit.calibrate import calibration_text
from anybit.calibrate.importance import importance_of
from anybit.cli.main import _status
from anybit.errors import FileFormatError
from anybit.export import prepare, write
from anybit.io.gguf.imatrix import read_imatrix
from anybit.recipes.source import FloatSource
from tests.io.exported import model
from tests.small import CONFIG, arrays

WANT = {
    "model.layers.0.self_attn.q_proj.weight": np.array([1.0, 0.5, 0.0, 4.0]),
    "model.layers.11.mlp.down_proj.weight": np.array([3.0, 2.0]),
    "lm_head.weight": np.array([0.25]),
}


def write_gguf_form(path: Path, means: Mapping[str, np.ndarray], count: float = 8.0, kind: str = "imatrix") -> None:
    import gguf

    w = gguf.GGUFWriter(path, "")
    w.add_type(kind)
    w.add_array("imatrix.datasets", ["text.txt"])
    w.add_uint32("imatrix.chunk_count", 3)
    w.add_uint32("imatrix.chunk_size", 512)
    for name, mean in means.items():
        w.add_tensor(f"{renamed(name)}.in_sum2", (mean * count).astype(np.float32)[None])
        w.add_tensor(f"{renamed(name)}.counts", np.array([[count]], np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def dat(means: Mapping[str, np.ndarray], count: int = 8, name: Any = renamed) -> bytes:
    out = struct.pack("<i", len(means))
    for key, mean in means.items():
        text = name(key).encode()
        out += struct.pack("<i", len(text)) + text + struct.pack("<ii", count, mean.size) + (mean * count).astype("<f4").tobytes()
    return out + struct.pack("<ii", 3, 8) + b"text.txt"


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_both_forms(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"imatrix.{form}"
    if form == "gguf":
        write_gguf_form(path, WANT)
    else:
        path.write_bytes(dat(WANT))
    found = read_imatrix(path)
    assert found.keys() == WANT.keys()
    for name, mean in WANT.items():
        assert np.array_equal(found[name], mean), name


ONE = {"lm_head.weight": np.array([0.25, 1.0])}
DAT: list[tuple[bytes, str]] = [
    (b"", "number of entries at byte 0: the file ends"),
    (struct.pack("<i", -1), "number of entries at byte 0: -1 is not from 1"),
    (struct.pack("<ii", 1, 1 << 30), r"entry 0 at byte 4: 1073741824 is not from 1 to 256"),
    (dat(ONE)[:-20], r"entry 0 at byte 4: 'output\.weight' has 2 numbers, and the file ends before"),
    (dat(ONE, count=-1), "-1 is not from 1"),
    (dat(ONE, name=lambda key: "blk.0.x.weight"), r"tensor 'blk\.0\.x\.weight' at byte 4: no matrix of a model"),
    (dat({"lm_head.weight": np.array([0.25, np.nan])}), r"tensor 'output\.weight' at byte 4: number 1 is nan"),
    (dat({"lm_head.weight": np.array([-0.25])}), "number 0 is -0.25, no mean of squares"),
    (struct.pack("<i", 2) + dat(ONE)[4:-16] * 2, r"entry 1 at byte \d+: 'output\.weight' stands here twice"),
]


@pytest.mark.parametrize(("data", "message"), DAT)
def test_damaged_dat(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.dat").write_bytes(data)
    with pytest.raises(FileFormatError, match=message):
        read_imatrix(tmp_path / "x.dat")


def test_damaged_gguf(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_gguf_form(path, ONE, kind="model")
    with pytest.raises(FileFormatError, match=r"'general\.type' is 'model', not 'imatrix' \(at byte \d+\)"):
        read_imatrix(path)
    write_gguf_form(path, ONE, count=0.0)
    with pytest.raises(FileFormatError, match=r"'output\.weight' at byte \d+: a mean over 0 inputs"):
        read_imatrix(path)
    write_gguf_form(path, {"lm_head.weight": np.ones((2, 3))})
    with pytest.raises(FileFormatError, match=r"F32\[1, 2, 3\] is neither sums"):
        read_imatrix(path)


def test_export(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of either form gives the bytes of the same numbers given in Python; another model's is refused."""
    source = model(tmp_path / "model")
    text = tmp_path / "t.txt"
    text.write_text("hello world " * 2500)
    made = FloatSource(source)
    import anybit

    means = importance_of(made, calibration_text(anybit.load(source).tokenizer, [text], length=128).ids)
    write_gguf_form(tmp_path / "i.gguf", means, count=1.0)
    found = read_imatrix(tmp_path / "i.gguf")
    assert all(np.array_equal(found[name], mean.astype(np.float32)) for name, mean in means.items())
    (tmp_path / "i.dat").write_bytes(dat(means, count=1))
    for out, more in (("a", ["--imatrix", "i.gguf"]), ("b", ["--imatrix", "i.dat"]), ("c", [])):
        given = [str(tmp_path / each) if each.startswith("i.") else each for each in more]
        assert _status(["export", str(source), str(tmp_path / f"{out}.gguf"), "--to", "gguf:q4_k", "--no-progress", *given]) == 0
    stored = {name: mean.astype(np.float32) for name, mean in means.items()}
    write(prepare(source, "gguf:q4_k", importance=stored), tmp_path / "d.gguf")
    a, b, c, d = ((tmp_path / f"{out}.gguf").read_bytes() for out in "abcd")
    assert a == b == d and a != c
    (tmp_path / "d.gguf").unlink()
    capsys.readouterr()
    del means["model.layers.0.mlp.up_proj.weight"]
    write_gguf_form(tmp_path / "less.gguf", means)
    write_gguf_form(tmp_path / "other.gguf", {name: np.ones(array.shape[-1]) for name, array in arrays(CONFIG).items() if array.ndim == 2})
    for file, says in (
        ("less", "nothing is listed for tensor 'model.layers.0.mlp.up_proj.weight'"),
        ("other", "48 numbers are listed for"),
    ):
        given = ["--to", "gguf:q4_k", "--imatrix", str(tmp_path / f"{file}.gguf")]
        assert _status(["export", str(source), str(tmp_path / "d.gguf"), *given]) == 4
        assert says in capsys.readouterr().err
    assert _status(["export", str(source), str(tmp_path / "d.gguf"), "--to", "gguf", "--imatrix", str(tmp_path / "i.gguf")]) == 2
    assert "--imatrix weighs errors where TARGET quantizes" in capsys.readouterr().err
