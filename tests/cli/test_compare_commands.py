"""anybit compare and recommend."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from anybit.cli import main as cli
from anybit.cli.commands.recommend import sentence
from anybit.errors import DoesNotFitError, NoRecipeError
from anybit.report.comparison import heat_map

RULES = "version: 1\nabout: {about}\nsource: here\nrules: [{{match: layers, format: {format}}}]\n"


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("recipes")
    found = {}
    for name, fmt in (("two", "int2@64"), ("four", "int4@32"), ("six", "int6@64"), ("odd", "bipolar4@32"), ("coded", "bf16+pack=escape")):
        pruned = "steps: [magnitude]\n" if name == "odd" else ""
        (folder / f"{name}.yaml").write_text(RULES.format(about=f"{name} <bits>", format=fmt) + pruned)
        found[name] = str(folder / f"{name}.yaml")
    return found


@pytest.fixture(scope="module")
def results(recipes: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("report") / "r"
    names = ",".join(recipes[name] for name in ("two", "four", "six"))
    args = ["compare", "pycoder-5m", "--recipes", names, "--tokens", "700", "--out", str(out), "--json", "--no-progress"]
    found = CliRunner().invoke(cli.main, args, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout), out


def test_recipes_side_by_side(results: tuple[dict[str, Any], Path]) -> None:
    found, out = results
    rows = found["recipes"]
    assert [row["recipe"] for row in rows] == ["six", "four", "two"], "best KL first"
    assert rows[0]["kl_over_best"] == 0 and rows[2]["kl_over_best"] == pytest.approx(rows[2]["kl_mean"] - rows[0]["kl_mean"])
    assert [row["quantized_bits_per_weight"] for row in rows] == [6.25, 4.5, 2.25] and all(row["front"] for row in rows)
    assert rows[2]["perplexity_over_original"] > rows[0]["perplexity_over_original"]
    for row in rows:
        assert row["decode_tokens_per_s"] > 0 and row["tokens"] == 700 and len(row["layer_errors"]) == 5 and row["bytes"] > 0
        assert sum(row["histogram"]["counts"]) > 0 and len(row["histogram"]["grid"]) >= 3
    assert json.loads((out / "results.json").read_text()) == found
    html = (out / "report.html").read_text()
    assert html.count("<svg") == 5 and "two &lt;bits&gt;" in html and not re.search(r"https?://(?!www.w3.org)", html)


def test_what_does_not_serve_is_said(recipes: dict[str, str]) -> None:
    args = ["compare", "pycoder-5m", "--recipes", f"{recipes['four']},{recipes['odd']}", "--tokens", "64", "--no-speed", "--no-progress"]
    found = CliRunner().invoke(cli.main, args, catch_exceptions=False)
    assert found.exit_code == 0
    assert "not served: odd: model.layers.0.self_attn.q_proj.weight: bipolar4@32 has no zero" in found.output and "four *" in found.output


def test_a_recommendation_names_the_best_that_fits(recipes: dict[str, str]) -> None:
    names = ",".join(recipes[name] for name in ("two", "four", "six"))
    odd = ["recommend", "pycoder-5m", "--bits", "7", "--tokens", "64", "--measure", "1", "--json", "--no-progress", "--recipes"]
    served = CliRunner().invoke(cli.main, [*odd, f"{recipes['odd']},{recipes['two']}"], catch_exceptions=False)
    assert json.loads(served.stdout)["recommended"] == "two", "a candidate that does not serve gives way to the next"
    with pytest.raises(NoRecipeError, match="no recipe serves pycoder-5m; odd: "):
        CliRunner().invoke(cli.main, [*odd, recipes["odd"]], catch_exceptions=False)

    coded = CliRunner().invoke(cli.main, [*odd, recipes["coded"]])
    assert isinstance(coded.exception, DoesNotFitError), "11.25 bits, which are known when it is measured"
    coded = CliRunner().invoke(cli.main, [*odd, "lossless"])
    assert "none of 1 recipes serves" in str(coded.exception), "known before that from the record"

    def call(*args: str) -> Any:
        more = ["--recipes", names, "--tokens", "64", "--json", "--no-progress"]
        return CliRunner().invoke(cli.main, ["recommend", "pycoder-5m", *args, *more])

    found = json.loads(call("--bits", "5").stdout)
    assert found["recommended"] == "four" and found["command"].startswith("anybit quantize pycoder-5m OUT -r four")
    assert found["sentence"].startswith("Within 5 bits, take four: 4.5 bits a weight, KL ") and "next is two" in found["sentence"]
    assert json.loads(call("--ram", "6G").stdout)["recommended"] == "six"
    few = json.loads(call("--bits", "7", "--measure", "1").stdout)
    assert few["recommended"] == "two" and few["evidence"]["recipes_not_measured"] == ["four", "six"], "none has a record: as given"
    assert "the only one of the candidates that was measured; 2 more fit and" in few["sentence"]
    for args, message in ((("--bits", "1"), "none of 3 recipes serves"), (("--tokens-per-second", "1e12"), "no recipe decodes 1e+12")):
        failed = call(*args)
        assert isinstance(failed.exception, DoesNotFitError) and message in str(failed.exception)
    assert "give at least one limit" in CliRunner().invoke(cli.main, ["recommend", "pycoder-5m"]).output


def test_a_heat_map_leaves_what_was_not_measured_empty() -> None:
    assert heat_map(["a", "<b>"], [[0.1, None], [0.5, 0.2]]).count("<rect") == 3
    assert "&lt;b&gt;" in heat_map(["<b>"], [[1.0]]) and "<rect" not in heat_map(["a"], [[None]])


def test_a_recommendation_says_what_is_known() -> None:
    row = {"recipe": "a", "quantized_bits_per_weight": 4.5, "kl_mean": 0.25, "kl_mean_se": 0.01, "decode_tokens_per_s": 12.0}
    other = {**row, "recipe": "b", "kl_mean": 0.5, "kl_over_best_se": 0.05}
    begun = "Within 5 bits, take a: 4.5 bits a weight, KL"
    assert sentence(row, [row, other], "5 bits") == (
        f"{begun} 0.25 ± 0.01 nats a token, 12 tokens a second; next is b with KL 0.5 (5.0 standard errors of the paired difference away)."
    )
    exact = {**row, "kl_mean": 0.0, "kl_mean_se": 0.0}  # lossless
    assert sentence(exact, [exact], "5 bits").startswith(f"{begun} 0 ± 0 nats a token, 12 tokens")
    once = {**row, "kl_mean_se": None}  # text too short for an error
    assert sentence(once, [once], "5 bits").startswith(f"{begun} 0.25 nats a token")

