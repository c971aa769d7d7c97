"""Writes a model in another tool's format, code for code, or quantized on the way to the kind that the target names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from anybit.errors import AnybitError, OutputError, UsageError
from anybit.formats import Spec
from anybit.io.checkpoint import check_space, put
from anybit.io.save import atomic_directory
from anybit.io.targets import TARGETS, Held, Plan, Source, Target
from anybit.sources import open_source, quantized_source
from anybit.stored import KEEP

Progress = Callable[[int, int, str], None]
CARD = "README.md"
_SLAB = 1 << 21


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
            more = f" ({len(refused)} tensors like it)" if len(refused) > 1 else ""
            advice = "export the original model to a kind of this target, or write --to dequantized"
            raise UsageError(f"{self.to} holds no {first.held} of {list(first.shape)}: {first.note}: '{first.name}'{more}; {advice}")


def parse_target(to: str) -> tuple[Target, str | None]:
    """`gguf:q4_k` to its target and kind. UnknownNameError: no such target."""
    name, _, kind = to.partition(":")
    return TARGETS[name], kind or None


def prepare(
    path: str | Path, to: str, keep: str | None = KEEP, act: str | None = None, method: str = "rtn", convert: bool = False
) -> Export:
    """Opens a model and plans what becomes of it; nothing is written.

    Args: to, a target and perhaps a kind, as in gguf:q4_k; keep, weights that stay dense where the model is quantized now; act, activations
        of those; method, how their codes are chosen; convert: code for code or not at all.
    Raises: FileFormatError, UnknownNameError: the model, the target. UsageError: a kind for a model that is quantized already.
    """
    target, kind = parse_target(to)
    source = open_source(path)
    wanted = target.spec(kind) if kind else None
    requantized: frozenset[str] = frozenset()
    if wanted is not None:
        dense = [held for held in source.tensors.values() if held.role not in ("norm", "bias") and held.dense]
        matrices = [held for held in source.tensors.values() if held.role not in ("norm", "bias")]
        if len(dense) == len(matrices):
            if convert:
                raise UsageError(f"{path} is not quantized, and convert quantizes nothing; use `anybit export {path} OUT --to {to}`")
            spec = Spec.parse(wanted)
            spec.check()
            made = quantized_source(source, spec, keep, act, method, target.fused)
            requantized = frozenset(name for name, held in made.tensors.items() if held is not source.tensors[name])
            source = made
        else:
            _check_kind(source, target, kind, wanted)
    plan = target.plan(source, kind)
    return Export(target, kind, source, plan, requantized)


def _check_kind(source: Source, target: Target, kind: str | None, wanted: str) -> None:
    """UsageError: the model is quantized already, to something else than the kind."""
    fmt = Spec.parse(wanted).format.plain
    for held in source.tensors.values():
        if not held.dense and held.format.plain.element.name != fmt.element.name:
            advice = f"give the original model, or --to {target.name} for these codes"
            raise UsageError(f"{source.name}: tensor '{held.name}' is {held.format} already, and {kind} would quantize it again; {advice}")


@contextmanager
def _folder(out: Path, digests: dict[str, str]) -> Iterator[Path]:
    with atomic_directory(out, digests) as temp:
        yield temp


def write(export: Export, out: str | Path, card: Callable[[], str] | None = None, progress: Progress | None = None) -> int:
    """Writes the planned files into the new directory `out`, all or nothing, with the model card; gives their bytes.

    UsageError: a tensor has no place. OutputError, DoesNotFitError: the target exists, the disk.
    Cost: the rows of a few million weights, and the stored bytes of the largest tensor.
    """
    export.check()
    out = Path(out)
    total, done = len(export.plan.steps), 0

    def written(name: str) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total, name)

    digests: dict[str, str] = {}
    with _folder(out, digests) as temp:
        check_space(out, export.plan.nbytes)
        digests |= export.plan.write(temp, written)
        if card is not None:
            put(temp / CARD, card().encode())
        size = sum(file.stat().st_size for file in temp.rglob("*") if file.is_file())
    return size
