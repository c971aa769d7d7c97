"""Elements against both references: the value of every code, and the code of every float16 and bfloat16 number in every rounding mode."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np

from anybit.errors import FormatError
from anybit.formats import ROUNDS, Element, families, parse_element
from anybit.reference.grid import Grid
from anybit.reference.rational import Rational
from anybit.reference.steps import HALF, LARGEST, LEAST, Steps, patterns
from anybit.selftest.check import Check, Step, WrongError

OVERS = ("saturate", "inf", "nan", "error")
"""Policies under which encoding keeps order."""
SAMPLE = 300  # steps of a 16-bit element that fractions judge in a mode


def built_in() -> tuple[list[Element], list[str]]:
    """Elements of one number and up to 16 bits that families list, and the names of the others with the reason."""
    found: list[Element] = []
    skipped: list[str] = []
    for family in families().values():
        for name in family.members:
            element = parse_element(name)
            if element.bits > 16:
                skipped.append(f"{name}: 2^{element.bits} codes")
            elif element.dim > 1:
                skipped.append(f"{name}: {element.dim} numbers a code")
            elif not _listed(element):
                skipped.append(f"{name}: its values depend on the tensor")
            else:
                found.append(element)
    return found, skipped


def _listed(element: Element) -> bool:
    try:
        return element.values.ndim == 1
    except FormatError:
        return False


def policies(element: Element) -> list[str]:
    """The overflow policies that an element's special values allow."""
    return [o for o in OVERS if not (o == "inf" and not element.has_inf) and not (o == "nan" and not element.has_nan)]


@lru_cache(maxsize=128)
def exact_of(element: Element) -> Rational:
    """The rational reference of an element's definition, made once."""
    return Rational(element.fields)


@lru_cache(maxsize=1)
def halves() -> np.ndarray:
    """float32: every finite float16 and bfloat16 number."""
    codes = np.arange(1 << 16, dtype=np.uint16)
    x = np.concatenate([codes.view(np.float16).astype(np.float32), (codes.astype(np.uint32) << 16).view(np.float32)])
    return np.asarray(x[np.isfinite(x)])


def same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two float64 arrays agree, NaN with NaN, and zeros in their sign."""
    return np.asarray(((a == b) & (np.signbit(a) == np.signbit(b))) | (np.isnan(a) & np.isnan(b)))


def first_wrong(good: np.ndarray, tell: Callable[[int], str]) -> None:
    """WrongError about the first False, with how many there are."""
    if not good.all():
        count = int(good.size - np.count_nonzero(good))
        raise WrongError(f"{tell(int(np.argmin(good)))}; {count} of {good.size} differ")


def decode_step(element: Element) -> int:
    """The value of every code, from both references, and of the list of values."""
    exact = np.array([float(value) for value in exact_of(element).values])
    walked = Grid(element.fields).values
    first_wrong(same(exact, walked), lambda i: f"the references differ at code {i}: {exact[i]:g} by fractions, {walked[i]:g} by the grid")
    codes = np.arange(1 << element.bits, dtype=element.code_dtype)
    decoded, listed = np.asarray(element.decode(codes)), element.values
    first_wrong(same(decoded, exact), lambda i: f"code {i} decodes to {decoded[i]:g}, not {exact[i]:g}")
    first_wrong(same(listed, exact), lambda i: f"values[{i}] is {listed[i]:g}, not {exact[i]:g}")
    return 2 * len(codes)


def encode_step(element: Element, turn: int) -> int:
    """Nearest-even and two more modes in turn (one for 9 to 16 bits): steps judged by fractions, half-precision numbers and the steps'
    neighbours by the steps."""
    compared, allowed, others = 0, policies(element), ROUNDS[1:]
    modes = (ROUNDS[0], others[turn % 6], others[(turn + 3) % 6])
    for i, mode in enumerate(modes if element.bits <= 8 else modes[:2]):
        over = allowed[(turn + i) % len(allowed)]
        steps = Steps(element.fields, mode, over)
        among = None
        if len(steps.keys) > 2 * SAMPLE:
            among = np.random.default_rng(turn).choice(len(steps.keys), SAMPLE, replace=False)
        for number, code, want in steps.disagreements(exact_of(element), among):
            raise WrongError(f"the references differ at {number!r}, {mode}, over={over}: code {want} by fractions, {code} by the grid")
        near = np.unique(np.clip(np.concatenate([steps.keys - 1, steps.keys, steps.keys + 1]), LEAST, LARGEST))
        x = np.concatenate([halves(), patterns(near).view(np.float32), patterns(np.array([HALF - 1, HALF])).view(np.float32)])
        expected = steps.encode(x)
        if over == "error":
            inside = expected >= 0
            if not inside.all():
                _refuses(element, x[~inside][:1], mode)
            x, expected = x[inside], expected[inside]
        for form in (x, x.astype(np.float64)) if mode == "nearest-even" else (x,):
            _encodes(element, form, expected, mode, over)
            compared += form.size
    return compared


def _encodes(element: Element, x: np.ndarray, expected: np.ndarray, mode: str, over: str) -> None:
    """WrongError where the codes of x are not the expected ones."""
    got = element.encode(x, round=mode, over=over)
    first_wrong(
        got == expected, lambda i: f"{float(x[i])!r} with round={mode}, over={over} is code {int(got[i])}, not {int(expected[i])}"
    )


def _refuses(element: Element, x: np.ndarray, mode: str) -> None:
    """over=error must raise for a number out of range."""
    try:
        element.encode(x, round=mode, over="error")
    except FormatError:
        return
    raise WrongError(f"over=error takes {float(x[0])!r}, which is out of range")


def element_checks(elements: list[Element], skipped: list[str]) -> list[Check]:
    """The two checks of elements."""
    decode = [Step(e.name, partial(decode_step, e), 1 + (1 << e.bits) // 300) for e in elements]
    encode = [Step(e.name, partial(encode_step, e, i), 60 + (1 << e.bits) // 20) for i, e in enumerate(elements)]
    return [
        Check("decode", "the value of every code of every element, against fractions and against a grid", decode, tuple(skipped)),
        Check("encode", "all float16 and bfloat16 numbers and the switch points, rounding modes and overflow policies in turn", encode),
    ]
