"""A user's own element, a class with `decode` in one file of a folder of theirs: seen by listings, conformance tests, packers, kernels, and
a checkpoint that carries its values and opens without the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small import edit_quantization, write_model

import anybit
from anybit.errors import FileFormatError, FormatError, UsageError
from anybit.formats import Format, listed, parse_element
from anybit.formats.family import FAMILIES
from anybit.registry import Registry
from anybit.stored import tables_of

ROOT = Path(__file__).parents[1]

SQUARES = '''
"""Squares with a sign: codes are two's complement numbers."""

import numpy as np

from anybit.formats.element import Element
from anybit.formats.family import FAMILIES, Family


class Squares(Element):
    def decode(self, codes):
        c = self._checked(codes)
        c = np.where(c >= 1 << (self.bits - 1), c - (1 << self.bits), c)
        return (c * np.abs(c)).astype(np.float64) if self.bits < 5 else np.where(c == -16, np.nan, c * np.abs(c))


def parse(text):
    return Squares(text, int(text[-1])) if text in ("squares3", "squares4", "squares5") else None


FAMILIES.add("squares", Family("squares", "squares with a sign", "squaresN", parse, {"squares4": "-64 to 49", "squares5": "with NaN"}))
'''
TWINS = '''
"""Two equal weights, or two of opposite sign."""

import numpy as np

from anybit.formats import Vector
from anybit.formats.family import FAMILIES, Family


class Twins(Vector):
    def decode(self, codes):
        c = self._checked(codes)
        size = (c & 7) - 3.5
        return np.stack([size, np.where(c & 8, -size, size)], axis=-1)


def parse(text):
    return Twins(text, 4, 2) if text == "twins" else None


