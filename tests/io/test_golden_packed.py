"""A version-1 checkpoint of packed and nested formats, written once: it opens for ever, and gives the logits that it gave then, bit by bit.

`write` made it and never runs on the golden directory again (as in test_golden_model.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import anybit
from anybit.io.manifest import verify_directory
from anybit.kernels import cpu
from anybit.tensor import QTensor

GOLDEN = Path(__file__).parent / "golden" / "packed-v1"
IDS = [1, 5, 9, 63, 0, 17, 33, 2, 40, 41, 42, 8]
LAYERS = [  # one format a matrix, in the order of execution; columns are 48 or 72
    "ternary@256:fp16+pack=base3", "bf16+pack=escape", "int8@128+nest=4.2", "int8@128+nest=4.2+open=4", "fp8_e4m3fn@64+pack=escape",
    "ternary@20+off+pack=base3", "uint8@32+zp+nest=4+open=4", "int8@channel+nest=2+open=2", "fp8_e5m2@channel+pack=escape",
    "uint8@16:fp16+zp=fp16+nest=6.3+open=6", "bf16+pack=escape", "ternary@channel+pack=base3", "fp8_e4m3fn+pack=escape",
    "int6@32+nest=3+open=3",
]  # fmt: skip
ACT = {"ternary@256:fp16+pack=base3", "int8@128+nest=4.2+open=4", "fp8_e4m3fn@64+pack=escape", "uint8@32+zp+nest=4+open=4"}


def write(path: Path, source: Path) -> None:
    """Makes the checkpoint and its logits from a tiny model (tests/small.py)."""
    model = anybit.load(source)
    linears = [name for name in model.linears if "_proj" in name]
    for name, fmt in zip(linears, LAYERS, strict=True):
        model = model.quantize(fmt, keep=rf"^(?!{name}$)", act="int8" if fmt in ACT else None)
    model = model.quantize("bf16+pack=escape", keep="^(?!lm_head)")
    model.save(path)
    np.save(path / "logits.npy", anybit.load(path).logits(IDS))


def test_it_is_what_was_written() -> None:
    found = verify_directory(GOLDEN)
    assert found.unlisted == ("logits.npy",)
    assert found.digest == "6437328b79152dfe8e8811a3421c42c9a9306e14367b94adb73660e16eb2aa1a"


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
def test_it_gives_the_logits_of_then(isa: str) -> None:
    if isa not in cpu.native.supported_isas():
        pytest.skip(f"this machine has no {isa}")
    before = cpu.isa()
    try:
        cpu.use_isa(isa)
        logits = anybit.load(GOLDEN).logits(IDS)
    finally:
        cpu.use_isa(before)
    want = np.load(GOLDEN / "logits.npy")
    assert want.shape == (12, 64) and np.ptp(want) > 1 and logits.tobytes() == want.tobytes()


def test_every_layout_and_format_is_there() -> None:
    weights = [linear.weight for name, linear in anybit.load(GOLDEN).linears.items() if "_proj" in name]
    assert [str(weight.format) for weight in weights] == LAYERS
    assert {weight.layout for weight in weights} == {"base3", "escape", "tile16x4"}
    for weight in weights:
        again = QTensor.pack(weight.format, weight.shape, weight.logical(), weight.layout)
        assert all(np.array_equal(again.parts[name], part) for name, part in weight.parts.items())
