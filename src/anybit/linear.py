"""Linear: a weight with everything that runs around it in one call."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from anybit.activations import INT4, INT8, ActSpec
from anybit.errors import NoKernelError, NonFiniteError, ShapeError
from anybit.formats.element import as_real
from anybit.products import Product, parse_product
from anybit.tensor import QTensor
from anybit.transforms import Transform, native_steps


@dataclass(frozen=True, eq=False)
class Branch:
    """Added to the output in the same call, before the bias. x is the transformed input, Q(x) what it is rounded to. kind:

    low_rank  (x a^T) b^T in float32, a [r, k] and b [n, r]
    columns   x[index] a^T in float32, a [n, columns]; the layer's weight sees +0 there, so that outliers do not widen its input's scales
    residual  Q(x - Q(x))[index] a^T: what rounding the input left of some columns, rounded once more (dynamically), to activations as
              the layer's; a [n, columns]. Source: ARCQuant, residual channels

    a and b are QTensors of any format, dense ones included; index: int64[columns], ascending. `source`: who made it, for people.
    """

    kind: str
    a: QTensor | None = None
    b: QTensor | None = None
    index: np.ndarray | None = None
    source: str = ""

    def check(self, n: int, k: int, act: ActSpec | None) -> None:
        """ShapeError: it fits no weight [n, k]. NoKernelError: nothing runs it with these activations."""
        reason = self._wrong(n, k)
        if reason is not None:
            raise ShapeError(f"branch '{self.kind}' of a weight [{n}, {k}]: {reason}")
        if self.kind != "residual":
            return
        if act is None or act.kernel_name == "int4" or (act.kernel_name is None and act.left_over() is None):
            raise NoKernelError("a branch of kind 'residual' needs dynamic activations, or int8 ones: it runs what rounding them leaves")
        assert self.a is not None
        check_kernel(self.a, act.kernel_name, native=True)

    def _wrong(self, n: int, k: int) -> str | None:
        if self.kind not in ("low_rank", "columns", "residual"):
            return "it is none of low_rank, columns, residual"
        shapes = [None if part is None else list(part.shape) for part in (self.a, self.b)]
        if self.kind == "low_rank":
            rank = self.a.shape[0] if self.a is not None else 0
            good = shapes == [[rank, k], [n, rank]] and self.index is None
            return None if good else f"a must be [r, {k}] and b [{n}, r], with no index, not {shapes[0]} and {shapes[1]}"
        index = self.index
        good = index is not None and index.dtype == np.int64 and index.ndim == 1 and index.size > 0
        if not good or index is None or index[0] < 0 or index[-1] >= k or (np.diff(index) <= 0).any():
            return f"index must be int64, ascending, each once, from 0 to {k - 1}"
        return None if shapes == [[n, index.size], None] else f"a must be [{n}, {index.size}], with no b, not {shapes[0]} and {shapes[1]}"

    def native(self, n: int, k: int, act: str | None) -> Any:
        """The native branch of a weight [n, k] whose layer has these activations."""
        from anybit.kernels.cpu import native

        own = act if self.kind == "residual" else None
        a, b = (None if weight is None else native_weight(weight, own) for weight in (self.a, self.b))
        return native.Branch(self.kind, a, b, self.index, n, k)

    @cached_property
    def arrays(self) -> int:
        """Stored bytes."""
        return sum(part.nbytes for part in (self.a, self.b) if part is not None) + (self.index.nbytes if self.index is not None else 0)


@dataclass(frozen=True, eq=False)
class Linear:
    """y = post(Q(pre(x)) weight^T + branches + bias): a weight with its input's format, transforms before and after, and added branches.

    `weight` is a QTensor (dense weights are one too), `bias` float32[n], `act` what Q rounds to (None: nothing), `product` the text of a
    product rule (None: multiplication). All of it is one native call; the order of its arithmetic is in docs/contract.md.
    """

    weight: QTensor
    bias: np.ndarray | None = None
    pre: tuple[Transform, ...] = ()
    act: ActSpec | None = None
    branches: tuple[Branch, ...] = ()
    post: tuple[Transform, ...] = ()
    product: str | None = None

    @classmethod
    def of_floats(cls, values: Any) -> Linear:
        """A matrix of float32 numbers [n, k] with nothing around it."""
        return cls(QTensor.dense(np.ascontiguousarray(values, np.float32)))

    @property
    def act_name(self) -> str | None:
        """Kernels' name of the input format: "int8", "int4", or None (float, which may have been rounded to a format before)."""
        return None if self.act is None else self.act.kernel_name

    @property
    def act_text(self) -> str:
        """The input's format for people: "float", "int8", "int8 (one scale)", "fp4_e2m1@32:e8m0 (rounded, multiplied as float)"."""
        if self.act is None:
            return "float"
        one = "" if self.act.dynamic else " (one scale)"
        return f"{self.act.text}{one}" if self.act_name else f"{self.act.text}{one} (rounded, multiplied as float)"

    @property
    def around(self) -> tuple[str, ...]:
        """The kinds of what runs around the weight, in their order."""
        return (*(t.kind for t in self.pre), *(b.kind for b in self.branches), *(t.kind for t in self.post))

    @property
    def nbytes(self) -> int:
        """Stored bytes: of the weight, and of the arrays of transforms and branches."""
        data = sum(t.data.nbytes for t in (*self.pre, *self.post) if t.data is not None)
        return self.weight.nbytes + data + sum(branch.arrays for branch in self.branches)

    @cached_property
    def rule(self) -> Product | None:
        """The product rule; None: multiplication. UnknownNameError, UsageError: its text names none."""
        return None if self.product is None else parse_product(self.product)

    @cached_property
    def native(self) -> Any:
        """The native weight. NoKernelError: something that no native kernel runs."""
        return native_weight(self.weight, self.act_name, self.rule)

    @cached_property
    def native_product(self) -> Any:
        """The native product rule for this weight; None: multiplication."""
        return _native_product(self.rule, self.weight, self.act_name)

    @cached_property
    def use(self) -> Any:
        """The native layer, for the engine. NoKernelError: nothing runs a part of it. ShapeError: a part does not fit."""
        from anybit.kernels.cpu import ACTS, native

        self.check()
        n, k = self.weight.shape
        branches = [branch.native(n, k, self.act_name) for branch in self.branches]
        bias = None if self.bias is None else np.ascontiguousarray(self.bias, np.float32)
        input_plan = native_input(self.pre, self.cleared, self.act, k)
        product = self.native_product
        return native.Use(self.native, bias, ACTS[self.act_name], product, input_plan, branches, native_steps(self.post, n))

    def check(self) -> None:
        """ShapeError: a transform, branch or bias does not fit. NoKernelError: nothing runs the weight or a branch with its activations."""
        if len(self.weight.shape) != 2:
            raise ShapeError(f"a linear layer's weight is a matrix, not an array of shape {list(self.weight.shape)}")
        n, k = self.weight.shape
        if self.bias is not None and self.bias.shape != (n,):
            raise ShapeError(f"bias of shape {list(self.bias.shape)} is not [{n}], one number for each output")
        for transform in self.pre:
            transform.check(k)
        for transform in self.post:
            transform.check(n)
        check_kernel(self.weight, self.act_name, native=True, rule=self.rule)
        for branch in self.branches:
            branch.check(n, k, self.act)

    @property
    def cleared(self) -> tuple[int, ...]:
        """Columns of the input that the weight sees as +0, because a branch has them."""
        columns = [branch.index for branch in self.branches if branch.kind == "columns" and branch.index is not None]
        return tuple(sorted({int(i) for index in columns for i in index}))

    @property
    def input_key(self) -> tuple[object, ...]:
        """Layers with equal keys may share one prepared input (q, k, v; gate and up)."""
        block = self.weight.format.block
        key = (self.pre, self.cleared, self.act, self.weight.shape[1])
        return (*key, str(block) if self.act_name is not None else None, self.product)

    def __call__(self, x: Any) -> np.ndarray:
        """float32[..., n] of float32[..., k]. Errors as `QTensor.matmul`, `Transform.check`, `Branch.check`."""
        if not self.around and (self.act is None or self.act is INT8 or self.act is INT4):
            return run_matmul(self.weight, x, self.act_name, self.bias, self.rule)
        rows, shape = input_rows(self.weight, x, self.bias)
        y, problem = self.use.run(rows)
        if problem is not None:
            row, what, fault = problem
            raise NonFiniteError(f"{what} {fault} in row {row}")
        return np.asarray(y).reshape(shape)