FAMILIES.add("twins", Family("twins", "two weights of one size", "twins", parse, {"twins": "2 bits a weight"}))
'''
# What a user does with them, in a process of its own.
SESSION = """
import json, sys
import numpy as np
import anybit
from anybit.formats import Format
from anybit.methods import dequantize_parts
from anybit.model import quantize_file
from anybit.reference.linear import matmul

source, out = sys.argv[1:]
w, x = np.random.default_rng(0).standard_normal((2, 33, 96), np.float32)
q = anybit.quantize(w, "squares4@32:fp16")
assert q.layout == "tile16x4" and np.array_equal(q.to("rows").to("tile16x4").parts["codes"], q.parts["codes"])
for act in (None, "int8"):
    assert np.array_equal(q.matmul(x, act), matmul(x, q.logical(), q.format, q.shape, act))
t = anybit.quantize(w, "twins@32")
assert t.layout == "rows" and np.array_equal(t.dequantize(), dequantize_parts(t.logical(), t.format, t.shape))
model = anybit.load(source)
logits = {}
for fmt in ("squares4@24:squares5@channel", "twins@24", "squares3@channel"):
    name = fmt.split("@")[0]
    model.quantize(fmt).save(f"{out}/{name}")
    quantize_file(source, f"{out}/{name}-streamed", fmt)
    logits[name] = anybit.load(f"{out}/{name}").logits([1, 2, 3]).tolist()
print(json.dumps(logits))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mine")
    (path / "squares.py").write_text(SQUARES)
    (path / "twins.py").write_text(TWINS)
    return path


def run(folder: Path | str, *command: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "ANYBIT_FORMATS": str(folder)}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def saved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[list[float]]]]:
    path = tmp_path_factory.mktemp("saved")
    done = run(folder, "-c", SESSION, str(write_model(path / "tiny")), str(path))
    assert done.returncode == 0, done.stderr
    return path, json.loads(done.stdout)


def test_listed_with_the_built_in_ones(folder: Path) -> None:
    done = run(folder, "-m", "anybit.cli.main", "formats")
    assert done.returncode == 0 and "squares4" in done.stdout and "twins" in done.stdout, done.stderr
    shown = json.loads(run(folder, "-m", "anybit.cli.main", "formats", "squares4@32", "--json").stdout)
    assert shown["values"][:4] == [0, 1, 4, 9] and shown["table"] == "i8"


def test_conformance(folder: Path) -> None:
    """The repository's own tests walk over them: two references judge the encoding of every code and of all float16 and bfloat16 inputs."""
    tests = ["tests/formats/test_element_oracles.py", "tests/formats/test_element_derived.py", "tests/formats/test_vectors.py"]
    done = run(folder, "-m", "pytest", "-p", "no:cacheprovider", *tests, "-k", "squares4 or squares5 or twins")
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout
    assert int(done.stdout.split(" passed")[0].split()[-1]) >= 12


def test_checkpoints_open_without_the_file(saved: tuple[Path, dict[str, list[list[float]]]]) -> None:
    """The values travel in config.json: same logits, streamed or not, and again after another round through a file."""
    path, logits = saved
    for name, expected in logits.items():
        assert name not in FAMILIES
        with pytest.raises(FormatError, match="no format named"):
            parse_element(name)
        config = json.loads((path / name / "config.json").read_text())["quantization_config"]
        assert set(config["tables"]) == ({"squares4", "squares5"} if name == "squares4" else {name})
        model = anybit.load(path / name)
        assert model.logits([1, 2, 3]).tolist() == expected
        for file in ("config.json", "model.safetensors"):
            assert (path / name / file).read_bytes() == (path / f"{name}-streamed" / file).read_bytes()
        again = path / f"{name}-again"
        model.save(again)
        assert (again / "config.json").read_bytes() == (path / name / "config.json").read_bytes()
        assert anybit.load(again).logits([1, 2, 3]).tolist() == expected


def test_the_file_and_the_table_must_agree(folder: Path, saved: tuple[Path, dict[str, list[list[float]]]], tmp_path: Path) -> None:
    """Where the file is there, its element serves; where it says something else by now, the checkpoint is refused."""
    path, logits = saved
    show = "import anybit, sys; print(anybit.load(sys.argv[1]).logits([1, 2, 3]).tolist())"
    done = run(folder, "-c", show, str(path / "squares4"))
    assert json.loads(done.stdout) == logits["squares4"], done.stderr
    (tmp_path / "squares.py").write_text(SQUARES.replace("c * np.abs(c)", "c * np.abs(c) + 1"))
    done = run(tmp_path, "-m", "anybit.cli.main", "run", str(path / "squares4"), "x")
    assert done.returncode != 0
    assert "tables['squares4']: squares4 has other values here (at byte " in done.stderr and "Traceback" not in done.stderr


def test_tables_are_needed_and_private(saved: tuple[Path, dict[str, list[list[float]]]]) -> None:
    """Without its table the name means nothing; two checkpoints with one name and other values stay apart."""
    import shutil

    path, logits = saved
    for change in ("gone", "other"):
        shutil.copytree(path / "squares3", path / change)
    edit_quantization(path / "gone", lambda q: q["tables"].clear())
    with pytest.raises(FileFormatError, match="no format named 'squares3'"):
        anybit.load(path / "gone")
    double = [(2 * v).hex() for v in (0.0, 1.0, 4.0, 9.0, -16.0, -9.0, -4.0, -1.0)]
    edit_quantization(path / "other", lambda q: q["tables"].update(squares3=double))
    twice = anybit.load(path / "other")
    assert twice.logits([1, 2, 3]).tolist() != logits["squares3"] == anybit.load(path / "squares3").logits([1, 2, 3]).tolist()
    name = next(iter(twice.quantized))
    assert np.array_equal(twice.linears[name].weight.dequantize(), 2 * anybit.load(path / "squares3").linears[name].weight.dequantize())


def test_folders_that_are_none(tmp_path: Path) -> None:
    done = run(tmp_path / "absent", "-m", "anybit.cli.main", "formats")
    assert done.returncode != 0 and "no folder with format family files" in done.stderr and "Traceback" not in done.stderr
    (tmp_path / "integer.py").write_text("")
    done = run(tmp_path, "-m", "anybit.cli.main", "formats")
    assert done.returncode != 0 and "there is a format family file of this name already; rename yours" in done.stderr
    (tmp_path / "integer.py").rename(tmp_path / "again.py")
    (tmp_path / "again.py").write_text(SQUARES.replace('FAMILIES.add("squares"', 'FAMILIES.add("integer"'))
    assert "two format familys named 'integer'" in run(tmp_path, "-c", "import anybit; anybit.Format('int4')").stderr


def test_a_folder_is_added_before_and_after_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "shelf"
    (package / "more").mkdir(parents=True)
    (package / "late").mkdir()
    (package / "__init__.py").write_text("from anybit.registry import Registry\nTHINGS = Registry('thing', 'shelf')\n")
    for name, where in (("one", package), ("two", package / "more"), ("three", package / "late")):
        (where / f"{name}.py").write_text(f"from shelf import THINGS\nTHINGS.add('{name}', '{name}')\n")
    monkeypatch.syspath_prepend(tmp_path)
    things: Registry[str] = __import__("shelf").THINGS
    things.add_folder(package / "more")
    things.add_folder(package / "more")
    assert sorted(things) == ["one", "two"]
    things.add_folder(str(package / "late"))
    assert things["three"] == "three"
    with pytest.raises(UsageError, match="no folder with thing files"):
        things.add_folder(tmp_path / "absent")


def test_listed_elements() -> None:
    """A list is an element like any other: specials, encoding, table; equal when name and values are."""
    a = listed("mine", [0.0, -0.0, float("nan"), float("inf"), 2.0, -3.0, 0.5, 0.5])
    assert a.specials == {"nan": 2, "inf": 3, "-0": 1} and a.encode([0.4, -9.0, 1.25]).tolist() == [6, 5, 4]
    assert a == listed("mine", a.values.tolist()) and a != listed("mine", [0.0, 1.0])
    fmt = Format.parse("mine@32:fp16", {"mine": a})
    assert str(fmt) == "mine@32:fp16" and fmt.element is a and tables_of([fmt]).keys() == {"mine"}
    pair = listed("pair", [[0.0, 1.0], [1.0, -1.0]])
    assert pair.dim == 2 and pair.encode([0.2, 0.7, 3.0, 0.0]).tolist() == [0, 1]
    assert tables_of([Format.parse("pair@32", {"pair": pair})]) == {"pair": ((0.0, 1.0), (1.0, -1.0))}
    assert tables_of([Format("nvfp4"), Format("kmeans3@32"), Format("e8p@channel"), Format("codebook_1_2@32")]) == {}
