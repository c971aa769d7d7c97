"""What `export` and `convert` do alike: the plan, progress, verification, the card and the report."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from anybit.cli import options
from anybit.cli.progress import Reporter
from anybit.errors import AnybitError, FileFormatError, UsageError
from anybit.export import Export, model_path, write, write_checkpoint

Measured = tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]


def measured(files: Sequence[str]) -> list[Mapping[str, Any]]:
    """Results of `anybit eval --json` or `anybit bench --json`. FileFormatError: something else."""
    found: list[Mapping[str, Any]] = []
    for file in files:
        try:
            content = json.loads(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FileFormatError(f"{file}: no JSON: {error}; give what `anybit eval --json` or `anybit bench --json` printed") from None
        if not isinstance(content, dict) or "model" not in content:
            raise FileFormatError(f"{file}: no result of a measurement; give what `anybit eval --json` or `anybit bench --json` printed")
        found.append(content)
    return found


def importance(model: str, files: Sequence[str], shown: bool = False) -> dict[str, Any]:
    """The importance matrix of a dense model over 128 windows of 512 tokens of the files, or of the standard library. Errors as
    `calibration_text`, `FloatSource`."""
    from anybit.calibrate import calibration_text
    from anybit.calibrate.importance import importance_of
    from anybit.measure.text import separator_of
    from anybit.recipes.source import FloatSource

    source, loaded = FloatSource(model), options.load(model)
    text = calibration_text(loaded.tokenizer, [Path(p) for p in files], length=min(512, loaded.context), separator=separator_of(loaded))
    with Reporter(shown) as progress:
        step = progress.stage("importance", len(source.spec.layers))
        return importance_of(source, text.ids, lambda done, total: step(1, f"block {done} of {total}"))


def imatrix(model: str, file: str) -> dict[str, Any]:
    """The same as llama.cpp measured it. FileFormatError: no importance matrix, or one of another model."""
    from anybit.io.gguf.imatrix import check_imatrix, read_imatrix
    from anybit.sources import open_source

    found = read_imatrix(Path(file))
    linear = {name: held.shape for name, held in open_source(model).tensors.items() if held.role == "linear"}
    check_imatrix(Path(file), found, linear)
    return found


def kinds(export: Export) -> list[tuple[str, str, bool, int, str]]:
    """(format before, format there, exact, tensors, note) of the plan's steps, alike ones counted together."""
    counted: dict[tuple[str, str, bool, str], int] = {}
    for step in export.plan.steps:
        key = (step.held, step.stored, step.exact, step.note if step.stored and not step.exact else "")
        counted[key] = counted.get(key, 0) + 1
    return [(held, stored, exact, count, note) for (held, stored, exact, note), count in counted.items()]


def _bits(export: Export) -> float:
    weights = sum(_size(step.shape) for step in export.plan.steps if step.stored)
    return 8 * export.plan.nbytes / max(1, weights)


