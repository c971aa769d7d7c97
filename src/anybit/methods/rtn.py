"""Round to nearest: scales by a rule, then each code by itself. And the way back: parts to values.

Parts are logical: "codes" has the array's shape, "scale.0" the block grid, "scale.1" that of the next level, "zero" the grid of level 0,
"offset.0" ... as many as scales. Each holds raw codes of its element in uint8, uint16 or uint32.
    s = fl(fl(s0 * s1) * s2) ...      value = fl(fl(t - z) * s), then fl(value + m)      all in float32
    a zero point that is no whole number: m = -fl(z * s)
    float64 arrays that float32 cannot hold are divided, and less their offsets, in float64
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
from anybit.formats import Block, Format, Spec, bound, codes_shape
from anybit.formats.block import Box
from anybit.formats.element import as_real
from anybit.formats.rounding import OutOfRangeError, stochastic_bits
from anybit.formats.stochastic import drawn
from anybit.kernels.rounding import block_ends
from anybit.methods.chain import Chain, ScaleRangeError, Shape
from anybit.methods.grids import LIMIT, Chooser, Grids, codes_of
from anybit.methods.method import METHODS, Parts
from anybit.methods.panels import in_order
from anybit.methods.scales import SCALES, Rule
from anybit.methods.values import Values, tame, values_of

SLAB = 1 << 20
BEYOND = 2.0**128 - 2.0**103  # rounds to infinity in float32


def part_shapes(fmt: Format, shape: Shape) -> dict[str, tuple[np.dtype, Shape]]:
    """Name, dtype and shape of each logical part of an array of this format.

    >>> [(name, str(dtype), size) for name, (dtype, size) in part_shapes(Format("nvfp4"), (2, 64)).items()]
    [('codes', 'uint8', (2, 64)), ('scale.0', 'uint8', (2, 4)), ('scale.1', 'uint32', (1, 1))]
    """
    shape = tuple(shape)
    found = {"codes": (fmt.element.code_dtype, codes_shape(fmt.element, shape))}
    sizes = fmt.grids(shape)
    for i, level in enumerate(fmt.levels):
        found[f"scale.{i}"] = level.element.code_dtype, sizes[i]
    if fmt.zero is not None:
        found["zero"] = fmt.zero.code_dtype, sizes[0]
    if fmt.offset is not None:
        for i in range(len(fmt.levels)):
            found[f"offset.{i}"] = fmt.offset_element(i).code_dtype, sizes[i]
    if fmt.element.table_shape is not None:
        found["table"] = np.dtype(np.float32), fmt.element.table_shape
    return found


def merged(fmt: Format, shape: Shape) -> Shape:
    """The same array with fewer leading axes, where blocks do not care: slabs are cut along the first."""
    if all(block.per_row or block.kind == "tensor" for block in fmt.blocks):
        return (prod(shape[:-1]), shape[-1]) if len(shape) > 1 and prod(shape[:-1]) > 1 else shape[-1:]
    first = next((i for i, n in enumerate(shape) if n != 1), len(shape) - 1)
    return shape[first:]


def slabs(fmt: Format, shape: Shape, most: int | None = None) -> Iterator[tuple[slice, slice]]:
    """(rows of the array, rows of the block grid) of slabs of whole blocks, about `most` (SLAB) values each."""
    block = fmt.blocks[0]
    unit, grid = block.on(shape)[0], block.grid(shape)[0]
    step = max(1, (most or SLAB) // max(1, prod(shape[1:]) * unit))
    for start in range(0, grid, step):
        stop = min(start + step, grid)
        yield slice(start * unit, min(stop * unit, shape[0])), slice(start, stop)


def coded_rows(take: slice, fmt: Format, shape: Shape) -> slice:
    """The codes of a slab's rows: fewer than its rows where the array is a single row, whose weights are coded several together."""
    return take if len(shape) > 1 or fmt.element.dim == 1 else Block.fewer(take, fmt.element.dim)


