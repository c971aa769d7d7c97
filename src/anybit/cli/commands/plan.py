"""anybit plan: what a recipe would do to a model, layer by layer, with memory and time, before it is done."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from anybit.cli import options

if TYPE_CHECKING:
    from anybit.recipes.schema import Allocation


@click.command(
    "plan",
    short_help="Show what a recipe does to a model, and what it costs.",
    epilog="Example: anybit plan pycoder-5m -r gptq-int4 --ram 6G",
)
@options.model_argument
@click.option("-r", "--recipe", "recipe_name", required=True, metavar="RECIPE", help="A named recipe or a file.")
@click.option("--ram", default=None, metavar="SIZE", help="Memory to fit into, such as 6G; by default what is free on this machine.")
@options.json_option
def command(model: str, recipe_name: str, ram: str | None, as_json: bool) -> None:
    """Print the layer table of RECIPE on MODEL: format, method, kernel, bytes; then memory and time. Exits with 3 if it cannot fit."""
    from anybit.errors import DoesNotFitError
    from anybit.recipes.plan import bits_per_weight, estimate, make_plan, rows
    from anybit.recipes.schema import load_recipe
    from anybit.recipes.source import FloatSource
    from anybit.report.table import Column, facts, show, size

    limit = available() if ram is None else parse_size(ram)
    recipe = load_recipe(recipe_name)
    source = FloatSource(model)
    plan = make_plan(recipe, source.spec)
    table = rows(plan, source.spec, {t.name: source.dtype(t.name) for t in source.spec.tensors}, recipe.allocation)
    costs, bits = estimate(plan, table, source.spec, recipe), bits_per_weight(table, plan)
    disk = shutil.disk_usage(Path.cwd()).free
    reasons = []
    if limit is not None and costs.quantize_bytes > limit:
        reasons.append(f"quantizing takes about {size(costs.quantize_bytes)} of memory, {size(limit)} are there")
    if limit is not None and costs.run_bytes > limit:
        reasons.append(f"the result takes about {size(costs.run_bytes)} to run, {size(limit)} are there")
    if costs.spill_bytes + costs.model_bytes > disk:
        reasons.append(f"{size(costs.spill_bytes + costs.model_bytes)} of disk are needed, {size(disk)} are free here")
    if as_json:
        options.print_json({
            "model": model, "recipe": recipe.name, "digest": recipe.digest, "fits": not reasons, "reasons": reasons,
            "layers": [dict(row.__dict__) for row in table], "quantized_bits_per_weight": bits, "estimate": costs.as_json(),
            "available_bytes": limit, "notes": list(recipe.notes),
        })  # fmt: skip
    else:
        columns = [Column("tensor", "left"), Column("shape"), Column("format", "left"), Column("method", "left"), Column("input", "left"),
                   Column("kernel", "left"), Column("bytes")]  # fmt: skip
        show(columns, [
            [row.name, "x".join(map(str, row.shape)), row.format, row.method, row.act, row.kernel,
             "?" if row.nbytes is None else size(row.nbytes)]
            for row in table
        ])  # fmt: skip
        facts([
            *(("not taken over", note) for note in recipe.notes),
            ("steps", ", ".join(type(step).__name__ for step in (*plan.model_steps, *plan.group_steps)) or "none"),
            *([("allocation", describe_allocation(recipe.allocation))] if recipe.allocation is not None else []),
            ("stored", f"{size(costs.model_bytes)}" + (f", {float(bits):.4g} bits a weight in the quantized layers" if bits else "")),
            ("quantizing", f"about {size(costs.quantize_bytes)} of memory, {size(costs.spill_bytes)} of disk, {costs.seconds:.0f} s"),
            ("running", f"about {size(costs.run_bytes)} with the KV cache of one full context"),
        ])  # fmt: skip
    if reasons:
        raise DoesNotFitError(f"{'; '.join(reasons)}; take fewer bits or sequences, or a machine with more")


def describe_allocation(wanted: Allocation) -> str:
    """What happens before the formats are known."""
    count = len(wanted.formats)
    return f"formats are chosen for the least {wanted.cost}; each of {count} is quantized and measured first: time for {count + 1} and more"


def parse_size(text: str) -> int:
    """Bytes of `6G`, `512M`, `1.5GiB` (binary units). UsageError: no size."""
    import re

    from anybit.errors import UsageError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"--ram: '{text}' is no size; write 6G or 512M")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def available() -> int | None:
    """Bytes of memory that this machine would give now; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
