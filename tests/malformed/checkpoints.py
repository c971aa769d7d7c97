"""Checkpoints of our own: config.json with its quantization_config, manifest.json, generation_config.json."""

from __future__ import annotations

import json
import random
import tempfile
from functools import cache
from pathlib import Path

from small import CONFIG, write_model

from anybit.io.manifest import contents_digest
from anybit.model import load, quantize_file
from malformed.json_damage import Object, damage, damage_bytes, dump, hostile, parse

CONFIG_1 = {**CONFIG, "num_hidden_layers": 1}
FORMATS = ("uint4@32+zp", "kmeans3@16", "codebook_-1.5_-0.25_0_0.75@tensor:fp32", "nvfp4")


@cache
def saved(fmt: str) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_model(folder / "m", CONFIG_1)
        (source / "generation_config.json").write_text('{"eos_token_id": [2, 3], "do_sample": false}')
        quantize_file(source, folder / "q", fmt, act="int8" if fmt == "uint4@32+zp" else None)
        return {path.name: path.read_bytes() for path in (folder / "q").iterdir()}


def base() -> dict[str, bytes]:
    return dict(saved(FORMATS[0]))


def variant(rng: random.Random) -> tuple[str, dict[str, bytes]]:
    files = dict(saved(rng.choice((FORMATS[0], *FORMATS))))
    kind = rng.random()
    name = "config.json" if kind < 0.75 else "manifest.json" if kind < 0.93 else "generation_config.json"
    if rng.random() < 0.12:
        what, files[name] = damage_bytes(files[name], rng)
        return f"{name}: {what}", files
    tree = parse(files[name])
    if kind < 0.6:
        layers = next(v for k, v in dict(tree)["quantization_config"] if k == "layers") if kind < 0.45 else None
        under = ("quantization_config", *(("layers", rng.choice(layers)[0]) if layers else ()))
        what = damage(tree, rng, under)
    elif rng.random() < 0.05:
        tree, what = hostile(rng), "another root"
    else:
        what = damage(tree, rng)
    text = dump(tree)
    if name == "manifest.json" and isinstance(tree, Object) and rng.random() < 0.7:  # one that agrees with itself
        try:
            content = json.loads(text)
            content["digest"] = contents_digest(content["files"])
            text = json.dumps(content)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            what += " (its digest does not match)"
    files[name] = text.encode("utf-8", "surrogatepass")
    return f"{name}: {what}", files


def read(folder: Path) -> None:
    """Opens the model and runs one token."""
    load(folder).logits([0])
