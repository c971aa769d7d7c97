"""docs/formats.md, written from the registry: every built-in element and whole format with what derives from its definition."""

from __future__ import annotations

from anybit.formats.element import Element
from anybit.formats.family import families, parse_element
from anybit.formats.format import Format
from anybit.formats.named import ALIASES

_HEAD = """# Formats

Generated from the registry by `python -m anybit.formats.describe > docs/formats.md`; a test keeps it current. How expressions are written
is in [expressions.md](expressions.md); `anybit formats NAME` shows the values.

Table: the numbers that kernels compute with. `i8` and `i16`: every value is exactly a small integer times one step; `i16r`: rounded to 16
bits with one step, the error at most half of it; `f32`: float32 values.

Bits such as `8 for 2` are those of a code that stands for several neighbouring weights. Values that are `learned` are another list for each
array, stored beside its codes.
"""


def number(value: float) -> str:
    """A value in a table cell.

    >>> number(448.0), number(2.0**-9), number(3.3895313892515355e38)
    ('448', '0.00195312', '3.38953e+38')
    """
    return f"{value:g}"


def specials(element: Element) -> str:
    """The special values of an element in words."""
    names = [name for name, has in (("NaN", element.has_nan), ("infinity", element.has_inf), ("-0", "-0" in element.specials)) if has]
    return ", ".join(names + ([] if element.has_zero else ["no zero"])) or "none"


def document() -> str:
    """The text of docs/formats.md."""
    lines = [_HEAD]
    for family in families().values():
        lines += [f"## {family.name}", "", f"{family.about[0].upper()}{family.about[1:]}. Written `{family.form}`.", ""]
        lines += ["| name | bits | least | largest | smallest > 0 | specials | table | |", "|---|---|---|---|---|---|---|---|"]
        for name, about in family.members.items():
            e = parse_element(name)
            bits = str(e.bits) if e.dim == 1 else f"{e.bits} for {e.dim}"
            known = [number(e.min), number(e.max), number(e.smallest), specials(e)] if not e.learned else ["learned", "", "", ""]
            cells = [f"`{name}`", bits, *known, e.table.kind, about]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["## Whole formats", "", "| name | expression | bits a weight | |", "|---|---|---|---|"]
    lines += [f"| `{name}` | `{text}` | {float(Format(name).bits_per_weight):g} | {about} |" for name, (text, about) in ALIASES.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(document(), end="")