def _size(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def card_text(export: Export, title: str, command: str, results: Measured) -> str:
    """The model card of an export."""
    from anybit import __version__
    from anybit.report.card import card

    facts: dict[str, Any] = {"written for": f"{export.target.name}, {export.target.about}", "bits per weight": f"{_bits(export):.4g}"}
    if export.requantized:
        chosen = export.source.tensors[next(iter(sorted(export.requantized)))].format
        facts["quantized to"] = f"{chosen.alias or chosen} ({len(export.requantized)} tensors; the others keep their values)"
    else:
        facts["codes"] = "as they were; nothing was quantized again"
    facts["made with"] = f"anybit {__version__}"
    stored = [(held, there if exact else f"{there} ({note})", count) for held, there, exact, count, note in kinds(export)]
    return card(
        title, export.source.name, facts, stored, command, export.plan.notes, results[0], results[1], (export.target.name,)
    )  # fmt: skip


def run(
    export: Export, out: str, line: str, verify: bool, only_plan: bool, results: Measured, as_json: bool, shown: bool
) -> None:  # fmt: skip
    """Writes an export and tells what became of the model. Errors as `write` and `verify`."""
    from anybit.verification import Traced, check_readers
    from anybit.verification import verify as check

    report: dict[str, Any] = {
        "model": export.source.name, "out": out, "to": export.to, "requantized": len(export.requantized),
        "lossless": sum(step.exact for step in export.plan.steps), "refused": len(export.plan.refused),
        "bits_per_weight": _bits(export), "notes": list(export.plan.notes),
        "tensors": [
            {"name": s.name, "shape": s.shape, "was": s.held, "is": s.stored or None, "exact": s.exact, "bytes": s.nbytes, "note": s.note}
            for s in export.plan.steps
        ],
    }  # fmt: skip
    if only_plan:
        options.print_json(report) if as_json else _say_plan(export)
        return
    if verify:
        check_readers(export)
    begun = time.perf_counter()
    with Reporter(shown) as progress:
        stage = progress.stage("write", len(export.plan.steps))
        traced = Traced(export.requantized if verify else frozenset())
        if verify and export.requantized:
            source = traced.source(export.source)
            export = Export(export.target, export.kind, source, export.target.plan(source, export.kind), export.requantized)
        size = write(export, out, lambda: card_text(export, Path(out).name, line, results), lambda done, total, name: stage(1, name))
        report |= {"bytes": size, "seconds": time.perf_counter() - begun}
        if verify:
            stage = progress.stage("verify", len(export.plan.steps))
            with _aside(out):
                found = check(export, out, traced, lambda name: stage(1, name))
            report["verified"] = {"tensors": found.tensors, "equal": found.equal, "readers": list(found.readers)}
    if as_json:
        options.print_json(report)
        return
    from anybit.report.table import size as bytes_of

    _say_plan(export)
    click.echo(f"{out}: {bytes_of(size)}, {report['bits_per_weight']:.4g} bits a weight, {report['seconds']:.1f} s")
    if verify:
        listed = ", ".join(report["verified"]["readers"])
        found_equal = report["verified"]
        equal = f"{found_equal['equal']} of {found_equal['tensors']} tensors are equal bit for bit, " if found_equal["tensors"] else ""
        click.echo(f"verified: {equal}read by {listed}")
    if export.target.name != "onnx":
        click.echo(f"next: anybit run {model_path(export, out)} PROMPT")


def _say_plan(export: Export) -> None:
    """The plan as a table: what the tensors are, what they become, and whether every value stays."""
    from anybit.report.table import Column, show

    columns = [Column("tensors"), Column("were", "left"), Column("are", "left"), Column("values", "left")]
    requantized = {export.source.tensors[name].format.alias or str(export.source.tensors[name].format) for name in export.requantized}
    rows = []
    for held, stored, exact, count, note in kinds(export):
        values = "no place" if not stored else "quantized now" if held in requantized else "the same" if exact else note
        rows.append([str(count), held, stored or "-", values])
    show(columns, rows)
    for step in export.plan.refused[:3]:
        click.echo(f"no place for {step.name}: {step.note}")
    for note in export.plan.notes:
        click.echo(f"note: {note}")


def own_checkpoint(model: str, out: str, verify: bool, only_plan: bool, as_json: bool, shown: bool) -> None:
    """The same for a checkpoint of ours, which holds every format. UsageError: there is nothing to plan."""
    if only_plan:
        raise UsageError("a checkpoint of anybit holds every tensor as it is; leave out --plan")
    begun = time.perf_counter()
    with Reporter(shown) as progress:
        stage = None

        def step(done: int, total: int, name: str) -> None:
            nonlocal stage
            stage = stage or progress.stage("convert", total)
            stage(1, name)

        size = write_checkpoint(model, out, step)
    if verify:
        with _aside(out):
            _same_values(model, out)
    report = {"model": model, "out": out, "to": "anybit", "bytes": size, "seconds": time.perf_counter() - begun, "verified": verify}
    if as_json:
        options.print_json(report)
        return
    from anybit.report.table import size as bytes_of

    click.echo(f"{out}: {bytes_of(size)}, every code as it was, {report['seconds']:.1f} s" + (", verified" if verify else ""))
    click.echo(f"next: anybit run {out} PROMPT")


@contextmanager
def _aside(out: str) -> Iterator[None]:
    """An output that does not verify goes to OUT.rejected (or .rejected-2 and so on), so that nobody takes it for a good one."""
    try:
        yield
    except AnybitError as error:
        names = (f"{out}.rejected" + (f"-{i}" if i > 1 else "") for i in itertools.count(1))
        free = next(name for name in names if not os.path.lexists(name))
        os.rename(out, free)
        raise type(error)(f"{error}; it lies aside in {free}, {out} was not made") from error


def _same_values(model: str, out: str) -> None:
    """FileFormatError: a tensor reads back with other values."""
    import numpy as np

    from anybit.sources import open_source

    here, there = open_source(model), open_source(out)
    for name, held in here.tensors.items():
        other = there.tensors[name]
        for start, stop in held.pieces(other.unit):
            if not np.array_equal(held.values(start, stop), other.values(start, stop)):
                raise FileFormatError(f"{out}: tensor '{name}' reads back with other values than were written; report this as a bug")
        held.release()
        other.release()
