"""The fuzz targets hold on their seeds and on mutations of them, without a fuzzer; each notices a parser that lets something out."""

from __future__ import annotations

import random

import pytest
from fuzz import targets
from fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_target(name: str) -> None:
    target, rng = TARGETS[name], random.Random(name)
    seeds = target.seeds()
    assert len(seeds) >= 4
    for seed in seeds[:60]:
        target.run(seed)
        target.run(target.mutate(seed, rng.randrange(1 << 30)))
    target.run(b"")


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("safetensors", "SafeFile"),
        ("quantization", "parse_quantization"),
        ("manifest", "read_manifest"),
        ("tokenizer", "read_tokenizer"),
        ("foreign", "open_foreign"),
        ("gguf_model", "open_foreign"),
    ],
)
def test_a_target_notices(name: str, called: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise KeyError("let out")

    monkeypatch.setattr(targets, called, broken)
    with pytest.raises(KeyError):
        TARGETS[name].run(TARGETS[name].seeds()[0])
