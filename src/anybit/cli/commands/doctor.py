"""anybit doctor: what this machine and installation offer; attach its JSON to a bug report."""

from __future__ import annotations

import os
from typing import Any

import click

from anybit.cli import options


@click.command(
    "doctor",
    short_help="Show processor features, kernels, threads and versions.",
    epilog="Example: anybit doctor --json",
)
@options.threads_option
@options.json_option
def command(threads: int | None, as_json: bool) -> None:
    """Show processor features, the kernels chosen for typical formats, threads and versions."""
    options.use_threads(threads)
    from anybit.measure.machine import machine

    found: dict[str, Any] = machine() | {"kernels": chosen(), "environment": environment(), "bundled_model": bundled()}
    if as_json:
        options.print_json(found)
        return
    from anybit.report.table import Column, facts, show, size

    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    facts([
        ("processor", f"{found['cpu']} ({found['architecture']})"),
        ("features", " ".join(found["features"]) or "none that kernels use"),
        ("cores, threads", f"{found['cores']}, {found['threads']}"),
        ("instruction set", f"{found['isa']}; possible here: {', '.join(found['isas'])}"),
        ("largest cache", size(found["last_level_cache_bytes"]) if found["last_level_cache_bytes"] else "unknown"),
        ("memory", size(found["memory_bytes"]) if found["memory_bytes"] else "unknown"),
        ("system", found["system"]),
        ("versions", f"anybit {found['anybit']}, Python {found['python']}, {packages}"),
        ("environment", ", ".join(f"{k}={v}" for k, v in found["environment"].items()) or "no ANYBIT_ variable is set"),
        ("bundled model", found["bundled_model"]),
    ])  # fmt: skip
    click.echo()
    names = ("format", "activations", "kernel", "table", "why not")
    show([Column(name, "left") for name in names], [[row[name] or "" for name in names] for row in found["kernels"]])


TYPICAL = (
    "int8@channel", "int4@32", "int3@128", "int2@64", "ternary@256", "mxfp8", "mxfp6", "mxfp4", "nvfp4", "nf4@64", "bf16", "fp16", "fp32",
)  # fmt: skip


def chosen() -> list[dict[str, Any]]:
    """The kernel that serves each typical format, or why none does."""
    from anybit.errors import NoKernelError
    from anybit.formats import Format
    from anybit.kernels import choose
    from anybit.kernels.cpu import op_spec
    from anybit.layouts import default_layout

    rows = []
    for name in TYPICAL:
        fmt = Format(name)
        for act in (None, "int8") if not fmt.dense else (None,):
            row: dict[str, Any] = {"format": name, "activations": act or "float", "kernel": None, "table": None, "why not": None}
            try:
                spec = op_spec(fmt, default_layout(fmt, (256, 256)), act)
                row |= {"kernel": choose(spec).kernel.name, "table": spec.table if not fmt.dense else "dense"}
            except NoKernelError as error:
                row["why not"] = str(error)
            rows.append(row)
    return rows


def environment() -> dict[str, str]:
    """The variables that change what anybit does."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith("ANYBIT_") or name == "NO_COLOR"}


def bundled() -> str:
    """Whether the model that comes with anybit is there."""
    from anybit.model import BUNDLED, resolve

    return f"{BUNDLED} is installed" if (resolve(BUNDLED) / "config.json").is_file() else f"{BUNDLED} is missing: install anybit again"
