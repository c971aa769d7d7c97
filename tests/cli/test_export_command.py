"""`anybit export` and `anybit convert`: what they say, write, refuse, and leave behind when they fail."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import anybit
from anybit import verification
from anybit.cli import main as cli
from anybit.io.manifest import verify_directory
from tests.io.exported import differing, model, quantized


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = cli._status([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return code, out, err


def test_export_with_a_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = quantized(tmp_path, "int4@128")
    quality, speed = tmp_path / "quality.json", tmp_path / "speed.json"
    quality.write_text(json.dumps({
        "model": "q", "reference": "base", "perplexity": 24.75, "perplexity_se": 1.2, "kl_mean": 0.0079, "kl_mean_se": 0.0002,
        "kl_p99": 0.05, "same_top1": 0.938, "window": 512, "act": "float", "text": {"source": "held-out | text", "tokens": 4096},
    }))  # fmt: skip
    speed.write_text(json.dumps({
        "model": "q", "prompt": 128, "prefill_tok_s": 139.2, "decode_tok_s": 51.7, "machine": {"cpu": "Z80", "threads": 2, "isa": "avx2"},
    }))  # fmt: skip
    code, out, _ = run(
        capsys, "export", source, tmp_path / "out", "--to", "compressed-tensors", "--verify", "--quality", quality, "--speed", speed
    )  # fmt: skip
    assert code == 0
    assert re.search(r"^ +7  int4@128 +pack-quantized int4@128", out, re.MULTILINE)
    assert "are equal bit for bit, read by anybit" in out
    assert differing(source, tmp_path / "out") == []
    verify_directory(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (
        f"export {source} {tmp_path / 'out'} --to compressed-tensors", "| perplexity | 24.75 ± 1.2 |", "93.80 %", "held-out | text, 4096",
        "| decode | 51.7 tokens/s |", "Z80, 2 threads, kernels avx2", "| 7 | int4@128 | pack-quantized int4@128 |", "base_model:",
    ):  # fmt: skip
        assert text in card, text


def test_json_and_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = model(tmp_path / "model")
    code, out, err = run(capsys, "export", source, tmp_path / "out.gguf", "--to", "gguf:q4_0", "--plan", "--json")
    assert (code, err) == (0, "")
    plan: dict[str, Any] = json.loads(out)
    assert not (tmp_path / "out.gguf").exists()
    assert plan["requantized"] == 7
    assert {tensor["is"] for tensor in plan["tensors"]} == {"Q4_0", "BF16", "F32"}
    code, out, _ = run(capsys, "export", source, tmp_path / "out.gguf", "--to", "gguf:q4_0", "--verify", "--json", "--no-progress")
    assert code == 0
    report = json.loads(out)
    assert report["bytes"] == (tmp_path / "out.gguf").stat().st_size
    assert report["verified"]["tensors"] == report["verified"]["equal"] == len(plan["tensors"])
    assert report["verified"]["readers"][0] == "anybit"
    assert report["bits_per_weight"] == plan["bits_per_weight"]
    assert anybit.load(tmp_path / "out.gguf").quantized


def test_verify_sees_a_wrong_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that swaps nibbles is caught."""
    from anybit.io.gguf.kind import writers

    source, good = quantized(tmp_path, "int4@32:fp16"), writers()["Q4_0"]

    def swapped(parts: Any, blocks: Any) -> None:
        good(parts, blocks)
        blocks["qs"] = blocks["qs"] << 4 | blocks["qs"] >> 4

    monkeypatch.setitem(writers(), "Q4_0", swapped)  # type: ignore[arg-type]
    code, _, err = run(capsys, "export", source, tmp_path / "out.gguf", "--to", "gguf", "--verify")
    assert code == 4
    assert "tensor 'model.layers.0.self_attn.q_proj.weight' reads back with other values" in err
    assert "out.gguf.rejected, " in err and (tmp_path / "out.gguf.rejected").is_file() and not (tmp_path / "out.gguf").exists()
    for aside in ("two.gguf.rejected", "two.gguf.rejected-2"):
        code, _, err = run(capsys, "export", tmp_path / "model", tmp_path / "two.gguf", "--to", "gguf:q4_0", "--verify")
        assert code == 4 and (tmp_path / aside).is_file() and not (tmp_path / "two.gguf").exists()


