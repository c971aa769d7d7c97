"""Reads an export back, with our readers and the target's own where it is installed, and compares every value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from anybit.errors import FileFormatError, MissingDependencyError
from anybit.export import Export, model_path
from anybit.io.targets import Held, Source
from anybit.io.targets.gguf import file_names
from anybit.io.targets.target import Reader
from anybit.model import load
from anybit.sources import open_source

# What a value that is not exact may move by, as a share of itself: half a unit in the last place, or the rounded reciprocal of nvfp4.
_WITHIN = {"bf16": 2.0**-8, "fp16": 2.0**-11}
_RECIPROCAL = 2.0**-23
_TINY = 2.0**-24  # float16's subnormal numbers are this far apart


@dataclass(frozen=True)
class Verified:
    """How many tensors were compared (none where only predictions were), how many are equal bit for bit, and who read them."""

    tensors: int
    equal: int
    readers: tuple[str, ...]


class _Traced(Reader):
    """Reads a tensor and takes a digest of the values of each row that is read."""

    def __init__(self, held: Held, digests: dict[str, Any]) -> None:
        self._held, self._digests = held, digests

    def rows(self, start: int, stop: int) -> Mapping[str, np.ndarray]:
        if start == 0:
            self._digests[self._held.name] = hashlib.sha256()
        self._digests[self._held.name].update(_plain(self._held.values(start, stop)))
        return self._held.rows(start, stop)

    def values(self, start: int, stop: int) -> np.ndarray:
        return self._held.reader.values(start, stop)

    def grids(self) -> Mapping[str, np.ndarray]:
        return self._held.grids()

    def release(self) -> None:
        self._held.release()


class Traced:
    """Takes a digest of what is written of tensors that would be quantized twice to be compared."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names
        self.digests: dict[str, Any] = {}

    def source(self, source: Source) -> Source:
        """The same model, whose traced tensors leave a digest of their values when they are written."""
        tensors = source.tensors.items()
        return replace(source, tensors={n: replace(h, reader=_Traced(h, self.digests)) if n in self.names else h for n, h in tensors})


def _plain(values: np.ndarray) -> Any:
    """Bytes of values, the sign of zero aside."""
    return np.ascontiguousarray(values + np.float32(0)).data


def check_readers(export: Export) -> None:
    """MissingDependencyError: what verifying cannot do without is not installed. To be asked before anything is written."""
    if export.target.name == "onnx" and find_spec("onnxruntime") is None:
        raise MissingDependencyError("--verify of an ONNX model runs it with onnxruntime: pip install onnxruntime, or leave out --verify")


def verify(export: Export, out: str | Path, traced: Traced, progress: Callable[[str], None] | None = None) -> Verified:
    """Compares the values of what was written with those that were to be written.

    Tensors whose step is exact are equal bit for bit (the sign of zero aside), others within half a unit in the last place.
    Raises: FileFormatError, naming the tensor: something else was read than what was to be written.
    """
    path = model_path(export, out)
    if export.target.name == "onnx":
        return _by_onnxruntime(path, export)
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
    if export.target.name == "compressed-tensors" and find_spec("compressed_tensors") is not None:
        readers.append(_by_compressed_tensors(path, back))
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


