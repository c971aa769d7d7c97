"""anybit recipes: the published methods that come with anybit, and what they gave."""

from __future__ import annotations

from typing import Any

import click

from anybit.cli import options


@click.command(
    "recipes",
    short_help="List the named recipes, or show one.",
    epilog="Example: anybit recipes gptq-int4",
)
@click.argument("name", required=False)
@options.json_option
def command(name: str | None, as_json: bool) -> None:
    """List the recipes that come with anybit, or show the one called NAME (or a file): source, steps, published and measured results."""
    from anybit.recipes.schema import load_recipe, named

    if name is not None:
        one(load_recipe(name), as_json)
        return
    found = [load_recipe(each) for each in named()]
    if as_json:
        options.print_json({"recipes": [described(recipe) for recipe in found]})
        return
    from anybit.report.table import Column, show, significant

    rows = []
    for recipe in found:
        kl, bits = recipe.measured.get("kl"), recipe.measured.get("bits")
        formats = ", ".join(dict.fromkeys(str(rule.spec.format) for rule in recipe.rules if rule.spec is not None))
        rows.append([
            recipe.name, formats, "" if bits is None else f"{bits:.4g}", "" if kl is None else significant(float(kl), 3), recipe.about
        ])  # fmt: skip
    show([Column("recipe", "left"), Column("format", "left"), Column("bits"), Column("KL"), Column("", "left")], rows)
    click.echo("KL: mean nats a token on pycoder-5m, measured; 'anybit recipes NAME' says how")


def described(recipe: Any) -> dict[str, Any]:
    """A recipe as one JSON object."""
    import json

    return {
        "name": recipe.name, "about": recipe.about, "source": recipe.source, "published": recipe.published,
        "measured": dict(recipe.measured), "digest": recipe.digest, "recipe": json.loads(recipe.text),
    }  # fmt: skip


def one(recipe: Any, as_json: bool) -> None:
    """Shows a single recipe."""
    if as_json:
        options.print_json(described(recipe))
        return
    from anybit.recipes.plan import step_name
    from anybit.report.table import facts

    pairs = [("recipe", recipe.name), ("about", recipe.about), ("source", recipe.source), ("published", recipe.published or "no figure")]
    if recipe.measured:
        m = recipe.measured
        error = f" ± {m['kl_se']}" if "kl_se" in m else ""
        where = f"on {m.get('model')}, {m.get('tokens')} tokens, {m.get('bits')} bits, {m.get('on')}"
        pairs.append(("measured", f"KL {m.get('kl')}{error} {where}"))
    else:
        pairs.append(("measured", "not yet"))
    c = recipe.calibration
    pairs.append(("calibration", f"{c.sequences} x {c.length} tokens, seed {c.seed}, one {c.sequential} at a time"))
    pairs += [("step", step_name(step)) for step in recipe.steps]
    for rule in recipe.rules:
        if rule.spec is None:
            pairs.append(("rule", f"{rule.match}: kept"))
            continue
        how = " + ".join(step_name(step) for step in (rule.rounding, *rule.corrections))
        pairs.append(("rule", f"{rule.match}: {rule.spec}, {how}, activations {rule.act or 'float'}"))
    if recipe.kv_cache:
        pairs.append(("KV cache", recipe.kv_cache.text))
    if recipe.allocation:
        a = recipe.allocation
        limits = ((a.bits, "bits"), (a.latency_ms, "ms a token"), (a.bit_operations, "bit operations"))
        budgets = ", ".join(f"{limit:g} {unit}" for limit, unit in limits if limit is not None)
        pairs.append(("allocation", f"{budgets} over {', '.join(a.formats)}, least {a.cost}"))
    gates = [f"KL <= {recipe.gates.max_kl:g}"] if recipe.gates.max_kl is not None else []
    gates += [f"same top-1 >= {recipe.gates.min_top1:g}"] if recipe.gates.min_top1 is not None else []
    if gates:
        pairs.append(("gates", ", ".join(gates)))
    pairs += [("not taken over", note) for note in recipe.notes]
    facts(pairs)