_INPUTS: WeakValueDictionary[tuple[object, ...], Any] = WeakValueDictionary()


def native_input(pre: tuple[Transform, ...], cleared: tuple[int, ...], act: ActSpec | None, k: int) -> Any:
    """How the native module makes an input; one object for equal needs, by which layers share it. None: it is taken as it comes."""
    from anybit.kernels.cpu import native

    rounded = act is not None and act.kernel_name is None
    scale = act.scale if act is not None and not rounded else None
    if not pre and not cleared and not rounded and scale is None:
        return None
    key = (pre, cleared, act, k)
    found = _INPUTS.get(key)
    if found is None:
        columns = np.array(cleared, np.int64) if cleared else None
        rounding, residual = (act.rounding(), act.left_over()) if act is not None and rounded else (None, None)
        found = _INPUTS[key] = native.InputPlan(native_steps(pre, k), columns, scale or 0.0, rounding, residual, k)
    return found


def check_kernel(weight: QTensor, act: str | None, native: bool = False, rule: Product | None = None) -> Any:
    """The choice of kernel for a weight, an input format and a product rule; `native`: for the engine. NoKernelError: none."""
    from anybit.kernels import choose
    from anybit.kernels.cpu import op_spec

    reason = rule.refuses(weight.format, act) if rule is not None else None
    if reason is not None:
        raise NoKernelError(reason)
    return choose(op_spec(weight.format, weight.layout, act, rule.kind if rule is not None else None), native)


