"""ActSpec: the format of a linear layer's input, and what runs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from anybit.errors import FormatError, NoKernelError
from anybit.formats import Format, Policy, Spec

_USE = "use float or int8 (int4 with a table product), or a format with blocks, such as mxfp8, nvfp4 or fp8_e4m3fn@token"


@dataclass(frozen=True)
class ActSpec:
    """The format of a linear layer's input.

    Integer activations, `INT8` and `INT4`, run on integer kernels; |q| <= 127 or 7, the block is the weight's. Any other format is
    *rounded*: each token's numbers become their values in it, and a float kernel multiplies these exactly (what W4A4 or FP8 hardware
    would see, at the speed of float activations). A scale "for the tensor" is then one for the token.

    dynamic: scales are taken from each block of each token. Otherwise `scale` is the one of the whole tensor, from calibration: int8 codes
    are rne(x / scale), and formats are of `@tensor`, or have two levels, of which it is the second.
    """

    format: Format
    dynamic: bool = True
    scale: float | None = None
    policy: Policy = field(default_factory=Policy)

    @property
    def kernel_name(self) -> str | None:
        """The name under which kernels know it: "int8", "int4", or None for what is rounded. NoKernelError: nothing takes it."""
        for name, spec in (("int8", INT8), ("int4", INT4)):
            if self is spec or self == spec:
                return name
        if self.format == INT8.format and self.policy == Policy() and not self.dynamic and self._given() is not None:
            return "int8"
        self.rounding()
        return None

    @property
    def text(self) -> str:
        """What `named` reads and checkpoints store, the scale left out."""
        name = "int8" if self.format == INT8.format else "int4" if self.format == INT4.format else None
        return name or f"{self.format.explicit}{self.policy}"

    def rounding(self) -> Any:
        """The native rounding of a token's numbers, for formats other than int8 and int4. NoKernelError: there is none."""
        return _rounding(self.format, self.policy, self._given())

    def left_over(self) -> Any:
        """The same with dynamic scales, for what a rounded input leaves (branches of kind "residual")."""
        return _rounding(self.format, self.policy, None) if self.dynamic else None

    def _given(self) -> float | None:
        if self.dynamic == (self.scale is None):
            if self.scale is not None and not 2.0**-100 <= self.scale <= 2.0**100:
                raise NoKernelError(f"activations with the scale {self.scale:g}: it must lie from 2^-100 to 2^100")
            return self.scale
        raise NoKernelError(f"no kernel takes activations in {self.format} that are {_state(self)}; give a scale, or dynamic ones")

    @classmethod
    def named(cls, name: str | None, scale: float | None = None) -> ActSpec | None:
        """None and "float" mean float activations, "int8" dynamic int8 (|q| <= 127), one scale a block of each token, "int4" the same
        (|q| <= 7) for product rules that look up codes. Anything else is a format with blocks that the input is rounded to ("mxfp8").

        scale: a calibrated one, of the whole tensor. NoKernelError: nothing takes such activations.
        """
        if name in (None, "float") and scale is None:
            return None
        if name in ("int8", "int4"):
            found = INT8 if name == "int8" else INT4
            return found if scale is None else _checked(cls(found.format, False, float(scale)))
        try:
            spec = Spec.parse(str(name))
        except FormatError:
            raise NoKernelError(f"no kernel takes '{name}' activations; {_USE}") from None
        return _checked(cls(spec.format, scale is None, None if scale is None else float(scale), spec.policy))


def _checked(spec: ActSpec) -> ActSpec:
    _ = spec.kernel_name
    return spec


def _state(spec: ActSpec) -> str:
    return "dynamic and have a scale" if spec.dynamic else "not dynamic and have no scale"


INT8 = ActSpec(Format("int8_sym"))
"""Dynamic int8 activations, the one integer input that kernels of multiplication take."""
INT4 = ActSpec(Format("int4_sym"))
"""Dynamic int4 activations, for look-ups of small codes."""


@lru_cache(maxsize=64)
def _rounding(fmt: Format, policy: Policy, scale: float | None) -> Any:
    from anybit.methods.round_trip import token_rounding

    spec = Spec(fmt, policy)
    if fmt.block is None and fmt.element.name not in ("fp16", "bf16"):
        raise NoKernelError(f"no kernel takes activations in {fmt} without a block; {_USE}")
    found, reason = token_rounding(spec, scale)
    if found is None:
        raise NoKernelError(f"no kernel takes activations in {spec}: {reason}; {_USE}")
    return found
