"""Static activations: one scale for the whole input, from calibration, instead of one for each block of each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anybit.errors import UsageError
from anybit.formats import Spec
from anybit.methods.step import STEPS, Group, GroupStep

SHARES = np.linspace(1, 0.3, 29)  # of the largest magnitude, for `search`


def reach(act: str) -> float:
    """What the largest number of an input is over its one scale: 127 of int8, the element's end, or that times its block scales' end.

    UsageError: the format has no scale that could be given.
    """
    if act == "int8":
        return 127.0
    fmt = Spec.parse(act).format
    if fmt.block is not None and len(fmt.levels) == 2 and str(fmt.levels[0].block) == "tensor":
        return float(fmt.element.max * fmt.levels[0].element.max)
    if fmt.block is not None and fmt.block.kind == "tensor" and len(fmt.levels) == 1:
        return float(fmt.element.max)
    raise UsageError(
        f"activations in {act} take no given scale; use int8, an element @tensor (fp8_e4m3fn@tensor), or two levels, the second @tensor"
    )


@STEPS.register("static_activations")
@dataclass(frozen=True)
class StaticActivations(GroupStep):
    """Gives a group's activations one calibrated scale: the largest magnitude over the format's end.

    `per` "channel": each input channel is divided by its own largest magnitude first (folded into the norm, v_proj or up_proj where that
    can be, and into the weights), which is a scale for every channel. `search`: the share of the largest magnitude, from 1 to 0.3, that
    rounds some of the tokens with the least squared error; for int8 and elements @tensor. Comes after steps that change the input.
    """

    source: ClassVar[str] = "Krishnamoorthi, Quantizing deep convolutional networks for efficient inference, arXiv 1806.08342, section 3.1"
    needs: ClassVar[frozenset[str]] = frozenset({"absmax", "rows"})  # after a rotation only the rows tell the largest
    per: str = "tensor"
    search: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per not in ("tensor", "channel"):
            raise ValueError(f"'per' is '{self.per}'; there is tensor and channel")

    def apply(self, group: Group) -> None:
        """See `GroupStep.apply`."""
        if group.act is None:
            group.note("its activations are float: there is no scale to fix")
            return
        top = reach(group.act)
        if group.stats.absmax is None or not group.stats.count or not group.stats.absmax.max() > 0:
            group.note("no token reached it: its activations' scales stay dynamic")
            return
        if self.per == "channel":
            absmax = group.stats.absmax.astype(np.float64)
            group.scale_input(group.tied(np.where(absmax > 0, absmax, 1)))
        assert group.stats.absmax is not None
        most = float(group.stats.absmax.max())
        rows = group.stats.rows
        if self.search and rows is not None and len(rows):
            most *= self.best(rows, most, group.act)
        group.act_scale = float(np.float32(most / top))

    def best(self, rows: np.ndarray, most: float, act: str) -> float:
        """The share of `most` under which float32[r, k] are rounded with the least squared error."""
        spec = Spec.parse("int8_sym@tensor" if act == "int8" else act)
        element, top = spec.format.element, reach(act)
        if len(spec.format.levels) != 1:
            return 1.0
        errors = []
        for share in SHARES:
            scale = share * most / top
            values = element.decode(element.encode(rows / scale, over="saturate")) * scale
            errors.append(float(np.square(values - rows, dtype=np.float64).sum()))
        return float(SHARES[int(np.argmin(errors))])
