"""GPTQ directories, version 2 (zero points as they are), as GPTQModel, transformers and vLLM read them.

One width (2, 3, 4 or 8 bits) and one group for all linear layers, symmetric or with zero points, scales in float16; the tensors are those
of `io/containers/gptq.py`. Layers that permute their inputs have the groups of these in g_idx (desc_act). Embedding and head stay dense.

Source: GPTQModel's qlinear and its quantize_config.json, which config.json repeats.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from anybit.errors import UsageError
from anybit.formats import Format
from anybit.io.checkpoint import Item, pretty, put, write_items
from anybit.io.containers.bits import packed_stream
from anybit.io.safetensors_writer import Entry
from anybit.io.targets.compressed_tensors import dense_item
from anybit.io.targets.fit import Fit, NoFit, fit
from anybit.io.targets.target import TARGETS, Held, Plan, Source, Step, Target, Written, expert_notes

WIDTHS = (2, 3, 4, 8)
PRESETS = {f"w{bits}": f"int{bits}@128:fp16+scale=mse" for bits in WIDTHS}


def _fitted(held: Held) -> Fit:
    """The narrowest width that holds a matrix exactly. NoFit."""
    fmt, (n, k) = held.format.plain, held.shape
    if held.role != "linear":
        raise NoFit("embedding and head stay dense there; quantize again with --keep 'embed_tokens|lm_head'")
    if fmt.block is None or len(fmt.levels) != 1 or not fmt.block.per_row or fmt.offset is not None:
        raise NoFit("there is one float16 scale a group of a row, and no offset")
    if n % 32 or k % 32 or (fmt.block.size and k % fmt.block.size):
        raise NoFit("rows, columns and groups must be whole multiples of 32, and rows whole groups")
    block = "channel" if fmt.block.size is None else str(fmt.block.size)
    reason = NoFit(f"codes of {fmt.element} are no integers of 2, 3, 4 or 8 bits")
    for bits in WIDTHS:
        text = f"int{bits}@{block}:fp16" if fmt.zero is None else f"uint{bits}@{block}:fp16+zp=uint{bits}"
        try:
            made = fit(fmt, Format(text), held.shape)
            made.check(held)
            return made
        except NoFit as error:
            reason = error
            if not str(error).startswith("codes"):
                raise
    raise reason


def _item(held: Held, fitted: Fit) -> Item:
    n, k = held.shape
    module, bits = held.module, fitted.target.element.bits
    groups = fitted.target.grids(held.shape)[0][1]
    symmetric = fitted.target.zero is None
    entries: list[Entry] = [
        (f"{module}.qweight", "I32", (k * bits // 32, n)), (f"{module}.qzeros", "I32", (groups, n * bits // 32)),
        (f"{module}.scales", "F16", (groups, n)), (f"{module}.g_idx", "I32", (k,)),
    ]  # fmt: skip
    half = np.uint8(1 << (bits - 1))

    def produce() -> Iterator[tuple[str, np.ndarray]]:
        codes = np.empty(entries[0][2], np.int32)
        scales, zeros = np.empty((groups, n), np.uint16), np.full((groups, n), half, np.uint8)
        for start, stop in held.pieces():
            parts = fitted.parts(held.rows(start, stop), (stop - start, k))
            codes[:, start:stop] = packed_stream(held.by_inputs(parts["codes"]) ^ (half if symmetric else np.uint8(0)), bits).T
            scales[:, start:stop] = parts["scale.0"].T
            if not symmetric:
                zeros[:, start:stop] = parts["zero"].T
        held.release()
        yield from zip((name for name, _, _ in entries), (codes, packed_stream(zeros, bits), scales, held.groups), strict=True)

    return Item(held.name, entries, produce)


def _plan(source: Source, kind: str | None) -> Plan:
    steps, items = [], []
    found: dict[tuple[Any, ...], str] = {}
    for name, held in source.tensors.items():
        text = held.format.alias or str(held.format)
        if held.dense and held.role != "linear":
            items.append(dense_item(held))
            steps.append(Step(name, held.shape, text, held.format.plain.element.name, True, items[-1].nbytes))
            continue
        try:
            if held.dense:
                raise NoFit("it is not quantized, as every linear layer is there")
            fitted = _fitted(held)
        except NoFit as error:
            steps.append(Step(name, held.shape, text, "", False, 0, str(error)))
            continue
        target = fitted.target
        assert target.block is not None
        found.setdefault((target.element.bits, target.block.size or -1, target.zero is None), name)
        items.append(_item(held, fitted))
        steps.append(Step(name, held.shape, text, f"gptq {target}", True, items[-1].nbytes))
    if len(found) > 1:
        told = ", ".join(f"{bits} bits, groups of {group} in '{name}'" for (bits, group, _), name in found.items())
        raise UsageError(f"{source.name}: GPTQ has one width and group for a whole model, and this one has {told}")
    bits, group, symmetric = next(iter(found), (4, 128, True))
    ordered = any(held.order is not None for held in source.tensors.values())

    def write(folder: Path, written: Written) -> dict[str, str]:
        digests, _ = write_items(folder, items, on_written=written, exported=True)
        described = {
            "quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": ordered, "sym": symmetric, "lm_head": False,
            "checkpoint_format": "gptq_v2", "pack_dtype": "int32", "true_sequential": True, "damp_percent": 0.01, "dynamic": None,
        }  # fmt: skip
        put(folder / "config.json", (pretty({**source.config, "quantization_config": described}, levels=3) + "\n").encode())
        put(folder / "quantize_config.json", (pretty(described, levels=1) + "\n").encode())
        for file in source.sidecars:
            put(folder / file.name, file.read_bytes())
        return digests

    return Plan(tuple(steps), write, tuple(expert_notes(source.spec)))


TARGETS.add("gptq", Target("gptq", "a GPTQ v2 directory", "gptq[:KIND]", lambda kind: PRESETS.get(kind, kind), _plan))