def native_weight(weight: QTensor, act: str | None, rule: Product | None = None) -> Any:
    """A weight as the native kernel that `check_kernel` chooses takes it. NoKernelError: none."""
    return weight.prepared(check_kernel(weight, act, native=True, rule=rule).kernel)


def _native_product(rule: Product | None, weight: QTensor, act: str | None) -> Any:
    from anybit.kernels.product import native_product

    return None if rule is None else native_product(rule, weight.format.element, act)


def run_matmul(weight: QTensor, x: Any, act: str | None, bias: np.ndarray | None, rule: Product | None = None) -> np.ndarray:
    """See `QTensor.matmul`."""
    from anybit.kernels.cpu import ACTS

    spec = ActSpec.named(act)
    if spec is not None and spec.kernel_name is None:
        return Linear(weight, bias, act=spec, product=None if rule is None else rule.name)(x)
    name = spec.kernel_name if spec else None
    kernel = check_kernel(weight, name, rule=rule).kernel
    rows, shape = input_rows(weight, x, bias)
    flat_bias = None if bias is None else np.ascontiguousarray(bias, dtype=np.float32)
    if kernel.run is not None:
        bad = ~np.isfinite(rows).all(axis=1)
        if bad.any():
            raise NonFiniteError(f"non-finite value in row {int(np.argmax(bad))} of the input")
        return np.asarray(kernel.run(weight, rows, name, flat_bias)).reshape(shape)
    try:
        y = weight.prepared(kernel).matmul(rows, ACTS[name], flat_bias, _native_product(rule, weight, name))
    except ValueError as error:
        if "non-finite" in str(error):
            raise NonFiniteError(str(error)) from None
        raise
    return np.asarray(y).reshape(shape)


def input_rows(weight: QTensor, x: Any, bias: np.ndarray | None) -> tuple[np.ndarray, tuple[int, ...]]:
    """An input as float32[m, k], and the result's shape. ShapeError: it does not end in k, or the bias is no number for each output."""
    array = as_real(x)
    if len(weight.shape) != 2 or array.ndim == 0 or array.shape[-1] != weight.shape[-1]:
        raise ShapeError(f"x of shape {list(array.shape)} does not end in k = {weight.shape[-1]} of the weight {list(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"bias of shape {list(bias.shape)} is not [{weight.shape[0]}], one number for each output")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is refused later
        rows = np.ascontiguousarray(array, dtype=np.float32).reshape(-1, array.shape[-1])
    return rows, (*array.shape[:-1], weight.shape[0])
