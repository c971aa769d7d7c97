"""Random one-line definitions that know by themselves whether they are valid, what they mean, and where what is wrong with them stands.

Written from docs/expressions.md; asks the parser nothing. A new family, option or policy is one line where HOOK stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, prod

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy], object]


@dataclass(frozen=True)
class E:
    """An element as the generator knows it. kind: "integer", "ternary" or "other"; signed, zero, positive: whether it has such values."""

    text: str
    bits: int
    kind: str = "other"
    signed: bool = True
    zero: bool = True
    positive: bool = True


@dataclass(frozen=True)
class Definition:
    """A line. position: where the parser must point, None for a valid one; culprit: the text that stands there; spec: with policies."""

    text: str
    position: int | None = None
    culprit: str = ""
    spec: bool = False
    element: E | None = None
    block: str = ""
    levels: tuple[tuple[E, str], ...] = ()
    zero: E | None = None
    offset: E | None = None
    pack: str = ""

    def size_bits(self, shape: tuple[int, ...]) -> int:
        """Codes, scales, zero points and offsets of an array, counted from the definition."""
        assert self.element is not None
        bits = Fraction(8, 5) if self.pack == "base3" else Fraction(self.element.bits)
        total, block = ceil(prod(shape) * bits), self.block
        for i, (scale, outer) in enumerate(self.levels):
            each = scale.bits
            if i == 0:
                each += (self.zero.bits if self.zero else 0) + (self.offset.bits if self.offset else 0)
            elif self.offset:
                each += scale.bits
            total += each * count_blocks(block, shape)
            block = outer
        return total


def count_blocks(block: str, shape: tuple[int, ...]) -> int:
    """How many blocks of these sizes an array has: right-aligned, short last blocks count."""
    if block == "tensor":
        return 1
    sizes = ["all"] if block in ("channel", "token") else block.split("x")
    sizes = ["1"] * (len(shape) - len(sizes)) + sizes[max(0, len(sizes) - len(shape)) :]
    return prod(1 if size == "all" else -(-n // int(size)) for size, n in zip(sizes, shape, strict=True))


# ------------------------------------------------------------------------------------------------------------ valid elements
def integer(n: int, form: str) -> E:
    return {"s": E(f"int{n}", n, "integer"), "y": E(f"int{n}_sym", n, "integer"), "u": E(f"uint{n}", n, "integer", signed=False)}[form]


def minifloat(unsigned: bool, e: int, m: int, kind: str, bias: int | None, flat: bool) -> tuple[E, bool]:
    """An element and whether it is one: by the rules of docs/expressions.md, all its values being float32 numbers that scales can serve."""
    bits = e + m + (not unsigned)
    text = f"{'u' if unsigned else ''}fp{bits}_e{e}m{m}{kind}" + (f"_b{bias}" if bias is not None else "") + ("_ns" if flat else "")
    element = E(text, bits, signed=not unsigned)
    kind = kind or ("none" if bits < 8 else "ieee")
    if e + m == 0 or e > 8 or m > 23 or (kind == "ieee" and e == 0) or (kind == "fnuz" and unsigned) or (flat and e == 0):
        return element, False
    if bias is None:
        bias = (2 ** (e - 1) - (kind != "fnuz")) if e else 0
    top = 2 ** (e + m) - 1 - {"ieee": 2**m, "fn": 1}.get(kind, 0)
    if top < 1:
        return element, False

    def value(code: int) -> Fraction:
        exponent, fraction = divmod(code, 2**m)
        if exponent or flat:
            return (1 + Fraction(fraction, 2**m)) * Fraction(2) ** (exponent - bias)
        return Fraction(fraction, 2**m) * Fraction(2) ** (1 - bias)

    finest = value(2) - value(1) if top > 1 and m and flat else value(1)
    return element, finest >= Fraction(1, 2**149) and Fraction(1, 2**64) <= value(top) < 2**128


def codebook(eighths: list[int]) -> E:
    values = [v / 8 for v in eighths]
    text = "codebook_" + "_".join(f"{v:g}".replace("+", "") for v in values)
    return E(text, (len(values) - 1).bit_length(), "other", min(values) < 0, 0 in values, max(values) > 0)


def minifloats(valid: bool) -> st.SearchStrategy:
    drawn = st.tuples(
        st.booleans(), st.integers(0, 9), st.integers(0, 10), st.sampled_from(["", "", "ieee", "fn", "fnuz", "none"]),
        st.none() | st.integers(-40, 40), st.sampled_from([False, False, True]),
    ).map(lambda fields: minifloat(*fields))  # fmt: skip
    return drawn.filter(lambda pair: pair[1] == valid).map(lambda pair: pair[0])


NAMED = {
    "fp32": E("fp32", 32), "tf32": E("tf32", 19), "bf16": E("bf16", 16), "fp16": E("fp16", 16), "nf4": E("nf4", 4),
    "e8m0": E("e8m0", 8, signed=False, zero=False), "ternary": E("ternary", 2, "ternary"), "binary": E("binary", 1, zero=False),
}  # fmt: skip

ELEMENTS: list[st.SearchStrategy] = [
    st.builds(integer, st.integers(2, 16), st.sampled_from("syu")),
    st.sampled_from([integer(1, "u")]),
    minifloats(valid=True),
    st.lists(st.integers(-999, 999).filter(bool) | st.just(0), min_size=2, max_size=20, unique=True).map(codebook),
    st.sampled_from(list(NAMED.values())),
    # HOOK: one line a family, as st.builds(lambda n: E(f"posit{n}_es1", n), st.integers(4, 16)),
]
SCALES = st.sampled_from(
    [NAMED[name] for name in ("bf16", "fp16", "fp32", "e8m0")]
    + [integer(6, "u"), integer(8, "s"), E("fp8_e4m3fn", 8), E("ufp8_e5m3", 8, signed=False)]
)
POLICIES = {  # HOOK: names of policies that the documentation lists
    "scale": ["absmax", "floor", "mse", "signmax"],
    "round": ["nearest-even", "nearest-away", "nearest-zero", "zero", "up", "down", "odd"],
    "over": ["saturate", "inf", "nan", "error"],
    "nonfinite": ["error", "propagate", "saturate"],
}
ALIASED = ("mxfp4", "mxfp8", "nvfp4", "q4_0", "q4_k", "q6_k", "msfp12")


# ------------------------------------------------------------------------------------------------------------ elements that are none
BAD_ELEMENTS: list[st.SearchStrategy] = [
    minifloats(valid=False).map(lambda e: e.text),
    st.sampled_from(["int0", "int17", "int99", "uint0", "uint17", "uint4_sym", "uint300"]),
    st.tuples(st.integers(1, 8), st.integers(0, 7), st.integers(1, 3)).map(lambda p: f"fp{p[0] + p[1] + 1 + p[2]}_e{p[0]}m{p[1]}"),
    st.sampled_from([
        "", "_", "_1", "_1_1.0", "_0_-0", "_0_1__2", "_0_x", "_0_1e999", "_0_1e-30", "_0_1e30", "_1_2_",
        "_0_1e",
    ]).map("codebook{}".format),
    st.sampled_from([
        "in", "intt4", "fp4_e2m", "fp4e2m1", "fp_e4m3", "nf", "nf5x", "e8m1", "bf15", "float", "ternary2",
        "int4_", "_", "-", "x", "int4.5",
    ]),
    # HOOK: one line of contradictions a family, as st.sampled_from(["posit8_es9"]),
]  # fmt: skip


@st.composite
def bodies(draw: st.DrawFn, blocked: bool | None = None) -> Definition:
    """element [ "@" block { ":" level } ], valid, with defaults filled in as meaning."""
    element = draw(st.one_of(ELEMENTS))
    if blocked is None:
        blocked = draw(st.integers(0, 4)) > 0
    if not blocked:
        return Definition(element.text, element=element)
    block, outers = draw(blocks())
    text, levels = f"{element.text}@{block}", []
    for i in range(draw(st.sampled_from([0, 0, 1, 1, 1, 2]))):
        scale = draw(SCALES)
        outer = outers[i] if i < len(outers) and draw(st.booleans()) else ""
        text += f":{scale.text}" + (f"@{outer}" if outer else "")
        levels.append((scale, outer))
        if not outer:
            break
    if not levels:
        levels.append((NAMED["fp32" if block in ("tensor", "channel", "token") else "bf16"], ""))
    elif levels[-1][1]:
        levels.append((NAMED["fp32"], ""))
    return Definition(text, element=element, block=block, levels=tuple(levels))


@st.composite
def blocks(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A block, and two blocks of which each is made of whole ones of the one before."""
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return "tensor", ["tensor", "tensor"]
    if kind == 1:
        outer = draw(st.sampled_from(["tensor", "channel", "3xall", "allxall"]))
        return draw(st.sampled_from(["channel", "token", "all"])), [outer, "tensor"]
    sizes = draw(st.lists(st.sampled_from([1, 2, 3, 7, 16, 32, 33, 64, 128, 600, 100_000]), min_size=1, max_size=3))
    larger = [size * draw(st.integers(1, 4)) for size in sizes]
    texts = ["x".join(map(str, s)) for s in (sizes, larger)]
    if draw(st.booleans()):
        texts[0] = "1x" * draw(st.integers(0, 3)) + texts[0]
    return texts[0], [texts[1], draw(st.sampled_from(["tensor", "x".join(["all"] * len(sizes)), f"all{'xall' * 2}"]))]


