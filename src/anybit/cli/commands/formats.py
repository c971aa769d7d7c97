"""anybit formats: what codes mean, for all built-in formats in one table or one expression in full."""

from __future__ import annotations

from typing import Any

import click

from anybit.cli import options

SHOWN_VALUES = 256


@click.command(
    "formats",
    short_help="List the built-in formats, or show one in full.",
    epilog="Example: anybit formats fp4_e2m1@32:e8m0",
)
@click.argument("expression", required=False)
@options.json_option
def command(expression: str | None, as_json: bool) -> None:
    """List all built-in formats, or show everything about one name or EXPRESSION."""
    if expression is None:
        listing(as_json)
        return
    about = describe(expression)
    if as_json:
        options.print_json(about)
    else:
        say(about)


def listing(as_json: bool) -> None:
    """The table of all names."""
    from anybit.formats import FAMILIES, Format, named_formats
    from anybit.report.table import Column, show, significant

    rows: list[dict[str, Any]] = []
    for named in named_formats():
        fmt = Format(named.expression)
        element = fmt.element
        rows.append({
            "name": named.name, "family": named.family, "expression": named.expression, "bits_per_weight": fmt.bits_per_weight,
            "max": element.max, "smallest": element.smallest, "about": named.about,
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
        cells.append([row["name"], *numbers, row["about"]])
    show(columns, cells)
    click.echo("\nany other of these forms, blocks and scales as in int4@128, mxfp4, fp8_e4m3fn@128x128:fp32:")
    show([Column("family", "left"), Column("form", "left"), Column("about", "left")], [[f["family"], f["form"], f["about"]] for f in forms])


def describe(expression: str) -> dict[str, Any]:
    """Everything about one format. FormatError, UnknownNameError: what it does not know, with near misses."""
    import numpy as np

    from anybit.formats import Spec, parse_element
    from anybit.measure.fidelity import sqnr_db

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
        "block": None if fmt.block is None else str(fmt.block),
        "scales": [str(level) for level in fmt.levels],
        "zero_point": None if fmt.zero is None else fmt.zero.name,
        "offset": None if fmt.offset is None else fmt.offset.name,
    }
    listed = element if element.bits <= 16 and not element.learned else None
    if listed is not None:
        about |= {
            "min": listed.min, "max": listed.max, "smallest": listed.smallest, "distinct_values": len(listed.finite),
            "specials": {name: f"code {code}" for name, code in listed.specials.items()},
            "signed": listed.signed, "table": listed.table.kind,
        }  # fmt: skip
    about["sqnr_db"] = sqnr_db(spec)
    if element.bits <= 8 and listed is not None and element.dim == 1:
        values = parse_element(element.name).values
        about["values"] = [float(v) if np.isfinite(v) else str(v) for v in values[:SHOWN_VALUES]]
    return about


def say(about: dict[str, Any]) -> None:
    """The same as text."""
    from anybit.report.table import facts

    names = {
        "expression": "expression", "alias": "name", "explicit": "with all defaults", "bits": "bits of a code",
        "bits_per_weight_exact": "bits a weight", "block": "block", "scales": "scales", "zero_point": "zero points", "offset": "offsets",
        "min": "least value", "max": "largest value", "smallest": "smallest above 0", "distinct_values": "distinct values",
        "specials": "specials", "table": "kernel table", "sqnr_db": "SQNR, normal source",
    }  # fmt: skip
    pairs = []
    for key, label in names.items():
        value = about.get(key)
        if value in (None, [], {}):
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
    if "values" in about:
        texts = [v if isinstance(v, str) else f"{v:.6g}" for v in about["values"]]
        width = max(map(len, texts)) + 2
        click.echo("values by code:")
        per_line = max(1, 96 // width)
        for start in range(0, len(texts), per_line):
            click.echo(f"{start:>5}  " + "".join(f"{text:>{width}}" for text in texts[start : start + per_line]))
