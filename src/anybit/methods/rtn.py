"""Round to nearest: scales by a rule, then each code by itself. And the way back: parts to values.

Parts are logical: "codes" has the array's shape, "scale.0" the block grid, "scale.1" that of the next level, "zero" the grid of level 0,
"offset.0" ... as many as scales. Each holds raw codes of its element in uint8, uint16 or uint32.
    s = fl(fl(s0 * s1) * s2) ...      value = fl(fl(t - z) * s), then fl(value + m)      all in float32
    code = encode(fl(x / s)), with an offset encode(fl(fl(x - m) / s)), with an integer zero point round(fl(x / s)) + z, clipped
Arrays are walked in boxes of about a quarter of a million values, so that temporary memory does not grow with the array.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from anybit.errors import NonFiniteError, ShapeError
from anybit.formats import Element, Format, Spec
from anybit.formats.element import as_real
from anybit.formats.rounding import round_integral
from anybit.methods.chain import Chain, grids
from anybit.methods.method import METHODS, Parts
from anybit.methods.scales import SCALES, Range, Rule

LIMIT = 1 << 18
_LARGEST = float(np.finfo(np.float32).max)


def part_shapes(fmt: Format, shape: tuple[int, ...]) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Name, dtype and shape of each logical part of an array of this format.

    >>> [(name, str(dtype), size) for name, (dtype, size) in part_shapes(Format("nvfp4"), (2, 64)).items()]
    [('codes', 'uint8', (2, 64)), ('scale.0', 'uint8', (2, 4)), ('scale.1', 'uint32', (1, 1))]
    """
    shape = tuple(shape)
    found = {"codes": (fmt.element.code_dtype, shape)}
    sizes = grids(fmt, shape)
    for i, level in enumerate(fmt.levels):
        found[f"scale.{i}"] = level.element.code_dtype, sizes[i]
    if fmt.zero is not None:
        found["zero"] = fmt.zero.code_dtype, sizes[0]
    if fmt.offset is not None:
        for i in range(len(fmt.levels)):
            found[f"offset.{i}"] = fmt.offset_element(i).code_dtype, sizes[i]
    return found


@METHODS.register("rtn")
def quantize_parts(w: Any, spec: Spec | Format | str, name: str = "array") -> Parts:
    """Chooses scales and codes of an array; each code is the nearest to the value over its stored scale.

    Args: w: float32[..., k] (also float16, bfloat16, float64, integers), any strides, at least one axis; name: what errors call it.
    Returns: the logical parts, see the module.
    Raises: NonFiniteError: NaN or infinity in w under nonfinite=error, with the first index and the count; ShapeError: no axis, or no
        numbers; FormatError: a policy that the format cannot serve; UnknownNameError: no such scale rule.

    >>> parts = quantize_parts(np.array([[1.0, -7.0, 3.2, 0.0]]), "int4@4")
    >>> parts["codes"].tolist(), dequantize_parts(parts, Format("int4@4"), (1, 4)).tolist()
    ([[1, 9, 3, 0]], [[1.0, -7.0, 3.0, 0.0]])
    """
    spec = Spec.parse(spec)
    spec.check()
    x = as_real(w)
    if x.ndim == 0:
        raise ShapeError(f"{name} is a single number; quantizing needs an array of at least one axis")
    if spec.format.block is None:
        return {"codes": _encode_plain(x, spec, name)}
    rule = SCALES[spec.scale_rule]
    low, high, finite = _extremes(x, spec, name)
    if not x.size:
        return {part: np.zeros(size, dtype) for part, (dtype, size) in part_shapes(spec.format, x.shape).items()}
    choice = _choose(x, spec, rule, low, high)
    codes = np.empty(x.shape, spec.format.element.code_dtype)
    for box in spec.format.block.boxes(x.shape, LIMIT):
        part = x[box.take]
        values = part.reshape(box.split)
        bad = None
        if not finite:
            bad = ~np.isfinite(values)
            held = np.clip(np.where(np.isnan(values), 0, values), box.spread(low), box.spread(high))
            values = np.where(bad, held, values).astype(x.dtype)
        found = choice.encode(values, box, spec)
        if bad is not None and spec.policy.nonfinite == "propagate" and bad.any():
            found = np.where(bad, spec.format.element._non_finite_codes(part.reshape(box.split), "propagate"), found)
        codes[box.take] = found.reshape(part.shape)
    return {"codes": codes, **choice.parts}


