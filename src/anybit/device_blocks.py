"""Quantizing arrays that lie on a device: scales and codes are chosen there by the code that chooses them on the host, with the same bits.

`methods/grids.py`, the scale rules and the chain of scales run on arrays under NumPy's protocols (`device_numpy.py`). To the host go
single numbers that decide what is done next, and those by which levels above the first are settled: a few for each block of such a level.
Arrays are walked in slabs of some million values, so that temporary memory stays at some hundred megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from anybit.device import check_groups, codes_on_device, numbers_of, raise_non_finite, values_on_device, words
from anybit.device_arrays import Arrays, arrays_of
from anybit.device_numpy import Placed
from anybit.errors import FormatError, NonFiniteError, ShapeError
from anybit.formats import Box, Format, Spec
from anybit.formats.elements.integer import Integer
from anybit.formats.rounding import OutOfRangeError, stochastic_bits
from anybit.methods.chain import ScaleRangeError
from anybit.methods.grids import LIMIT, Chooser, Grids
from anybit.methods.method import Parts
from anybit.methods.rtn import BEYOND, NonFiniteFound, coded_rows, extremes, importance_for, merged, part_shapes, slabs, stored_grids, told
from anybit.methods.scales import SCALES
from anybit.methods.values import Values, tame

_ADVICE = "repair the array, or say nonfinite=saturate or propagate"
_SLAB = 1 << 22
"""Values that are handled at a time, where blocks are no longer than the host would handle at once."""


def fake_quantize_on_device(x: Any, spec: Spec, out: Any = None, importance: Any = None) -> Any:
    """float32 values of a torch tensor or JAX array on the format's grid, on its device.

    Raises: as `anybit.fake_quantize`; FormatError: a format or policy that runs on the CPU only.
    """
    ops, plan = arrays_of(x), _checked(x, spec)
    element, fmt = spec.format.element, spec.format
    with ops.scope():
        if 0 in x.shape:
            return ops.written(ops.cast(numbers_of(ops, x), "float32"), out)
        if fmt.block is None:
            codes = _opened(ops, _plain_codes(ops, x, plan), fmt)
            return ops.written(ops.cast(values_on_device(ops, codes, element).reshape(x.shape), "float32"), out)
        shape = merged(fmt, tuple(x.shape))
        made = Placed(ops, ops.full(shape, 0.0, "float32", x))
        for take, _, grids, coded in _chosen(ops, x, plan, importance, "array"):
            if fmt.zero is not None and not fmt.whole_zero and grids.zero is not None:  # as kernels run it
                grids = replace(grids, zero=None, offset=-(grids.zero * grids.scale))
            for box, codes in coded:
                values = grids.decode(Placed(ops, _opened(ops, codes.array, fmt)), box, element)  # type: ignore[arg-type, attr-defined]
                made[_within(take, box)] = values.reshape(tuple(s.stop - s.start for s in box.take))
        return ops.written(made.array.reshape(x.shape), out)


def quantize_on_device(x: Any, spec: Spec, name: str = "array", importance: Any = None) -> Parts:
    """The logical parts, NumPy arrays, of a torch tensor or JAX array: chosen where it lies, then taken to the host.

    Raises: as `methods.rtn.quantize_parts`; FormatError: a format or policy that runs on the CPU only.
    """
    ops, plan, fmt = arrays_of(x), _checked(x, spec, name), spec.format
    parts = {part: np.zeros(size, dtype) for part, (dtype, size) in part_shapes(fmt, tuple(x.shape)).items()}
    stored = plan.format
    with ops.scope():
        if fmt.block is None:
            parts["codes"][...] = ops.host(_opened(ops, _plain_codes(ops, x, plan), fmt))
            return parts
        shape = merged(stored, tuple(x.shape))
        flat = {part: parts[part].reshape(size) for part, (_, size) in part_shapes(stored, shape).items()}
        higher: dict[str, np.ndarray] = {}
        for take, rows, grids, coded in _chosen(ops, x, plan, importance, name, higher):
            for part, found in grids.parts.items():
                flat[part][rows] = found.host()  # type: ignore[attr-defined]
            held = flat["codes"][coded_rows(take, stored, shape)]
            for box, codes in coded:
                into = held[box.coded(stored.element.dim).take]
                into[...] = ops.host(_opened(ops, codes.array, fmt)).reshape(into.shape)  # type: ignore[attr-defined]
        for part, each in higher.items():
            flat[part][...] = each
    return parts


def dequantize_on_device(parts: Parts, fmt: Format, like: Any, out: Any = None) -> Any:
    """float32 values of logical parts of `like`'s shape, where it lies. For elements of one weight a code, of at most 16 bits."""
    ops, shape = arrays_of(like), tuple(like.shape)
    place, codes = ops.place(like), parts["codes"].astype(np.int64)
    with ops.scope():
        values: Any = Placed(ops, values_on_device(ops, ops.table(codes, place), fmt.element)).astype(np.float32)
        if fmt.block is not None:
            grids, sizes = stored_grids(parts, fmt, shape), fmt.blocks[0].on(shape)

            def spread(numbers: np.ndarray) -> Placed:
                found = ops.table(numbers, place)
                for axis, size in enumerate(sizes):
                    found = ops.repeat(found, size, axis)[(slice(None),) * axis + (slice(0, shape[axis]),)]
                return Placed(ops, found)

            values = values if grids.zero is None else values - spread(grids.zero)
            values = values * spread(grids.scale)
            values = values if grids.offset is None else values + spread(grids.offset)
        return ops.written(values.array, out)


