"""anybit inspect: what a model's files hold, read from their headers; executes nothing."""

from __future__ import annotations

import click

from anybit.cli import options


@click.command(
    "inspect",
    short_help="List what the files of a model hold; executes nothing.",
    epilog="Example: anybit inspect my-model",
)
@options.model_argument
@options.json_option
def command(model: str, as_json: bool) -> None:
    """List the tensors, shapes, formats, bytes and metadata of MODEL (a folder, a .gguf or a .safetensors file)."""
    from anybit.io.inspect import inspect_model
    from anybit.model import resolve

    found = inspect_model(resolve(model))
    if as_json:
        options.print_json(found.as_dict())
        return
    from anybit.report.table import Column, facts, show, size

    columns = [Column(name, "left") for name in ("tensor", "shape", "format", "layout", "activations")]
    columns += [Column("bits"), Column("bytes"), Column("file", "left")]
    rows = [
        [
            printable(row.name), "x".join(map(str, row.shape)), row.format, row.layout or "", row.act or "",
            f"{float(row.bits_per_element):.4g}", f"{row.nbytes}", printable(row.file),
        ]
        for row in found.tensors
    ]  # fmt: skip
    show(columns, rows)
    click.echo()
    weights = sum(row.nbytes for row in found.tensors)
    pairs = [
        ("kind", found.kind),
        ("files", ", ".join(f"{printable(name)} ({size(count)})" for name, count in found.files.items())),
        ("weights", f"{found.elements:,} in {len(found.tensors)} tensors, {size(weights)}"),
    ]
    pairs += [(printable(str(key)), printable(options.dumps({"": value})[5:-1])) for key, value in found.metadata.items()]
    facts(pairs)


def printable(text: str) -> str:
    """Names come from a file: nothing of them may steer a terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
