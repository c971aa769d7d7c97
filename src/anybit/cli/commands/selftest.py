"""anybit selftest: formats, packing and kernels against the exact references, on the user's own machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from anybit.cli import options
from anybit.cli.progress import Reporter
from anybit.errors import UsageError

if TYPE_CHECKING:
    from anybit.selftest.patterns import Target


@click.command(
    "selftest",
    short_help="Check formats, packing and kernels against exact references.",
    epilog="Example: anybit selftest --full --format fp8_e4m3fn --format bf16+round=zero",
)
@click.option("--full", is_flag=True, help="Also all 2^32 float32 numbers through chosen formats; ten seconds to a minute each, resumable.")
@click.option("--format", "formats", multiple=True, metavar="EXPR", help="With --full: an element, with policies if wanted; repeatable.")
@click.option("--certificate", type=click.Path(), default=None, metavar="FILE", help="With --full: where counts and digests go.")
@options.threads_option
@options.progress_option
@options.json_option
def command(
    full: bool, formats: tuple[str, ...], certificate: str | None, threads: int | None, no_progress: bool, as_json: bool
) -> None:
    """Check this installation: every code of every format, encoding, packing, products. Exit code 1 if anything is wrong."""
    if not full and (formats or certificate):
        raise UsageError(f"{'--format' if formats else '--certificate'} goes with --full: anybit selftest --full --format fp8_e4m3fn")
    options.use_threads(threads)
    path = Path(certificate or "anybit-selftest.json")
    work = prepared(formats, path) if full else None
    with Reporter(enabled=not no_progress) as progress:
        found: dict[str, Any] = {"checks": quick(progress, as_json)}
        if work is not None:
            found["certificate"] = str(path)
            found["formats"] = exhaustive(progress, *work, path, threads, as_json)
    found["passed"] = all(row["passed"] for row in found["checks"]) and not any(row["wrong"] for row in found.get("formats", []))
    if as_json:
        options.print_json(found)
    else:
        wrong = "something is not as defined; please report it, with the output of `anybit doctor --json`"
        click.echo("everything is as defined" if found["passed"] else wrong)
    if not found["passed"]:
        raise click.exceptions.Exit(1)


def quick(progress: Reporter, quiet: bool) -> list[dict[str, Any]]:
    """The checks of about a minute, one line each as it ends."""
    from anybit.selftest import quick_checks, run

    checks = quick_checks()
    step = progress.stage("selftest", total=sum(step.weight for check in checks for step in check.steps))
    rows = []
    for outcome in run(checks, step):
        rows.append({
            "name": outcome.name, "about": outcome.about, "passed": outcome.passed, "compared": outcome.compared,
            "failures": outcome.failures, "skipped": list(outcome.skipped), "seconds": round(outcome.seconds, 2),
        })  # fmt: skip
        if not quiet:
            left_out = f"; left out: {', '.join(outcome.skipped)}" if outcome.skipped else ""
            verdict = "ok  " if outcome.passed else "FAIL"
            click.echo(f"{verdict}  {outcome.name:<15}  {outcome.compared:>11,} in {outcome.seconds:5.1f} s  {outcome.about}{left_out}")
            for line in outcome.failures[:20]:
                click.echo(f"      {line}")
            if len(outcome.failures) > 20:
                click.echo(f"      and {len(outcome.failures) - 20} more")
    return rows


def prepared(formats: tuple[str, ...], path: Path) -> tuple[list[Target], dict[str, Any]]:
    """What is judged and the certificate so far; a format or a place that cannot be used is known before any work."""
    from anybit.measure.machine import machine
    from anybit.selftest import certificate
    from anybit.selftest.patterns import DEFAULT, target

    targets = [target(text) for text in formats or DEFAULT]
    record = certificate.resumed(path, machine())
    certificate.write(path, record)
    return targets, record


def exhaustive(
    progress: Reporter, targets: list[Target], record: dict[str, Any], path: Path, threads: int | None, quiet: bool
) -> list[dict[str, Any]]:  # fmt: skip
    """All patterns of each format; the certificate is written after each, and formats that it holds already are not repeated."""
    from anybit.measure.machine import cores
    from anybit.selftest import certificate
    from anybit.selftest.check import BREAKS
    from anybit.selftest.patterns import CHUNK, PATTERNS, judge

    rows = []
    for t in targets:
        row = next((row for row in record["formats"] if t.fits(row) and not row["wrong"]), None)
        known = row is not None
        if row is None:
            step = progress.stage(t.element.name, total=PATTERNS // CHUNK)
            try:
                row = judge(t, threads or cores(), step)
            except BREAKS as error:
                row = {"expression": t.text, "patterns": 0, "wrong": 1, "first_wrong": " ".join(str(error).split()), "seconds": 0.0}
            record["formats"] = [old for old in record["formats"] if old.get("expression") != t.text] + [row]
            certificate.write(path, record)
        rows.append(row)
        if not quiet:
            verdict = "FAIL" if row["wrong"] else "ok  "
            note = f", first {row['first_wrong']}" if row["wrong"] else ", from the certificate" if known else ""
            counts = f"{row['patterns']:>13,} patterns in {row['seconds']:.0f} s, {row['wrong']} wrong"
            click.echo(f"{verdict}  {t.element.name:<15}  {counts}{note}")
    if not quiet:
        click.echo(f"wrote {path}")
    return rows
