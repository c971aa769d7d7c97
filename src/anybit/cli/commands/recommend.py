"""anybit recommend: which recipe to take, within what the machine or the user allows, with the evidence."""

from __future__ import annotations

import math
from typing import Any

import click

from anybit.cli import options
from anybit.cli.progress import Reporter


@click.command(
    "recommend",
    short_help="Say which recipe to take, and why.",
    epilog="Example: anybit recommend pycoder-5m --bits 4",
)
@options.model_argument
@click.option("--ram", default=None, metavar="SIZE", help="Memory that weights and one context's cache may take, such as 6G.")
@click.option("--bits", type=options.Positive(), default=None, help="Most stored bits a weight of the quantized layers.")
@click.option("--tokens-per-second", "rate", type=options.Positive(), help="Least speed of decoding, measured on this machine.")
@click.option("--recipes", "names", default=None, metavar="A,B,...", help="Candidates; every named recipe by default.")
@click.option(
    "--measure", "most", type=click.IntRange(1), default=3, show_default=True,
    help="Candidates to quantize and measure, those with the least recorded KL first; more only if none of them is fast enough.",
)
@click.option("--tokens", type=click.IntRange(2), default=8192, show_default=True, help="Tokens to score.")
@options.threads_option
@options.json_option
@options.progress_option
def command(
    model: str, ram: str | None, bits: float | None, rate: float | None, names: str | None, most: int, tokens: int, threads: int | None,
    as_json: bool, no_progress: bool,
) -> None:  # fmt: skip
    """Measure the recipes that should serve MODEL best within the limits, and name the one that loses least.

    Which to measure is taken from what recipes gave on the bundled model; the answer is from MODEL itself.
    """
    options.use_threads(threads)
    from anybit.cli.commands.compare import run
    from anybit.cli.commands.plan import parse_size
    from anybit.errors import DoesNotFitError, NoRecipeError
    from anybit.recipes.plan import running_bytes, within
    from anybit.recipes.schema import load_recipe, named

    if ram is None and bits is None and rate is None:
        raise click.UsageError("give at least one limit: --ram, --bits or --tokens-per-second")
    limit = None if ram is None else parse_size(ram)
    candidates = [load_recipe(name) for name in (names.split(",") if names else named())]
    fitting = within(candidates, model, bits)
    if limit is not None:
        fitting = [recipe for recipe in fitting if running_bytes(recipe, model) <= limit]
    none = f"none of {len(candidates)} recipes serves {model} within {limits(ram, bits, rate)}; allow more, or give --recipes of your own"
    if not fitting:
        raise DoesNotFitError(none)
    fitting.sort(key=lambda recipe: float(recipe.measured.get("kl", math.inf)))
    with Reporter(not no_progress) as progress:
        measured: list[dict[str, Any]] = []
        good: list[dict[str, Any]] = []
        why: NoRecipeError | None = None
        for at in range(0, len(fitting), most):
            try:
                results = options.plain(run(model, fitting[at : at + most], None, (), tokens, (), True, progress))
            except NoRecipeError as error:
                why = error
                continue
            # A size that depends on the data is known only now.
            small = [row for row in results["recipes"] if bits is None or row["quantized_bits_per_weight"] <= bits]
            good = [row for row in small if rate is None or (row["decode_tokens_per_s"] or 0) >= rate]
            measured += small
            if good:
                break
    if not good:
        if why is not None and not measured:
            raise why
        if not measured:
            raise DoesNotFitError(none)
        fastest = max(measured, key=lambda row: row["decode_tokens_per_s"] or 0)
        raise DoesNotFitError(
            f"no recipe decodes {rate:g} tokens a second here; the fastest, {fastest['recipe']}, makes {fastest['decode_tokens_per_s']:.0f}"
        )
    results["recipes_not_measured"] = [recipe.name for recipe in fitting[at + most :]]
    best = good[0]
    answer = sentence(best, small, limits(ram, bits, rate), len(results["recipes_not_measured"]))
    line = f"anybit quantize {model} OUT -r {best['recipe']}"
    if as_json:
        options.print_json({"model": model, "recommended": best["recipe"], "sentence": answer, "command": line, "evidence": results})
        return
    click.echo(answer)
    click.echo(line)


def limits(ram: str | None, bits: float | None, rate: float | None) -> str:
    """The limits in words."""
    found = [f"{ram} of memory"] if ram else []
    found += [f"{bits:g} bits"] if bits is not None else []
    found += [f"{rate:g} tokens a second"] if rate is not None else []
    return " and ".join(found)


def sentence(best: dict[str, Any], rows: list[dict[str, Any]], within: str, rest: int = 0) -> str:
    """One sentence with its evidence; `rest`: how many candidates were left unmeasured."""
    others = [row for row in rows if row is not best]
    error = best["kl_mean_se"]
    measured = f"{best['kl_mean']:.3g}" if error is None else f"{best['kl_mean']:.3g} ± {error:.1g}"
    text = (
        f"Within {within}, take {best['recipe']}: {best['quantized_bits_per_weight']:.4g} bits a weight,"
        f" KL {measured} nats a token, {best['decode_tokens_per_s']:.0f} tokens a second"
    )
    left = f"; {rest} more fit and have a larger recorded loss on the bundled model, or none" if rest else ""
    if not others:
        return f"{text}, the only one of the candidates that {'was measured' if rest else 'fits'}{left}."
    second = others[0]
    gap, error = second["kl_mean"] - best["kl_mean"], second["kl_over_best_se"] or 0.0
    sure = f"{gap / error:.1f} standard errors" if error > 0 else "no error known"
    return text + f"; next is {second['recipe']} with KL {second['kl_mean']:.3g} ({sure} of the paired difference away){left}."
