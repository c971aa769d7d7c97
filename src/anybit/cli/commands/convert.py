"""anybit convert: the same codes in another container."""

from __future__ import annotations

import click

from anybit.cli import options


@click.command(
    "convert",
    short_help="Put a quantized model's codes into another container; quantizes nothing.",
    epilog="Example: anybit convert model.gguf my-model --to anybit",
)
@options.model_argument
@click.argument("out", type=click.Path())
@click.option("--to", required=True, metavar="TARGET", help="anybit, gguf[:TYPE], compressed-tensors, gptq, dequantized[:DTYPE].")
@click.option("--verify", is_flag=True, help="Read the result back and compare every value.")
@click.option("--plan", "only_plan", is_flag=True, help="Say what would become of every tensor, and write nothing.")
@options.threads_option
@options.json_option
@options.progress_option
def command(
    model: str, out: str, to: str, verify: bool, only_plan: bool, threads: int | None, as_json: bool, no_progress: bool
) -> None:  # fmt: skip
    """Write the codes of MODEL into the new folder OUT (or the new file OUT.gguf), never through floats.

    A tensor that TARGET does not hold exactly is refused; dequantized is the one target that makes floats.
    """
    from anybit.cli.exporting import own_checkpoint, run
    from anybit.export import OWN, parse_target, prepare

    options.use_threads(threads)
    if to != OWN:
        parse_target(to)
    if not only_plan:
        options.refuse_existing(out)
    if to == OWN:
        own_checkpoint(model, out, verify, only_plan, as_json, not no_progress)
        return
    line = f"anybit convert {model} {out} --to {to}"
    run(prepare(model, to, convert=True), out, line, verify, only_plan, ([], []), as_json, not no_progress)
