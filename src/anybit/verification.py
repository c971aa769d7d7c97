"""Reads an export back, with our readers and the target's own where it is installed, and compares every value."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from anybit.errors import FileFormatError
from anybit.export import Export, model_path
from anybit.io.targets import Held, Source
from anybit.io.targets.gguf import file_names
from anybit.sources import open_source

# What a value that is not exact may move by, as a share of itself: half a unit in the last place, or the rounded reciprocal of nvfp4.
_WITHIN = {"bf16": 2.0**-8, "fp16": 2.0**-11}
_RECIPROCAL = 2.0**-23
_TINY = 2.0**-24  # float16's subnormal numbers are this far apart


@dataclass(frozen=True)
class Verified:
    """How many tensors were compared, how many of them are equal bit for bit, and who read them."""

    tensors: int
    equal: int
    readers: tuple[str, ...]


class Traced:
    """Takes a digest of what is written of tensors that would be quantized twice to be compared."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names
        self.digests: dict[str, Any] = {}

    def source(self, source: Source) -> Source:
        """The same model, whose traced tensors leave a digest of their values when they are written."""
        return replace(source, tensors={n: self._held(h) if n in self.names else h for n, h in source.tensors.items()})

    def _held(self, held: Held) -> Held:
        def rows(start: int, stop: int) -> Mapping[str, np.ndarray]:
            if start == 0:
                self.digests[held.name] = hashlib.sha256()
            self.digests[held.name].update(_plain(held.values(start, stop)))
            return held.rows(start, stop)

        return replace(held, rows=rows)


def _plain(values: np.ndarray) -> Any:
    """Bytes of values, the sign of zero aside."""
    return np.ascontiguousarray(values + np.float32(0)).data


def verify(export: Export, out: str | Path, traced: Traced, progress: Callable[[str], None] | None = None) -> Verified:
    """Compares the values of what was written with those that were to be written.

    Tensors whose step is exact are equal bit for bit (the sign of zero aside), others within half a unit in the last place.
    Raises: FileFormatError, naming the tensor: something else was read than what was to be written.
    """
    path = model_path(export, out)
    back = open_source(path)
    equal = 0
    for step in export.plan.steps:
        here, there = export.source.tensors[step.name], back.tensors[step.name]
        if step.name in traced.digests:
            digest = hashlib.sha256()
            for start, stop in there.pieces():
                digest.update(_plain(there.values(start, stop)))
            same = digest.hexdigest() == traced.digests[step.name].hexdigest()
            near = same
        else:
            same, near = _compared(here, there, 0.0 if step.exact else _WITHIN.get(step.stored, _RECIPROCAL))
        if not (same or (near and not step.exact)):
            raise FileFormatError(f"{path}: tensor '{step.name}' reads back with other values than were written; report this as a bug")
        equal += same
        here.release()
        there.release()
        if progress:
            progress(step.name)
    readers = ["anybit"]
    if export.target.name == "gguf" and find_spec("gguf") is not None:
        readers.append(_by_gguf(path, back))
    return Verified(len(export.plan.steps), equal, tuple(readers))


def _compared(here: Held, there: Held, within: float) -> tuple[bool, bool]:
    """(equal, near): piece by piece, cut where both may be cut."""
    same = near = True
    for start, stop in here.pieces(there.unit):
        want, got = here.values(start, stop), there.values(start, stop)
        if np.array_equal(want, got):
            continue
        same = False
        near &= bool((np.abs(want.astype(np.float64) - got) <= within * np.abs(want) + (_TINY if within else 0.0)).all())
    return same, near


def _by_gguf(path: Path, back: Source) -> str:
    """Every tensor as gguf-py reads it, against ours. FileFormatError: one differs."""
    import gguf
    from gguf.quants import dequantize

    names = file_names(back)
    count = 0
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name not in names:
            continue
        held, order = names[tensor.name]
        try:
            theirs = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(held.shape)
        except NotImplementedError:
            continue
        ours = held.values(0, held.shape[0])
        ours = ours if order is None else ours[order]
        factor = held.grids().get("scale.1") if tensor.tensor_type.name == "NVFP4" else None
        if factor is not None:
            theirs = theirs * factor.view(np.float32).reshape(-1)[0]
            within = 2.0**-22
        else:
            within = 0.0
        if not (np.abs(theirs.astype(np.float64) - ours) <= within * np.abs(ours)).all():
            raise FileFormatError(f"{path}: tensor '{tensor.name}' has other values for gguf-py; report this as a bug")
        count += 1
        held.release()
    return f"gguf-py ({count} tensors)"
