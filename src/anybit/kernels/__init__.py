"""Choosing a kernel by properties, never by a format's name.

A kernel says whether it accepts an operation (None) or why not; the highest priority that accepts wins; `explain` shows every candidate's
answer. A kernel with other numerics is another operation, never a silent substitute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from anybit.errors import NoKernelError
from anybit.registry import Registry


@dataclass(frozen=True)
class OpSpec:
    """An operation as dispatch sees it.

    op: "linear". layout: of the stored weight. bits: of a code. dense: no scales.
    table: the element's table kind ("i8", "i16", "i16r", "f32").
    levels: number of scale levels; second: what the second level covers ("", "tensor" or "blocks").
    act: None (float activations), "int8" or "int4".
    product: None (multiplication) or the kind of a product rule ("patterns", "lookup").
    dim: weights that one code stands for.
    """

    op: str
    layout: str
    bits: int
    dense: bool
    table: str
    levels: int
    second: str
    act: str | None
    device: str = "cpu"
    dim: int = 1
    product: str | None = None


Run = Callable[[Any, np.ndarray, str | None, np.ndarray | None], np.ndarray]
"""run(weight: QTensor, x: finite float32[m, k], act, bias: float32[n] or None) -> float32[m, n], with the bits of docs/contract.md."""

Prepare = Callable[[Any], Any]
"""prepare(weight: QTensor, a matrix) -> the native weight (`kernels/weights.py` makes them), which the tensor keeps."""


@dataclass(frozen=True)
class Kernel:
    """One way to run an operation. accepts(spec) is None, or the reason why not; isa() names the instruction set that serves it here.

    A kernel in Python has `run`, what multiplies. A native one has `prepare`, and native code runs what it makes: alone, or whole blocks of
    a model in one call. With neither, it runs what multiplication has prepared.
    products: kinds of product rules that it serves; none: multiplication, and nothing else.
    """

    name: str
    priority: int
    accepts: Callable[[OpSpec], str | None]
    isa: Callable[[], str]
    about: str
    run: Run | None = None
    products: tuple[str, ...] = ()
    prepare: Prepare | None = None

    def __post_init__(self) -> None:
        if self.run is None and self.prepare is None and not self.products:
            raise ValueError(f"kernel {self.name} has no run and no prepare")

    def refuses(self, spec: OpSpec) -> str | None:
        """None, or why it does not serve the operation; other products are never taken for multiplication."""
        if spec.product is None and self.products:
            return f"it is for product rules of {' and '.join(self.products)}"
        if spec.product is not None and spec.product not in self.products:
            return f"it knows no product rules of {spec.product}"
        return self.accepts(spec)


@dataclass(frozen=True)
class Choice:
    """The kernel that serves an operation, and why each other candidate does not."""

    kernel: Kernel
    others: dict[str, str]


KERNELS: Registry[Kernel] = Registry("kernel", folder="anybit.kernels")


def choose(spec: OpSpec, native: bool = False) -> Choice:
    """The kernel for an operation; `native`: for the engine, which has whole blocks run by native kernels.

    NoKernelError: none accepts it; the message gives each candidate's reason.
    """
    candidates = sorted((KERNELS[name] for name in KERNELS), key=lambda kernel: -kernel.priority)
    reasons: dict[str, str] = {}
    best: Kernel | None = None
    for kernel in candidates:
        reason = kernel.refuses(spec)
        if reason is None and native and kernel.run is not None:
            reason = "it runs from Python, and the engine has whole blocks run natively"
        if reason is None and best is None:
            best = kernel
        else:
            reasons[kernel.name] = reason or f"{best.name} comes first" if best else str(reason)
    if best is None:
        raise NoKernelError(f"no kernel for {spec}: " + "; ".join(f"{name}: {why}" for name, why in reasons.items()))
    return Choice(best, reasons)