def _checked(x: Any, spec: Spec, name: str = "array") -> Spec:
    """The spec in which codes are chosen: of nested integers as they are stored."""
    spec.check()
    place = arrays_of(x).place(x)
    fmt = spec.format.stored
    first = [e for e in (_first_scale(fmt), fmt.zero, _first_offset(fmt)) if e is not None and e.name != "fp32"]
    reason = None
    if fmt.element.learned:
        reason = f"{fmt.element} is learned from the array, which"
    elif any(e.bits > 16 for e in (fmt.element, *first)):
        reason = f"{fmt} has numbers of more than 16 bits, which"
    elif spec.policy.over == "wrap" and (fmt.block is None or not isinstance(fmt.element, Integer)):
        reason = f"over=wrap of {fmt}"
    if reason is not None:
        raise FormatError(f"on {place} {reason} is not there; move the array to the CPU")
    if not x.shape:
        raise ShapeError(f"{name} is a single number; quantizing needs an array of at least one axis")
    check_groups(fmt.element, tuple(x.shape))
    return Spec(fmt, spec.policy)


def _first_scale(fmt: Format) -> Any:
    return fmt.levels[0].element if fmt.levels else None


def _first_offset(fmt: Format) -> Any:
    return fmt.offset_element(0) if fmt.offset is not None else None


def _opened(ops: Arrays, codes: Any, fmt: Format) -> Any:
    """Codes of an opened format from stored ones."""
    if fmt.opened is None:
        return codes
    return ops.table(fmt.cut(np.arange(1 << fmt.stored.element.bits)).astype(np.int64), ops.place(codes))[codes]


def _plain_codes(ops: Arrays, x: Any, spec: Spec) -> Any:
    """int64 codes without scales."""
    number, policy = numbers_of(ops, x), spec.policy
    finite = ops.isfinite(number)
    if policy.nonfinite == "error" and not bool(finite.all()):
        raise_non_finite(number, finite, _ADVICE)
    return codes_on_device(ops, number, spec.format.element, (policy.round, policy.over, policy.nonfinite), policy.seed)


def _within(take: slice, box: Box) -> tuple[slice, ...]:
    """A box of a slab as a part of the array."""
    first = box.take[0]
    return (slice(take.start + first.start, take.start + first.stop), *box.take[1:])


Coded = Iterator[tuple[Box, np.ndarray]]


