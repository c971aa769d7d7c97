"""Recipes: YAML whose values are wrong, whose lines are, and what YAML has beyond them (anchors, tags, documents, merges)."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from anybit.recipes.schema import load_recipe, named
from malformed.json_damage import damage, damage_bytes, dump, hostile, parse

PLACE = re.compile(r": line \d+[:,]")
FILE = "r.yaml"
RICH = """\
version: 1
name: rich
about: everything that a recipe can say
source: here
published: nowhere
measured: {model: pycoder-5m, tokens: 32768, kl: 0.01, kl_se: 0.001, bits: 4.5, on: '2026-11-21'}
calibration: {sequences: 16, length: 128, seed: 2, sequential: group}
steps:
  - hadamard
  - awq: {grid: 8}
rules:
  - {match: lm_head, keep: true}
  - match: down_proj
    format: int6@64+scale=wmse
    rounding:
      nearest: {importance: true}
    corrections: [bias_correction]
    act: int8@token
  - {match: 'self_attn.(q|k)_proj', format: int4@32, rounding: gptq, act: float}
  - {match: layers, format: mxfp4}
kv_cache: {k: int8@32, v: 'int4@32', stage: pre_rope}
gates: {max_kl: 0.5, min_top1: 0.25}
allocation: {bits: 4.25, formats: [int4@32, int8@32], cost: hawq}
nonfinite: saturate
"""
SCALARS = (
    "~", "yes", "off", "0x1f", "0o17", "1_000", ".inf", "-.Inf", ".nan", "1e999", "1:30:00", "2026-11-21", "=", "<<", "'", '"', "'a''b'",
    "*x", "&x 1", "!!int 3", "!!python/object/apply:os.system [id]", "!x y", "|", ">-", "@", "`", "%", "[", "]", "{", "}", ",", "- -",
    "? a", ": b", "#", "a: b: c", "\\x00", '"\\x00"', '"\\ud800"', '"\\U0010ffff"', "\t", "99999999999999999999999", "-0", "+1", "1.", "(",
    "a{99999}", "(?:a{1,99}){1,99}", "int4@0", "int99@1", "int4@99999999999999999999", "fp8_e4m3fn@@", "codebook_1", "+scale=x",
    "int4@32+scale=wmse",
)  # fmt: skip
LINES = (
    "a: &x [1]\nb: *x", "<<: {version: 2}", "--- ", "...", "%YAML 9.9", "%TAG ! tag:x,2000:", "- 1", "version: 1", "? [a, b]\n: 1",
    "? {a: b}", "rules: []", "rules:", "\trules: 1", "steps: {}", "x: " + "[" * 40, "x: " + "{a: " * 40, "a: |\n  b\n c", '"', "'",
    "#" * 5000, "\ufeff", "\x00", "\x85", "\u2028", "x: " + "y" * 70000, "\n" * 3000, "b: [" + "1, " * 21000 + "1]",
)  # fmt: skip
BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nrules: *c\n"


def texts() -> list[str]:
    return [RICH, *(path.read_text() for path in named().values())]


def base() -> dict[str, bytes]:
    return {FILE: RICH.encode()}


def _by_lines(text: str, rng: random.Random) -> tuple[str, str]:
    lines = text.splitlines()
    done = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(lines))
        what = rng.choice(("indent", "value", "value", "insert", "twice", "gone", "swap", "join", "colon", "open"))
        done.append(f"{what} at line {at + 1}")
        line = lines[at]
        if what == "indent":
            lines[at] = rng.choice((" ", "   ", "\t", "        ")) + line if rng.random() < 0.5 else line.lstrip()
        elif what == "value":
            values = list(re.finditer(r"(?<=[:\[,] )[^,\[\]{}]+", line))
            if values:
                found = rng.choice(values)
                lines[at] = line[: found.start()] + rng.choice(SCALARS) + line[found.end() :]
        elif what == "insert":
            lines.insert(at, rng.choice(LINES))
        elif what == "twice":
            lines.insert(rng.randrange(len(lines)), line)
        elif what == "gone" and len(lines) > 1:
            del lines[at]
        elif what == "swap":
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        elif what == "join" and at + 1 < len(lines):
            lines[at] += lines.pop(at + 1)
        elif what == "colon":
            lines[at] = line.replace(": ", rng.choice((":", " : ", "= ", ":\n")), 1)
        elif what == "open":
            lines[at] = re.sub(r"[\]}'\"]", "", line, count=1)
    return "; ".join(done), "\n".join(lines) + "\n"


def _tree(text: str) -> Any:
    import yaml

    return parse(json.dumps(yaml.safe_load(text), default=str))


def variant(rng: random.Random) -> tuple[str, dict[str, bytes]]:
    text = rng.choice((RICH, rng.choice(texts())))
    kind = rng.random()
    if kind < 0.45:
        tree = _tree(text)
        what = damage(tree, rng) if rng.random() < 0.97 else "another root"
        made = dump(tree if what != "another root" else hostile(rng), compact=False).encode("utf-8", "surrogatepass")
    elif kind < 0.87:
        what, lines = _by_lines(text, rng)
        made = lines.encode("utf-8", "surrogatepass")
    elif kind < 0.88:
        what, made = "a bomb of aliases", BOMB.encode()
    else:
        what, made = damage_bytes(text.encode(), rng)
    return what, {FILE: made}


def read(folder: Path) -> None:
    """Reads the recipe, as every command does that takes one."""
    load_recipe(folder / FILE)
