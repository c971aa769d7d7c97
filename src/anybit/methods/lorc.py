"""LoRC: a low-rank matrix beside the rounded weight, from the singular vectors of what rounding lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anybit.formats import Spec
from anybit.methods.curvature import check_options, curvature
from anybit.methods.rtn import dequantize_parts, quantize_parts
from anybit.methods.statistics import Statistics
from anybit.methods.step import STEPS, Added, Correction, Target


@STEPS.register("lorc")
@dataclass(frozen=True)
class Lorc(Correction):
    """E = W - Q(W) is replaced by its best approximation b a of rank `rank`, stored as `format`.

    weighted: best for the outputs, || E X^T - b a X^T ||, instead of for the weights: E L = U S V^T with H = L L^T = X^T X, a = V^T L^-1
    (LQER, EoRA). Otherwise || E - b a || (ZeroQuant-V2).
    """

    source: ClassVar[str] = "Yao et al. 2023, ZeroQuant-V2, arXiv 2303.08302, section 5; weighted: Liu et al. 2024, EoRA, arXiv 2410.21271"
    needs: ClassVar[frozenset[str]] = frozenset({"xtx"})
    rank: int = 8
    weighted: bool = True
    format: str = "bf16"
    damp: float = 0.001

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"'rank' is {self.rank}; it must be at least 1")
        check_options(self.damp, "natural")
        Spec.parse(self.format).check()

    def asks(self, spec: Spec) -> frozenset[str]:
        """X^T X where it is weighted."""
        return self.needs if self.weighted else frozenset()

    def correct(self, target: Target, stats: Statistics) -> None:
        """See `Correction.correct`."""
        error = target.weight.astype(np.float64) - target.rounded
        rank = min(self.rank, *error.shape)
        factor = None
        if self.weighted:
            found = curvature(stats, self.damp, "natural")
            if found is None:
                target.hear(f"{stats.missing}: its low-rank part is not weighted")
            else:
                target.hear(*found.notes)
                factor = found.factor
        left, sizes, right = np.linalg.svd(error if factor is None else error @ factor, full_matrices=False)
        roots = np.sqrt(sizes[:rank])
        b, a = left[:, :rank] * roots, roots[:, None] * right[:rank]
        if factor is not None:
            a = np.linalg.solve(factor.T, a.T).T
        # both factors alike in size, whatever the weighting did to a
        balance = np.sqrt(np.maximum(np.abs(a).max(axis=1), 1e-30) / np.maximum(np.abs(b).max(axis=0), 1e-30))
        made = ((a / balance[:, None]).astype(np.float32), (b * balance).astype(np.float32))
        spec = Spec.parse(self.format)
        kept = [dequantize_parts(quantize_parts(each, spec, name=target.name), spec.format, each.shape) for each in made]
        target.added.append(Added("low_rank", kept[0], kept[1], None, self.format, "LoRC"))
