"""Block Hadamard rotation of a layer's input at run time: outliers are spread over their block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from anybit.methods.step import STEPS, Group, GroupStep


def largest_block(k: int, wish: int | None) -> int:
    """The largest power of two that divides k, and is at most `wish`."""
    most = k & -k
    return most if wish is None else min(most, wish)


@STEPS.register("hadamard")
@dataclass(frozen=True)
class Hadamard(GroupStep):
    """Turns every `block` input channels by the Hadamard matrix over sqrt(block), after random signs (`seed`; None: no signs).

    `block` None, or one that does not divide the channels: the largest power of two that does. The weights hold the inverse, so that the
    product stays; blocks as long as the format's scale blocks are what FP4 needs (arXiv 2511.04214).
    """

    source: ClassVar[str] = (
        "Ashkboos et al., QuaRot, arXiv 2404.00456, online Hadamard; in blocks: Egiazarian et al., MR-GPTQ, arXiv 2509.23202"
    )
    block: int | None = None
    seed: int | None = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block is not None and (self.block < 2 or self.block & (self.block - 1)):
            raise ValueError(f"'block' is {self.block}; it must be a power of two, 2 or more")
        if self.seed is not None and not 0 <= self.seed < 1 << 64:
            raise ValueError(f"'seed' is {self.seed}; it must lie from 0 to 2^64 - 1")

    def apply(self, group: Group) -> None:
        """See `GroupStep.apply`."""
        block = largest_block(group.k, self.block)
        if block == 1:
            group.note(f"{group.k} channels are no multiple of 2: nothing is turned")
            return
        group.hadamard_input(block, self.seed)