@st.composite
def options(draw: st.DrawFn, body: Definition) -> list[tuple[str, Definition]]:
    """Format options that fit, in any order: each as text, with what it means."""
    found: list[tuple[str, Definition]] = []
    assert body.element is not None
    if body.block and body.element.kind == "integer" and draw(st.booleans()):
        zero = draw(st.none() | st.sampled_from([integer(8, "u"), integer(4, "s"), NAMED["fp16"], NAMED["ternary"]]))
        found.append(("+zp" + (f"={zero.text}" if zero else ""), replace(body, zero=zero or body.element)))
    if body.block and draw(st.booleans()):
        offset = draw(st.none() | st.sampled_from([integer(8, "s"), NAMED["bf16"], NAMED["fp16"], E("ufp8_e5m3", 8, signed=False)]))
        first = offset or body.levels[0][0]
        chain = [first, *(level[0] for level in body.levels[1:])]
        if chain[-1].signed and all(e.zero for e in chain):
            found.append(("+off" + (f"={offset.text}" if offset else ""), replace(body, offset=first)))
    if draw(st.integers(0, 3)) == 0:
        name = "base3" if body.element.kind == "ternary" and draw(st.booleans()) else "plain"
        found.append((f"+pack={name}", replace(body, pack="" if name == "plain" else name)))
    # HOOK: one `if` an option, as nest and open
    return draw(st.permutations(found))


