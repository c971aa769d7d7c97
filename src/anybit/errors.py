"""The exceptions that anybit raises on purpose, each with the exit code that the command line gives it.

A message says what was given, where, what is allowed and what to do next, on one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AnybitError(Exception):
    """Base of every error that a user can cause. `exit_code` is what the command line exits with.

    Messages quote what files and users say; characters that would break the line or reach the terminal are escaped here, once for all.

    >>> print(AnybitError("no format named 'a\\nb'"))
    no format named 'a\\nb'
    """

    exit_code = 2

    def __init__(self, *args: object) -> None:
        super().__init__(*(_one_line(arg) if isinstance(arg, str) else arg for arg in args))


_LONGEST = 4000  # characters: a file may hold a name of millions


def _one_line(text: str) -> str:
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 4 :]}"
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class UsageError(AnybitError):
    """An option or argument that cannot be used: exit code 2."""


class NoRecipeError(UsageError):
    """None of the recipes that were given serves the model."""


class UnknownNameError(AnybitError, KeyError):
    """A name that no registry knows: exit code 2."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class FormatError(AnybitError, ValueError):
    """A number format that cannot be read or contradicts itself: exit code 2."""


class ShapeError(AnybitError, ValueError):
    """An array whose shape or dtype does not fit: exit code 2."""


class DoesNotFitError(AnybitError):
    """Refused before work starts: memory, disk or context length would not suffice: exit code 3."""

    exit_code = 3


class FileFormatError(AnybitError, ValueError):
    """A file that is no model, is cut short, or contradicts itself: exit code 4. Names the file, the field and the byte offset."""

    exit_code = 4


class NonFiniteError(AnybitError, ValueError):
    """NaN or Inf where numbers are needed: exit code 4."""

    exit_code = 4


class OutputError(AnybitError, OSError):
    """An output that exists already or cannot be written: exit code 4. Nothing is left half written."""

    exit_code = 4

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class GateError(AnybitError):
    """A result that does not hold what its recipe asks for: exit code 5. It lies aside, under another name."""

    exit_code = 5


class NoKernelError(AnybitError):
    """No kernel serves an operation on this machine: exit code 6. The message gives each candidate's reason."""

    exit_code = 6


class MissingDependencyError(AnybitError, ImportError):
    """An optional package is needed: exit code 6. The message gives the command that installs it."""

    exit_code = 6


def near_misses(name: str, known: Iterable[str]) -> str:
    """A question that suggests what was meant: `; did you mean fp4_e2m1?`, or nothing.

    >>> near_misses("fp4_e2m", ["fp4_e2m1", "int4"])
    '; did you mean fp4_e2m1?'
    """
    close = difflib.get_close_matches(str(name), list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""