def _chosen(
    ops: Arrays, x: Any, spec: Spec, importance: Any, name: str, higher: dict[str, np.ndarray] | None = None
) -> Iterator[tuple[slice, slice, Grids, Coded]]:
    """(rows of the array, rows of the block grid, their grids, codes box by box) of each slab; `higher` gets the levels above the first."""
    fmt, rule, place = spec.format, SCALES[spec.scale_rule], ops.place(x)
    number = numbers_of(ops, x)
    if ops.name(number) == "float64":  # as `quantize_parts`: equal arrays get equal codes
        narrow = ops.cast(number, "float32")
        number = narrow if bool((ops.cast(narrow, "float64") == number).all()) else number
    shape = merged(fmt, tuple(x.shape))
    array, weights = Placed(ops, number.reshape(shape)), _weights(ops, importance, x, spec, shape, name)
    # Where the host would cut a block the sums of its pieces are added up in that order.
    cut = any(max(1, LIMIT // max(1, prod(shape[i + 1 :]))) < size for i, size in enumerate(fmt.blocks[0].on(shape)))
    limit = LIMIT if cut else _SLAB

    def look(take: slice) -> Values:
        low, high, finite = extremes(array[take], spec, limit)  # type: ignore[arg-type]
        largest = max(float(high.max()), -float(low.min()))
        if largest >= BEYOND:
            raise FormatError(
                f"{name} holds values up to {largest:g}, and what codes mean is float32, which ends at 3.4e38; divide the array"
            )
        held: Any = None if weights is None else weights[take]
        return Values(array[take], fmt.blocks[0], limit, low, high, finite, held)  # type: ignore[arg-type]

    def placed(numbers: np.ndarray) -> np.ndarray:
        return Placed(ops, ops.table(numbers, place))  # type: ignore[return-value]

    try:
        chooser = Chooser(spec, rule, shape, placed)
        cuts = list(slabs(fmt, shape, limit))
        chooser.settle(lambda work: (work(rows, look(take)) for take, rows in cuts))
        for take, rows in cuts:
            values = look(take)
            grids = chooser.choose(values, rows)
            yield take, rows, grids, _codes(ops, values, spec, grids, take.start * prod(shape[1:]), name)
    except NonFiniteFound:
        raise_non_finite(number, ops.isfinite(number), _ADVICE)
    except ScaleRangeError as error:
        raise told(error, name, fmt, shape, tuple(x.shape)) from None
    if higher is not None:
        for chain, part in ((chooser.scales, "scale"), (chooser.offsets, "offset")):
            higher.update({f"{part}.{i}": codes for i, codes in enumerate(chain.higher if chain is not None else [], start=1)})


def _codes(ops: Arrays, values: Values, spec: Spec, grids: Grids, first: int, name: str) -> Coded:
    """Codes of a slab, which begins at place `first` of the array, box by box: `rtn._encode` where the array lies."""
    bits, x = stochastic_bits(spec.policy.round), values.x
    word = None
    if bits is not None:
        word = Placed(ops, words(ops, spec.policy.seed, first, x.size, bits, x.array).reshape(x.shape))  # type: ignore[attr-defined]
    for box in values.block.boxes(x.shape, values.limit):
        part: Any = x[box.take].reshape(box.split)
        held = part if values.finite else tame(part, box, values.low, values.high)
        drawn: Any = None if word is None else word[box.take].reshape(box.split)
        try:
            codes: Any = grids.encode(held, box, spec, drawn)
        except OutOfRangeError as error:
            raise told(error, name, spec.format, x.shape, x.shape) from None
        if not values.finite and spec.policy.nonfinite == "propagate":
            policy = ("nearest-even", "saturate", "propagate")
            special = codes_on_device(ops, np.where(np.isfinite(part), 0, part).array, spec.format.element, policy, 0)  # type: ignore[attr-defined]
            codes = np.where(np.isfinite(part), codes, Placed(ops, special))
        yield box, codes


def _weights(ops: Arrays, given: Any, x: Any, spec: Spec, shape: tuple[int, ...], name: str) -> Placed | None:
    """Importance for each value. As `rtn.importance_for`, for arrays of either kind."""
    size, rule = tuple(x.shape), SCALES[spec.scale_rule]
    importance_for(None if given is None else np.ones(size[-1]), size, rule, name, False)
    if given is None:
        return None
    held = given if hasattr(given, "device") and not isinstance(given, np.ndarray) else ops.table(np.asarray(given), ops.place(x))
    held = numbers_of(ops, held)
    if tuple(held.shape) not in (size[-1:], size):
        raise ShapeError(f"{name}: importance is {list(size[-1:])} or {list(size)}, not {list(held.shape)}")
    if not bool((ops.isfinite(held) & (held >= 0)).all()):
        raise NonFiniteError(f"{name}: importance must be finite and not negative")
    return Placed(ops, ops.xp.broadcast_to(held, shape) if tuple(held.shape) == size[-1:] else held.reshape(shape))