@pytest.mark.parametrize("fmt", ["int4@64", "uint4@64:bf16+zp", "fp8_e4m3fn@channel:bf16", "nvfp4", "mxfp4", "mxfp8"])
def test_verify_asks_compressed_tensors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fmt: str
) -> None:  # fmt: skip
    compressors = pytest.importorskip("compressed_tensors.compressors")
    source = quantized(tmp_path, fmt)
    args = ("export", source, tmp_path / "out", "--to", "compressed-tensors", "--verify")
    code, out, _ = run(capsys, *args)
    assert code == 0
    assert "read by anybit, compressed-tensors (7 tensors)" in out
    shutil.rmtree(tmp_path / "out")
    base = compressors.BaseCompressor
    found = base.get_value_from_registry

    class Other:
        """Its reader, were it to read one value differently."""

        def __init__(self, form: str) -> None:
            self._reader = found(form)

        def decompress(self, state: Any, scheme: Any) -> Any:
            made = self._reader.decompress(state, scheme)
            made["weight"][5, 3] += 1
            return made

    monkeypatch.setattr(base, "get_value_from_registry", Other)
    code, _, err = run(capsys, *args)
    assert code == 4
    assert "tensor 'model.layers.0.self_attn.q_proj.weight' has other values for compressed-tensors" in err


def test_verify_without_its_reader_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(verification, "find_spec", lambda name: None)
    code, _, err = run(capsys, "export", quantized(tmp_path, "int4@32"), tmp_path / "out", "--to", "onnx", "--verify")
    assert code == 6, err
    assert "pip install onnxruntime" in err
    assert not (tmp_path / "out").exists()


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = quantized(tmp_path, "uint4@32:uint6@256:fp16+off")
    assert run(capsys, "convert", source, tmp_path / "a.gguf", "--to", "gguf", "--verify")[0] == 0
    code, out, _ = run(capsys, "convert", tmp_path / "a.gguf", tmp_path / "b", "--to", "anybit", "--verify")
    assert code == 0
    assert "every code as it was" in out
    assert differing(source, tmp_path / "b") == []
    assert anybit.load(tmp_path / "b").linears["model.layers.0.mlp.up_proj.weight"].weight.format == anybit.Format("q4_k")


@pytest.mark.parametrize(
    ("args", "code", "match"),
    [
        (("export", "model", "out", "--to", "ggufs"), 2, "did you mean gguf"),
        (("export", "model", "out", "--to", "gguf:q9"), 2, "no GGUF type named 'q9' is written; there are "),
        (("export", "model", "out", "--to", "compressed-tensors"), 2, "nothing is quantized"),
        (("export", "model", "model", "--to", "gguf"), 4, "exists already"),
        (("export", "model", "out", "--to", "gguf", "--keep", "("), 2, "no regular expression"),
        (("export", "model", "out", "--to", "gptq"), 2, "not quantized"),
        (("export", "model", "no/out", "--to", "gguf"), 4, "does not exist"),
        (("export", "model", "out", "--to", "gguf", "--quality", "model/config.json"), 4, "no result of a measurement"),
        (("convert", "model", "out", "--to", "gguf:q4_0"), 2, "convert quantizes nothing"),
        (("convert", "model", "out", "--to", "anybit", "--plan"), 2, "leave out --plan"),
    ],
)
def test_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], code: int, match: str
) -> None:
    model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    found, _, err = run(capsys, *args)
    assert found == code
    assert match in err
    assert len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_quantize_writes_a_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = model(tmp_path / "model")
    code, _, _ = run(capsys, "quantize", source, tmp_path / "q", "--format", "int4@64", "--act", "int8", "--no-progress")
    assert code == 0
    card = (tmp_path / "q" / "README.md").read_text()
    assert "| format | int4@64 (int4@64:bf16) |" in card
    assert f"anybit quantize {source} {tmp_path / 'q'} --format 'int4@64' --act 'int8'" in card
    verify_directory(tmp_path / "q")
