"""anybit export: a model in another tool's format."""

from __future__ import annotations

import click

from anybit.cli import options

_FILE = click.Path(exists=True, dir_okay=False)
_TARGETS = "gguf[:TYPE], compressed-tensors[:KIND], gptq[:KIND], onnx[:qdq], dequantized[:DTYPE]."


@click.command(
    "export",
    short_help="Write a model for another tool (GGUF, compressed-tensors, GPTQ, ONNX, plain floats).",
    epilog="Example: anybit export pycoder-5m my-model.gguf --to gguf:q4_k",
)
@options.model_argument
@click.argument("out", type=click.Path())
@click.option("--to", required=True, metavar="TARGET", help=_TARGETS)
@click.option("--keep", metavar="REGEX", help="Weights to keep dense where TARGET quantizes; embeddings and head by default.")
@click.option("--method", default="rtn", show_default=True, help="How codes are chosen where TARGET quantizes.")
@click.option("--importance", is_flag=True, help="Weigh errors by the mean of each input's squares where TARGET quantizes (imatrix).")
@click.option("--calibration", multiple=True, type=_FILE, metavar="FILE",
              help="Text for --importance; by default the standard library outside the evaluation modules.")
@click.option("--imatrix", type=_FILE, metavar="FILE", help="The same weights as llama.cpp's llama-imatrix wrote them (.gguf, .dat).")
@click.option("--act", type=click.Choice(["float", "int8"]), default="float", show_default=True, help="Activations where TARGET quantizes.")
@click.option("--verify", is_flag=True, help="Read the result back and compare every value.")
@click.option("--plan", "only_plan", is_flag=True, help="Say what would become of every tensor, and write nothing.")
@click.option("--quality", multiple=True, type=_FILE, help="What `anybit eval --json` printed, for the card.")
@click.option("--speed", multiple=True, type=_FILE, help="What `anybit bench --json` printed, for the card.")
@options.threads_option
@options.json_option
@options.progress_option
def command(
    model: str, out: str, to: str, keep: str | None, method: str, importance: bool, calibration: tuple[str, ...], imatrix: str | None,
    act: str, verify: bool, only_plan: bool, quality: tuple[str, ...], speed: tuple[str, ...], threads: int | None, as_json: bool,
    no_progress: bool,
) -> None:  # fmt: skip
    """Write MODEL (a path, or pycoder-5m) into the new folder OUT as another tool reads it, or into the new file OUT.gguf.

    Codes and scales are kept as they are; a tensor that TARGET does not hold exactly is refused. A TARGET that names a type or a format
    (gguf:q4_k, compressed-tensors:nvfp4, gptq:int4@64:fp16) quantizes a model that is not quantized yet.
    """
    options.compile_regex(keep, "--keep")
    from anybit.cli import exporting
    from anybit.cli.exporting import measured, run
    from anybit.export import parse_target, prepare
    from anybit.methods import METHODS
    from anybit.stored import KEEP

    parse_target(to)
    METHODS[method]
    options.use_threads(threads)
    if not only_plan:
        options.refuse_existing(out)
    results = measured(quality), measured(speed)
    if calibration and not importance:
        raise click.UsageError("--calibration is text for --importance; give both")
    if importance and imatrix:
        raise click.UsageError("--importance measures what --imatrix brings along; give one of them")
    if (importance or imatrix) and not parse_target(to)[1]:
        given = "--importance" if importance else "--imatrix"
        raise click.UsageError(f"{given} weighs errors where TARGET quantizes; name a type, as in gguf:q4_k")
    weigh = exporting.importance(model, calibration, not no_progress) if importance else None
    weigh = exporting.imatrix(model, imatrix) if imatrix else weigh
    export = prepare(model, to, KEEP if keep is None else keep, options.parse_act(act), method, importance=weigh)
    line = f"anybit export {model} {out} --to {to}" + (f" --keep '{keep}'" if keep is not None else "")
    line += (" --importance" if importance else "") + "".join(f" --calibration {file}" for file in calibration)
    line += f" --imatrix {imatrix}" if imatrix else ""
    line += (f" --method {method}" if method != "rtn" else "") + (f" --act {act}" if act != "float" else "")
    run(export, out, line, verify, only_plan, results, as_json, not no_progress)
