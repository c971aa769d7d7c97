"""The model card of a written model: what it was made of, how, what it costs and how to make it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def _number(value: Any, digits: int = 4) -> str:
    return "-" if value is None else f"{float(value):.{digits}g}"


def _with_error(found: Mapping[str, Any], name: str, digits: int) -> str:
    error = found.get(f"{name}_se")
    return _number(found.get(name), digits) + (f" ± {_number(error, 2)}" if error is not None else "")


def _cell(text: object) -> str:
    """A cell of a table: nothing in it may end the cell or the line."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines] + [""]


def quality_lines(found: Mapping[str, Any]) -> list[str]:
    """The table of one result of `anybit eval --json`."""
    text = found.get("text") or {}
    rows = [("perplexity", _with_error(found, "perplexity", 4))]
    if found.get("reference") is not None:
        rows += [
            (f"KL divergence from {found['reference']}, nats a token", _with_error(found, "kl_mean", 3)),
            ("KL, 99th percentile", _number(found.get("kl_p99"), 3)),
            ("same most likely token", f"{100 * float(found['same_top1']):.2f} %"),
        ]
    where = f"{text.get('source', '?')}, {text.get('tokens', '?')} tokens, windows of {found.get('window', '?')}"
    about = f"Measured on {where}; activations: {found.get('act', '?')}; ± is the standard error."
    return [*_table(("quality", "value"), rows), about, ""]


def speed_lines(found: Mapping[str, Any]) -> list[str]:
    """The table of one result of `anybit bench --json`."""
    machine = found.get("machine") or {}
    rows = [
        (f"prefill of {found.get('prompt', '?')} tokens", f"{_number(found.get('prefill_tok_s'))} tokens/s"),
        ("decode", f"{_number(found.get('decode_tok_s'))} tokens/s"),
    ]
    named = f"{machine.get('cpu', 'unknown')}, {machine.get('threads', '?')} threads, kernels {machine.get('isa', '?')}"
    about = f"anybit {machine.get('anybit', '?')} on {named}; other tools have speeds of their own."
    return [*_table(("speed", "value"), rows), about, ""]


def card(
    title: str, base: str, facts: Mapping[str, Any], stored: Sequence[tuple[str, str, int]], command: str, notes: Sequence[str] = (),
    quality: Sequence[Mapping[str, Any]] = (), speed: Sequence[Mapping[str, Any]] = (), tags: Sequence[str] = (),
) -> str:  # fmt: skip
    """Markdown with the front matter that model hubs read.

    Args: facts, what to list by name; stored, (format before, format here, tensors); command, which makes the same again; quality and
        speed, results of `anybit eval --json` and `anybit bench --json`.
    """
    front = ["---", f"base_model: {_yaml(base)}", "tags:", *(f"- {_yaml(tag)}" for tag in ("anybit", *tags)), "---", ""]
    lines = [*front, f"# {_cell(title)}", ""]
    lines += _table(("", ""), [("base model", base), *facts.items()])
    if stored:
        lines += _table(("tensors", "were", "are"), [(count, before, here) for before, here, count in stored])
    lines += [f"- {' '.join(note.split())}" for note in notes] + [""] * bool(notes)
    for found in quality:
        lines += quality_lines(found)
    for found in speed:
        lines += speed_lines(found)
    if not quality:
        lines += ["No quality was measured; `anybit eval MODEL --reference ORIGINAL --json` does it.", ""]
    return "\n".join([*lines, "Made again by:", "", f"    {command}", ""])


def _yaml(text: str) -> str:
    """A string that YAML reads as one."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'
