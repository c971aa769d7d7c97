"""anybit quantize: a model into a number format, tensor by tensor."""

from __future__ import annotations

import time

import click

from anybit.cli import options
from anybit.cli.progress import Reporter


@click.command(
    "quantize",
    short_help="Quantize a model into a new folder.",
    epilog='Example: anybit quantize pycoder-5m my-model --format int4@32 --keep "embed|head"',
)
@options.model_argument
@click.argument("out", type=click.Path())
@click.option("--format", "expression", required=True, metavar="F", help="Format expression or name, such as int4@32 or mxfp4+scale=mse.")
@click.option("--method", default="rtn", show_default=True, help="How codes are chosen.")
@click.option("--keep", metavar="REGEX", help="Weights to keep as they are; embeddings and head by default.")
@click.option("--act", type=click.Choice(["float", "int8", "int4"]), default="float", show_default=True, help="Activations it runs with.")
@options.product_option
@options.attention_option
@options.threads_option
@options.json_option
@options.progress_option
def command(
    model: str, out: str, expression: str, method: str, keep: str | None, act: str, product: str | None,
    attention_product: str | None, threads: int | None, as_json: bool, no_progress: bool,
) -> None:  # fmt: skip
    """Quantize MODEL (a path, or pycoder-5m) into the new folder OUT."""
    # The cheap checks first: a misspelt format must not wait for the model.
    options.compile_regex(keep, "--keep")
    from anybit.formats import Spec
    from anybit.methods import METHODS

    spec = Spec.parse(expression)
    spec.check()
    METHODS[method]
    options.use_threads(threads)
    options.refuse_existing(out)

    from anybit.model import KEEP, quantize_file

    begun = time.perf_counter()
    with Reporter(not no_progress) as progress:
        stage = progress.stage("quantize", 1)

        def step(done: int, total: int, name: str) -> None:
            nonlocal stage
            if done == 1:
                stage = progress.stage("quantize", total)
            stage(1, name)

        kept = KEEP if keep is None else keep
        written = quantize_file(model, out, spec, kept, options.parse_act(act), method, step, product, attention_product)
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