def dequantize_parts(parts: Parts, fmt: Format, shape: tuple[int, ...]) -> np.ndarray:
    """float32 values of logical parts. ShapeError: parts that are missing or do not have the shapes of `part_shapes`."""
    shape = tuple(shape)
    for part, (_, size) in part_shapes(fmt, shape).items():
        if part not in parts or parts[part].shape != size:
            found = list(parts[part].shape) if part in parts else "missing"
            raise ShapeError(f"part '{part}' of {fmt} {list(shape)} is {list(size)}, not {found}")
    out = np.empty(shape, np.float32)
    codes, table = parts["codes"], fmt.element.table.values
    if fmt.block is None:
        flat, target = codes.reshape(-1), out.reshape(-1)
        for start in range(0, flat.size, LIMIT):
            target[start : start + LIMIT] = _values(fmt.element, table, flat[start : start + LIMIT])
        return out
    scale, zero, offset = _stored(parts, fmt, shape)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for box in fmt.block.boxes(shape, LIMIT):
            taken = codes[box.take]
            value = _values(fmt.element, table, taken).reshape(box.split)
            if zero is not None:
                value = value - box.spread(zero)
            value = value * box.spread(scale)
            if offset is not None:
                value = value + box.spread(offset)
            out[box.take] = value.reshape(taken.shape)
    return out


