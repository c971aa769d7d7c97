"""anybit quantize: a model into a number format, tensor by tensor."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from anybit.cli import options
from anybit.cli.progress import Reporter

if TYPE_CHECKING:
    from anybit.formats import Spec
    from anybit.recipes.quantize import Tensors
    from anybit.recipes.schema import Recipe


@click.command(
    "quantize",
    short_help="Quantize a model into a new folder.",
    epilog="Example: anybit quantize pycoder-5m my-model --format int4@32; anybit quantize pycoder-5m my-model -r gptq-int4",
)
@options.model_argument
@click.argument("out", type=click.Path())
@click.option("--format", "expression", metavar="F", help="Format expression or name, such as int4@32 or mxfp4+scale=mse.")
@click.option("-r", "--recipe", metavar="RECIPE", help="A named recipe ('anybit recipes' lists them) or a YAML file, instead of --format.")
@click.option("--calibration", multiple=True, type=click.Path(exists=True, dir_okay=False), metavar="FILE",
              help="Calibration text of a recipe; by default the standard library outside the evaluation modules.")
@click.option("--work", type=click.Path(file_okay=False), metavar="DIR", help="Where a recipe keeps finished layers, for --resume.")
@click.option("--resume", is_flag=True, help="Go on with what lies in --work.")
@click.option("--method", default="rtn", show_default=True, help="How codes are chosen.")
@click.option("--keep", metavar="REGEX", help="Weights to keep as they are; embeddings and head by default.")
@click.option("--act", type=click.Choice(["float", "int8", "int4"]), default="float", show_default=True, help="Activations it runs with.")
@options.product_option
@options.attention_option
@options.threads_option
@options.json_option
@options.progress_option
def command(
    model: str, out: str, expression: str | None, recipe: str | None, calibration: tuple[str, ...], work: str | None, resume: bool,
    method: str, keep: str | None, act: str, product: str | None, attention_product: str | None, threads: int | None, as_json: bool,
    no_progress: bool,
) -> None:  # fmt: skip
    """Quantize MODEL (a path, or pycoder-5m) into the new folder OUT, to one --format or after a --recipe."""
    context = click.get_current_context()
    given = {name for name in context.params if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE}
    if (expression is None) == (recipe is None):
        raise click.UsageError("give either --format or --recipe")
    of_format, of_recipe = {"method", "keep", "act", "product", "attention_product"}, {"calibration", "work", "resume"}
    for name in sorted(given & (of_format if recipe else of_recipe)):
        why = "recipe: write it there" if recipe else "format: it belongs to a recipe"
        raise click.UsageError(f"--{name.replace('_', '-')} does not go with --{why}")
    if resume and work is None:
        raise click.UsageError("--resume needs the --work folder of the run that it goes on with")
    if recipe is not None:
        by_recipe(model, out, recipe, calibration, work, resume, threads, as_json, not no_progress)
        return
    assert expression is not None
    # The cheap checks first: a misspelt format must not wait for the model.
    options.compile_regex(keep, "--keep")
    from anybit.formats import Spec
    from anybit.methods import METHODS

    spec = Spec.parse(expression)
    spec.check()
    METHODS[method]
    options.use_threads(threads)
    options.refuse_existing(out)

    from anybit.export import CARD
    from anybit.io.foreign import Made
    from anybit.model import KEEP, quantize_file

    begun = time.perf_counter()
    with Reporter(not no_progress) as progress:
        stage = progress.stage("quantize", 1)

        def step(done: int, total: int, name: str) -> None:
            nonlocal stage
            if done == 1:
                stage = progress.stage("quantize", total)
            stage(1, name)

        card = Made(CARD, lambda: _card(model, out, spec, method, act, product, keep).encode())
        kept = KEEP if keep is None else keep
        written = quantize_file(
            model, out, spec, kept, options.parse_act(act), method, step, product, attention_product, files=(card,)
        )
    seconds = time.perf_counter() - begun

    result = options.load(out)
    stored = result.quantized_bits_per_weight
    report = {
        "model": model, "out": out, "format": spec.format.explicit, "spec": str(spec), "method": method, "act": act, "product": product,
        "attention_product": attention_product, "bytes": written,
        "bits_per_weight": result.bits_per_weight, "quantized_bits_per_weight": stored, "parameters": result.parameters, "seconds": seconds,
    }  # fmt: skip
    if as_json:
        options.print_json(report)
        return
    from anybit.report.table import size

    click.echo(
        f"{out}: {size(written)}, {float(result.bits_per_weight):.4g} bits a weight over all, {float(stored):.4g} in the layers quantized"
        f" to {spec}, {seconds:.1f} s"
    )
    click.echo(f"next: anybit eval {out} --reference {model}")


def by_recipe(
    model: str, out: str, name: str, calibration: tuple[str, ...], work: str | None, resume: bool, threads: int | None, as_json: bool,
    shown: bool,
) -> None:  # fmt: skip
    """The same after a recipe."""
    from anybit.measure.memory import memory
    from anybit.recipes.quantize import quantize_recipe, staged
    from anybit.recipes.schema import load_recipe
    from anybit.report.table import size

    recipe = load_recipe(name)
    options.use_threads(threads)
    options.refuse_existing(out)
    with Reporter(shown) as progress:
        told = staged(progress.stage, note=lambda: f", peak memory {size(memory().peak_bytes)}")
        line = f"anybit quantize {model} {out} -r {name}" + "".join(f" --calibration {path}" for path in calibration)
        result = quantize_recipe(
            model, out, recipe, [Path(p) for p in calibration], work, resume, told, card=partial(_recipe_card, model, out, recipe, line)
        )  # fmt: skip
    made = options.load(out)
    bits = made.quantized_bits_per_weight
    accuracy = None if result.accuracy is None else result.accuracy.describe()
    report = {
        "model": model, "out": out, "recipe": recipe.name, "digest": recipe.digest, "bytes": result.nbytes,
        "bits_per_weight": made.bits_per_weight, "quantized_bits_per_weight": bits, "parameters": made.parameters,
        "seconds": result.seconds, "peak_bytes": memory().peak_bytes, "calibration": result.text, "accuracy": accuracy,
        "layers": [{"layer": layer.index, "error": layer.loss} for layer in result.layers if layer.index >= 0], "notes": result.notes,
        "mixed": None if result.mixed is None else result.mixed.as_json(),
    }  # fmt: skip
    if as_json:
        options.print_json(report)
        return
    if result.mixed is not None:
        for key, kl in sorted(result.mixed.kl.items(), key=lambda pair: pair[1]):
            taken = " <- taken" if key == result.mixed.taken else ""
            click.echo(f"{key}: {result.mixed.bits[key]:.4g} bits, KL {kl:.4g} on calibration text{taken}")
    for note in result.notes:
        click.echo(f"note: {note}")
    click.echo(
        f"{out}: {size(result.nbytes)}, {float(made.bits_per_weight):.4g} bits a weight over all, {float(bits or 0):.4g} in the quantized"
        f" layers, recipe {recipe.name}, {result.seconds:.1f} s"
    )
    click.echo(f"next: anybit eval {out} --reference {model}")


def _recipe_card(
    model: str, out: str, recipe: Recipe, line: str, tensors: Tensors, bits: float, calibration: Mapping[str, Any],
    quality: Mapping[str, Any] | None,
) -> str:  # fmt: skip
    """The model card of what a recipe made: nothing that was not measured."""
    from anybit import __version__
    from anybit.report.card import card

    facts: dict[str, Any] = {"recipe": f"{recipe.name}, SHA-256 {recipe.digest}"}
    facts |= {key: value for key, value in (("about", recipe.about), ("source", recipe.source), ("published", recipe.published)) if value}
    facts["bits per weight"] = f"{bits:.4g} in the quantized layers"
    if calibration:
        facts["calibration"] = f"{calibration['sequences']} x {calibration['length']} tokens of {calibration['source']}"
    if recipe.kv_cache is not None:
        facts["keys and values"] = recipe.kv_cache.text
    facts["made with"] = f"anybit {__version__}"
    return card(Path(out).name, model, facts, tensors, line, quality=() if quality is None else (quality,))


def _card(model: str, out: str, spec: Spec, method: str, act: str, product: str | None, keep: str | None) -> str:
    """The model card of the new folder."""
    from anybit import __version__
    from anybit.report.card import card

    given = [("--method", method, "rtn"), ("--act", act, "float"), ("--product", product, None), ("--keep", keep, None)]
    more = "".join(f" {name} '{value}'" for name, value, usual in given if value != usual)
    line = f"anybit quantize {model} {out} --format '{spec}'{more}"
    facts = {
        "format": f"{spec.format.alias or spec.format} ({spec.format.explicit})", "method": method, "scales": spec.scale_rule,
        "bits per weight": f"{float(spec.format.bits_per_weight):.4g} in the quantized layers", "activations": act,
        "made with": f"anybit {__version__}",
    }  # fmt: skip
    return card(Path(out).name, model, facts, (), line)
