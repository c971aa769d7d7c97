"""anybit run: continue a prompt, text as it comes."""

from __future__ import annotations

import sys
import time

import click

from anybit.cli import options


@click.command(
    "run",
    short_help="Continue a prompt.",
    epilog='Example: anybit run pycoder-5m "def main():" --max-tokens 60 --temperature 0.8 --seed 1',
)
@options.model_argument
@click.argument("prompt")
@click.option("--max-tokens", type=click.IntRange(1), default=None, help="Tokens to generate, at most.")
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0 takes the most likely token each time.")
@click.option("--top-k", type=click.IntRange(0), default=0, show_default=True, help="Choose among this many; 0 for all.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Choose among this probability.")
@click.option("--min-p", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Least probability, relative to the best.")
@click.option("--stop", multiple=True, help="End at this text; may be repeated.")
@click.option("--act", metavar="FORMAT", default=None, help="Activations of quantized layers if not as stored: float, int8, mxfp8 ...")
@options.kv_option
@options.seed_option
@options.open_option
@options.threads_option
@options.json_option
def command(
    model: str, prompt: str, max_tokens: int | None, temperature: float, top_k: int, top_p: float, min_p: float, stop: tuple[str, ...],
    act: str | None, kv: str | None, width: int | None, seed: int, threads: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Continue PROMPT with MODEL; a PROMPT of - is read from standard input."""
    options.use_threads(threads)
    if prompt == "-":
        prompt = sys.stdin.read()
    runs = options.load(model, width, kv)
    if act is not None:
        runs = runs.with_act(options.parse_act(act))
    begun = time.perf_counter()
    pieces = runs.stream(
        prompt, max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, stop=list(stop)
    )
    if as_json:
        text = "".join(pieces)
        seconds = time.perf_counter() - begun
        options.print_json({"model": model, "prompt": prompt, "text": text, "seed": seed, "temperature": temperature, "seconds": seconds})
        return
    sys.stdout.write(prompt)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