def _by_onnxruntime(path: Path, export: Export) -> Verified:
    """Logits of 32 tokens as onnxruntime computes them, in two steps over the cache, against ours with float activations.

    MissingDependencyError: it is not installed. FileFormatError: they differ by more than 1e-4 of the largest.
    """
    check_readers(export)
    runtime = import_module("onnxruntime")
    ours, spec = load(export.source.path), export.source.spec
    ids = np.random.default_rng(0).integers(0, spec.vocab, min(32, spec.context))
    want = (ours.with_act(None) if ours.quantized else ours).logits(ids)
    session = runtime.InferenceSession(str(path / "model.onnx"), providers=["CPUExecutionProvider"])
    a = spec.layers[0].mixer
    names = [f"{i}.{what}" for i in range(len(spec.layers)) for what in ("key", "value")]
    cache = {f"past_key_values.{name}": np.zeros((1, a.kv_heads, 0, a.head_dim), np.float32) for name in names}
    logits = []
    for part in (ids[: ids.size // 2], ids[ids.size // 2 :]):
        found = session.run(["logits", *(f"present.{name}" for name in names)], {"input_ids": part[None].astype(np.int64), **cache})
        logits.append(found[0][0])
        cache = {f"past_key_values.{name}": array for name, array in zip(names, found[1:], strict=True)}
    off = float(np.abs(np.concatenate(logits) - want).max() / np.abs(want).max())
    if not off <= 1e-4:
        raise FileFormatError(f"{path}: onnxruntime's logits are {off:.2g} of the largest away from ours; report this as a bug")
    return Verified(0, 0, (f"onnxruntime {runtime.__version__}, whose logits are {off:.1g} of the largest away",))


def _by_compressed_tensors(path: Path, back: Source) -> str:
    """compressed-tensors' decompressed weights, module by module: ours, rounded to the dtype in which it multiplies.

    FileFormatError: the first that differ.
    """
    torch, compressors = import_module("torch"), import_module("compressed_tensors.compressors")
    scheme_of = import_module("compressed_tensors.quantization").QuantizationScheme.model_validate
    groups = json.loads((path / "config.json").read_text(encoding="utf-8"))["quantization_config"]["config_groups"].values()
    schemes = {target: (group["format"], scheme_of(group)) for group in groups for target in group["targets"]}
    opened = [import_module("safetensors").safe_open(file, "pt") for file in sorted(path.glob("*.safetensors"))]
    parts: dict[str, dict[str, Any]] = {}
    for file in opened:
        for key in file.keys():  # noqa: SIM118
            module, _, part = key.rpartition(".")
            parts.setdefault(module, {})[part] = file
    count = 0
    for held in back.tensors.values():
        if held.dense:
            continue
        form, scheme = schemes.get(held.module) or schemes["Linear"]
        state = {part: file.get_tensor(f"{held.module}.{part}") for part, file in parts[held.module].items() if part != "bias"}
        theirs = compressors.BaseCompressor.get_value_from_registry(form).decompress(state, scheme)["weight"]
        for start, stop in held.pieces():
            if not torch.equal(torch.from_numpy(held.values(start, stop)).to(theirs.dtype), theirs[start:stop]):
                raise FileFormatError(f"{path}: tensor '{held.name}' has other values for compressed-tensors; report this as a bug")
        count += 1
        held.release()
    return f"compressed-tensors ({count} tensors)"


def _by_gguf(path: Path, back: Source) -> str:
    """Every tensor as gguf-py reads it, against ours. FileFormatError: one differs."""
    import gguf
    from gguf.quants import dequantize

    names = file_names(back)
    count = 0
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name not in names:
            continue
        together = names[tensor.name]
        try:
            whole = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(len(together), *together[0][0].shape)
        except NotImplementedError:
            continue
        for (held, order), theirs in zip(together, whole, strict=True):
            _check_values(path, tensor, held, order, theirs)
            held.release()
        count += 1
    return f"gguf-py ({count} tensors)"


def _check_values(path: Path, tensor: Any, held: Held, order: np.ndarray | None, theirs: np.ndarray) -> None:
    """FileFormatError: gguf-py reads other values than ours."""
    ours = held.values(0, held.shape[0])
    ours = ours if order is None else ours[order]
    factor = held.grids().get("scale.1") if tensor.tensor_type.name == "NVFP4" else None
    within = 0.0
    if factor is not None:
        theirs, within = theirs * factor.view(np.float32).reshape(-1)[0], 2.0**-22
    if not (np.abs(theirs.astype(np.float64) - ours) <= within * np.abs(ours)).all():
        raise FileFormatError(f"{path}: tensor '{tensor.name}' has other values for gguf-py; report this as a bug")
