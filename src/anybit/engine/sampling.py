"""How the next token is chosen from logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from anybit.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """temperature 0 takes the largest logit (the lowest id among equals). Otherwise, in this order: the `top_k` most probable tokens
    (0: all), of these the smallest set that holds `top_p` of their probability, of these the ones at least `min_p` times as
    probable as the most probable. One of them is drawn, in the order of ids, with the first 53 bits of Philox4x32-10 at key `seed` and
    counter `position`, so that the result depends on nothing else: neither on the batch nor on earlier draws.

    >>> Sampling(temperature=-1.0)
    Traceback (most recent call last):
        ...
    anybit.errors.UsageError: temperature is -1.0; expected a number of at least 0
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature is {self.temperature}; expected a number of at least 0")
        if self.top_k < 0:
            raise UsageError(f"top_k is {self.top_k}; expected at least 0 (0 keeps all tokens)")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; expected more than 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"min_p is {self.min_p}; expected 0 to 1")
        if not 0 <= self.seed < 1 << 64:
            raise UsageError(f"seed is {self.seed}; expected 0 to 2^64 - 1")
