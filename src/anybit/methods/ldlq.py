"""LDLQ: feedback of errors in groups of weights, for codes that stand for several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from anybit.methods.gptq import Gptq
from anybit.methods.step import STEPS


@STEPS.register("ldlq")
@dataclass(frozen=True)
class Ldlq(Gptq):
    """The block form: H = A D A^T with A unit upper block triangular in blocks of the element's `dim` columns; each group of a row becomes
    the vector nearest to w_g + sum_{h<g} e_h A_hg. What gptq does for elements of several weights, in the order of the stored columns.
    """

    source: ClassVar[str] = "Chee et al. 2023, QuIP, arXiv 2307.13304, eq. 2; blocks: Tseng et al. 2024, QuIP#, arXiv 2402.04396, section 4"
    order: str = "natural"
