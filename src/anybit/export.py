"""Writes a model in another tool's format, code for code, or quantized on the way to the kind that the target names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anybit.errors import UsageError
from anybit.formats import Spec
from anybit.io.checkpoint import QuantizedEntry, check_space, put, save_checkpoint
from anybit.io.hf import open_model
from anybit.io.save import atomic_directory, atomic_file
from anybit.io.targets import TARGETS, Held, Plan, Source, Target
from anybit.io.targets.fit import NoFit, same_codes
from anybit.layouts import default_layout, sizes_known
from anybit.sources import foreign_of, open_source, quantized_source
from anybit.stored import DENSE_FORMATS, KEEP, describe_layer, permuted_entry, resolve, tables_of
from anybit.tensor import QTensor

Progress = Callable[[int, int, str], None]
CARD = "README.md"
OWN = "anybit"
"""What `convert` calls a checkpoint of ours."""


@dataclass(frozen=True)
class Export:
    """What will be written, and what becomes of every tensor on the way.

    `source` holds the tensors as they are written (quantized where a kind asks for it), `requantized` names those that are quantized now.
    """

    target: Target
    kind: str | None
    source: Source
    plan: Plan
    requantized: frozenset[str]

    @property
    def to(self) -> str:
        """As --to names it."""
        return self.target.name + (f":{self.kind}" if self.kind else "")

    def check(self) -> None:
        """UsageError: tensors that have no place in the target, with the first one's reason."""
        refused = self.plan.refused
        if refused:
            first = refused[0]
            have = f" and {len(refused) - 1} more have" if len(refused) > 1 else " has"
            advice = "give the original model with a kind of this target, or write --to dequantized"
            raise UsageError(f"{self.to} holds no {first.held}, as '{first.name}'{have}: {first.note}; {advice}")


def parse_target(to: str) -> tuple[Target, str | None]:
    """`gguf:q4_k` to its target and kind. UnknownNameError: no such target."""
    name, _, kind = to.partition(":")
    return TARGETS[name], kind or None


def prepare(
    path: str | Path, to: str, keep: str | None = KEEP, act: str | None = None, method: str = "rtn", convert: bool = False,
    importance: Mapping[str, np.ndarray] | None = None,
) -> Export:  # fmt: skip
    """Opens a model and plans what becomes of it; nothing is written.

    Args: to, a target and perhaps a kind, as in gguf:q4_k; keep, weights that stay dense where the model is quantized now; act, activations
        of those; method, how their codes are chosen; convert: code for code or not at all; importance, by tensor what an error of each
        input channel weighs where codes are chosen now.
    Raises: FileFormatError, UnknownNameError: the model, the target. UsageError: a kind for a model that is quantized already.
    """
    target, kind = parse_target(to)
    wanted = target.spec(kind) if kind else None
    source = open_source(path)
    requantized: frozenset[str] = frozenset()
    if wanted is not None:
        spec = Spec.parse(wanted)
        spec.check()
        matrices = [held for held in source.tensors.values() if not held.plain]
        if all(held.dense for held in matrices):
            if convert:
                raise UsageError(f"{path} is not quantized, and convert quantizes nothing; use `anybit export {path} OUT --to {to}`")
            points = target.points(kind) if kind else None
            if points is not None and method != "rtn":
                raise UsageError(f"{to} takes its codes from a list of points, and {method} chooses each by itself; leave --method out")
            made = quantized_source(source, spec, keep, act, method, target.fused, importance, points)
            requantized = frozenset(name for name, held in made.tensors.items() if held is not source.tensors[name])
            source = made
        elif importance is not None:
            raise UsageError(f"{path} is quantized already: no codes are chosen, and importance says nothing; give the original model")
        else:
            _check_kind(source, target, kind, spec)
    return Export(target, kind, source, target.plan(source, kind), requantized)


