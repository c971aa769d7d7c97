"""The grid that each block's values are placed on: scale, zero point and offset, chosen, stored and applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from anybit.formats import Box, Element, Policy, Spec
from anybit.formats.rounding import round_integral, stochastic_bits
from anybit.formats.stochastic import stochastic_integral
from anybit.formats.vector import Vector
from anybit.kernels.rounding import block_codes, block_sums, block_values
from anybit.kernels.rounding import codes as native_codes
from anybit.methods.chain import FALL, Chain, ReachError, Shape
from anybit.methods.scales import Range, Rule
from anybit.methods.values import Elsewhere, Values, decoded, encoded, values_of

Walk = Callable[[Callable[[slice, Values], Any]], Iterable[Any]]
LIMIT = 1 << 18
_LARGEST = float(np.finfo(np.float32).max)


def codes_of(element: Element, x: np.ndarray, policy: Policy, word: np.ndarray | None) -> np.ndarray:
    """Codes of finite float32 or float64 values under a checked policy; stochastic rounding without words is to nearest."""
    bits = stochastic_bits(policy.round)
    if isinstance(x, Elsewhere):
        found: np.ndarray = x.encoded(element, policy.round if bits is None or word is not None else "nearest-even", policy.over, word)
        return found
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
    symmetric: float | None = None
    """Where codes end on both sides, whatever the element has beyond."""

    @property
    def divisor(self) -> np.ndarray:
        """The scale, but infinity where a product of tiny scales has vanished: such blocks become zero."""
        return np.where(self.scale == 0, np.float32(np.inf), self.scale)

    def encode(self, values: np.ndarray, box: Box, spec: Spec, word: np.ndarray | None = None) -> np.ndarray:
        """Codes of one box of finite values. `word`: a random word for each, for stochastic rounding; without, that is to nearest."""
        element, policy = spec.format.element, spec.policy
        found = self._encoded(values, box, spec)
        if found is not None:
            return found
        with np.errstate(over="ignore", under="ignore"):
            if self.offset is not None:
                values = values - box.spread(self.offset)
            ratio = values / box.spread(self.divisor)
            if self.symmetric is not None:
                ratio = np.clip(ratio, -self.symmetric, self.symmetric)
            if self.zero is None:
                return codes_of(element, ratio, policy, word)
            if not spec.format.whole_zero:
                return codes_of(element, ratio + box.spread(self.zero), policy, word)
            bits = stochastic_bits(policy.round)
            if bits is None:
                whole = round_integral(ratio, policy.round)
            else:
                whole = np.rint(ratio) if word is None else stochastic_integral(ratio, bits, word)
            return codes_of(element, whole + box.spread(self.zero), replace(policy, round="nearest-even"), None)

    def _encoded(self, values: np.ndarray, box: Box, spec: Spec) -> np.ndarray | None:
        """The same in one native pass. None: it does not lie or round as that needs."""
        element, policy, whole = spec.format.element, spec.policy, self.zero is not None and spec.format.whole_zero
        lies = isinstance(values, np.ndarray) and values.dtype == np.float32 and values.flags.c_contiguous and box.piece
        if not lies or element.dim > 1 or policy.over != "saturate" or stochastic_bits(policy.round) is not None:
            return None
        if whole and policy.round != "nearest-even":
            return None
        assert box.piece is not None
        codes = block_codes(element, policy.round, values.reshape(-1), box.piece, *self._of(box), whole, self.symmetric)
        return None if codes is None else codes.reshape(values.shape)

    def decode(self, codes: np.ndarray, box: Box, element: Element) -> np.ndarray:
        """float32 values of one box of codes."""
        value = values_of(element, codes)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            if self.zero is not None:
                value = value - box.spread(self.zero)
            value = value * box.spread(self.scale)
            return value if self.offset is None else value + box.spread(self.offset)


    def _of(self, box: Box) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Scale, zero point and offset of a box' blocks."""
        zero, offset = (None if each is None else each[box.grid] for each in (self.zero, self.offset))
        return self.scale[box.grid], zero, offset

    def decode_into(self, out: np.ndarray, codes: np.ndarray, box: Box, element: Element) -> None:
        """The same, written to float32 `out`, a view of the box' values."""
        table = element.table.values
        flat = out.flags.c_contiguous and codes.flags.c_contiguous and codes.dtype == np.uint8 and table.ndim == 1 and table.size
        if flat and box.piece and block_values(table, codes.reshape(-1), box.piece, *self._of(box), out.reshape(-1)):
            return
        out[...] = self.decode(codes, box, element).reshape(out.shape)


