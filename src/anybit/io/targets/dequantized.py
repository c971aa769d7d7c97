"""A Hugging Face directory of plain float32, float16 or bfloat16 weights: what any other tool reads, at full size."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from anybit.errors import NonFiniteError, UnknownNameError
from anybit.io.checkpoint import Item, pretty, put, write_items
from anybit.io.targets.compressed_tensors import DTYPES, SCALES, dense_item
from anybit.io.targets.target import TARGETS, Held, Plan, Source, Step, Target, Written

_CHUNK = 1 << 15  # values that a cache near the core holds
_HIGH = 1 if sys.byteorder == "little" else 0  # half of 32 bits
KINDS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}


def rounded(values: np.ndarray, element: str) -> np.ndarray:
    """float32 values in a dtype, to nearest even, as bit patterns. A value beyond float16 becomes infinite."""
    out = np.empty(values.shape, np.uint32 if element == "fp32" else np.uint16)
    given, made = np.ascontiguousarray(values, np.float32).reshape(-1), out.reshape(-1)
    for start in range(0, len(given), _CHUNK):
        some, there = given[start : start + _CHUNK], made[start : start + _CHUNK]
        bits = some.view(np.uint32)
        if element == "fp32":
            there[...] = bits
        elif element == "fp16":
            with np.errstate(over="ignore"):
                there.view(np.float16)[...] = some
        else:
            even = bits >> np.uint32(16)
            even &= np.uint32(1)
            even += np.uint32(0x7FFF)
            even += bits
            there[...] = even.view(np.uint16)[_HIGH::2]
    return out


def _item(held: Held, element: str) -> Item:
    entry = (held.name, SCALES[element], held.shape)

    def produce() -> Iterator[tuple[str, np.ndarray]]:
        for start, stop in held.pieces():
            made = rounded(held.values(start, stop), element)
            if element == "fp16" and ((made & np.uint16(0x7C00)) == 0x7C00).any():
                advice = "use --to dequantized:bf16 or dequantized:f32"
                raise NonFiniteError(f"tensor '{held.name}' holds values beyond 65504, which float16 has not; {advice}")
            yield held.name, made
        held.release()

    return Item(held.name, [entry], produce)


def _plan(source: Source, kind: str | None) -> Plan:
    if kind is not None and kind not in KINDS:
        raise UnknownNameError(f"no dtype named '{kind}' to dequantize to; there are {', '.join(KINDS)}")
    named = source.config.get("dtype") or source.config.get("torch_dtype")
    element = KINDS[kind] if kind else next((ours for ours, theirs in DTYPES.items() if theirs == named), "bf16")
    steps, items = [], []
    for name, held in source.tensors.items():
        own = held.format.plain.element.name
        same = held.dense and own == element
        exact = same or element == "fp32"
        item = dense_item(held) if same else _item(held, element)
        note = "" if exact else f"rounded to {element}; dequantized:f32 is exact"
        steps.append(Step(name, held.shape, held.format.alias or str(held.format), element, exact, item.nbytes, note))
        items.append(item)

    def write(folder: Path, written: Written) -> dict[str, str]:
        def done(name: str) -> None:
            source.tensors[name].release()  # pages that writing brought in again
            written(name)

        digests, _ = write_items(folder, items, on_written=done, exported=True)
        config = {key: value for key, value in source.config.items() if key not in ("dtype", "torch_dtype")}
        config["torch_dtype" if "torch_dtype" in source.config else "dtype"] = DTYPES[element]
        put(folder / "config.json", (pretty(config, levels=2) + "\n").encode())
        for file in source.sidecars:
            put(folder / file.name, file.read_bytes())
        return digests

    return Plan(tuple(steps), write)


TARGETS.add("dequantized", Target("dequantized", "plain floats for any tool", "dequantized[:f32|f16|bf16]", lambda kind: None, _plan))
