"""A finished block in a safetensors file: tensors under plain names, everything else as JSON in the header's metadata."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from anybit.errors import FileFormatError
from anybit.formats import Spec
from anybit.io.safetensors import DTYPES
from anybit.io.safetensors_writer import plan, raw
from anybit.io.save import atomic_file
from anybit.methods.statistics import Statistics
from anybit.methods.step import Added, Group, Pre, Target

if TYPE_CHECKING:
    from anybit.calibrate.run import Finished


_NAMES = {np.dtype(bool): "BOOL", **{DTYPES[name]: name for name in DTYPES if name[1:].isdigit()}}


def save_finished(path: Path, finished: Finished) -> None:
    """Writes the file in one step, an array at a time: no copy of them all is made."""
    arrays = {f"array:{name}": array for name, array in finished.arrays.items()}
    groups = []
    for role, group in finished.groups.items():
        for i, pre in enumerate(group.pre):
            if pre.data is not None:
                arrays[f"pre:{role}:{i}"] = pre.data
        targets = []
        for target in group.targets:
            arrays |= {f"part:{target.name}:{part}": array for part, array in (target.parts or {}).items()}
            added = []
            for i, each in enumerate(target.added):
                found = {"a": each.a, "b": each.b, "index": each.index}
                arrays |= {f"added:{target.name}:{i}:{key}": array for key, array in found.items() if array is not None}
                added.append({"kind": each.kind, "format": each.format, "source": each.source})
            targets.append({"name": target.name, "spec": str(target.spec), "shape": list(target.weight.shape), "added": added,
                            "notes": target.notes, "parts": list(target.parts or {}), "bias": target.bias is not None})  # fmt: skip
        pre_list = [{"kind": p.kind, "block": p.block, "seed": p.seed} for p in group.pre]
        groups.append({"role": role, "layer": group.layer, "act": group.act, "heads": group.heads, "head_dim": group.head_dim,
                       "pre": pre_list, "targets": targets, "act_scale": group.act_scale})  # fmt: skip
    loss = None if math.isnan(finished.loss) else finished.loss
    head = {"index": finished.index, "loss": loss, "notes": finished.notes, "groups": groups}
    entries = [(name, _NAMES[array.dtype], array.shape) for name, array in arrays.items()]
    start, gaps, _ = plan(entries, {"block": json.dumps(head)})
    with atomic_file(path) as file:
        file.write(start)
        for array, gap in zip(arrays.values(), gaps, strict=True):
            file.write(raw(array))
            file.write(bytes(gap))


def load_finished(path: Path, only: str | None = None) -> Finished:
    """Reads it back; `only`: a single target with its group's transforms. FileFormatError: it is missing or damaged."""
    from anybit.calibrate.run import Finished

    try:
        with safe_open(str(path), "np") as file:
            head: dict[str, Any] = json.loads((file.metadata() or {})["block"])
            mine = (f"part:{only}:", f"added:{only}:", f"array:{(only or '').rpartition('.')[0]}.bias", "pre:")
            names = [name for name in file.keys() if only is None or name.startswith(mine)]  # noqa: SIM118
            arrays = {name: file.get_tensor(name) for name in names}
        groups = {}
        for g in head["groups"]:
            role, targets = g["role"], []
            for t in g["targets"]:
                name = t["name"]
                if only not in (None, name):
                    continue
                added = [
                    Added(each["kind"], arrays[f"added:{name}:{i}:a"], arrays.get(f"added:{name}:{i}:b"),
                          arrays.get(f"added:{name}:{i}:index"), each["format"], each["source"])
                    for i, each in enumerate(t["added"])
                ]  # fmt: skip
                parts = {part: arrays[f"part:{name}:{part}"] for part in t["parts"]}
                bias = arrays[f"array:{name.rpartition('.')[0]}.bias"] if t["bias"] else None
                weight = np.broadcast_to(np.float32(0), t["shape"])  # its values are not kept: the parts are what counts
                targets.append(Target(name, weight, Spec.parse(t["spec"]), bias, parts, added, t["notes"]))
            pre = [Pre(p["kind"], arrays.get(f"pre:{role}:{i}"), p["block"], p["seed"]) for i, p in enumerate(g["pre"])]
            if not targets:
                continue
            stats = Statistics(targets[0].weight.shape[1], frozenset())
            groups[role] = Group(role, g["layer"], targets, stats, None, pre, g["act"], g["heads"], g["head_dim"], g["act_scale"])
        kept = {name.removeprefix("array:"): array for name, array in arrays.items() if name.startswith("array:")}
        return Finished(head["index"], kept, groups, math.nan if head["loss"] is None else head["loss"], head["notes"])
    except (OSError, KeyError, IndexError, TypeError, ValueError, SafetensorError) as error:
        raise FileFormatError(f"{path}: no finished block of a calibration ({error}); remove the work folder and begin anew") from None