@METHODS.register("rtn")
def quantize_parts(w: Any, spec: Spec | Format | str, name: str = "array", importance: Any = None) -> Parts:
    """Chooses scales and codes of an array; each code is the nearest to the value over its stored scale.

    Args: w: float32[..., k] (also float16, bfloat16, float64, integers), any strides, at least one axis; name: what errors call it;
        importance: what an error of each value weighs where the scale rule searches or values are learned, [k] or w's shape, not
            negative.
    Returns: the logical parts, see the module.
    Raises: NonFiniteError: NaN or infinity in w under nonfinite=error, with the first index and the count; ShapeError: no axis, or no
        numbers, or importance that does not fit; FormatError: a policy that the format cannot serve, or a scale that its element
        cannot hold; UnknownNameError: no such scale rule.

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
    if fmt.opened is not None:  # of the stored codes: the same numbers as a stored tensor that is opened later
        parts = quantize_parts(x, Spec(fmt.stored, spec.policy), name)
        return {**parts, "codes": fmt.cut(parts["codes"])}
    rule = None if fmt.block is None else SCALES[spec.scale_rule]
    weights = importance_for(importance, x.shape, rule, name, fmt.element.learned)
    x = x if rule is None and not fmt.element.learned else _narrowed(x)
    if fmt.element.learned:
        from anybit.methods.learn import quantize_learned

        return quantize_learned(x, spec, name, weights)
    parts = {part: np.zeros(size, dtype) for part, (dtype, size) in part_shapes(fmt, x.shape).items()}
    try:
        if rule is None:
            _encode_plain(x.reshape(-1), spec, parts["codes"].reshape(-1))
        elif x.size:
            shape = merged(fmt, x.shape)
            sizes = {part: size for part, (_, size) in part_shapes(fmt, shape).items()}
            flat = None if weights is None else weights.reshape(shape)
            _quantize(x.reshape(shape), flat, spec, Chooser(spec, rule, shape), {p: a.reshape(sizes[p]) for p, a in parts.items()})
    except NonFiniteFound:
        _raise_non_finite(x, name)
    except _BeyondFloat32 as error:
        raise FormatError(
            f"{name} holds values up to {error.args[0]:g}, and what codes mean is float32, which ends at 3.4e38; divide the array"
        ) from None
    except (ScaleRangeError, OutOfRangeError) as error:
        if rule is None:
            raise
        raise told(error, name, fmt, shape, x.shape) from None
    return parts


def told(error: FormatError, name: str, fmt: Format, walked: Shape, shape: Shape) -> FormatError:
    """What went wrong in an array of a `shape` that was `walked` with fewer axes."""
    if isinstance(error, ScaleRangeError):
        few, full = (fmt.grids(each)[error.level] for each in (walked, shape))
        place = np.unravel_index(np.ravel_multi_index(error.index, few), full)
        return FormatError(f"{name}: {error.at(tuple(map(int, place)))}")
    assert isinstance(error, OutOfRangeError)
    return FormatError(
        f"{name}: a value is {error.value:g} times its block's scale, outside {fmt.element}'s range"
        f" {fmt.element.min:g} to {fmt.element.max:g}; use over=saturate or scale=absmax"
    )


def _narrowed(x: np.ndarray) -> np.ndarray:
    """float64 numbers as float32 where that holds every one of them, so that equal arrays get equal codes whatever their dtype."""
    if x.dtype != np.float64:
        return x
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        narrow = x.astype(np.float32)
    return narrow if all(np.array_equal(a, b, equal_nan=True) for a, b in zip(narrow, x, strict=True)) else x


class _BeyondFloat32(Exception):
    """A float64 value that no float32 is near to."""


class NonFiniteFound(Exception):
    """Somewhere in the array, under nonfinite=error; the place is looked up once, in the array as it was given."""


def importance_for(given: Any, shape: Shape, rule: Rule | None, name: str, learned: bool) -> np.ndarray | None:
    """Importance as an array of w's shape (a view). ShapeError, NonFiniteError, FormatError: see quantize_parts."""
    if given is None:
        if rule is not None and rule.weighted:
            raise FormatError(f"{name}: scale={rule.name} needs importance, one number a column; use scale=mse without")
        return None
    if not learned and (rule is None or not rule.searches):
        raise FormatError(f"{name}: importance was given, and {f'scale={rule.name}' if rule else 'a format without scales'} does not look"
                          " at errors; use scale=wmse, or another rule that searches")  # fmt: skip
    weights = as_real(given)
    if weights.shape not in (shape[-1:], shape):
        raise ShapeError(f"{name}: importance is {list(shape[-1:])} or {list(shape)}, not {list(weights.shape)}")
    if weights.size and not (weights.min() >= 0 and np.isfinite(weights.max())):
        raise NonFiniteError(f"{name}: importance must be finite and not negative")
    return np.broadcast_to(weights, shape)