def _values(element: Element, table: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return table[codes] if table.size else element.decode(codes).astype(np.float32)


def _stored(parts: Parts, fmt: Format, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """float32 scale, zero point and offset of each first-level block."""
    count = range(len(fmt.levels))
    scale = Chain(fmt, shape, [level.element for level in fmt.levels]).product([parts[f"scale.{i}"] for i in count])
    zero = offset = None
    if fmt.zero is not None:
        zero = fmt.zero.decode(parts["zero"]).astype(np.float32)
    if fmt.offset is not None:
        offset = Chain(fmt, shape, [fmt.offset_element(i) for i in count]).product([parts[f"offset.{i}"] for i in count])
    return scale, zero, offset


def _encode_plain(x: np.ndarray, spec: Spec, name: str) -> np.ndarray:
    """Codes of an array without scales."""
    element, policy = spec.format.element, spec.policy
    codes = np.empty(x.shape, element.code_dtype)
    flat, target = x.reshape(-1), codes.reshape(-1)
    for start in range(0, flat.size, LIMIT):
        part = flat[start : start + LIMIT]
        if np.isfinite(part).all():
            target[start : start + LIMIT] = element._codes(part, policy.round, policy.over)
            continue
        if policy.nonfinite == "error":
            _raise_non_finite(x, name)
        target[start : start + LIMIT] = element.encode(part, policy.round, policy.over, policy.nonfinite)
    return codes


def _extremes(x: np.ndarray, spec: Spec, name: str) -> tuple[np.ndarray, np.ndarray, bool]:
    """The least and largest finite value of each block, and whether all values are finite. NonFiniteError under nonfinite=error."""
    block = spec.format.block
    assert block is not None
    grid = block.grid(x.shape)
    low, high = np.full(grid, np.inf, x.dtype), np.full(grid, -np.inf, x.dtype)
    all_finite = True
    for box in block.boxes(x.shape, LIMIT):
        values = x[box.take].reshape(box.split)
        least, most = values.min(axis=box.within), values.max(axis=box.within)
        # NaN passes through min and max, an infinity is one of them.
        if not (np.isfinite(least).all() and np.isfinite(most).all()):
            if spec.policy.nonfinite == "error":
                _raise_non_finite(x, name)
            all_finite = False
            good = np.isfinite(values)
            least = values.min(axis=box.within, where=good, initial=np.inf)
            most = values.max(axis=box.within, where=good, initial=-np.inf)
        low[box.grid] = np.minimum(low[box.grid], least)
        high[box.grid] = np.maximum(high[box.grid], most)
    empty = low > high
    return np.where(empty, 0, low), np.where(empty, 0, high), all_finite


def _raise_non_finite(x: np.ndarray, name: str) -> None:
    count, first = 0, None
    flat = x.reshape(-1)
    for start in range(0, flat.size, LIMIT):
        bad = ~np.isfinite(flat[start : start + LIMIT])
        if first is None and bad.any():
            first = start + int(np.argmax(bad))
        count += int(bad.sum())
    index = [int(i) for i in np.unravel_index(first or 0, x.shape)]
    raise NonFiniteError(
        f"{name} holds {count} non-finite value(s), the first {float(x[tuple(index)])} at index {index};"
        " repair the array, or say nonfinite=saturate or propagate"
    )


@dataclass(frozen=True)
class _Choice:
    """Scales, zero points and offsets of an array: as stored parts, and as the float32 numbers that they mean."""

    parts: Parts
    divisor: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None
    offset: np.ndarray | None
    whole_zero: bool

    def encode(self, values: np.ndarray, box: Any, spec: Spec) -> np.ndarray:
        """Codes of one box."""
        element, policy = spec.format.element, spec.policy
        with np.errstate(over="ignore", under="ignore"):
            if self.offset is not None:
                values = values - box.spread(self.offset)
            ratio = np.divide(values, box.spread(self.divisor))
            if self.zero is None:
                return element._codes(ratio, policy.round, policy.over)
            if not self.whole_zero:
                return element._codes(ratio + box.spread(self.zero), policy.round, policy.over)
            return element._codes(round_integral(ratio, policy.round) + box.spread(self.zero), "nearest-even", policy.over)

    def squared_error(self, values: np.ndarray, box: Any, spec: Spec) -> np.ndarray:
        """The sum of squared differences that coding a box would leave, float64, one number a block."""
        element = spec.format.element
        found = _values(element, element.table.values, self.encode(values, box, spec))
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            if self.zero is not None:
                found = found - box.spread(self.zero)
            found = found * box.spread(self.scale)
            if self.offset is not None:
                found = found + box.spread(self.offset)
            difference = values - found
            return np.square(difference, dtype=np.float64).sum(axis=box.within)


def _choose(x: np.ndarray, spec: Spec, rule: Rule, low: np.ndarray, high: np.ndarray) -> _Choice:
    """Scales by the rule; if it gives several, those with the least squared error, block by block."""
    fmt = spec.format
    element = fmt.element
    low, high = low.astype(np.float64), high.astype(np.float64)
    parts: Parts = {}
    offset: np.ndarray | None = None
    limit = np.full(low.shape, _LARGEST)
    if fmt.offset is not None:
        codes, offset = _offsets(fmt, x.shape, low, high)
        parts = {f"offset.{i}": c for i, c in enumerate(codes)}
        low, high = low - offset, high - offset
        # Values past the offset must not run out of float32.
        limit = limit - (np.abs(offset) if element.min < 0 else np.maximum(offset, 0))
        seen = Range(low, high, min(element.min, 0.0), element.max, element.min, fmt.levels[0].element)
    elif fmt.zero is not None:
        span = np.maximum(high, 0) - np.minimum(low, 0)
        seen = Range(np.zeros_like(span), span, 0.0, element.max - element.min, 0.0, fmt.levels[0].element)
        limit = limit / 2
    else:
        reach = element.reach
        seen = Range(low, high, -reach[0], reach[1], element.min, fmt.levels[0].element)
    candidates = rule(seen)
    chain = Chain(fmt, x.shape, [level.element for level in fmt.levels])
    higher, outer = chain.outer(np.abs(candidates[0]))
    limit = limit / max(element.max, -element.min)

    def settle(target: np.ndarray) -> _Choice:
        first, scale = chain.choose(target, outer, higher, limit)
        stored = {f"scale.{i}": c for i, c in enumerate([first, *higher])}
        zero, whole = None, True
        if fmt.zero is not None:
            if offset is None:
                # A zero point's element may not reach as far as the codes do: then the scale grows until the range fits.
                least, most = max(fmt.zero.min, element.min), min(fmt.zero.max, element.max)
                wanted = np.clip(element.min - np.minimum(low, 0) / _divisor(scale), least, most)
                if (fmt.zero.min > element.min) or (fmt.zero.max < element.max):
                    above = np.maximum(high, 0) / np.maximum(element.max - wanted, 0.5)
                    below = np.maximum(-low, 0) / np.maximum(wanted - element.min, 0.5)
                    first, scale = chain.choose(np.maximum(np.maximum(above, below), target), outer, higher, limit)
                    stored["scale.0"] = first
            else:
                wanted = np.zeros_like(low)
            stored["zero"] = fmt.zero.encode(wanted)
            zero = fmt.zero.decode(stored["zero"]).astype(np.float32)
            whole = fmt.zero.fields["family"] == "integer"
        return _Choice({**stored, **parts}, _divisor(scale), scale, zero, offset, whole)

    if len(candidates) == 1:
        return settle(candidates[0])
    block = fmt.block
    assert block is not None
    best, least_error = candidates[0], np.full(low.shape, np.inf)
    for target in candidates:
        choice = settle(target)
        error = np.zeros(low.shape)
        for box in block.boxes(x.shape, LIMIT):
            values = np.where(np.isfinite(x[box.take]), x[box.take], 0) if spec.policy.nonfinite != "error" else x[box.take]
            error[box.grid] += choice.squared_error(values.reshape(box.split), box, spec)
        better = error < least_error
        best, least_error = np.where(better, target, best), np.where(better, error, least_error)
    return settle(best)


def _divisor(scale: np.ndarray) -> np.ndarray:
    """The scale, but infinity where a product of tiny scales has vanished: such blocks become zero."""
    return np.where(scale == 0, np.float32(np.inf), scale)


def _offsets(fmt: Format, shape: tuple[int, ...], low: np.ndarray, high: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Codes of the offsets that put a block's range onto the element's, and the float32 offsets."""
    element = fmt.element
    step = (high - low) / (element.max - element.min)
    chain = Chain(fmt, shape, [fmt.offset_element(i) for i in range(len(fmt.levels))])
    return chain.offsets(low - element.min * step)
