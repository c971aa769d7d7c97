"""Round to nearest: scales by a rule, then each code by itself. And the way back: parts to values.

Parts are logical: "codes" has the array's shape, "scale.0" the block grid, "scale.1" that of the next level, "zero" the grid of level 0,
"offset.0" ... as many as scales. Each holds raw codes of its element in uint8, uint16 or uint32.
    s = fl(fl(s0 * s1) * s2) ...      value = fl(fl(t - z) * s), then fl(value + m)      all in float32
    a zero point that is no whole number: m = -fl(z * s)
    code = encode(fl(x / s)), with an offset encode(fl(fl(x - m) / s)), with an integer zero point round(fl(x / s)) + z, clipped
Arrays are walked in slabs of about a million values along the first axis, and those in boxes of a quarter of that, so that temporary memory
stays at tens of megabytes whatever the array's size (unless one block's rows are longer than that).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from anybit.errors import FormatError, NonFiniteError, ShapeError
from anybit.formats import Format, Spec
from anybit.formats.element import as_real
from anybit.formats.rounding import OutOfRangeError, stochastic_bits
from anybit.formats.stochastic import words
from anybit.methods.chain import Chain, Shape, blocks, grids
from anybit.methods.grids import LIMIT, Chooser, Grids, codes_of, tame, values_of
from anybit.methods.method import METHODS, Parts
from anybit.methods.scales import SCALES

SLAB = 1 << 20


def part_shapes(fmt: Format, shape: Shape) -> dict[str, tuple[np.dtype, Shape]]:
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


def _merged(fmt: Format, shape: Shape) -> Shape:
    """The same array with fewer leading axes, where blocks do not care: slabs are cut along the first."""
    if all(block.per_row or block.kind == "tensor" for block in blocks(fmt)):
        return (prod(shape[:-1]), shape[-1]) if len(shape) > 1 and prod(shape[:-1]) > 1 else shape[-1:]
    first = next((i for i, n in enumerate(shape) if n != 1), len(shape) - 1)
    return shape[first:]


def _slabs(fmt: Format, shape: Shape) -> Iterator[tuple[slice, slice]]:
    """(rows of the array, rows of the block grid) of slabs of whole blocks."""
    block = blocks(fmt)[0]
    unit, grid = block.on(shape)[0], block.grid(shape)[0]
    step = max(1, SLAB // max(1, prod(shape[1:]) * unit))
    for start in range(0, grid, step):
        stop = min(start + step, grid)
        yield slice(start * unit, min(stop * unit, shape[0])), slice(start, stop)


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
    fmt = spec.format
    rule = None if fmt.block is None else SCALES[spec.scale_rule]
    parts = {part: np.zeros(size, dtype) for part, (dtype, size) in part_shapes(fmt, x.shape).items()}
    try:
        if rule is None:
            _encode_plain(x.reshape(-1), spec, parts["codes"].reshape(-1))
        elif x.size:
            shape = _merged(fmt, x.shape)
            sizes = {part: size for part, (_, size) in part_shapes(fmt, shape).items()}
            _quantize(x.reshape(shape), spec, Chooser(spec, rule, shape), {p: a.reshape(sizes[p]) for p, a in parts.items()})
    except _NonFiniteFound:
        _raise_non_finite(x, name)
    except OutOfRangeError as error:
        if rule is None:
            raise
        raise FormatError(
            f"{name}: a value is {error.value:g} times its block's scale, outside {fmt.element}'s range"
            f" {fmt.element.min:g} to {fmt.element.max:g}; use over=saturate or scale=absmax"
        ) from None
    return parts


class _NonFiniteFound(Exception):
    """Somewhere in the array, under nonfinite=error; the place is looked up once, in the array as it was given."""


def _quantize(x: np.ndarray, spec: Spec, chooser: Chooser, parts: Parts) -> None:
    """Fills the parts of an array with blocks."""
    fmt = spec.format
    slabs = list(_slabs(fmt, x.shape))

    def ranges() -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        for take, rows in slabs:
            low, high, _ = _extremes(x[take], spec)
            yield rows, low, high

    offsets, scales = chooser.offsets, chooser.scales
    if offsets is not None and offsets.deep:
        offsets.settle((rows, chooser.offset_targets(low, high)) for rows, low, high in ranges())
    if scales.deep:

        def targets() -> Iterator[tuple[slice, np.ndarray]]:
            for rows, low, high in ranges():
                offset = offsets.offsets(chooser.offset_targets(low, high), rows)[1] if offsets is not None else None
                yield rows, np.abs(chooser.rule(chooser.see(low, high, offset))[0])

        scales.settle(targets())
    for take, rows in slabs:
        low, high, finite = _extremes(x[take], spec)
        grids = chooser.choose(x[take], low, high, rows)
        for part, codes in grids.parts.items():
            parts[part][rows] = codes
        first = take.start * prod(x.shape[1:])
        _encode(x[take], spec, grids, None if finite else (low, high), parts["codes"][take], first)
    for chain, name in ((scales, "scale"), (offsets, "offset")):
        for i, codes in enumerate(chain.higher if chain is not None else [], start=1):
            parts[f"{name}.{i}"][...] = codes


def _encode(
    x: np.ndarray, spec: Spec, grids: Grids, limits: tuple[np.ndarray, np.ndarray] | None, out: np.ndarray, first: int
) -> None:
    """Codes of a slab; `limits` are the extremes of its finite values where some are not finite, `first` its place in the array."""
    block = blocks(spec.format)[0]
    stochastic = stochastic_bits(spec.policy.round) is not None
    word = words(spec.policy.seed, first, x.size).reshape(x.shape) if stochastic else None
    for box in block.boxes(x.shape, LIMIT):
        part = x[box.take].reshape(box.split)
        values = part if limits is None else tame(part, box, *limits)
        codes = grids.encode(values, box, spec, None if word is None else word[box.take].reshape(box.split))
        if limits is not None and spec.policy.nonfinite == "propagate":
            bad = ~np.isfinite(part)
            codes = np.where(bad, spec.format.element.encode(np.where(bad, part, 0), nonfinite="propagate"), codes)
        out[box.take] = codes.reshape(out[box.take].shape)


def _extremes(x: np.ndarray, spec: Spec) -> tuple[np.ndarray, np.ndarray, bool]:
    """float64 least and largest finite value of each block of a slab (0 where it has none), and whether all values are finite."""
    block = blocks(spec.format)[0]
    low, high = np.full(block.grid(x.shape), np.inf), np.full(block.grid(x.shape), -np.inf)
    all_finite = True
    for box in block.boxes(x.shape, LIMIT):
        values = x[box.take].reshape(box.split)
        least, most = values.min(axis=box.within), values.max(axis=box.within)
        # NaN passes through min and max, an infinity is one of them.
        if not (np.isfinite(least).all() and np.isfinite(most).all()):
            if spec.policy.nonfinite == "error":
                raise _NonFiniteFound
            all_finite = False
            good = np.isfinite(values)
            least = values.min(axis=box.within, where=good, initial=np.inf)
            most = values.max(axis=box.within, where=good, initial=-np.inf)
        low[box.grid] = np.minimum(low[box.grid], least)
        high[box.grid] = np.maximum(high[box.grid], most)
    empty = low > high
    return np.where(empty, 0, low), np.where(empty, 0, high), all_finite


def _encode_plain(x: np.ndarray, spec: Spec, out: np.ndarray) -> None:
    """Codes of a flat array without scales."""
    element, policy = spec.format.element, spec.policy
    stochastic = stochastic_bits(policy.round) is not None
    for start in range(0, x.size, LIMIT):
        part = x[start : start + LIMIT]
        word = words(policy.seed, start, part.size) if stochastic else None
        good = np.isfinite(part)
        if good.all():
            out[start : start + LIMIT] = codes_of(element, part, policy, word)
        elif policy.nonfinite == "error":
            raise _NonFiniteFound
        else:
            special = element.encode(np.where(good, 0, part).astype(part.dtype), over="saturate", nonfinite=policy.nonfinite)
            within = np.where(good, part, part.dtype.type(0 if element.has_zero else element.min))
            out[start : start + LIMIT] = np.where(good, codes_of(element, within, policy, word), special)


def _raise_non_finite(x: np.ndarray, name: str) -> None:
    flat, count, first = x.reshape(-1), 0, -1
    for start in range(0, flat.size, LIMIT):
        bad = ~np.isfinite(flat[start : start + LIMIT])
        if first < 0 and bad.any():
            first = start + int(np.argmax(bad))
        count += int(bad.sum())
    index = [int(i) for i in np.unravel_index(first, x.shape)]
    raise NonFiniteError(
        f"{name} holds {count} non-finite value(s), the first {float(flat[first])} at index {index};"
        " repair the array, or say nonfinite=saturate or propagate"
    ) from None


def dequantize_parts(parts: Parts, fmt: Format, shape: Shape) -> np.ndarray:
    """float32 values of logical parts. ShapeError: parts that are missing or do not have the shapes of `part_shapes`."""
    shape = tuple(shape)
    for part, (_, size) in part_shapes(fmt, shape).items():
        if part not in parts or parts[part].shape != size:
            found = list(parts[part].shape) if part in parts else "missing"
            raise ShapeError(f"part '{part}' of {fmt} {list(shape)} is {list(size)}, not {found}")
    out = np.empty(shape, np.float32)
    if not out.size:
        return out
    if fmt.block is None:
        flat, codes = out.reshape(-1), parts["codes"].reshape(-1)
        for start in range(0, flat.size, LIMIT):
            flat[start : start + LIMIT] = values_of(fmt.element, codes[start : start + LIMIT])
        return out
    merged = _merged(fmt, shape)
    _dequantize({p: parts[p].reshape(size) for p, (_, size) in part_shapes(fmt, merged).items()}, fmt, out.reshape(merged))
    return out


def stored_grids(parts: Parts, fmt: Format, shape: Shape) -> Grids:
    """float32 scale, zero point and offset (or None) of each first-level block, all levels multiplied. For formats with a block.

    >>> parts = quantize_parts(np.array([[1.0, -7.0, 3.2, 0.0]]), "int4@2")
    >>> stored_grids(parts, Format("int4@2"), (1, 4)).scale.tolist()
    [[1.0, 0.45703125]]
    """
    scales, offsets = _chains(parts, fmt, tuple(shape))
    return _grids(parts, fmt, scales, offsets, slice(None))


def _chains(parts: Parts, fmt: Format, shape: Shape) -> tuple[Chain, Chain | None]:
    """The stored levels of scales and of offsets."""
    levels = range(1, len(fmt.levels))
    scales = Chain(fmt, shape, [level.element for level in fmt.levels])
    scales.load([parts[f"scale.{i}"] for i in levels])
    if fmt.offset is None:
        return scales, None
    offsets = Chain(fmt, shape, [fmt.offset_element(i) for i in range(len(fmt.levels))])
    offsets.load([parts[f"offset.{i}"] for i in levels])
    return scales, offsets


def _grids(parts: Parts, fmt: Format, scales: Chain, offsets: Chain | None, rows: slice) -> Grids:
    scale = scales.product(parts["scale.0"][rows], rows)
    zero = fmt.zero.decode(parts["zero"][rows]).astype(np.float32) if fmt.zero is not None else None
    offset = offsets.product(parts["offset.0"][rows], rows) if offsets is not None else None
    if zero is not None and not fmt.whole_zero:  # as kernels run it
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            zero, offset = None, -(zero * scale)
    return Grids({}, scale, zero, offset)


def _dequantize(parts: Parts, fmt: Format, out: np.ndarray) -> None:
    scales, offsets = _chains(parts, fmt, out.shape)
    for take, rows in _slabs(fmt, out.shape):
        grids = _grids(parts, fmt, scales, offsets, rows)
        target, codes = out[take], parts["codes"][take]
        for box in blocks(fmt)[0].boxes(target.shape, LIMIT):
            part = codes[box.take]
            target[box.take] = grids.decode(part.reshape(box.split), box, fmt.element).reshape(part.shape)
