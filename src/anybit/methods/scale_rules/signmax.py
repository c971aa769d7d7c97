"""signmax: mirrored blocks."""

from __future__ import annotations

import numpy as np

from anybit.errors import FormatError
from anybit.methods.scales import Range, scale_rule


@scale_rule("signmax")
def signmax(r: Range) -> list[np.ndarray]:
    """The value of largest magnitude goes to the element's least value, by a negative scale where it is positive: d = max / -8 for int4.

    Uses the most negative code of two's complement, which absmax leaves out. Source: GGUF's Q4_0 (llama.cpp, ggml-quants).
    FormatError: the scale has no sign or the element no negative side.
    """
    if not r.scale.signed:
        raise FormatError(f"scale=signmax needs a signed scale, and {r.scale} has no sign; use bf16, fp16 or fp32 scales")
    if not r.bottom < 0 or -r.bottom < r.most:
        raise FormatError("scale=signmax needs an element whose negative side reaches at least as far as its positive one; use absmax")
    return [np.where(-r.low > r.high, r.low, r.high) / r.bottom]