def _quantize(x: np.ndarray, weights: np.ndarray | None, spec: Spec, chooser: Chooser, parts: Parts) -> None:
    """Fills the parts of an array with blocks."""
    fmt = spec.format
    cuts = list(slabs(fmt, x.shape))

    def look(take: slice) -> Values:
        low, high, finite = extremes(x[take], spec)
        largest = max(high.max(), -low.min())
        if largest >= BEYOND:
            raise _BeyondFloat32(largest)
        return Values(x[take], fmt.blocks[0], LIMIT, low, high, finite, None if weights is None else weights[take])

    def fill(cut: tuple[slice, slice]) -> None:
        take, rows = cut
        values = look(take)
        grids = chooser.choose(values, rows)
        for part, codes in grids.parts.items():
            parts[part][rows] = codes
        held = parts["codes"][coded_rows(take, fmt, x.shape)]
        first = take.start * prod(x.shape[1:])
        _encode(x[take], spec, grids, None if values.finite else (values.low, values.high), held, first)

    chooser.settle(lambda work: in_order(cuts, lambda cut: work(cut[1], look(cut[0]))))
    for _ in in_order(cuts, fill):
        pass
    for chain, name in ((chooser.scales, "scale"), (chooser.offsets, "offset")):
        for i, codes in enumerate(chain.higher if chain is not None else [], start=1):
            parts[f"{name}.{i}"][...] = codes


def _encode(
    x: np.ndarray, spec: Spec, grids: Grids, limits: tuple[np.ndarray, np.ndarray] | None, out: np.ndarray, first: int
) -> None:
    """Codes of a slab; `limits` are the extremes of its finite values where some are not finite, `first` its place in the array."""
    block = spec.format.blocks[0]
    bits = stochastic_bits(spec.policy.round)
    word = None if bits is None else drawn(spec.policy.seed, first, x.size, bits).reshape(x.shape)
    for box in block.boxes(x.shape, LIMIT):
        part = x[box.take].reshape(box.split)
        values = part if limits is None else tame(part, box, *limits)
        codes = grids.encode(values, box, spec, None if word is None else word[box.take].reshape(box.split))
        if limits is not None and spec.policy.nonfinite == "propagate":
            bad = ~np.isfinite(part)
            codes = np.where(bad, spec.format.element.encode(np.where(bad, part, 0), nonfinite="propagate"), codes)
        held = box.coded(spec.format.element.dim).take
        out[held] = codes.reshape(out[held].shape)


