"""A version-1 checkpoint written once by real layouts and formats: it opens for ever, and gives the logits that it gave then, bit by bit.

`write` made it; it is kept to say how, and never runs on the golden directory again. What quantizing chooses may improve; what stored
bytes mean may not change.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import anybit
from anybit.io.manifest import verify_directory
from anybit.kernels import cpu
from anybit.tensor import QTensor

GOLDEN = Path(__file__).parent / "golden" / "model-v1"
IDS = [1, 5, 9, 63, 0, 17, 33, 2, 40, 41, 42, 8]
LAYERS = [  # one format a matrix, in the order of execution; columns are 48 or 72, so that many last blocks are short
    "int4@32", "nvfp4", "ternary@256", "nf4@64", "mxfp4", "mxfp6", "mxfp8", "int3@128", "uint4@32+zp", "int8@channel", "int2@64:fp16",
    "fp8_e4m3fn", "int5@16x16+off", "binary@32",
]  # fmt: skip
ACT = {"int4@32", "nvfp4", "ternary@256", "mxfp8", "uint4@32+zp", "int8@channel"}


def write(path: Path, source: Path) -> None:
    """Makes the checkpoint and its logits from a tiny model (tests/small.py)."""
    model = anybit.load(source)
    linears = [name for name in model.linears if "_proj" in name]
    for name, fmt in zip(linears, LAYERS, strict=True):
        model = model.quantize(fmt, keep=rf"^(?!{name}$)", act="int8" if fmt in ACT else None)
    model = model.quantize("fp16", keep="^(?!lm_head)")
    model.save(path)
    np.save(path / "logits.npy", anybit.load(path).logits(IDS))


def test_it_is_what_was_written() -> None:
    found = verify_directory(GOLDEN)
    assert found.unlisted == ("logits.npy",)
    assert found.digest == "ac171981083079fd36259b9ca18545507a3dbb9857a452c3b3086b51f8f487f8"


@pytest.mark.parametrize("isa", cpu.native.supported_isas())
def test_it_gives_the_logits_of_then(isa: str) -> None:
    before = cpu.isa()
    try:
        cpu.use_isa(isa)
        logits = anybit.load(GOLDEN).logits(IDS)
    finally:
        cpu.use_isa(before)
    want = np.load(GOLDEN / "logits.npy")
    assert want.shape == (12, 64) and np.ptp(want) > 1 and logits.tobytes() == want.tobytes()


def test_every_format_is_there_and_its_bytes_mean_what_they_meant(tmp_path: Path) -> None:
    model = anybit.load(GOLDEN)
    formats = [str(linear.weight.format) for name, linear in model.linears.items() if name in model.quantized]
    assert formats == [str(anybit.Format(text)) for text in LAYERS]
    assert {linear.weight.layout for linear in model.linears.values()} == {"tile16x4", "tile16x1", "rows"}
    for linear in model.linears.values():
        weight = linear.weight
        again = QTensor.pack(weight.format, weight.shape, weight.logical(), weight.layout)
        assert all(np.array_equal(again.parts[name], part) for name, part in weight.parts.items())
    model.save(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (GOLDEN / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == json.loads((GOLDEN / "config.json").read_text())
