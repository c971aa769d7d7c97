"""The table and the HTML report of a sweep over formats, made from its results.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from anybit.report import html
from anybit.report.svg import Point, pareto
from anybit.report.table import Column, significant, size

COLUMNS = (
    Column("format", "left"),
    Column("bits"),
    Column("model"),
    Column("perplexity"),
    Column("KL mean"),
    Column("KL\np99"),
    Column("same\ntop-1"),
    Column("int8 activations\nadd to KL"),
    Column("prefill\ntok/s"),
    Column("decode\ntok/s"),
    Column("read\nGB/s"),
)


def table_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Cells for COLUMNS; the original first."""
    model = results["model"]
    first = ["original", f"{model['bits_per_weight']:.4g}", size(model["bytes"]), _plus_minus(results["reference"], "perplexity", 4)]
    rows = [first + ["-"] * (len(COLUMNS) - len(first))]
    for row in results["formats"]:
        found, speed = row["float"], row["speed"]
        rows.append([
            row["format"],
            f"{float(Fraction(row['quantized_bits_per_weight'])):.4g}",
            size(row["model_bytes"]),
            _plus_minus(found, "perplexity", 4),
            _plus_minus(found, "kl_mean", 3),
            significant(found["kl_p99"]),
            f"{100 * found['same_top1']:.1f} %",
            _plus_minus(row["int8"], "kl_added", 2),
            f"{speed['prefill_tok_s']:.0f}",
            f"{speed['decode_tok_s']:.1f}",
            f"{speed['read_gb_s']:.1f}",
        ])  # fmt: skip
    return rows


INT8_COLUMNS = (
    Column("format", "left"),
    Column("perplexity"),
    Column("KL mean"),
    Column("KL p99"),
    Column("same top-1"),
    Column("added by int8 activations"),
)


def int8_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Cells for INT8_COLUMNS."""
    return [
        [
            row["format"],
            _plus_minus(row["int8"], "perplexity", 4),
            _plus_minus(row["int8"], "kl_mean", 3),
            significant(row["int8"]["kl_p99"]),
            f"{100 * row['int8']['same_top1']:.1f} %",
            _plus_minus(row["int8"], "kl_added", 2),
        ]
        for row in results["formats"]
    ]


def _plus_minus(found: Mapping[str, Any], name: str, digits: int) -> str:
    error = found[f"{name}_se"]
    return significant(found[name], digits) + ("" if error is None else f" ± {significant(error, 2)}")


LEGEND = (
    "bits: stored bits a weight of the quantized layers, scales and padding included. KL: divergence of the next-token distribution"
    " from the original's, nats a token, with float activations; ± standard errors, clustered by window. int8 activations: their paired"
    " difference, on every fourth window."
    " Speed: int8 activations, a stack of 16 generated blocks of width 2048 (feed-forward 5632, 32 heads, 8 key/value heads), one sequence,"
    " embedding and head left out; prefill of 128 tokens."
)

ORDER_COLUMNS = (Column("less KL", "left"), Column("more KL", "left"), Column("difference"), Column("± se, paired"), Column("in errors"))


def order_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Cells for ORDER_COLUMNS."""
    return [
        [c["better"], c["worse"], significant(c["kl_difference"]), significant(c["kl_difference_se"], 2), significant(c["errors"], 2)]
        for c in results["comparisons"]
    ]


def plot(results: Mapping[str, Any], standalone: bool = False) -> str:
    """KL against stored bits, both kinds of activations."""
    points = []
    for row in results["formats"]:
        loss = row["float"]["kl_mean"]
        points.append(Point(row["format"], Fraction(row["quantized_bits_per_weight"]), loss, loss + row["int8"]["kl_added"]))
    x_title, y_title = "stored bits a weight of the quantized layers", "mean KL divergence a token, nats"
    return pareto(points, x_title, y_title, "float activations", "int8 activations", standalone)


def report(results: Mapping[str, Any]) -> str:
    """The HTML file."""
    model, text, machine = results["model"], results["text"], results["machine"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    memory = results.get("memory") or {}
    about_model = [
        ("model", model["name"]),
        ("weights", f"{model['parameters']:,}"),
        ("original", f"{size(model['bytes'])}, {model['bits_per_weight']:.4g} bits a weight"),
        ("evaluation text", f"{text['source']}, {text['tokens']:,} tokens in windows of {results['window']}"),
        ("SHA-256 of its tokens", text["tokens_sha256"]),
        ("modules that this Python lacks", ", ".join(text["missing_modules"]) or "none"),
    ]
    about_machine = [
        ("processor", machine["cpu"]),
        ("cores, threads", f"{machine['cores']}, {machine['threads']}"),
        ("kernels", f"{machine['isa']} (this machine has {', '.join(machine['isas'])})"),
        ("memory", size(machine["memory_bytes"]) if machine["memory_bytes"] else "unknown"),
        ("most memory used", size(memory["peak_bytes"]) if memory else "unknown"),
        ("system", machine["system"]),
        ("versions", f"anybit {machine['anybit']}, Python {machine['python']}, {packages}"),
        ("measured", results["date"]),
        ("seconds", ", ".join(f"{name} {value:.1f}" for name, value in results["seconds"].items())),
    ]
    sample = results["sample"]
    return html.page(
        "anybit: what number formats cost",
        [
            html.Section("Formats", [html.Table(COLUMNS, table_rows(results)), html.Paragraph(LEGEND)]),
            html.Section("As they run: int8 activations", [
                html.Table(INT8_COLUMNS, int8_rows(results)),
                html.Paragraph(f"On every fourth window, {results['formats'][0]['int8']['tokens']:,} tokens."),
            ]),
            html.Section("KL against bits", [html.Drawing(plot(results))]),
            html.Section("Is the order more than chance?", [
                html.Paragraph("Differences of mean KL with float activations, paired by window. Two errors or more count as shown."),
                html.Table(ORDER_COLUMNS, order_rows(results)),
            ]),
            html.Section(f"A sample from {sample['format']}", [html.Code(sample["prompt"] + sample["text"])]),
            html.Section("Model and text", [html.Facts(about_model)]),
            html.Section("Machine", [html.Facts(about_machine)]),
            html.Section("How to reproduce", [html.Code("\n".join(results["reproduce"]))]),
        ],
    )  # fmt: skip
