"""What each command prints, through click's runner."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from anybit.cli import main as cli

EVAL_KEYS = ["perplexity", "perplexity_se", "kl_mean", "kl_mean_se", "kl_p99", "same_top1", "tokens"]


def call(*args: str) -> str:
    found = CliRunner().invoke(cli.main, list(args), catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


def as_json(*args: str) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    found: dict[str, Any] = json.loads(call(*args, "--json"), parse_constant=refuse)
    return found


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "q"
    found = as_json("quantize", "pycoder-5m", str(path), "--format", "int3@64", "--no-progress")
    assert found["quantized_bits_per_weight"] == 3.25
    assert found["bytes"] == sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return path


def test_formats_lists_every_name() -> None:
    from anybit.formats import named_formats

    found = as_json("formats")
    assert [row["name"] for row in found["formats"]] == [named.name for named in named_formats()]
    text = call("formats")
    for named in named_formats():
        assert named.name in text


def test_formats_shows_one_in_full() -> None:
    found = as_json("formats", "mxfp4")
    assert found["explicit"] == "fp4_e2m1@32:e8m0"
    assert found["bits_per_weight"] == 4.25
    assert found["bits_per_weight_exact"] == "17/4"
    assert found["values"] == [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    assert (found["min"], found["max"], found["smallest"], found["distinct_values"]) == (-6, 6, 0.5, 15)
    assert 18 < found["sqnr_db"] < 20
    text = call("formats", "mxfp4")
    assert "4.25 (17/4)" in text
    assert "-1.5" in text


def test_formats_with_specials_and_wide_formats() -> None:
    found = as_json("formats", "fp8_e4m3fn@32")
    assert found["values"][0x7F] == "nan"
    assert len(found["values"]) == 256
    assert found["specials"]["nan"] == "code 127"
    assert as_json("formats", "fp32")["sqnr_db"] is None  # nothing is lost
    assert "values" not in as_json("formats", "bf16")


def test_sqnr_of_the_uniform_quantizer() -> None:
    # With step s and no clipping the noise is s^2 / 12; int8 with one scale a row of 4,096 normal numbers.
    import numpy as np

    from anybit.methods import sample

    x = sample("normal", 1 << 16)
    steps = np.abs(x).max(axis=1) / 127
    expected = 10 * math.log10(float((x.astype(np.float64) ** 2).sum()) / float((steps**2 / 12).sum() * x.shape[1]))
    assert as_json("formats", "int8@channel")["sqnr_db"] == pytest.approx(expected, abs=0.05)


def test_eval_keys_and_values(quantized: Path) -> None:
    found = as_json("eval", str(quantized), "--reference", "pycoder-5m", "--tokens", "1536", "--no-progress")
    assert [key for key in found if key in EVAL_KEYS] == EVAL_KEYS
    assert found["tokens"] == 1536
    assert found["kl_mean"] > 2 * found["kl_mean_se"] > 0
    assert found["kl_p99"] > found["kl_mean"]
    assert 0.5 < found["same_top1"] < 1
    assert found["bits_per_weight"] > found["quantized_bits_per_weight"] == 3.25
    assert len(found["text"]["tokens_sha256"]) == 64
    assert found["text"]["python"]
    assert found["machine"]["cpu"]
    assert found["machine"]["isa"]


def test_eval_of_the_original_against_itself_and_on_a_file(tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    path.write_text("import os\n" * 200)
    found = as_json("eval", "pycoder-5m", "--reference", "pycoder-5m", "--text", str(path), "--no-progress")
    assert found["kl_mean"] == pytest.approx(0, abs=1e-12)
    assert found["same_top1"] == 1
    assert found["text"]["source"] == "some.txt"
    alone = as_json("eval", "pycoder-5m", "--text", str(path), "--tokens", "100", "--no-progress")
    assert alone["tokens"] == 100
    assert alone["kl_mean"] is None
    assert alone["perplexity_se"] is None  # one window says nothing about its own error
    assert "perplexity" in call("eval", "pycoder-5m", "--text", str(path), "--no-progress")


def test_eval_int8_activations_differ(quantized: Path) -> None:
    args = ("eval", str(quantized), "--tokens", "512", "--no-progress", "--act")
    assert as_json(*args, "int8")["perplexity"] != as_json(*args, "float")["perplexity"]


def test_run_streams_what_it_returns(quantized: Path) -> None:
    args = ("run", str(quantized), "def f(x):\n", "--max-tokens", "12", "--temperature", "0.8", "--seed", "3")
    found = as_json(*args)
    assert found["text"]
    assert call(*args) == "def f(x):\n" + found["text"] + "\n"
    assert as_json(*args[:-1], "4")["text"] != found["text"]
    piped = CliRunner().invoke(cli.main, ["run", str(quantized), "-", "--max-tokens", "3"], input="import ")
    assert piped.stdout.startswith("import ")


def test_bench_measures_and_explains(quantized: Path) -> None:
    args = ("bench", str(quantized), "--prompt", "16", "--tokens", "4", "--repeats", "1", "--no-progress", "--explain")
    found = as_json(*args)
    assert found["prefill_tok_s"] > 0
    assert found["decode_tok_s"] > 0
    assert found["model_bytes"] > 0
    assert found["peak_bytes"] >= found["anonymous_bytes"]
    assert {row["kernel"] for row in found["kernels"]} == {"linear_tile16x1", "linear_tile16x4"}
    text = call(*args)
    assert "tokens/s" in text
    assert "model.layers.4.mlp.down_proj.weight" in text


def test_inspect_counts_what_is_stored(quantized: Path) -> None:
    found = as_json("inspect", str(quantized))
    assert found["kind"] == "anybit"
    assert found["nbytes"] == sum(file.stat().st_size for file in quantized.glob("*.safetensors"))
    text = call("inspect", str(quantized))
    assert "int3@64:bf16" in text
    assert "tile16x4" in text
    assert "hugging face" in call("inspect", "pycoder-5m")


def test_inspect_shows_no_control_characters() -> None:
    from anybit.cli.commands.inspect import printable

    assert printable("a\x1b[31mb\n") == "a\\x1b[31mb\\x0a"


def test_doctor() -> None:
    found = as_json("doctor")
    assert found["isa"] in found["isas"]
    assert found["threads"] >= 1
    assert {row["format"] for row in found["kernels"]} >= {"int4@32", "mxfp4", "bf16"}
    assert all(row["kernel"] or row["why not"] for row in found["kernels"])
    assert "instruction set" in call("doctor")
