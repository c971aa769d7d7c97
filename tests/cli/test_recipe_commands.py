"""anybit recipes, plan, and quantize after a recipe."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from anybit.cli import main as cli
from anybit.cli.commands.plan import parse_size
from anybit.errors import DoesNotFitError, UsageError
from anybit.io.manifest import verify_directory
from anybit.recipes.schema import named

SMALL = """version: 1
about: a test
source: a test
calibration: {sequences: 2, length: 40}
rules:
  - {match: v_proj, keep: true}
  - {match: layers, format: int4@32+scale=wmse, act: int8}
"""


def call(*args: str) -> str:
    found = CliRunner().invoke(cli.main, list(args), catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


def as_json(*args: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call(*args, "--json"))
    return found


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipes") / "small.yaml"
    path.write_text(SMALL)
    return str(path)


def test_recipes_are_listed_and_shown(recipe: str) -> None:
    found = as_json("recipes")["recipes"]
    assert [row["name"] for row in found] == list(named())
    text = call("recipes")
    assert all(name in text for name in named())
    one = as_json("recipes", recipe)
    assert one["name"] == "small" and one["recipe"]["rules"][1]["act"] == "int8" and len(one["digest"]) == 64
    assert "int4@32+scale=wmse, nearest, activations int8" in call("recipes", recipe)


def test_a_plan_is_what_quantize_makes(recipe: str, tmp_path: Path) -> None:
    plan = as_json("plan", "pycoder-5m", "-r", recipe)
    made = as_json("quantize", "pycoder-5m", str(tmp_path / "out"), "-r", recipe, "--no-progress")
    assert plan["fits"] and plan["quantized_bits_per_weight"] == made["quantized_bits_per_weight"] == 4.5
    assert plan["estimate"]["model_bytes"] == pytest.approx(made["bytes"], rel=0.01)
    kept = [row for row in plan["layers"] if row["method"] == "kept"]
    assert [row["name"].split(".")[-2] for row in kept] == ["embed_tokens", *["v_proj"] * 5]
    assert all(0 < layer["error"] < 0.1 for layer in made["layers"]) and len(made["layers"]) == 5
    assert made["calibration"]["length"] == 40 and made["notes"] == [] and made["peak_bytes"] > 0
    assert made["digest"] == plan["digest"]


def test_a_plan_with_an_allocation_shows_the_budget_and_not_the_rules_format(tmp_path: Path) -> None:
    path = tmp_path / "mixed.yaml"
    formats = ["int6@64", "int2@64", "int4@64"]
    path.write_text(f"version: 1\nallocation: {{bits: 3.5, formats: {formats}, cost: hawq}}\nrules: [{{match: layers, format: int8@64}}]\n")
    plan = as_json("plan", "pycoder-5m", "-r", str(path))
    assert plan["quantized_bits_per_weight"] == pytest.approx(3.5, rel=1e-3)
    assert {row["format"] for row in plan["layers"] if "layers" in row["name"]} == {"int2@64 to int6@64"}
    text = call("plan", "pycoder-5m", "-r", str(path))
    assert "each of 3 is quantized and measured first: time for 4 and more" in text and "3.5 bits a weight" in text


def test_what_does_not_fit_is_refused(recipe: str) -> None:
    found = CliRunner().invoke(cli.main, ["plan", "pycoder-5m", "-r", recipe, "--ram", "10M", "--json"])
    assert isinstance(found.exception, DoesNotFitError) and found.exception.exit_code == 3
    assert not json.loads(found.stdout)["fits"]
    assert [parse_size(text) for text in ("6G", "512MiB", "1.5 k", "7")] == [6 << 30, 512 << 20, 1536, 7]
    with pytest.raises(UsageError, match=r"'6X' is no size"):
        parse_size("6X")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give either --format or --recipe"),
        (["-r", "nearest-int4", "--format", "int4@32"], "give either --format or --recipe"),
        (["-r", "nearest-int4", "--act", "int8"], "--act does not go with --recipe: write it there"),
        (["--format", "int4@32", "--work", "w"], "--work does not go with --format"),
        (["-r", "nearest-int4", "--resume"], "--resume needs the --work folder"),
    ],
)
def test_options_that_contradict_each_other(args: list[str], message: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(cli.main, ["quantize", "pycoder-5m", str(tmp_path / "o"), *args])
    assert found.exit_code == 2 and message in found.output + str(found.exception)
    assert not (tmp_path / "o").exists()


def test_a_recipe_writes_a_model_card(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was done and measured, nothing else; the manifest lists it."""
    monkeypatch.setattr("anybit.recipes.quantize.DEFAULT_TOKENS", 2048)  # of the gate
    (tmp_path / "r.yaml").write_text("version: 1\nabout: four bits\nrules: [{match: layers, format: int4@32}]\ngates: {max_kl: 1}\n")
    code = cli._status(["quantize", "pycoder-5m", str(tmp_path / "out"), "-r", str(tmp_path / "r.yaml"), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    kl, error = report["accuracy"]["kl_mean"], report["accuracy"]["kl_mean_se"]
    for text in (
        "base model | pycoder-5m", f"| recipe | r, SHA-256 {report['digest']} |", "| about | four bits |", "| 35 | bf16 | int4@32:bf16 |",
        f"{report['quantized_bits_per_weight']:.4g} in the quantized layers", f"| {kl:.3g} ± {error:.2g} |", "tokens, windows of 512",
        f"anybit quantize pycoder-5m {tmp_path / 'out'} -r {tmp_path / 'r.yaml'}",
    ):  # fmt: skip
        assert text in card, text
    assert "| speed |" not in card and "| calibration |" not in card and "| published |" not in card
    found = verify_directory(tmp_path / "out")
    assert found.unlisted == ()
