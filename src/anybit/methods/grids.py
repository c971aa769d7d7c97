"""The grid that each block's values are placed on: scale, zero point and offset, chosen, stored and applied."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anybit.formats import Block, Box, Element, Format, Policy, Spec
from anybit.formats.rounding import round_integral, stochastic_bits
from anybit.formats.stochastic import stochastic_integral
from anybit.kernels.rounding import codes as native_codes
from anybit.methods.chain import Chain, Shape
from anybit.methods.scales import Range, Rule

LIMIT = 1 << 18
_LARGEST = float(np.finfo(np.float32).max)


def values_of(element: Element, codes: np.ndarray) -> np.ndarray:
    """float32 values of codes."""
    table = element.table.values
    return table[codes] if table.size else element.decode(codes).astype(np.float32)


def codes_of(element: Element, x: np.ndarray, policy: Policy, word: np.ndarray | None) -> np.ndarray:
    """Codes of finite float32 or float64 values under a checked policy; stochastic rounding without words is to nearest."""
    bits = stochastic_bits(policy.round)
    if bits is None:
        return native_codes(element, x, policy.round, policy.over)
    return native_codes(element, x, "nearest-even", policy.over) if word is None else element._stochastic(x, bits, policy.over, word)


@dataclass(frozen=True)
class Grids:
    """float32 scale, zero point and offset of each block of some rows, and the first-level parts that store them."""

    parts: dict[str, np.ndarray]
    scale: np.ndarray
    zero: np.ndarray | None
    offset: np.ndarray | None

    @property
    def divisor(self) -> np.ndarray:
        """The scale, but infinity where a product of tiny scales has vanished: such blocks become zero."""
        return np.where(self.scale == 0, np.float32(np.inf), self.scale)

    def encode(self, values: np.ndarray, box: Box, spec: Spec, word: np.ndarray | None = None) -> np.ndarray:
        """Codes of one box of finite values. `word`: a random word for each, for stochastic rounding; without, that is to nearest."""
        element, policy = spec.format.element, spec.policy
        with np.errstate(over="ignore", under="ignore"):
            if self.offset is not None:
                values = values - box.spread(self.offset)
            ratio = values / box.spread(self.divisor)
            if self.zero is None:
                return codes_of(element, ratio, policy, word)
            if not spec.format.whole_zero:
                return codes_of(element, ratio + box.spread(self.zero), policy, word)
            bits = stochastic_bits(policy.round)
            if bits is None:
                whole = round_integral(ratio, policy.round)
            else:
                whole = np.rint(ratio) if word is None else stochastic_integral(ratio, bits, word)
            return native_codes(element, whole + box.spread(self.zero), "nearest-even", policy.over)

    def decode(self, codes: np.ndarray, box: Box, element: Element) -> np.ndarray:
        """float32 values of one box of codes."""
        value = values_of(element, codes)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            if self.zero is not None:
                value = value - box.spread(self.zero)
            value = value * box.spread(self.scale)
            return value if self.offset is None else value + box.spread(self.offset)


class Chooser:
    """Chooses grids for an array of one shape: first `settle` the scales of scales over all rows, then `choose` for some rows at a time."""

    def __init__(self, spec: Spec, rule: Rule, shape: Shape) -> None:
        self.spec, self.fmt, self.rule = spec, spec.format, rule
        self.scales = Chain(self.fmt, shape, [level.element for level in self.fmt.levels])
        self.offsets: Chain | None = None
        if self.fmt.offset is not None:
            self.offsets = Chain(self.fmt, shape, [self.fmt.offset_element(i) for i in range(len(self.fmt.levels))])

    def offset_targets(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """The offsets that put a block's least value onto the element's."""
        element = self.fmt.element
        return low - element.min * ((high - low) / (element.max - element.min))

    def see(self, low: np.ndarray, high: np.ndarray, offset: np.ndarray | None) -> Range:
        """What the scale rule is shown: the range after the offset, or its width under a zero point."""
        element, scale = self.fmt.element, self.fmt.levels[0].element
        count = len(element.finite) if element.bits <= 16 else 1 << element.bits
        if offset is not None:
            return Range(low - offset, high - offset, min(element.min, 0.0), element.max, element.min, count, scale)
        if self.fmt.zero is not None:
            width = np.maximum(high, 0) - np.minimum(low, 0)
            return Range(np.zeros_like(width), width, 0.0, element.max - element.min, 0.0, count, scale)
        return Range(low, high, -element.reach[0], element.reach[1], element.min, count, scale)

    def choose(self, x: np.ndarray, low: np.ndarray, high: np.ndarray, rows: slice) -> Grids:
        """Grids of the blocks in some rows of the block grid, whose values are x and extremes low and high (float64).

        If the rule gives several scales: the one with the least squared error, block by block.
        """
        parts: dict[str, np.ndarray] = {}
        offset = None
        if self.offsets is not None:
            parts["offset.0"], offset = self.offsets.offsets(self.offset_targets(low, high), rows)
        candidates = self.rule(self.see(low, high, offset))
        if len(candidates) == 1:
            return self._settle(candidates[0], low, high, offset, parts, rows)
        best, least_error = candidates[0], np.full(low.shape, np.inf)
        for target in candidates:
            error = self._squared_error(self._settle(target, low, high, offset, parts, rows), x, low, high)
            better = error < least_error
            best, least_error = np.where(better, target, best), np.where(better, error, least_error)
        return self._settle(best, low, high, offset, parts, rows)

    def _settle(
        self, target: np.ndarray, low: np.ndarray, high: np.ndarray, offset: np.ndarray | None, parts: dict[str, np.ndarray], rows: slice
    ) -> Grids:
        element, zero = self.fmt.element, self.fmt.zero
        # Nothing that a code can mean may run out of float32.
        limit = np.full(low.shape, _LARGEST)
        if offset is not None:
            limit = limit - (np.abs(offset) if element.min < 0 else np.maximum(offset, 0))
        reach = max(element.max, -element.min) if zero is None else element.max - element.min
        codes, scale = self.scales.scales(target, limit / reach, rows)
        if zero is None:
            return Grids({"scale.0": codes, **parts}, scale, None, offset)
        least, most = max(zero.min, element.min), min(zero.max, element.max)
        divisor = np.where(scale == 0, np.inf, scale)
        wanted = np.zeros_like(low) if offset is not None else np.clip(element.min - np.minimum(low, 0) / divisor, least, most)
        if offset is None and (least > element.min or most < element.max):
            # The zero point's element reaches less far than the codes do: the scale grows until the range fits.
            above = np.maximum(high, 0) / np.maximum(element.max - wanted, 0.5)
            below = np.maximum(-low, 0) / np.maximum(wanted - element.min, 0.5)
            codes, scale = self.scales.scales(np.maximum(np.maximum(above, below), target), limit / reach, rows)
        stored = zero.encode(wanted)
        return Grids({"scale.0": codes, "zero": stored, **parts}, scale, zero.decode(stored).astype(np.float32), offset)

    def _squared_error(self, grids: Grids, x: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """float64: the sum of squared differences that coding would leave in each block; non-finite values count as clipped.

        Under stochastic rounding those of rounding to nearest: a scale is not chosen by chance.
        """
        error = np.zeros(low.shape)
        for box in _block(self.fmt).boxes(x.shape, LIMIT):
            values = x[box.take].reshape(box.split)
            if self.spec.policy.nonfinite != "error":
                values = tame(values, box, low, high)
            found = grids.decode(grids.encode(values, box, self.spec), box, self.fmt.element)
            error[box.grid] += np.square(np.subtract(values, found, dtype=np.float64)).sum(axis=box.within)
        return error


def tame(values: np.ndarray, box: Box, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """NaN to zero, infinities to the extremes of their block's finite values."""
    held = np.clip(np.where(np.isnan(values), 0, values), box.spread(low), box.spread(high))
    return np.where(np.isfinite(values), values, held).astype(values.dtype)


def _block(fmt: Format) -> Block:
    assert fmt.block is not None
    return fmt.block