def extremes(x: np.ndarray, spec: Spec, most: int | None = None) -> tuple[np.ndarray, np.ndarray, bool]:
    """float64 least and largest finite value of each block of a slab (0 where it has none), and whether all values are finite."""
    block = spec.format.blocks[0]
    low, high = (np.full_like(x, end, np.float64, shape=block.grid(x.shape)) for end in (np.inf, -np.inf))
    all_finite = True
    for box in block.boxes(x.shape, most or LIMIT):
        values = x[box.take].reshape(box.split)
        least, greatest = _ends(values, box)
        if not (np.isfinite(least).all() and np.isfinite(greatest).all()):
            if spec.policy.nonfinite == "error":
                raise NonFiniteFound
            all_finite = False
            good = np.isfinite(values)
            least = values.min(axis=box.within, where=good, initial=np.inf)
            greatest = values.max(axis=box.within, where=good, initial=-np.inf)
        low[box.grid] = np.minimum(low[box.grid], least)
        high[box.grid] = np.maximum(high[box.grid], greatest)
    empty = low > high
    return np.where(empty, 0, low), np.where(empty, 0, high), all_finite


def _ends(values: np.ndarray, box: Box) -> tuple[np.ndarray, np.ndarray]:
    """The least and largest of each block; what is not finite in it makes one of them so."""
    if isinstance(values, np.ndarray) and values.dtype == np.float32 and values.flags.c_contiguous and box.piece:
        low, high = block_ends(values.reshape(-1), box.piece)
        return low.reshape(box.split[::2]), high.reshape(box.split[::2])
    return values.min(axis=box.within), values.max(axis=box.within)


def _encode_plain(x: np.ndarray, spec: Spec, out: np.ndarray) -> None:
    """Codes of a flat array without scales."""
    element, policy = spec.format.element, spec.policy
    bits, dim = stochastic_bits(policy.round), element.dim
    for start in range(0, x.size, LIMIT):
        part, held = x[start : start + LIMIT], out[start // dim : (start + LIMIT) // dim]
        word = None if bits is None else drawn(policy.seed, start, part.size, bits)
        good = np.isfinite(part)
        if good.all():
            held[...] = codes_of(element, part, policy, word)
        elif policy.nonfinite == "error":
            raise NonFiniteFound
        elif dim > 1:
            held[...] = element.encode(part, policy.round, policy.over, policy.nonfinite)
        else:
            special = element.encode(np.where(good, 0, part).astype(part.dtype), over="saturate", nonfinite=policy.nonfinite)
            within = np.where(good, part, part.dtype.type(0 if element.has_zero else element.min))
            held[...] = np.where(good, codes_of(element, within, policy, word), special)


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
    """float32 values of logical parts. ShapeError: parts that are missing or do not have the shapes of `part_shapes`. FormatError: a table
    of learned values that is none."""
    shape = tuple(shape)
    for part, (_, size) in part_shapes(fmt, shape).items():
        if part not in parts or parts[part].shape != size:
            found = list(parts[part].shape) if part in parts else "missing"
            raise ShapeError(f"part '{part}' of {fmt} {list(shape)} is {list(size)}, not {found}")
    out = np.empty(shape, np.float32)
    if not out.size:
        return out
    fmt, dim = bound(fmt, parts), fmt.element.dim
    if fmt.block is None:
        flat, codes, step = out.reshape(-1), parts["codes"].reshape(-1), LIMIT // dim
        for start in range(0, flat.size, LIMIT):
            flat[start : start + LIMIT] = values_of(fmt.element, codes[start // dim : start // dim + step])
        return out
    walked = merged(fmt, shape)
    _dequantize({p: parts[p].reshape(size) for p, (_, size) in part_shapes(fmt, walked).items()}, fmt, out.reshape(walked))
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

    def fill(cut: tuple[slice, slice]) -> None:
        take, rows = cut
        grids = _grids(parts, fmt, scales, offsets, rows)
        target, codes = out[take], parts["codes"][coded_rows(take, fmt, out.shape)]
        for box in fmt.blocks[0].boxes(target.shape, LIMIT):
            held, part = box.coded(fmt.element.dim), target[box.take]
            grids.decode_into(part, codes[held.take].reshape(held.split), box, fmt.element)

    for _ in in_order(list(slabs(fmt, out.shape)), fill):
        pass