@st.composite
def policies(draw: st.DrawFn) -> list[str]:
    keys = draw(st.lists(st.sampled_from(list(POLICIES)), max_size=3, unique=True))
    return [f"+{key}={draw(st.sampled_from(POLICIES[key]))}" for key in keys]


@st.composite
def valid(draw: st.DrawFn) -> Definition:
    """A definition that must be accepted, with its meaning."""
    found = draw(bodies())
    for text, meant in draw(options(found)):
        more = {key: getattr(meant, key) or getattr(found, key) for key in ("zero", "offset", "pack")}
        found = replace(found, text=found.text + text, **more)
    extra = draw(policies())
    text = found.text + "".join(extra)
    return replace(found, text=text.upper() if draw(st.integers(0, 9)) == 0 else text, spec=bool(extra))


# ------------------------------------------------------------------------------------------------------------ one thing wrong
@st.composite
def invalid(draw: st.DrawFn) -> Definition:
    """A definition with one mistake, and where it stands."""
    return draw(st.one_of(MISTAKES))


def wrong(before: str, culprit: str, after: str = "", spec: bool = False) -> Definition:
    return Definition(before + culprit + after, len(before), culprit, spec)


@st.composite
def bad_element(draw: st.DrawFn) -> Definition:
    bad, body = draw(st.one_of(BAD_ELEMENTS)), draw(bodies(blocked=True))
    assert body.element is not None
    rest = body.text[len(body.element.text) :]
    place = draw(st.integers(0, 3))
    if place == 0:
        return wrong("", bad, draw(st.sampled_from(["", rest])))
    if place == 1:
        return wrong(f"{body.element.text}@{body.block}:", bad)
    return wrong(body.text + ("+off=" if place == 2 else "+zp="), bad)


@st.composite
def bad_block(draw: st.DrawFn) -> Definition:
    bad = draw(st.sampled_from([
        "0", "12a", "128x", "x4", "-3", "0x4", "4x0", "1x1x1x1x1x1x1x1x4", "row", "tensorx4", "all4", "1.5",
        "_", "9" * 40,
    ]))
    element = draw(st.one_of(ELEMENTS))
    return wrong(f"{element.text}@", bad, draw(st.sampled_from(["", ":bf16", "+off"])))


