"""anybit eval: perplexity, and what quantization changed compared with a reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from anybit.cli import options
from anybit.cli.progress import Reporter


@click.command(
    "eval",
    short_help="Measure perplexity, and KL divergence from a reference.",
    epilog="Example: anybit eval my-model --reference pycoder-5m --json",
)
@options.model_argument
@click.option("--reference", metavar="MODEL", default=None, help="The original: adds KL divergence and top-1 agreement.")
@click.option("--text", "texts", multiple=True, type=click.Path(exists=True, dir_okay=False), help="Text file; may be repeated.")
@click.option("--tokens", type=click.IntRange(1), default=None, help="Tokens to score: 32768 of the default text, all of --text.")
@click.option("--window", type=click.IntRange(1), default=512, show_default=True, help="Tokens that see each other.")
@click.option("--act", metavar="FORMAT", default=None, help="Activations of quantized layers if not as stored: float, int8, mxfp8 ...")
@options.kv_option
@options.product_option
@options.attention_option
@options.open_option
@options.threads_option
@options.json_option
@options.progress_option
def command(
    model: str, reference: str | None, texts: tuple[str, ...], tokens: int | None, window: int, act: str | None, kv: str | None,
    width: int | None, product: str | None, attention_product: str | None, threads: int | None, as_json: bool, no_progress: bool,
) -> None:  # fmt: skip
    """Measure MODEL on held-out standard-library modules, or on text files."""
    options.use_threads(threads)
    from anybit.errors import DoesNotFitError, UsageError
    from anybit.measure.accuracy import evaluate
    from anybit.measure.machine import machine, summary
    from anybit.measure.text import DEFAULT_TOKENS, default_text, separator_of, text_from_files

    measured = options.load(model, width, kv)
    if act is not None:
        measured = measured.with_act(options.parse_act(act))
    if product is not None:
        measured = measured.with_product(product)
    if attention_product is not None:
        measured = measured.with_attention(attention_product)
    original = None if reference is None else options.load(reference)
    for name, each in ((model, measured), (reference, original)):
        if each is not None and window > each.context:
            raise DoesNotFitError(f"--window {window} exceeds the context of {name}, {each.context}")
    if original is not None and original.spec.vocab != measured.spec.vocab:
        raise UsageError(f"{reference} has {original.spec.vocab} tokens, {model} {measured.spec.vocab}: no reference for it")

    separator = separator_of(measured)
    if texts:
        text = text_from_files(measured.tokenizer, [Path(path) for path in texts], tokens, separator)
    else:
        text = default_text(measured.tokenizer, tokens or DEFAULT_TOKENS, separator)
    with Reporter(not no_progress) as progress:
        step = progress.stage("evaluate", -(-text.tokens // window))
        found = evaluate({model: measured}, text.ids, original, window, progress=step)[model]

    stored = measured.quantized_bits_per_weight
    result: dict[str, Any] = {
        "model": model, "reference": reference, **found.describe(),
        "bits_per_weight": measured.bits_per_weight, "quantized_bits_per_weight": stored,
        "act": act or ("as stored" if stored else "float"), "product": product or "as stored", "attention_product": measured.attention,
        "kv_cache": measured.cache.text if measured.cache else "float",
        "window": window, "text": text.describe(), "machine": machine(),
    }  # fmt: skip
    if as_json:
        options.print_json(result)
        return
    say(options.plain(result))
    click.echo(summary(machine()))


def say(result: dict[str, Any]) -> None:
    """The same as text."""
    from anybit.report.table import facts, significant

    def value(name: str, digits: int = 4) -> str:
        error = result[f"{name}_se"]
        return significant(result[name], digits) + (f" ± {significant(error, 2)}" if error is not None else "")

    pairs = [("perplexity", value("perplexity"))]
    if result["reference"] is not None:
        pairs += [
            ("KL mean", f"{value('kl_mean', 3)} nats a token"),
            ("KL p99", significant(result["kl_p99"])),
            ("same top-1", f"{100 * result['same_top1']:.2f} %"),
        ]
    bits = f"{result['bits_per_weight']:.4g} over all"
    if result["quantized_bits_per_weight"] is not None:
        bits += f", {result['quantized_bits_per_weight']:.4g} in the quantized layers"
    text = result["text"]
    pairs += [
        ("bits a weight", bits),
        ("activations", result["act"]),
        ("products", result["product"] + (f", attention {result['attention_product']}" if result["attention_product"] else "")),
        ("text", f"{text['source']}, {text['tokens']} tokens, windows of {result['window']}"),
        ("sha256 of its tokens", text["tokens_sha256"]),
    ]
    facts(pairs)
