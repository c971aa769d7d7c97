"""The native kernels on this machine: instruction set, threads, and what dispatch is asked about a weight.

`ANYBIT_ISA` forces an instruction set (docs/kernels.md lists them), `ANYBIT_THREADS` the number of threads; without them the best and all
usable cores.
"""

from __future__ import annotations

import os

from anybit.errors import NoKernelError, UsageError
from anybit.formats import Format
from anybit.kernels import OpSpec
from anybit.native import native

ACTS = {None: 0, "int8": 1, "int4": 2}


def _from_environment() -> None:
    name = os.environ.get("ANYBIT_ISA")
    if name:
        use_isa(name)
    count = os.environ.get("ANYBIT_THREADS")
    if count:
        if not count.isdigit():
            raise UsageError(f"ANYBIT_THREADS={count} is not a number from 1 to 256")
        set_threads(int(count))


def use_isa(name: str) -> None:
    """Uses an instruction set for weights prepared from now on. NoKernelError: this machine does not have it."""
    try:
        native.set_isa(name)
    except ValueError as error:
        raise NoKernelError(f"{error}; this machine has {', '.join(native.supported_isas())}") from None


def isa() -> str:
    """The instruction set in use."""
    return str(native.isa())


def set_threads(count: int) -> None:
    """How many threads an operation may use. Results do not depend on it. UsageError: not 1 to 256."""
    try:
        native.set_threads(count)
    except (ValueError, TypeError):
        raise UsageError(f"threads={count}: use 1 to 256") from None


_from_environment()


def op_spec(fmt: Format, layout: str, act: str | None, product: str | None = None) -> OpSpec:
    """The properties of a linear operator that dispatch looks at."""
    levels = len(fmt.levels)
    second = "" if levels < 2 else "tensor" if levels == 2 and _whole(fmt) else "blocks"
    element, dense = fmt.element, fmt.block is None
    return OpSpec("linear", layout, element.bits, dense, element.table.kind, levels, second, act, dim=element.dim, product=product)


def _whole(fmt: Format) -> bool:
    """The scales of level 0 share one second scale."""
    block = fmt.levels[0].block
    return block is not None and block.kind == "tensor"
