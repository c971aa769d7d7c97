"""docs/methods.md from the registry: `python -m anybit.methods.describe > docs/methods.md`."""

from __future__ import annotations

from dataclasses import fields

from anybit.methods.step import STEPS, Correction, GroupStep, ModelStep, Rounding, Step

KINDS: list[tuple[type[Step], str, str]] = [
    (ModelStep, "Steps of the model", "Rewrite the float model tensor by tensor before anything is measured; under `steps`."),
    (GroupStep, "Steps of a group", "Change matrices that read one input, with that input's statistics; under `steps`, in their order."),
    (Rounding, "Rounding", "Chooses the codes of one matrix; a rule's `rounding`."),
    (Correction, "Corrections", "Repair what rounding did to one matrix; a rule's `corrections`, in their order."),
]


def page() -> str:
    """The whole page."""
    lines = [
        "# Methods",
        "",
        "How codes are chosen. Generated from the registry (`python -m anybit.methods.describe > docs/methods.md`); a recipe names them",
        "([recipes.md](recipes.md)), and a file in `methods/` adds one ([CONTRIBUTING.md](../CONTRIBUTING.md)).",
    ]
    for kind, title, about in KINDS:
        found = {name: step for name, step in sorted(_steps().items()) if issubclass(step, kind)}
        lines += ["", f"## {title}", "", about, "", "| name | what it does | options and defaults | looks at | source |"]
        lines += ["|---|---|---|---|---|"]
        lines += [f"| `{name}` | {_about(step)} | {_options(step)} | {', '.join(sorted(step.needs)) or '-'} | {_cell(step.source)} |"
                  for name, step in found.items()]  # fmt: skip
    return "\n".join(lines) + "\n"


def _steps() -> dict[str, type[Step]]:
    return {name: STEPS[name] for name in STEPS}


def _about(step: type[Step]) -> str:
    """The docstring's first paragraph up to its first full stop that ends a sentence."""
    text = " ".join((step.__doc__ or "").split("\n\n")[0].split())
    end = next((i + 1 for i, c in enumerate(text) if c in ".;" and text[i + 1 : i + 2] in ("", " ")), len(text))
    return _cell(text[:end].rstrip(";."))


def _options(step: type[Step]) -> str:
    return ", ".join(f"`{f.name}={f.default!r}`" for f in fields(step)) or "-"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
