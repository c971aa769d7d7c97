"""Operators of a `Graph`, as data: what each needs, and the shape that it gives. Names and defaults are those of PyTorch.

Shapes are without the batch: (channels, height, width) or (features,). A tensor of an operator is called `<node>.<name>` (`conv1.weight`),
as in a PyTorch state dict.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from anybit.errors import ShapeError

Shape: TypeAlias = tuple[int, ...]
Pair: TypeAlias = tuple[int, int]


def _whole(what: str, value: object, least: int) -> int:
    """ShapeError: no whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ShapeError(f"{what} is {value!r}; it must be a whole number of at least {least}")
    return value


def _pair(what: str, value: object, least: int) -> Pair:
    if not isinstance(value, tuple) or len(value) != 2:
        raise ShapeError(f"{what} is {value!r}; it must be (vertical, horizontal)")
    return _whole(what, value[0], least), _whole(what, value[1], least)


def _image(given: Shape) -> tuple[int, int, int]:
    if len(given) != 3:
        raise ShapeError(f"it needs (channels, height, width), not {given}")
    return given[0], given[1], given[2]


def _windows(given: Shape, kernel: Pair, stride: Pair, padding: Pair) -> Pair:
    """How many windows fit: floor((size + 2 padding - kernel) / stride) + 1 in each direction."""
    found = []
    for axis, size in enumerate(_image(given)[1:]):
        kernels, step = _pair("the kernel", kernel, 1)[axis], _pair("the stride", stride, 1)[axis]
        room = size + 2 * _pair("the padding", padding, 0)[axis]
        if room < kernels:
            raise ShapeError(f"a kernel of {kernel} does not fit into {given[1:]} with padding {padding}")
        found.append((room - kernels) // step + 1)
    return found[0], found[1]


@dataclass(frozen=True)
class Operator:
    """Base. `arity`: how many inputs it takes; `homogeneous`: f(s x) = s f(x) for every s > 0, channel by channel."""

    arity = 1
    homogeneous = False

    def shape(self, *given: Shape) -> Shape:
        """The output's shape. ShapeError: the inputs or the parameters do not fit."""
        raise NotImplementedError

    def tensors(self, *given: Shape) -> dict[str, Shape]:
        """Name and shape of each tensor that it needs."""
        return {}

    def macs(self, *given: Shape) -> int:
        """Multiplications of weights for one sample."""
        return 0


@dataclass(frozen=True)
class Conv2d(Operator):
    """2-D cross-correlation with zero padding: weight [channels, in / groups, kernel], bias [channels]."""

    channels: int
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    groups: int = 1
    bias: bool = True

    def shape(self, *given: Shape) -> Shape:
        channels, groups = _whole("channels", self.channels, 1), _whole("groups", self.groups, 1)
        if _image(given[0])[0] % groups or channels % groups:
            raise ShapeError(f"{groups} groups do not divide {given[0][0]} channels in and {channels} out")
        return channels, *_windows(given[0], self.kernel, self.stride, self.padding)

    def tensors(self, *given: Shape) -> dict[str, Shape]:
        weight: dict[str, Shape] = {"weight": (self.channels, given[0][0] // self.groups, *self.kernel)}
        return {**weight, "bias": (self.channels,)} if self.bias else weight

    def macs(self, *given: Shape) -> int:
        return prod(self.tensors(*given)["weight"]) * prod(self.shape(*given)[1:])


@dataclass(frozen=True)
class Dense(Operator):
    """A linear layer, y = W x + b: weight [features, in], bias [features]."""

    features: int
    bias: bool = True

    def shape(self, *given: Shape) -> Shape:
        if len(given[0]) != 1:
            raise ShapeError(f"it needs (features,), not {given[0]}; put a Flatten before it")
        return (_whole("features", self.features, 1),)

    def tensors(self, *given: Shape) -> dict[str, Shape]:
        weight: dict[str, Shape] = {"weight": (self.features, given[0][0])}
        return {**weight, "bias": (self.features,)} if self.bias else weight

    def macs(self, *given: Shape) -> int:
        return self.features * given[0][0]


@dataclass(frozen=True)
class BatchNorm(Operator):
    """Normalisation of each channel (or feature) by stored statistics: (x - mean) weight / sqrt(var + eps) + bias."""

    eps: float = 1e-5

    def shape(self, *given: Shape) -> Shape:
        if len(given[0]) not in (1, 3):
            raise ShapeError(f"it needs (channels, height, width) or (features,), not {given[0]}")
        if not self.eps > 0:
            raise ShapeError(f"eps is {self.eps!r}; it must be positive")
        return given[0]

    def tensors(self, *given: Shape) -> dict[str, Shape]:
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), given[0][:1])


@dataclass(frozen=True)
class Relu(Operator):
    """max(x, 0)"""

    homogeneous = True

    def shape(self, *given: Shape) -> Shape:
        return given[0]


@dataclass(frozen=True)
class MaxPool(Operator):
    """The largest number of each window; padding (at most half a kernel) never is."""

    kernel: Pair
    stride: Pair | None = None
    padding: Pair = (0, 0)

    homogeneous = True

    @property
    def step(self) -> Pair:
        """The stride; the kernel's size where none was given."""
        return self.kernel if self.stride is None else self.stride

    def shape(self, *given: Shape) -> Shape:
        if any(2 * p > k for p, k in zip(_pair("the padding", self.padding, 0), _pair("the kernel", self.kernel, 1), strict=True)):
            raise ShapeError(f"padding {self.padding} is more than half of the kernel {self.kernel}")
        return given[0][0], *_windows(given[0], self.kernel, self.step, self.padding)


@dataclass(frozen=True)
class AveragePool(Operator):
    """The mean of each window, zeros of the padding counted in. Without a kernel: of the whole image, (channels, 1, 1)."""

    kernel: Pair | None = None
    stride: Pair | None = None
    padding: Pair = (0, 0)

    homogeneous = True

    def window(self, given: Shape) -> tuple[Pair, Pair]:
        """(kernel, stride) for an input of a shape."""
        kernel = self.kernel or (given[1], given[2])
        return kernel, self.stride or kernel

    def shape(self, *given: Shape) -> Shape:
        _image(given[0])
        kernel, stride = self.window(given[0])
        if any(2 * p > k for p, k in zip(_pair("the padding", self.padding, 0), _pair("the kernel", kernel, 1), strict=True)):
            raise ShapeError(f"padding {self.padding} is more than half of the kernel {kernel}")
        if self.kernel is None and (self.stride is not None or self.padding != (0, 0)):
            raise ShapeError("stride and padding need a kernel; without one it averages the whole image")
        return given[0][0], *_windows(given[0], kernel, stride, self.padding)


@dataclass(frozen=True)
class Add(Operator):
    """The sum of two values of one shape: a residual addition."""

    arity = 2

    def shape(self, *given: Shape) -> Shape:
        if given[0] != given[1]:
            raise ShapeError(f"it adds equal shapes, not {given[0]} and {given[1]}")
        return given[0]


@dataclass(frozen=True)
class Flatten(Operator):
    """(channels, height, width) to (features,), in C order."""

    homogeneous = True

    def shape(self, *given: Shape) -> Shape:
        return (prod(given[0]),)


WEIGHTED = (Conv2d, Dense)
"""Operators with a weight matrix: the layers that are quantized."""
