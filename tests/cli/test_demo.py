"""The main job, whole: eleven formats, both files, the order of the formats."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from click.testing import CliRunner

from anybit.cli import main as cli
from anybit.cli.commands.demo import CHAINS, FORMATS

REQUIRED = ("int8@channel", "int4@32", "int4@128", "int3@128", "int2@64", "ternary@256", "mxfp8", "mxfp6", "mxfp4", "nvfp4", "nf4@64")


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    tokens = 6144  # twelve windows: three of them with int8 activations
    found = CliRunner().invoke(
        cli.main, ["demo", "--out", str(tmp_path / "out"), "--tokens", str(tokens), "--no-progress"], catch_exceptions=False
    )
    assert found.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "results.json"]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    report = (tmp_path / "out" / "report.html").read_text()

    assert set(REQUIRED) <= set(FORMATS)
    assert [row["format"] for row in results["formats"]] == list(FORMATS)
    for row in results["formats"]:
        for act in ("float", "int8"):
            assert {"perplexity", "perplexity_se", "kl_mean", "kl_mean_se", "kl_p99", "same_top1", "tokens"} <= row[act].keys()
        assert row["float"]["tokens"] == tokens
        assert row["float"]["kl_mean"] > 0
        assert Fraction(row["quantized_bits_per_weight"]) >= Fraction(row["format_bits_per_weight"])
        assert row["speed"]["prefill_tok_s"] > 0
        assert row["speed"]["decode_tok_s"] > 0
        assert row["format"] in found.stdout
        assert row["format"] in report
    assert results["text"]["tokens"] == tokens
    assert len(results["text"]["tokens_sha256"]) == 64
    assert results["machine"]["cpu"]
    assert results["memory"]["peak_bytes"] > 0
    assert results["sample"]["text"]

    # The promise: inside each family more bits lose less, each difference at least twice its paired error.
    pairs = {(c["better"], c["worse"]): c for c in results["comparisons"]}
    assert len(pairs) == sum(len(chain) - 1 for chain in CHAINS)
    for comparison in pairs.values():
        assert comparison["kl_difference"] >= 2 * comparison["kl_difference_se"] > 0

    assert len(report.encode()) < 3_000_000
    assert "http" not in report
    assert "<svg" in report
    assert "anybit quantize" in found.stdout
