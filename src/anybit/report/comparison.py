"""The report of `anybit compare`: table, Pareto plot, heat map of errors by layer, and each recipe's weights over its grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from html import escape
from typing import Any

from anybit.report.html import Code, Drawing, Facts, Paragraph, Section, Table, page
from anybit.report.svg import Point, pareto
from anybit.report.table import Column, significant, size

COLUMNS = [
    Column("recipe", "left"), Column("bits"), Column("bytes"), Column("KL"), Column("over the\nbest"), Column("perplexity"),
    Column("over the\noriginal"), Column("top-1"), Column("decode\ntok/s"), Column("prefill\ntok/s"), Column("made in"), Column("", "left"),
]  # fmt: skip
LEGEND = (
    "KL: mean nats a token from the original, ± standard error; over the best, over the original: paired differences on the same windows;"
    " * not beaten in both KL and bytes"
)


def table_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Cells of `COLUMNS`, best KL first."""
    rows = []
    for i, row in enumerate(results["recipes"]):
        over = "" if i == 0 else f"+{significant(row['kl_over_best'], 2)} ± {significant(row['kl_over_best_se'], 1)}"
        rows.append([
            row["recipe"] + (" *" if row["front"] else ""), f"{row['quantized_bits_per_weight']:.4g}", size(row["bytes"]),
            f"{significant(row['kl_mean'], 3)} ± {significant(row['kl_mean_se'], 1)}", over, significant(row["perplexity"], 4),
            f"{row['perplexity_over_original']:+.2g} ± {significant(row['perplexity_over_original_se'], 1)}",
            f"{100 * row['same_top1']:.1f} %", _speed(row["decode_tokens_per_s"]), _speed(row["prefill_tokens_per_s"]),
            f"{row['quantize_seconds']:.0f} s", row["about"],
        ])  # fmt: skip
    return rows


def _speed(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def report(results: Mapping[str, Any]) -> str:
    """The whole HTML file."""
    rows: Sequence[Mapping[str, Any]] = results["recipes"]
    points = [Point(row["recipe"], Fraction(row["quantized_bits_per_weight"]), row["kl_mean"]) for row in rows]
    x_title, y_title = "stored bits a weight of the quantized layers", "mean KL, nats a token"
    sections = [
        Section("Recipes", [Table(COLUMNS, table_rows(results)), Paragraph(LEGEND)]),
        Section("Quality against size", [Drawing(pareto(points, x_title, y_title, "recipe"))]),
        Section("Error by layer", [
            Drawing(heat_map([row["recipe"] for row in rows], [row["layer_errors"] for row in rows])),
            Paragraph("Squared error of each block's output on its own inputs, over the square of what the block adds; darker is more."),
        ]),
        Section("Weights over the grid", [
            part for row in rows if row["histogram"] for part in (Paragraph(f"{row['recipe']}, {row['histogram']['tensor']}"),
                                                                    Drawing(histogram(row["histogram"])))
        ] or [Paragraph("no recipe quantizes a matrix")]),
        Section("What did not serve", [Facts(list(results["failed"].items()))] if results["failed"] else [Paragraph("every recipe did")]),
        Section("How", [
            Facts([("model", results["model"]), ("text", f"{results['text']['source']}, {results['text']['tokens']} tokens"),
                   ("sha256 of its tokens", results["text"]["tokens_sha256"]), ("machine", results["machine"]["cpu"]),
                   ("kernels", results["machine"]["isa"])]),
            Code(results["reproduce"]),
        ]),
    ]  # fmt: skip
    return page(f"anybit: recipes for {results['model']}", sections)


def heat_map(names: Sequence[str], errors: Sequence[Sequence[float | None]]) -> str:
    """An <svg> of rows (recipes) by columns (layers), shaded by the logarithm of the error; unmeasured cells are empty."""
    wide, high, left = 34, 22, 210
    columns = max((len(row) for row in errors), default=0)
    known = [math.log10(e) for row in errors for e in row if e is not None and e > 0 and math.isfinite(e)]
    low, span = (min(known), max(max(known) - min(known), 1e-9)) if known else (0.0, 1.0)
    width, height = left + columns * wide + 10, 30 + len(names) * high
    parts = [f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" font-family="sans-serif" font-size="12"'
             ' fill="currentColor"><title>error by layer</title>']  # fmt: skip
    parts += [f'<text x="{left + (i + 0.5) * wide}" y="18" text-anchor="middle">{i}</text>' for i in range(columns)]
    for r, (name, row) in enumerate(zip(names, errors, strict=True)):
        y = 26 + r * high
        parts.append(f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{escape(name[:30])}</text>')
        for c, error in enumerate(row):
            if error is None or not (error > 0 and math.isfinite(error)):
                continue
            shade = 0.08 + 0.9 * (math.log10(error) - low) / span
            parts.append(
                f'<rect x="{left + c * wide}" y="{y}" width="{wide - 2}" height="{high - 2}" fill="#c9762b" fill-opacity="{shade:.2f}">'
                f"<title>{escape(name)}, layer {c}: {error:.3g}</title></rect>"
            )
    return "".join(parts) + "</svg>"


def histogram(found: Mapping[str, Any]) -> str:
    """An <svg> of float weights over their blocks' largest magnitude, with the values that the format has there as ticks below."""
    counts, grid = found["counts"], found["grid"]
    width, height = 760, 120
    most, step = max(max(counts), 1), width / len(counts)
    parts = [f'<svg viewBox="0 0 {width} {height + 24}" width="{width}" height="{height + 24}" role="img"><title>weights</title>']
    for i, count in enumerate(counts):
        tall = height * math.sqrt(count / most)
        parts.append(f'<rect x="{i * step:.1f}" y="{height - tall:.1f}" width="{step - 1:.1f}" height="{tall:.1f}" fill="#3d7dca"/>')
    for value in grid:
        x = (value + 1) / 2 * width
        if 0 <= x <= width:
            parts.append(f'<line x1="{x:.1f}" y1="{height + 2}" x2="{x:.1f}" y2="{height + 20}" stroke="#c9762b" stroke-width="1.5"/>')
    return "".join(parts) + "</svg>"
