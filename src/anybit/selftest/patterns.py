"""All 2^32 float32 patterns through one element: every number, NaN and infinity, against references that share no code with it.

Encoding is a step function of the ordered numbers. `reference.steps` finds each step by halving, `reference.rational` judges each and its
two neighbours; then the codes of all patterns are compared with the runs between the steps.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from anybit import elementwise
from anybit.errors import UsageError
from anybit.formats import Element, Spec
from anybit.reference.steps import HALF, Steps
from anybit.selftest.check import WrongError
from anybit.selftest.elements import OVERS, exact_of

PATTERNS = 1 << 32
CHUNK = 1 << 21
INFINITY = 0x7F800000  # the pattern; above it NaN, as far as HALF
DEFAULT = ("fp8_e4m3fn", "fp8_e5m2", "fp6_e3m2", "fp6_e2m3", "fp4_e2m1", "int8", "int4", "nf4", "e8m0", "bf16")


@dataclass(frozen=True)
class Target:
    """One element under one policy."""

    element: Element
    round: str
    over: str
    nonfinite: str

    @property
    def text(self) -> str:
        """The expression that names it."""
        return f"{self.element}+round={self.round}+over={self.over}+nonfinite={self.nonfinite}"

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of a certificate is about this."""
        return row.get("expression") == self.text and row.get("definition") == self.definition and row.get("patterns") == PATTERNS

    @property
    def definition(self) -> str:
        """SHA-256 of the element's values, by code."""
        return hashlib.sha256(np.asarray(self.element.values, dtype="<f8").tobytes()).hexdigest()


def target(text: str) -> Target:
    """Reads `fp8_e4m3fn` or `fp8_e4m3fn+round=zero+over=nan`. FormatError: no format. UsageError: one that this cannot judge."""
    spec = Spec.parse(text)
    element, policy = spec.format.element, spec.policy
    if spec.format.block is not None:
        raise UsageError(f"--format {text}: give an element without block or scale, as {element}")
    if element.bits > 16 or element.dim > 1:
        raise UsageError(f"--format {text}: the references list elements of one number and up to 16 bits")
    if policy.over not in OVERS[:3]:
        raise UsageError(f"--format {text}: over=saturate, inf and nan can be judged over all patterns")
    spec.check()
    nonfinite = policy.nonfinite if policy.nonfinite != "error" else "propagate" if element.has_nan else "saturate"
    return Target(element, policy.round, policy.over, nonfinite)


def encode(t: Target, x: np.ndarray) -> np.ndarray:
    """What is judged: the codes that anybit gives, by the fastest way that it has."""
    return np.asarray(elementwise.encode(x, t.element, round=t.round, over=t.over, nonfinite=t.nonfinite))


def judge_steps(steps: Steps, element: Element) -> int:
    """Fractions judge every step and its neighbours; how many steps there are. WrongError: the references differ."""
    for number, code, want in steps.disagreements(exact_of(element)):
        raise WrongError(f"the references differ at {number!r}: code {want} by fractions, {code} by the grid")
    return len(steps.keys)


def _special_codes(t: Target, steps: Steps) -> tuple[int, int, int]:
    """The codes of NaN, +infinity and -infinity by definition."""
    grid = steps.grid
    if t.nonfinite == "propagate":
        nan = int(grid.nan[0])
        plus = int(grid.inf[0]) if grid.inf.size else nan
        return nan, plus, int(grid.minus_inf[0]) if grid.minus_inf.size else nan
    zero = exact_of(t.element).encode(0.0, "nearest-even")
    assert zero is not None
    return zero, int(grid.codes[-1]), int(grid.codes[0])


def compare_chunk(t: Target, steps: Steps, first: int, count: int = CHUNK) -> tuple[bytes, int, str]:
    """Encodes the patterns [first, first + count), which lie within one sign and on one side of infinity.

    Returns: SHA-256 of the codes, how many are wrong, and a line about the first that is.
    """
    x = np.arange(first, first + count, dtype=np.uint64).astype(np.uint32).view(np.float32)
    codes = encode(t, x)
    if first % HALF >= INFINITY:
        nan, plus, minus = _special_codes(t, steps)
        runs: Iterator[tuple[int, int, int]] = iter([(0, count, nan)])
        if first % HALF == INFINITY:
            runs = iter([(0, 1, plus if first < HALF else minus), (1, count, nan)])
    else:
        runs = steps.runs(first, count)
    wrong, line = 0, ""
    for start, stop, code in runs:
        good = codes[start:stop] == code
        if not good.all():
            wrong += int(stop - start - np.count_nonzero(good))
            at = start + int(np.argmin(good))
            line = line or f"{float(x[at])!r} (pattern 0x{first + at:08x}) is code {int(codes[at])}, not {code}"
    return hashlib.sha256(codes.astype(codes.dtype.newbyteorder("<"), copy=False).tobytes()).digest(), wrong, line


def judge(t: Target, workers: int, progress: Callable[[int, str], None] | None = None, last: int = PATTERNS) -> dict[str, Any]:
    """One row of the certificate: all patterns of one element (or the first `last`, in tests).

    patterns, wrong: how many were encoded and are not as defined; first_wrong; steps: how many fractions judged; digest: SHA-256 of the
    SHA-256 of each 2^21 little-endian codes, in the order of the patterns.
    """
    begun = time.monotonic()
    steps = Steps(t.element.fields, t.round, t.over)
    count = judge_steps(steps, t.element)
    digest, wrong, line = hashlib.sha256(), 0, ""
    waiting: list[Future[tuple[bytes, int, str]]] = []
    pool = ThreadPoolExecutor(workers)
    try:
        firsts = iter(range(0, last, CHUNK))
        # A few at a time: an interrupt then waits for little, and codes do not pile up.
        for first in firsts:
            waiting.append(pool.submit(compare_chunk, t, steps, first))
            if len(waiting) > 2 * workers:
                wrong, line = _take(waiting, digest, wrong, line, progress)
        while waiting:
            wrong, line = _take(waiting, digest, wrong, line, progress)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return {
        "expression": t.text, "definition": t.definition, "patterns": last, "steps": count, "wrong": wrong, "first_wrong": line or None,
        "digest": digest.hexdigest(), "seconds": round(time.monotonic() - begun, 1),
    }  # fmt: skip


def _take(
    waiting: list[Future[tuple[bytes, int, str]]], digest: Any, wrong: int, line: str, progress: Callable[[int, str], None] | None
) -> tuple[int, str]:
    """The oldest chunk into the sums."""
    part, more, text = waiting.pop(0).result()
    digest.update(part)
    if progress is not None:
        progress(1, "")
    return wrong + more, line or text