@st.composite
def bad_structure(draw: st.DrawFn) -> Definition:
    """Separators where none may be, names that are missing, characters that no expression has."""
    body = draw(bodies(blocked=True))
    assert body.element is not None
    name, with_block = body.element.text, f"{body.element.text}@{body.block}"
    return draw(st.sampled_from([
        wrong(name, ":", "bf16"), wrong(f"{with_block}:fp16", ":", "fp32"), wrong(f"{name}@", "", ""), wrong(f"{with_block}:", ""),
        wrong(f"{body.text}+", ""), wrong(body.text, "=", "3"), wrong(f"{with_block}:bf16@", ""), wrong("", "@", body.block),
        wrong(f"{body.text}+off=", ""), wrong(f"{body.text}+zp=", "@"), wrong(f"{body.text}+", "=", "fp16"),
        wrong(f"{body.text}+pack", ""), wrong(body.text, " ", "+off"), wrong(name, "(", ")"), wrong(f"{body.text}+off", "/"),
        wrong(f"{with_block}:", "µ"),
        wrong(f"{with_block}+zp", "@", "32"), wrong(f"{body.text}+pack=", ""), wrong(f"{with_block}", "@", "2"),
    ]))  # fmt: skip


@st.composite
def bad_meaning(draw: st.DrawFn) -> Definition:
    """Parts that are fine by themselves and do not go together."""
    body = draw(bodies(blocked=True))
    assert body.element is not None
    element, text, e = body.element, body.text, body.element.text
    flat = draw(st.one_of(ELEMENTS))
    cases = [
        wrong(f"{e}@64:", "fp16", "@96:fp32"), wrong(f"{e}@32x1:", "fp16", "@32"), wrong(f"{e}@channel:", "bf16", "@64"),
        wrong(f"{e}@tensor:", "fp32", "@channel"), wrong(f"{e}@64:fp16@128:", "fp32", "@192"), wrong(f"{e}@32:", "codebook_-4_-1"),
        wrong(f"{e}@32:e8m0+", "off"), wrong(f"{e}@32:fp16+", "off", "=uint4"), wrong(f"{e}@32:fp16+", "off", "=e8m0"),
        wrong(f"{e}@32:uint4+", "off"), wrong(f"{flat.text}+", "zp"), wrong(f"{flat.text}+", "off", "=fp16"),
        wrong(draw(st.sampled_from(ALIASED)), "@", "32"), wrong(draw(st.sampled_from(ALIASED)), ":", "bf16"),
        wrong(text + "+pack=", draw(st.sampled_from(["base4", "zip", "base", "plain2"]))),
    ]  # fmt: skip
    if element.kind != "integer":
        cases += [wrong(f"{text}+", "zp"), wrong(f"{text}+", "zp", "=uint8")]
    if element.kind != "ternary":
        cases.append(wrong(f"{text}+", "pack", "=base3"))
    return draw(st.sampled_from(cases))


@st.composite
def bad_option(draw: st.DrawFn) -> Definition:
    """Options and policies that nobody knows, that come twice, or that say how codes are chosen where that is not asked."""
    body = draw(bodies())
    key = draw(st.sampled_from(list(POLICIES)))
    name = draw(st.sampled_from(POLICIES[key]))
    extra = draw(policies())
    before = body.text + "".join(e for e in extra if not e.startswith(f"+{key}="))
    unknown = draw(st.sampled_from(["foo", "zpp", "offf", "of", "scales", "rounding", "-", "1"]))
    cases = [
        wrong(f"{before}+", unknown, "=x", spec=True), wrong(f"{before}+{key}={name}+", key, f"={name}", spec=True),
        wrong(f"{body.text}+", key, f"={name}"), wrong(f"{before}+{key}", "", spec=True), wrong(f"{before}+{key}=", "", spec=True),
        wrong(f"{before}+pack=plain+", "pack", "=plain", spec=True),
    ]  # fmt: skip
    if key != "scale":  # names of scale rules are looked up when they are used
        cases.append(wrong(f"{before}+{key}=", draw(st.sampled_from(["x", "sat", "even", "nearest", "none", "infinite"])), spec=True))
    return draw(st.sampled_from(cases))


MISTAKES = [bad_element(), bad_block(), bad_structure(), bad_meaning(), bad_option()]
