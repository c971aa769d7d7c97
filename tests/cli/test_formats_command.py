"""anybit formats: the listing by family, one format drawn, its picture, the ranking, and what is refused in one line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner

from anybit.cli import main as cli
from anybit.cli.commands import formats as command
from anybit.errors import AnybitError
from anybit.formats import Element, families


def call(*args: str) -> str:
    found = CliRunner().invoke(cli.main, ["formats", *args], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


def test_members_stand_under_their_family() -> None:
    lines = call().splitlines()
    for family in families().values():
        start = lines.index(f"{family.name}: {family.about}")
        under = lines[start + 1 : lines.index("", start)]
        assert [line.split()[0] for line in under] == list(family.members)
        assert all(line.startswith("  ") for line in under)
    assert any(line.startswith("block: whole formats") for line in lines)


def test_one_format_is_drawn() -> None:
    text = call("fp4_e2m1")
    assert "15 values on a linear line" in text and "-6             -4" in text
    assert "-0 (code 8)" in text and "i8" in text and "4 (4)" in text
    assert "253 values on a logarithmic line" in call("mxfp8")
    assert "values on" not in call("fp32")


def test_plot_writes_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    assert f"wrote {path}" in call("nvfp4", "--plot", str(path))
    root = ElementTree.parse(path).getroot()
    texts = [item.text or "" for item in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "nvfp4 = fp4_e2m1@16:fp8_e4m3fn@tensor" and "4.5 bits a weight; -6 to 6, smallest 0.5; 15 values" in texts[1]
    assert json.loads(call("nf4", "--plot", str(path), "--json"))["plot"] == str(path)
    assert [item.name for item in tmp_path.iterdir()] == ["a.svg"]


def test_compare_ranks(tmp_path: Path) -> None:
    text = call("--compare", "int8@channel", "int4@32", "nf4@64", "int4@32:fp32", "--on", "laplace")
    assert [line.split()[0] for line in text.splitlines()[1:5]] == ["nf4@64", "int4@32", "int4@32:fp32", "int8@channel"]
    np.save(tmp_path / "w.npy", np.random.default_rng(0).standard_normal((4, 64)))
    found = json.loads(call("--compare", "nvfp4", "int4", "fp32", "--on", str(tmp_path / "w.npy"), "--json"))
    assert found["shape"] == [4, 64]
    assert [(f["name"], f["expression"], f["bits_per_weight_exact"], f["pareto"]) for f in found["formats"]] == [
        ("int4", "int4@channel", "9/2", True), ("nvfp4", "fp4_e2m1@16:fp8_e4m3fn@tensor", "37/8", True), ("fp32", "fp32", "32", True),
    ]  # fmt: skip
    assert found["formats"][-1]["sqnr_db"] > 100


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fp4_e2m"], "did you mean fp4_e2m1?"),
        (["int4", "int8"], "one format at a time, not 2; to rank them: anybit formats --compare int4 int8"),
        (["--compare"], "--compare takes formats"),
        (["--compare", "int4@32", "fp4_e2m@3"], "at position 0; did you mean fp4_e2m1?"),
        (["--compare", "int4@32+over=inf"], "int4 has no infinity"),
        (["--compare", "int4@32", "--on", "norml"], "did you mean normal?"),
        (["--compare", "int4@32", "--on", "nowhere.npy"], "nowhere.npy: No such file"),
        (["int4", "--on", "normal"], "it goes with --compare"),
        (["--plot", "a.svg"], "--plot draws one format"),
        (["int4", "--plot", "a.png"], "name the file .svg"),
        (["fp32", "--plot", "a.svg"], "has no list of values to draw"),
    ],
)
def test_refused(args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AnybitError) as caught:
        CliRunner().invoke(cli.main, ["formats", *args], catch_exceptions=False)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@dataclass(frozen=True)
class Vectors(Element):
    """Codes of several numbers each, as vector codebooks have."""

    width: int = 2

    @property
    def dim(self) -> int:
        return self.width

    @property
    def values(self) -> np.ndarray:  # type: ignore[override]
        return np.arange((1 << self.bits) * self.width, dtype=float).reshape(-1, self.width) - 3

    def decode(self, codes: Any) -> np.ndarray:
        return self.values[np.asarray(codes)]


def test_elements_of_several_numbers_are_no_stumbling_block(tmp_path: Path) -> None:
    pair, four, wide = Vectors("pair", 4), Vectors("four", 4, 4), Vectors("wide", 20, 8)
    found = command.finite_values(pair)
    assert found is not None and (found.max(), command.smallest(found)) == (28, 1)
    assert command.drawing(pair)[0].startswith("16 pairs") and command.drawing(four)[0].startswith("16 vectors of 4 numbers")
    assert command.finite_values(wide) is None and command.drawing(wide) == []
    about = {"alias": None, "expression": "pair", "bits_per_weight": 2, "min": -3.0, "max": 28.0, "smallest": 1.0, "sqnr_db": 3.0}
    command.write_plot(about, pair, tmp_path / "a.svg")
    assert "circle" in (tmp_path / "a.svg").read_text()
    for element in (four, wide):
        with pytest.raises(AnybitError, match="has no list of values to draw"):
            command.write_plot(about, element, tmp_path / "b.svg")
