"""anybit demo: the whole path on the bundled model, with one table, a report and the next steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from anybit.cli import options
from anybit.cli.progress import Reporter

FORMATS = (
    "int8@channel", "int4@32", "int4@128", "int3@128", "int2@64", "ternary@256", "mxfp8", "mxfp6", "mxfp4", "nvfp4", "nf4@64",
)  # fmt: skip
CHAINS = (("int8@channel", "int4@32", "int4@128", "int3@128", "int2@64"), ("mxfp8", "mxfp6", "mxfp4"))
PROMPT = "class Queue:\n    def __init__(self"
SAMPLE = "int4@32"
NEXT = (
    "anybit quantize pycoder-5m my-model --format int4@32 --act int8",
    "anybit eval my-model --reference pycoder-5m",
    'anybit run my-model "def main():"',
    "anybit bench my-model --explain",
    "anybit formats mxfp4",
)


@click.command(
    "demo",
    short_help="Try eleven formats on the bundled model; write a report.",
    epilog="Example: anybit demo --out my-demo",
)
@click.option("--out", default="anybit-demo", show_default=True, help="Folder for report.html and results.json; these two are replaced.")
@click.option("--tokens", type=click.IntRange(2), default=32_768, show_default=True, help="Tokens to evaluate on.")
@options.threads_option
@options.seed_option
@options.json_option
@options.progress_option
def command(out: str, tokens: int, threads: int | None, seed: int, as_json: bool, no_progress: bool) -> None:
    """Quantize the bundled model to eleven formats, measure each, write a report."""
    options.use_threads(threads)
    with report_folder(out):
        with Reporter(not no_progress) as progress:
            results = options.plain(measure(tokens, seed, progress))
        paths = write(results, out)
    if as_json:
        options.print_json(results)
    else:
        say(results, paths)


@contextmanager
def report_folder(out: str) -> Iterator[None]:
    """Made before the work, and taken away again if the work fails and nothing lies in it. OutputError: it cannot be made or written to."""
    import os

    from anybit.errors import OutputError

    new = not os.path.lexists(out)
    try:
        os.makedirs(out, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: {error.strerror}; give another folder with --out") from None
    if not os.access(out, os.W_OK | os.X_OK):
        raise OutputError(f"{out}: no permission to write there; give another folder with --out")
    try:
        yield
    except BaseException:
        if new:
            with suppress(OSError):
                os.rmdir(out)
        raise


def measure(tokens: int, seed: int, progress: Reporter) -> dict[str, Any]:
    """Everything that results.json holds."""
    from anybit.measure.machine import machine
    from anybit.measure.memory import memory
    from anybit.measure.sweep import comparisons, rows, sweep
    from anybit.measure.text import default_text

    begun = time.perf_counter()
    progress.stage("load", 1)
    model = options.load("pycoder-5m")
    text = default_text(model.tokenizer, tokens)
    result = sweep(model, FORMATS, text, stage=progress.stage)
    progress.stage("sample", 1)
    shown = result.models[SAMPLE].with_act("int8").generate(PROMPT, max_tokens=70, temperature=0.8, top_p=0.95, seed=seed)
    about = {"name": "pycoder-5m", "parameters": model.parameters, "bytes": model.nbytes, "bits_per_weight": float(model.bits_per_weight)}
    return {
        "anybit": machine()["anybit"],
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "model": about,
        "text": text.describe(),
        "window": 512,
        "reference": result.original.describe(),
        "formats": rows(result),
        "comparisons": comparisons(result, CHAINS),
        "sample": {"format": SAMPLE, "prompt": PROMPT, "text": shown, "seed": seed},
        "memory": vars(memory()),
        "machine": machine(),
        "seconds": {**result.seconds, "all": time.perf_counter() - begun},
        "reproduce": [f"anybit demo --tokens {tokens} --seed {seed}", *NEXT],
    }


def write(results: dict[str, Any], out: str) -> tuple[str, str]:
    """Writes both files, each wholly or not at all; their paths. OutputError: the disk fails."""
    from pathlib import Path

    from anybit.io.save import atomic_file
    from anybit.report.sweep import report

    files = {"results.json": options.dumps(results, indent=1) + "\n", "report.html": report(results)}
    folder = Path(out)
    for name, content in files.items():
        with atomic_file(folder / name) as file:
            file.write(content.encode())
    return str(folder / "report.html"), str(folder / "results.json")


def say(results: dict[str, Any], paths: tuple[str, str]) -> None:
    """What the terminal shows."""
    from anybit.measure.machine import summary
    from anybit.report.sweep import COLUMNS, LEGEND, ORDER_COLUMNS, order_rows, table_rows
    from anybit.report.table import show

    text, sample = results["text"], results["sample"]
    show(COLUMNS, table_rows(results))
    click.echo(f"\n{LEGEND}\n")
    click.echo(f"text: {text['tokens']} tokens of the {text['source']}, Python {text['python']}, sha256 {text['tokens_sha256'][:16]}")
    click.echo(f"machine: {summary(results['machine'])}\n")
    show(ORDER_COLUMNS, order_rows(results))
    click.echo(f"\nsample from {sample['format']}:\n{sample['prompt']}{sample['text']}\n")
    click.echo(f"wrote {paths[0]} and {paths[1]} after {results['seconds']['all']:.0f} s; next:")
    for line in NEXT:
        click.echo(f"  {line}")
