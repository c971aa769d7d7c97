"""Linear: a weight with everything that runs around it in one call."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from anybit.errors import NoKernelError, NonFiniteError, ShapeError
from anybit.formats import Format, Policy
from anybit.formats.element import as_real
from anybit.products import Product, parse_product
from anybit.tensor import QTensor


@dataclass(frozen=True)
class ActSpec:
    """The format of a linear layer's input. `dynamic`: scales are taken from each block of each token; `scale`: a calibrated one."""

    format: Format
    dynamic: bool = True
    scale: float | None = None
    policy: Policy = field(default_factory=Policy)

    @property
    def kernel_name(self) -> str:
        """The name under which kernels know it. NoKernelError: no kernel takes such activations."""
        for name, spec in (("int8", INT8), ("int4", INT4)):
            if self is spec or self == spec:
                return name
        raise NoKernelError(f"no kernel takes activations in {self.format}; use none (float) or dynamic int8")

    @classmethod
    def named(cls, name: str | None) -> ActSpec | None:
        """None and "float" mean float activations, "int8" dynamic int8 (|q| <= 127), one scale a block of each token.

        "int4" (|q| <= 7) is for product rules that look up codes.
        """
        if name in (None, "float"):
            return None
        if name in ("int8", "int4"):
            return INT8 if name == "int8" else INT4
        raise NoKernelError(f"no kernel takes '{name}' activations; use float or int8 (int4 with a table product)")


INT8 = ActSpec(Format("int8_sym"))
"""Dynamic int8 activations, the one integer input that kernels of multiplication take."""
INT4 = ActSpec(Format("int4_sym"))
"""Dynamic int4 activations, for look-ups of small codes."""


@dataclass(frozen=True)
class Transform:
    """On the input, its inverse applied to the weight beforehand. kind: scale, permute, hadamard, rotate or shift."""

    kind: str
    block: int | None = None
    data: np.ndarray | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Branch:
    """Added to the output in the same call. kind: low_rank, columns or residual."""

    kind: str
    a: QTensor | None = None
    b: QTensor | None = None
    index: np.ndarray | None = None
    source: str = ""


@dataclass(frozen=True, eq=False)
class Linear:
    """y = x weight^T + bias, with the input's format, transforms before and after, and added branches.

    `weight` is a QTensor (dense weights are one too), `bias` float32[n], `product` the text of a product rule (None: multiplication). No
    kernel runs transforms or branches yet: a layer that has one is refused when it is prepared.
    """

    weight: QTensor
    bias: np.ndarray | None = None
    pre: tuple[Transform, ...] = ()
    act: ActSpec | None = None
    branches: tuple[Branch, ...] = ()
    post: tuple[Transform, ...] = ()
    product: str | None = None

    @property
    def act_name(self) -> str | None:
        """Kernels' name of the input format: None (float) or "int8"."""
        return None if self.act is None else self.act.kernel_name

    @cached_property
    def rule(self) -> Product | None:
        """The product rule; None: multiplication. UnknownNameError, UsageError: its text names none."""
        return None if self.product is None else parse_product(self.product)

    @cached_property
    def native(self) -> Any:
        """The native weight, for the engine. NoKernelError: something that no native kernel runs."""
        self._check_plain()
        check_kernel(self.weight, self.act_name, native=True, rule=self.rule)
        return self.weight.native

    @cached_property
    def native_product(self) -> Any:
        """The native product rule for this weight; None: multiplication."""
        return _native_product(self.rule, self.weight, self.act_name)

    def _check_plain(self) -> None:
        """NoKernelError: it has something around its weight, which would be left out."""
        if self.pre or self.post or self.branches:
            raise NoKernelError("no kernel runs transforms or branches yet")

    @property
    def input_key(self) -> tuple[object, ...]:
        """Layers with equal keys may share one prepared input (q, k, v; gate and up)."""
        block = self.weight.format.block
        return (self.pre, self.act, self.weight.shape[1], str(block) if self.act is not None else None, self.product)

    def __call__(self, x: Any) -> np.ndarray:
        """float32[..., n] of float32[..., k]."""
        self._check_plain()
        return run_matmul(self.weight, x, self.act_name, self.bias, self.rule)


def check_kernel(weight: QTensor, act: str | None, native: bool = False, rule: Product | None = None) -> Any:
    """The choice of kernel for a weight, an input format and a product rule; `native`: for the engine. NoKernelError: none."""
    from anybit.kernels import choose
    from anybit.kernels.cpu import op_spec

    reason = rule.refuses(weight.format, act) if rule is not None else None
    if reason is not None:
        raise NoKernelError(reason)
    return choose(op_spec(weight.format, weight.layout, act, rule.kind if rule is not None else None), native)


def _native_product(rule: Product | None, weight: QTensor, act: str | None) -> Any:
    from anybit.kernels.product import native_product

    return None if rule is None else native_product(rule, weight.format.element, act)


def run_matmul(weight: QTensor, x: Any, act: str | None, bias: np.ndarray | None, rule: Product | None = None) -> np.ndarray:
    """See `QTensor.matmul`."""
    from anybit.kernels.cpu import ACTS

    spec = ActSpec.named(act)
    name = spec.kernel_name if spec else None
    kernel = check_kernel(weight, name, rule=rule).kernel
    array = as_real(x)
    if len(weight.shape) != 2 or array.ndim == 0 or array.shape[-1] != weight.shape[-1]:
        raise ShapeError(f"x of shape {list(array.shape)} does not end in k = {weight.shape[-1]} of the weight {list(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"bias of shape {list(bias.shape)} is not [{weight.shape[0]}], one number for each output")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is refused below
        rows = np.ascontiguousarray(array, dtype=np.float32).reshape(-1, array.shape[-1])
    flat_bias = None if bias is None else np.ascontiguousarray(bias, dtype=np.float32)
    shape = (*array.shape[:-1], weight.shape[0])
    if kernel.run is not None:
        bad = ~np.isfinite(rows).all(axis=1)
        if bad.any():
            raise NonFiniteError(f"non-finite value in row {int(np.argmax(bad))} of the input")
        return np.asarray(kernel.run(weight, rows, name, flat_bias)).reshape(shape)
    try:
        y = weight.native.matmul(rows, ACTS[name], flat_bias, _native_product(rule, weight, name))
    except ValueError as error:
        if "non-finite" in str(error):
            raise NonFiniteError(str(error)) from None
        raise
    return np.asarray(y).reshape(shape)
