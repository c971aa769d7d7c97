"""Checks made of steps: each counts what it compared, or says what is wrong. Nothing is repaired and nothing is left out silently."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from anybit.errors import AnybitError


class WrongError(Exception):
    """A step found something that is not as defined; the message says what, where, and what was expected."""


@dataclass(frozen=True)
class Step:
    """One unit of work. run() returns how many results were compared and raises WrongError; weight: about how long it takes, any unit."""

    label: str
    run: Callable[[], int]
    weight: int = 1


@dataclass(frozen=True)
class Check:
    """A named group of steps; `about` says what is compared with what; `skipped` what it does not cover, and why."""

    name: str
    about: str
    steps: Sequence[Step]
    skipped: tuple[str, ...] = ()


@dataclass
class Outcome:
    """What a check found. compared: results compared; failures: one line each."""

    name: str
    about: str
    compared: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    skipped: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.failures and self.compared > 0


# What a wrong definition, table or kernel can raise by itself; anything else is a defect of the self-test.
BREAKS = (WrongError, AnybitError, ArithmeticError, LookupError, ValueError, TypeError)


def run(checks: Sequence[Check], progress: Callable[[int, str], None] | None = None) -> Iterator[Outcome]:
    """Runs the checks in order. progress(weight, label) is called after each step."""
    for check in checks:
        outcome, begun = Outcome(check.name, check.about, skipped=check.skipped), time.monotonic()
        for step in check.steps:
            try:
                outcome.compared += step.run()
            except BREAKS as error:
                kind = "" if isinstance(error, WrongError) else f"{type(error).__name__}: "
                outcome.failures.append(" ".join(f"{step.label}: {kind}{error}".split()))
            if progress is not None:
                progress(step.weight, f"{check.name}: {step.label}")
        outcome.seconds = time.monotonic() - begun
        yield outcome