def _check_kind(source: Source, target: Target, kind: str | None, spec: Spec) -> None:
    """UsageError: the model is quantized already, to codes that the kind has not."""
    for held in source.tensors.values():
        try:
            if not held.dense:
                same_codes(held.format, spec.format)
        except NoFit:
            advice = f"give the original model, or --to {target.name} for these codes"
            what = f"tensor '{held.name}' is {held.format} already, and {kind} would quantize it again"
            raise UsageError(f"{source.name}: {what}; {advice}") from None


def write(export: Export, out: str | Path, card: Callable[[], str] | None = None, progress: Progress | None = None) -> int:
    """Writes the planned files into the new directory `out`, with the model card, or a GGUF into the new file `out`: all or nothing.

    Returns: bytes written. Raises: UsageError: a tensor has no place. OutputError, DoesNotFitError: the target exists, the disk.
    Cost: some pieces of a few million weights each, made while those before are written; of GPTQ two whole tensors.
    """
    export.check()
    out = Path(out)
    plan, done = export.plan, 0

    def written(name: str) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, len(plan.steps), name)

    if plan.pour is not None and plan.file is not None and out.suffix == Path(plan.file).suffix:
        with atomic_file(out, replace=False, passing=True) as file:
            check_space(out, plan.nbytes)
            plan.pour(file.write, written)
        return out.stat().st_size
    digests: dict[str, str] = {}
    with atomic_directory(out, digests) as temp:
        check_space(out, plan.nbytes)
        digests |= plan.write(temp, written)
        if card is not None:
            (temp / CARD).unlink(missing_ok=True)
            put(temp / CARD, card().encode())
        return sum(file.stat().st_size for file in temp.rglob("*") if file.is_file())


def model_path(export: Export, out: str | Path) -> Path:
    """What to open of the result: the file that is the model, or the directory."""
    out = Path(out)
    return out / export.plan.file if export.plan.file is not None and out.is_dir() else out


def write_checkpoint(path: str | Path, out: str | Path, progress: Progress | None = None) -> int:
    """Any model that opens as a checkpoint of ours, every code as it is, tensor by tensor; gives its safetensors bytes.

    Raises: FileFormatError, OutputError: as `anybit.load` and `Model.save`. UsageError: it is one of ours already.
    """
    if foreign_of(path) is None:
        open_model(resolve(path)).close()  # what is no model at all is said first
        raise UsageError(f"{path} is a checkpoint of anybit, or not quantized: there is nothing to convert; `anybit quantize` makes codes")
    source = open_source(path)
    matrices = {name: held for name, held in source.tensors.items() if not held.plain}
    done = 0

    def written(name: str) -> None:
        nonlocal done
        done += 1
        if progress and name in matrices:
            progress(min(done, len(matrices)), len(matrices), name)

    entries = [(name, _own_entry(held)) for name, held in matrices.items()]
    dtypes = {fmt: dtype for dtype, fmt in DENSE_FORMATS.items()}
    plain = []
    for name, held in source.tensors.items():
        if name not in matrices:
            codes = np.array(held.rows(0, held.shape[0])["codes"])
            plain.append((name, dtypes[held.format.plain.explicit], codes.view(np.float32) if codes.itemsize == 4 else codes))
    tables = tables_of(held.format for held in matrices.values())
    return save_checkpoint(out, source.config, entries, plain, source.sidecars, tables=tables, on_written=written)


def _permuted(held: Held) -> QuantizedEntry:
    weight = QTensor.pack(held.format, held.shape, held.rows(0, held.shape[0]))
    held.release()
    assert held.order is not None
    return permuted_entry(weight, held.order)


def _own_entry(held: Held) -> QuantizedEntry:
    layout = default_layout(held.format, held.shape)
    if held.order is not None:  # a layer with a permutation: described by making it once
        return QuantizedEntry(_permuted(held).stored, lambda: _permuted(held).produce())

    def produce() -> Mapping[str, np.ndarray]:
        made = QTensor.pack(held.format, held.shape, held.rows(0, held.shape[0]), layout)
        held.release()
        return dict(made.parts)

    made = None if sizes_known(held.format, held.shape, layout) else produce()
    return QuantizedEntry(describe_layer(held.format, held.shape, layout, None, made), produce)
