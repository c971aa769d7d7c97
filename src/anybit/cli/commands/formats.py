"""anybit formats: all built-in formats, one drawn in full, a picture of one as a file, or several ranked."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from anybit.cli import options
from anybit.errors import FormatError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from anybit.formats import Element

SHOWN_VALUES = 256


@click.command(
    "formats",
    short_help="List the built-in formats, draw one, or rank several.",
    epilog="Example: anybit formats --compare int4@32 nf4@64 mxfp4 --on laplace",
)
@click.argument("expressions", nargs=-1, metavar="[EXPRESSION]...")
@click.option("--plot", type=click.Path(), metavar="FILE.svg", help="Draw values, relative error and codes into a file.")
@click.option("--compare", is_flag=True, help="Rank the EXPRESSIONs by exact bits and signal-to-noise ratio.")
@click.option("--on", "source", default=None, metavar="SOURCE", help="With --compare: normal (default), laplace, t4, or a .npy file.")
@options.json_option
def command(expressions: tuple[str, ...], plot: str | None, compare: bool, source: str | None, as_json: bool) -> None:
    """List all built-in formats by family, show everything about one EXPRESSION, or --compare several."""
    if source is not None and not compare:
        raise UsageError("--on says what formats are compared on; it goes with --compare")
    if compare:
        if not expressions or plot is not None:
            raise UsageError("--compare takes formats and no --plot: anybit formats --compare int4@32 mxfp4 nf4@64 --on normal")
        ranking(expressions, source or "normal", as_json)
    elif not expressions:
        if plot is not None:
            raise UsageError("--plot draws one format; name it: anybit formats fp4_e2m1 --plot fp4.svg")
        listing(as_json)
    elif len(expressions) > 1:
        several = " ".join(expressions[:8])
        raise UsageError(f"one format at a time, not {len(expressions)}; to rank them: anybit formats --compare {several}")
    else:
        one(expressions[0], plot, as_json)


def listing(as_json: bool) -> None:
    """The table of all names, family after family."""
    from anybit.formats import FAMILIES, Format, named_formats
    from anybit.report.table import Column, render, show, significant

    rows: list[dict[str, Any]] = []
    for named in named_formats():
        fmt = Format(named.expression)
        values = finite_values(fmt.element)
        rows.append({
            "name": named.name, "family": named.family, "expression": named.expression, "bits_per_weight": fmt.bits_per_weight,
            "max": None if values is None else float(values.max()), "smallest": None if values is None else smallest(values),
            "about": named.about,
        })  # fmt: skip
    families = [FAMILIES[name] for name in FAMILIES]
    forms = [{"family": family.name, "form": family.form, "about": family.about} for family in families]
    if as_json:
        options.print_json({"formats": rows, "families": forms})
        return
    columns = [Column("name", "left"), Column("bits a weight"), Column("largest"), Column("smallest"), Column("about", "left")]
    cells = []
    for row in rows:
        numbers = [f"{float(row['bits_per_weight']):g}", significant(row["max"], 4), significant(row["smallest"], 4)]
        cells.append([f"  {row['name']}", *numbers, row["about"]])
    heading, *lines = render(columns, cells).splitlines()
    about = {family.name: family.about for family in families} | {"block": "whole formats: an element, its block and its scales"}
    click.echo(heading)
    previous = ""
    for row, line in zip(rows, lines, strict=True):
        if row["family"] != previous:
            previous = row["family"]
            click.echo(f"\n{previous}: {about[previous]}")
        click.echo(line)
    click.echo("\nany other of these forms, blocks and scales as in int4@128, mxfp4, fp8_e4m3fn@128x128:fp32:")
    show([Column("family", "left"), Column("form", "left"), Column("about", "left")], [[f["family"], f["form"], f["about"]] for f in forms])


def all_values(element: Element) -> np.ndarray | None:
    """float64 values by code ([codes, dim] for elements of several numbers), or None where an element has no list of them."""
    import numpy as np

    if element.bits > 16:
        if element.dim > 1:
            return None
        return np.array([element.min, element.smallest, element.max])  # what fp32 and tf32 can say about themselves
    try:
        return np.asarray(element.values, dtype=np.float64)
    except FormatError:
        return None


def finite_values(element: Element) -> np.ndarray | None:
    """The finite numbers among them, flat."""
    import numpy as np

    values = all_values(element)
    return None if values is None else values[np.isfinite(values)]


def smallest(values: np.ndarray) -> float:
    """The smallest positive number, NaN if there is none."""
    positive = values[values > 0]
    return float(positive.min()) if positive.size else math.nan


def describe(expression: str) -> dict[str, Any]:
    """Everything about one format. FormatError, UnknownNameError: what it does not know, with near misses."""
    import numpy as np

    from anybit.formats import Spec
    from anybit.methods import sqnr_db

    spec = Spec.parse(expression)
    fmt, element = spec.format, spec.format.element
    about: dict[str, Any] = {
        "expression": str(fmt),
        "explicit": fmt.explicit,
        "alias": fmt.alias,
        "bits": element.bits,
        "bits_per_weight": fmt.bits_per_weight,
        "bits_per_weight_exact": str(fmt.bits_per_weight),
        "element": element.name,
        "numbers_a_code": element.dim,
        "block": None if fmt.block is None else str(fmt.block),
        "scales": [str(level) for level in fmt.levels],
        "zero_point": None if fmt.zero is None else fmt.zero.name,
        "offset": None if fmt.offset is None else fmt.offset.name,
    }
    values = all_values(element) if element.bits <= 16 else None
    if values is not None:
        finite = values[np.isfinite(values)]
        about |= {"min": float(finite.min()), "max": float(finite.max()), "smallest": smallest(finite)}
        if element.dim == 1:
            about |= {
                "distinct_values": len(element.finite), "signed": element.signed, "table": element.table.kind,
                "specials": {name: f"code {code}" for name, code in element.specials.items()},
            }  # fmt: skip
    about["sqnr_db"] = sqnr_db(spec)
    if values is not None and element.dim == 1 and element.bits <= 8:
        about["values"] = [float(v) if np.isfinite(v) else str(v) for v in values[:SHOWN_VALUES]]
    return about


def one(expression: str, plot: str | None, as_json: bool) -> None:
    """One format: facts, the values on a line, the value of every code; or its picture in a file."""
    from anybit.formats import Spec

    about = describe(expression)
    element = Spec.parse(expression).format.element
    if plot is not None:
        about["plot"] = write_plot(about, element, Path(plot))
    if as_json:
        options.print_json(about)
        return
    say(about)
    grid = drawing(element)
    if grid:
        click.echo("\n" + "\n".join(grid))
    codes(about)
    if plot is not None:
        click.echo(f"\nwrote {plot}")


def drawing(element: Element) -> list[str]:
    """The values as text; nothing for elements that have no list of values."""
    import numpy as np

    from anybit.report.number_line import number_line, scatter

    values = all_values(element)
    if values is None or element.bits > 16:
        return []
    columns = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 100
    width = min(columns, 160) - 2
    if element.dim == 1:
        return number_line(element.finite, width)
    points = np.unique(values[np.isfinite(values).all(-1)], axis=0)
    if points.shape[-1] == 2:
        return scatter(points, min(width - 2, 72))
    return [f"{len(points)} vectors of {element.dim} numbers each; the numbers:", *number_line(np.unique(points), width)]


def write_plot(about: dict[str, Any], element: Element, path: Path) -> str:
    """Writes the picture; the file is there wholly or not at all. UsageError: nothing to draw, or a file of another kind."""
    from anybit.io.save import atomic_file
    from anybit.report.value_plot import Picture, draw

    if path.suffix.lower() != ".svg":
        raise UsageError(f"--plot {path}: the picture is an SVG; name the file .svg")
    values = all_values(element) if element.bits <= 16 else None
    if values is None or (element.dim > 1 and values.shape[-1] != 2):
        raise UsageError(f"--plot: {element} has no list of values to draw (lists go up to 16 bits, in one or two dimensions)")
    name = f"{about['alias']} = {about['expression']}" if about["alias"] else about["expression"]
    text = f"{float(about['bits_per_weight']):g} bits a weight; {about['min']:g} to {about['max']:g}, smallest {about['smallest']:g}"
    if element.dim == 1:
        text += f"; {about['distinct_values']} values, kernel table {about['table']}"
    noise = about["sqnr_db"]
    text += f"; SQNR {noise:.2f} dB on a normal source" if math.isfinite(noise) else ""
    with atomic_file(path) as file:
        file.write(draw(Picture(name, text, values)).encode())
    return str(path)


def say(about: dict[str, Any]) -> None:
    """The facts as text."""
    from anybit.report.table import facts

    names = {
        "expression": "expression", "alias": "name", "explicit": "with all defaults", "bits": "bits of a code",
        "bits_per_weight_exact": "bits a weight", "numbers_a_code": "numbers a code", "block": "block", "scales": "scales",
        "zero_point": "zero points", "offset": "offsets", "min": "least value", "max": "largest value", "smallest": "smallest above 0",
        "distinct_values": "distinct values", "specials": "specials", "table": "kernel table", "sqnr_db": "SQNR, normal source",
    }  # fmt: skip
    pairs = []
    for key, label in names.items():
        value = about.get(key)
        if value in (None, [], {}) or (key == "numbers_a_code" and value == 1):
            continue
        if key == "bits_per_weight_exact":
            value = f"{float(about['bits_per_weight']):g} ({value})"
        elif key == "sqnr_db":
            value = f"{value:.2f} dB"
        elif isinstance(value, list):
            value = ", then ".join(value)
        elif isinstance(value, dict):
            value = ", ".join(f"{name} ({code})" for name, code in value.items())
        pairs.append((label, value))
    facts(pairs)


def codes(about: dict[str, Any]) -> None:
    """The value of every code, for up to 8 bits."""
    if "values" in about:
        texts = [v if isinstance(v, str) else f"{v:.6g}" for v in about["values"]]
        width = max(map(len, texts)) + 2
        click.echo("\nvalues by code:")
        per_line = max(1, 96 // width)
        for start in range(0, len(texts), per_line):
            click.echo(f"{start:>5}  " + "".join(f"{text:>{width}}" for text in texts[start : start + per_line]))


def ranking(expressions: tuple[str, ...], source: str, as_json: bool) -> None:
    """The table of --compare."""
    from anybit.formats import Spec
    from anybit.measure.compare import load_source, rank
    from anybit.report.table import Column, show

    for expression in expressions:
        Spec.parse(expression).check()
    x = load_source(source)
    rows = rank(expressions, x, source)
    if as_json:
        found = [
            {
                "name": row.name, "expression": str(row.spec), "bits_per_weight": row.bits, "bits_per_weight_exact": str(row.bits),
                "sqnr_db": row.sqnr_db, "pareto": row.pareto,
            }
            for row in rows
        ]  # fmt: skip
        options.print_json({"source": source, "shape": list(x.shape), "formats": found})
        return
    headings = [("format", "left"), ("bits a weight", "right"), ("SQNR dB", "right"), ("Pareto", "left"), ("measured as", "left")]
    columns = [Column(*heading) for heading in headings]
    cells = []
    for row in rows:
        measured = "" if str(row.spec) == row.name else str(row.spec)
        cells.append([row.name, f"{float(row.bits):.6g}", f"{row.sqnr_db:.2f}", "*" if row.pareto else "", measured])
    show(columns, cells)
    shape = " x ".join(map(str, x.shape))
    click.echo(f"\non {source}, {shape} numbers; bits of codes, scales and zero points are exact for this array")
    click.echo("*: no other has as few bits and as little noise")
