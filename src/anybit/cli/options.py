"""Options that mean the same in every command."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, TypeVar

import click

from anybit.errors import UsageError

Command = TypeVar("Command", bound=Callable[..., Any])

kv_option = click.option(
    "--kv", metavar="FORMAT", default=None, help="Keys and values: int8@64, k=int8@64,v=int4@32,stage=pre_rope; float for float32."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else there.")
threads_option = click.option("--threads", type=click.IntRange(1, 256), default=None, help="Worker threads; all cores by default.")
seed_option = click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of the random numbers.")
progress_option = click.option("--no-progress", is_flag=True, help="No progress on stderr.")
open_option = click.option("--open", "width", type=click.IntRange(1, 16), default=None, help="Open nested integers at this width.")
product_option = click.option("--product", metavar="RULE", default=None, help="What takes multiplication's place: lmul, shift, table=...")
attention_option = click.option(
    "--attention-product", metavar="RULE", default=None, help="Product rule of attention's two products: lmul, lmulM."
)
model_argument = click.argument("model")


class Positive(click.FloatRange):
    """A number above 0; neither nan nor inf, which click's own range lets pass."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is no finite number", param, ctx)
        return found


def use_threads(count: int | None) -> None:
    """Sets the size of the native thread pool, when the user asked for one."""
    if count is not None:
        from anybit.kernels.cpu import set_threads

        set_threads(count)


def load(name: str, width: int | None = None, kv: str | None = None) -> Any:
    """Opens a model: `pycoder-5m`, which comes with anybit, or a path; nested integers at a width; keys and values in a format."""
    import anybit

    model = anybit.load(name, width)
    return model if kv is None else model.with_cache(kv)


def parse_act(name: str) -> str | None:
    """The activation format that an --act option names: None stands for float."""
    return None if name == "float" else name


def compile_regex(text: str | None, option: str) -> str | None:
    """Checks a regular expression early. UsageError: it does not compile."""
    import re

    if text is not None:
        try:
            re.compile(text)
        except re.error as error:
            raise UsageError(f"{option}: '{text}' is no regular expression: {error}") from None
    return text


def refuse_existing(path: str) -> None:
    """Says so before any work. OutputError: there is something at that path already."""
    import os

    from anybit.errors import OutputError

    if os.path.lexists(path):
        raise OutputError(f"{path} exists already; remove it or choose another name")


def plain(value: Any) -> Any:
    """What JSON can hold: Fractions become floats, NaN and infinities null, arrays lists, unknown objects their text."""
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Fraction):
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value)


def dumps(value: Mapping[str, Any], indent: int | None = None) -> str:
    """One JSON object as text, strict JSON only (no NaN)."""
    return json.dumps(plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


def print_json(value: Mapping[str, Any]) -> None:
    """The one object that --json promises."""
    sys.stdout.write(dumps(value) + "\n")