class Chooser:
    """Chooses grids for an array of one shape: first `settle` the scales of scales over all rows, then `choose` for some rows at a time.

    `place`: takes numbers of the levels above to where the values lie, if that is not the host."""

    def __init__(self, spec: Spec, rule: Rule, shape: Shape, place: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        self.spec, self.fmt, self.rule = spec, spec.format, rule
        self.scales = Chain(self.fmt, shape, [level.element for level in self.fmt.levels], "scale", place)
        self.offsets: Chain | None = None
        if self.fmt.offset is not None:
            self.offsets = Chain(self.fmt, shape, [self.fmt.offset_element(i) for i in range(len(self.fmt.levels))], "offset", place)
        # Candidates may clip; whether what is taken at last does is for the last encoding to say.
        self._search = Spec(self.fmt, replace(spec.policy, over="saturate")) if spec.policy.over == "error" else spec
        self._searched: dict[int, np.ndarray] = {}
        self._wished: dict[int, list[np.ndarray]] = {}

    def settle(self, walk: Walk) -> None:
        """Fixes the scales of scales and of offsets. `walk` calls its argument with all rows of the block grid and their values, some at
        a time, and gives what it returns, in order; more than once."""
        if self.offsets is not None and self.offsets.deep:
            self.offsets.settle(walk(lambda rows, values: (rows, self._offset_targets(values, rows))))
            if self.rule.stiffness is not None and self.fmt.zero is None:
                of_offset = self.rule.stiffness
                self.offsets.fit(
                    walk(lambda rows, values: (rows, self._offset_targets(values, rows), of_offset(self._see(values, None), None)))
                )
        if self.scales.deep:
            self.scales.settle(walk(lambda rows, values: (rows, np.abs(self._candidates(values, rows)[0]))))
            if self.rule.stiffness is not None:
                of_scale = self.rule.stiffness

                def stiff(rows: slice, values: Values) -> tuple[slice, np.ndarray, np.ndarray]:
                    wished = self._candidates(values, rows)[0]
                    return rows, wished, of_scale(self._see(values, self._offset(values, rows)[1]), wished)

                self.scales.fit(walk(stiff))

    def _candidates(self, values: Values, rows: slice) -> list[np.ndarray]:
        """The rule's scales. One that fits scales of scales searches for long, and is asked once: 8 bytes a block."""
        if self.rule.stiffness is None:
            return self.rule(self._see(values, self._offset(values, rows)[1]))
        if rows.start not in self._wished:
            found = self.rule(self._see(values, self._offset(values, rows)[1]))
            self._wished[rows.start] = found[:1] if self.scales.deep else found
        return self._wished[rows.start]

    def _offset_targets(self, values: Values, rows: slice) -> np.ndarray:
        """The rule's offsets, or those that put a block's least value onto the element's."""
        element = self.fmt.element
        if self.rule.offsets is None or self.fmt.zero is not None:
            return values.low - element.min * ((values.high - values.low) / (element.max - element.min))
        if rows.start not in self._searched:  # a search is made once: 8 bytes a block
            self._searched[rows.start] = self.rule.offsets(self._see(values, None))
        return self._searched[rows.start]

    def _offset(self, values: Values, rows: slice) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """The offsets' codes and what they mean; nothing for formats without."""
        if self.offsets is None:
            return {}, None
        codes, offset = self.offsets.offsets(self._offset_targets(values, rows), rows)
        return {"offset.0": codes}, offset

    def _see(self, values: Values, offset: np.ndarray | None) -> Range:
        """What the scale rule is shown: the range after the offset, or its width under a zero point."""
        element, scale, low, high = self.fmt.element, self.fmt.levels[0].element, values.low, values.high
        if offset is not None:
            low, high, values = low - offset, high - offset, replace(values, offset=offset)
        elif self.fmt.zero is not None:
            width = np.maximum(high, 0) - np.minimum(low, 0)
            return Range(np.zeros_like(width), width, 0.0, element.max - element.min, 0.0, element, scale)
        if self.fmt.offset is not None:
            return Range(low, high, min(element.min, 0.0), element.max, element.min, element, scale, values)
        return Range(low, high, -element.reach[0], element.reach[1], element.min, element, scale, values)

    def choose(self, values: Values, rows: slice) -> Grids:
        """Grids of the blocks in some rows of the block grid. If the rule gives several scales: the one of least loss, block by block.

        ScaleRangeError: a scale or an offset that its element cannot hold.
        """
        parts, offset = self._offset(values, rows)
        candidates = self._candidates(values, rows)
        first = self._settle(candidates[0], values, offset, parts, rows, strict=True)
        if self.rule.stiffness is not None and self.scales.deep:
            return self._neighbours(first, values, offset, parts, rows)
        if len(candidates) == 1:
            return first
        best, least = candidates[0], self._loss(first, values)
        for target in candidates[1:]:
            loss = self._loss(self._settle(target, values, offset, parts, rows), values)
            better = loss < least
            best, least = np.where(better, target, best), np.where(better, loss, least)
        return self._settle(best, values, offset, parts, rows)

    def _neighbours(
        self, first: Grids, values: Values, offset: np.ndarray | None, parts: dict[str, np.ndarray], rows: slice
    ) -> Grids:  # fmt: skip
        """The stored scale and offset of least loss among those nearest to what was wanted and the ones beside them."""
        best, least, kept = first.scale.astype(np.float64), self._loss(first, values), dict(parts)
        wide, beside = self.scales.outer(rows), [(parts, offset)]
        if self.offsets is not None and offset is not None:
            apart = self.offsets.outer(rows)
            made = [self.offsets.offsets(offset + sign * apart, rows) for sign in (-1, 1)]
            beside += [({"offset.0": codes}, moved) for codes, moved in made]
        scale = first.scale.astype(np.float64)
        for some, moved in beside:
            for step in (0, -1, 1) if offset is not None else (-1, 1, -2, 2):
                tried = scale + step * wide
                # beyond zero lies the mirrored block, which is another search's
                tried = np.where(tried * scale > 0, tried, scale)
                loss = self._loss(self._settle(tried, values, moved, some, rows), values)
                better = loss < least
                best, least = np.where(better, tried, best), np.where(better, loss, least)
                kept = {name: np.where(better, some[name], kept[name]).astype(codes.dtype) for name, codes in kept.items()}
        final = None if self.offsets is None or offset is None else self.offsets.product(kept["offset.0"], rows)
        return self._settle(best, values, final, kept, rows)

    def _settle(
        self,
        target: np.ndarray,
        values: Values,
        offset: np.ndarray | None,
        parts: dict[str, np.ndarray],
        rows: slice,
        strict: bool = False,
    ) -> Grids:
        """Stores target scales, and zero points that go with them. `strict`: a scale too large for its element is an error."""
        element, zero, low, high = self.fmt.element, self.fmt.zero, values.low, values.high
        # Nothing that a code can mean may run out of float32.
        limit = np.full_like(low, _LARGEST)
        if offset is not None:
            limit = limit - (np.abs(offset) if element.min < 0 else np.maximum(offset, 0))
        reach = max(element.max, -element.min) if zero is None else element.max - element.min
        if strict and offset is None:
            self._check_reach(np.maximum(np.abs(target), self._for_groups(values, limit / reach)), limit / reach, rows)
        codes, scale = self.scales.scales(target, limit / reach, rows, strict, self.rule.round)
        if zero is None:
            even = self.rule.symmetric and element.reach[0] == element.reach[1]
            return Grids({"scale.0": codes, **parts}, scale, None, offset, element.max if even else None)
        least, most = max(zero.min, element.min), min(zero.max, element.max)
        divisor = np.where(scale == 0, np.inf, scale)
        wanted = np.zeros_like(low) if offset is not None else np.clip(element.min - np.minimum(low, 0) / divisor, least, most)
        if offset is None and (least > element.min or most < element.max):
            # The zero point's element reaches less far than the codes do: the scale grows until the range fits.
            above = np.maximum(high, 0) / np.maximum(element.max - wanted, 0.5)
            below = np.maximum(-low, 0) / np.maximum(wanted - element.min, 0.5)
            codes, scale = self.scales.scales(np.maximum(np.maximum(above, below), target), limit / reach, rows, strict, self.rule.round)
        stored = encoded(zero, wanted)
        return Grids({"scale.0": codes, "zero": stored, **parts}, scale, decoded(zero, stored).astype(np.float32), offset)

    def _check_reach(self, needed: np.ndarray, limit: np.ndarray, rows: slice) -> None:
        """ReachError: a scale that would have to fall so far below the one needed that most values would be clipped."""
        bad = needed > FALL * limit
        if bad.any():
            at = tuple(map(int, np.unravel_index(int(np.argmax(bad)), bad.shape)))
            raise ReachError(self.fmt.element, (at[0] + rows.start, *at[1:]), float(needed[at]), float(limit[at]))

    def _for_groups(self, values: Values, limit: np.ndarray) -> np.ndarray:
        """float64: for codes of several weights the scale that brings each block's longest group to a typical vector's length, where that
        may be beyond the limit; 0 elsewhere, and for other elements."""
        element, longest = self.fmt.element, np.zeros_like(values.low)
        if not isinstance(element, Vector) or element.learned:
            return longest
        reach, amax = element.typical * element.dim**0.5, np.maximum(values.high, -values.low)
        if np.all(amax * element.dim**0.5 / reach <= FALL * limit):
            return longest
        for box, part in values.parts():
            groups = part.astype(np.float64).reshape(*part.shape[:-1], -1, element.dim)
            norm = np.sqrt(np.square(groups).sum(axis=-1))
            longest[box.grid] = np.maximum(longest[box.grid], norm.max(axis=box.within))
        return longest / reach

    def _loss(self, grids: Grids, values: Values) -> np.ndarray:
        """float64: what coding would cost in each block, by the rule's own loss; non-finite values count as clipped.

        Under stochastic rounding that of rounding to nearest: a scale is not chosen by chance.
        """
        # A power of an error may leave float64, that of its share of the block does not.
        unit = np.maximum(np.maximum(values.high, -values.low), 2.0**-149) if self.rule.powered else None
        if grids.zero is None and values.rows is not None:
            (x, size, weight), policy, what = values.rows, self._search.policy, "loss" if unit is None else "power"
            round = policy.round if stochastic_bits(policy.round) is None else "nearest-even"
            found = block_sums(
                self.fmt.element, round, policy.over, what, x, size, grids.scale, grids.offset, None, weight, grids.symmetric,
                None if unit is None else unit.reshape(-1), self.rule.number or 2.0,
            )  # fmt: skip
            if found is not None:
                return found.reshape(values.low.shape)
        loss = np.zeros_like(values.low)
        for box, part in values.parts():
            found = grids.decode(grids.encode(part, box, self._search), box, self.fmt.element)
            error = np.subtract(part, found, dtype=np.float64)
            cost = self.rule.cost(error if unit is None else error / box.spread(unit))
            if values.importance is not None:
                cost = cost * values.importance[box.take].reshape(box.split)
            loss[box.grid] += cost.sum(axis=box.within)
        return loss
