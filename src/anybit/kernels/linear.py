"""The native kernels of matrix products: which weights each serves, and how it takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anybit.formats import bound
from anybit.kernels import KERNELS, Kernel, OpSpec
from anybit.kernels.cpu import isa
from anybit.kernels.weights import DENSE_KINDS, coded_weight, dense_weight, float_weight
from anybit.layouts import LAYOUTS


def _on_cpu(accepts: Callable[[OpSpec], str | None]) -> Callable[[OpSpec], str | None]:
    """The same for linear operations on the CPU alone."""

    def asked(spec: OpSpec) -> str | None:
        here = spec.device == "cpu" and spec.op == "linear"
        return accepts(spec) if here else f"it is for linear on cpu, not {spec.op} on {spec.device}"

    return asked


def _act(spec: OpSpec) -> str | None:
    if spec.act is not None and spec.table == "f32":
        return "the element fits no integer table: use float activations"
    return f"it takes float or int8 activations, not {spec.act}" if spec.act not in (None, "int8") else None


def _float_act(spec: OpSpec) -> str | None:
    return None if spec.act is None else "dense weights have no integer table: use float activations"


# ------------------------------------------------------------------------------------------------ read as they lie
def _accept_tile16x4(spec: OpSpec) -> str | None:
    if spec.dim > 1:
        return f"it decodes one weight a code, not {spec.dim}"
    repacked = spec.layout == "rows" and spec.bits <= 8 and not spec.dense
    if spec.layout != "tile16x4" and not repacked:
        return f"it reads tile16x4, not {spec.layout}"
    return _act(spec)


def _accept_tile16x1(spec: OpSpec) -> str | None:
    return _float_act(spec) if spec.layout == "tile16x1" else f"it reads tile16x1, not {spec.layout}"


def _accept_base3(spec: OpSpec) -> str | None:
    return "it reads ternary codes with a scale in the layout base3" if spec.layout != "base3" or spec.dense else None


def _accept_escape(spec: OpSpec) -> str | None:
    return _float_act(spec) if spec.layout == "escape" and spec.bits == 16 else "it reads bf16 in the layout escape"


def _coded(weight: Any) -> Any:
    return coded_weight(weight.bound, weight.shape, weight.parts, weight.grids(), trits=weight.layout == "base3")


def _dense(weight: Any) -> Any:
    return dense_weight(weight.format.element.name, weight.shape, weight.parts["codes"], weight.parts.get("index"))


# ------------------------------------------------------------------------------------------------ made anew, once
def _accept_unpacked(spec: OpSpec) -> str | None:
    if spec.dense or spec.bits > 8 or spec.dim > 1:
        return "it is for codes of up to 8 bits with a scale, one a weight"
    return f"{spec.layout} is read as it lies" if spec.layout in ("tile16x4", "base3") else _act(spec)


def _accept_expanded(spec: OpSpec) -> str | None:
    return None if spec.act is None else "it computes in float32 only: use float activations"


def _tiled(weight: Any) -> Any:
    """Of the same codes in tile16x4."""
    if weight.layout == "tile16x4":
        return _coded(weight)
    fmt, layout = weight.format.plain, LAYOUTS["tile16x4"]
    parts = layout.pack(fmt, weight.shape, weight.logical())
    return coded_weight(bound(fmt, parts), weight.shape, parts, layout.grids(fmt, weight.shape, parts))


def _expanded(weight: Any) -> Any:
    """In float32; machine types as they are."""
    fmt = weight.format.plain
    if fmt.block is not None or fmt.element.name not in DENSE_KINDS:
        return float_weight(weight.expanded())
    codes = LAYOUTS["tile16x1"].pack(fmt, weight.shape, {"codes": weight.logical()["codes"]})["codes"]
    return dense_weight(fmt.element.name, weight.shape, codes)


for _name, _priority, _accepts, _prepare, _about in (
    ("linear_tile16x4", 20, _accept_tile16x4, _tiled, "codes of 1 to 8 bits, decoded panel by panel"),
    ("linear_tile16x1", 20, _accept_tile16x1, _dense, "dense float32, float16, bfloat16"),
    ("linear_base3", 20, _accept_base3, _coded, "ternary codes, five a byte, decoded panel by panel"),
    ("linear_escape", 20, _accept_escape, _dense, "lossless bf16, decoded panel by panel"),
    ("linear_unpacked", 10, _accept_unpacked, _tiled, "codes of any layout, decoded once to tile16x4 in memory"),
    ("linear_expanded", 0, _accept_expanded, _expanded, "the whole weight expanded to float32 once: 32 bits a weight in memory"),
):
    KERNELS.add(_name, Kernel(_name, _priority, _on_cpu(_accepts), isa, _about, prepare=_prepare))
