"""anybit compare: recipes side by side on one model, with errors of the differences, as a table and a report."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from anybit.cli import options
from anybit.cli.progress import Reporter


@click.command(
    "compare",
    short_help="Compare recipes on one model; write a report.",
    epilog="Example: anybit compare pycoder-5m --recipes nearest-int4,gptq-int4 --out report",
)
@options.model_argument
@click.option("--recipes", "names", default=None, metavar="A,B,...", help="Recipes by name, or YAML files, with commas between.")
@click.option("--all", "every", is_flag=True, help="Every named recipe.")
@click.option("--budget-bits", type=options.Positive(), default=None, help="Only recipes of at most so many stored bits a weight.")
@click.option("--text", "texts", multiple=True, type=click.Path(exists=True, dir_okay=False), help="Text file; may be repeated.")
@click.option("--tokens", type=click.IntRange(2), default=None, help="Tokens to score: 32768 of the default text, all of --text.")
@click.option("--calibration", multiple=True, type=click.Path(exists=True, dir_okay=False), metavar="FILE", help="Calibration text.")
@click.option("--out", default=None, type=click.Path(file_okay=False), help="Folder for report.html and results.json.")
@click.option("--no-speed", is_flag=True, help="Leave decoding and prefill untimed.")
@options.threads_option
@options.json_option
@options.progress_option
def command(
    model: str, names: str | None, every: bool, budget_bits: float | None, texts: tuple[str, ...], tokens: int | None,
    calibration: tuple[str, ...], out: str | None, no_speed: bool, threads: int | None, as_json: bool, no_progress: bool,
) -> None:  # fmt: skip
    """Quantize MODEL after several recipes and measure all on the same text."""
    if (names is None) == (not every):
        raise click.UsageError("give either --recipes or --all")
    options.use_threads(threads)
    from anybit.recipes.schema import load_recipe, named

    recipes = [load_recipe(name) for name in (named() if every else [n for n in (names or "").split(",") if n])]
    from anybit.cli.commands.demo import report_folder

    with nullcontext() if out is None else report_folder(out):
        with Reporter(not no_progress) as progress:
            results = options.plain(run(model, recipes, budget_bits, texts, tokens, calibration, not no_speed, progress))
        results["reproduce"] = f"anybit compare {model} " + (f"--recipes {names}" if names else "--all")
        written = write(results, out) if out is not None else None
    if as_json:
        options.print_json(results)
        return
    from anybit.report.comparison import COLUMNS, LEGEND, table_rows
    from anybit.report.table import show

    show(COLUMNS, table_rows(results))
    click.echo(f"\n{LEGEND}")
    for name, reason in results["failed"].items():
        click.echo(f"not served: {name}: {reason}")
    text = results["text"]
    click.echo(f"text: {text['tokens']} tokens of the {text['source']}, sha256 {text['tokens_sha256'][:16]}")
    if written:
        click.echo(f"wrote {written}")


def run(
    model: str, recipes: list[Any], budget: float | None, texts: tuple[str, ...], tokens: int | None, calibration: tuple[str, ...],
    speed: bool, progress: Reporter,
) -> dict[str, Any]:  # fmt: skip
    """Everything that results.json holds but the command line."""
    from anybit.errors import UsageError
    from anybit.measure.machine import machine
    from anybit.measure.text import DEFAULT_TOKENS, default_text, separator_of, text_from_files
    from anybit.recipes.compare import as_json, compare_recipes
    from anybit.recipes.plan import within

    original = options.load(model)
    separator = separator_of(original)
    if texts:
        text = text_from_files(original.tokenizer, [Path(path) for path in texts], tokens, separator)
    else:
        text = default_text(original.tokenizer, tokens or DEFAULT_TOKENS, separator)
    chosen = recipes if budget is None else within(recipes, model, budget)
    if recipes and not chosen:
        raise UsageError(f"none of {len(recipes)} recipes stays within {budget:g} bits a weight; allow more with --budget-bits")
    found = compare_recipes(
        model, chosen, text, min(512, original.context), [Path(path) for path in calibration], speed, progress.stage
    )
    return as_json(found, {"model": model, "text": text.describe(), "machine": machine()})


def write(results: dict[str, Any], out: str) -> str:
    """Writes both files, each wholly or not at all."""
    from anybit.io.save import atomic_file
    from anybit.report.comparison import report

    files = {"results.json": options.dumps(results, indent=1) + "\n", "report.html": report(results)}
    for name, content in files.items():
        with atomic_file(Path(out) / name) as file:
            file.write(content.encode())
    return str(Path(out) / "report.html")
