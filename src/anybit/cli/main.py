"""The `anybit` command: finds the command, runs it, turns every failure into one line and a documented exit code.

Exit codes: 0 done; 1 a bug in anybit (the traceback is saved, its path printed); 2 usage; 3 does not fit; 4 bad input or output; 5 a gate
is missed; 6 not possible on this machine; 130 interrupted; 141 the reader of stdout went away; 143 terminated.

Nothing here imports NumPy, and `anybit --version` not even rich: the first answer has to come at once.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import click

from anybit import __version__
from anybit.errors import AnybitError, near_misses

COMMANDS = "anybit.cli.commands"


class Terminated(BaseException):
    """SIGTERM arrived. A BaseException, so that clean-up runs and no handler of ordinary errors swallows it."""


class LazyGroup(click.Group):
    """A group whose commands are the files of one folder; only the command that runs is imported."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, by folder listing."""
        folder = importlib.import_module(COMMANDS)
        return sorted(module.name for module in pkgutil.iter_modules(folder.__path__))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The object named `command` in the file named like the command."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"{COMMANDS}.{cmd_name}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """click's, with near misses for a misspelt command."""
        if args and not args[0].startswith("-"):
            names = self.list_commands(ctx)
            if args[0] not in names:
                close = near_misses(args[0], names) or f"; there are {', '.join(names)}"
                raise click.UsageError(f"no command named '{args[0]}'{close}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: anybit demo",
)
@click.version_option(__version__, "--version", message="anybit %(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Any number format, from a one-line definition to a neural network that runs fast in it, with what that costs."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run(args: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the console script: runs one command and exits."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(_status(sys.argv[1:] if args is None else list(args)))


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _status(args: list[str]) -> int:
    """Runs one command; its exit code."""
    try:
        # Not main.main(): it handles closed pipes and interrupts in its own way, with other exit codes.
        with main.make_context("anybit", args) as context:
            main.invoke(context)
        sys.stdout.flush()
        return 0
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        return _fail(_click_message(error), error.exit_code)
    except AnybitError as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, click.exceptions.Abort):
        return _fail("interrupted", 130, kind="")
    except Terminated:
        return _fail("terminated", 143, kind="")
    except BrokenPipeError:
        # What remains in the buffer has nowhere to go; without this the interpreter would complain while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MemoryError:
        return _fail("out of memory; a smaller --window, --tokens or model needs less", 3)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 4)
    except Exception as error:  # the only broad one: whatever arrives here is a bug of ours
        handle, path = tempfile.mkstemp(prefix="anybit-traceback-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f"anybit {__version__}, python {sys.version}\n{args}\n{traceback.format_exc()}")
        return _fail(f"{type(error).__name__}: {error} (a bug in anybit; its traceback is in {path})", 1, kind="bug: ")


def _click_message(error: click.ClickException) -> str:
    """One line: what was wrong and where to read on."""
    message = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{message} (see '{context.command_path} --help')" if context is not None else message


def _fail(message: str, code: int, kind: str = "error: ") -> int:
    """Prints one line on stderr; returns the exit code."""
    line = " ".join(message.split())
    try:
        print(f"anybit: {kind}{line}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    return code


if __name__ == "__main__":
    run()
