"""anybit bench: how fast a model runs here, in how much memory, and which kernels serve it."""

from __future__ import annotations

import time
from typing import Any

import click

from anybit.cli import options
from anybit.cli.progress import Reporter


@click.command(
    "bench",
    short_help="Measure the speed and memory of a model on this machine.",
    epilog="Example: anybit bench my-model --explain",
)
@options.model_argument
@click.option("--prompt", type=click.IntRange(1), default=128, show_default=True, help="Tokens of the prefill.")
@click.option("--tokens", type=click.IntRange(1), default=32, show_default=True, help="Tokens to decode in each repeat.")
@click.option("--repeats", type=click.IntRange(1, 1000), default=5, show_default=True, help="Repeats, of which medians are taken.")
@click.option("--act", metavar="FORMAT", default=None, help="Activations of quantized layers if not as stored: float, int8, mxfp8 ...")
@options.kv_option
@click.option("--explain", is_flag=True, help="Which kernel serves each layer, and why the others do not.")
@options.open_option
@options.threads_option
@options.seed_option
@options.json_option
@options.progress_option
def command(
    model: str, prompt: int, tokens: int, repeats: int, act: str | None, kv: str | None, width: int | None, explain: bool,
    threads: int | None,
    seed: int, as_json: bool, no_progress: bool,
) -> None:  # fmt: skip
    """Measure prefill and decode tokens a second of MODEL, and its memory."""
    options.use_threads(threads)
    from anybit.errors import DoesNotFitError
    from anybit.measure.machine import machine, summary
    from anybit.measure.memory import memory, reset_peak
    from anybit.measure.speed import model_speed

    reset_peak()
    before = memory()
    begun = time.perf_counter()
    runs = options.load(model, width, kv)
    load_s = time.perf_counter() - begun
    if act is not None:
        runs = runs.with_act(options.parse_act(act))
    if prompt + tokens > runs.context:
        raise DoesNotFitError(f"--prompt {prompt} and --tokens {tokens} exceed the context of {runs.context}")
    with Reporter(not no_progress) as progress:
        speed = model_speed(runs, prompt, tokens, repeats, seed, progress.stage("bench", repeats + 1))
    after = memory()
    result: dict[str, Any] = {
        "model": model, **speed.describe(), "load_s": load_s, "model_bytes": runs.nbytes, "bits_per_weight": runs.bits_per_weight,
        "kv_cache": runs.cache.text if runs.cache else "float", "kv_bytes_per_token": runs.engine.cache_bytes_per_token,
        "peak_bytes": after.peak_bytes, "added_bytes": after.peak_bytes - before.resident_bytes,
        "anonymous_bytes": after.anonymous_bytes, "file_bytes": after.file_bytes, "machine": machine(),
    }  # fmt: skip
    if explain:
        result["kernels"] = runs.explain()
    if as_json:
        options.print_json(result)
        return
    say(result)
    click.echo(summary(machine()))


def say(result: dict[str, Any]) -> None:
    """The same as text."""
    from anybit.report.table import Column, facts, show, size

    facts([
        ("prefill", f"{result['prefill_tok_s']:.1f} tokens/s ({result['prompt']} tokens)"),
        ("decode", f"{result['decode_tok_s']:.1f} tokens/s (95 % of tokens within {result['decode_ms_p95']:.2f} ms)"),
        ("weights read", f"{result['read_gb_s']:.2f} GB/s while decoding"),
        ("keys and values", f"{result['kv_bytes_per_token']:.0f} bytes a token, {result['kv_cache']}"),
        ("model", f"{size(result['model_bytes'])}, {float(result['bits_per_weight']):.4g} bits a weight, {result['load_s']:.2f} s to open"),
        ("memory", f"{size(result['added_bytes'])} more than before the model at its peak, {size(result['peak_bytes'])} in all"),
    ])  # fmt: skip
    if "kernels" in result:
        names = ("layer", "format", "activations", "product", "kernel", "table", "dot", "isa", "why", "why no other")
        columns = [Column(name, "left") for name in names]
        rows = [
            [
                *(str(row[key]) for key in ("name", "format", "act", "product", "kernel", "table", "dot", "isa", "why")),
                "; ".join(f"{name}: {why}" for name, why in row["others"].items()),
            ]
            for row in result["kernels"]
        ]
        click.echo()
        show(columns, rows)
        click.echo()
