"""Random one-line definitions: valid ones are accepted and right, invalid ones are refused with their position, nothing crashes.

ANYBIT_DEFINITIONS=20000 runs so many; by default as many as take about 25 seconds.
"""

from __future__ import annotations

import os
import re
from functools import cache

import numpy as np
import pytest
from definitions import Definition, invalid, valid
from hypothesis import HealthCheck, given, settings

from anybit.errors import FormatError
from anybit.formats import ROUNDS, Element, Format, Spec
from anybit.methods import dequantize_parts, quantize_parts
from anybit.reference import linear

COUNT = int(os.environ.get("ANYBIT_DEFINITIONS", "1500"))
QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": COUNT > 1500, "database": None}
SHAPES = ((5, 37), (70,), (2, 3, 130))


@settings(max_examples=COUNT * 3 // 5, **QUIET)  # type: ignore[arg-type]
@given(valid())
def test_valid_definitions_mean_what_they_say(definition: Definition) -> None:
    spec = Spec.parse(definition.text)
    fmt = spec.format
    assert definition.spec or Format(definition.text) == fmt
    for again in (str(fmt), fmt.explicit, fmt.explicit.upper()):
        assert Format(again) == fmt and Format(again).explicit == fmt.explicit
    assert Spec.parse(str(spec)) == spec
    assert definition.element is not None and fmt.element.bits == definition.element.bits
    assert fmt.element.signed == definition.element.signed or definition.element.text.startswith("codebook")
    assert len(fmt.levels) == len(definition.levels)
    for shape in SHAPES:
        assert fmt.size_bits(shape) == definition.size_bits(shape), shape
    check_element(fmt.element)
    if fmt.block is not None and fmt.element.bits <= 8:
        check_array(fmt)


@cache
def check_element(element: Element) -> None:
    """Fixed points, order, and no better neighbour, in every mode."""
    rng = np.random.default_rng(element.bits)
    if element.bits > 16:
        codes = rng.integers(0, 1 << element.bits, 400).astype(np.uint32)
        values = element.decode(codes)
        values = values[np.isfinite(values)]
        for mode in ROUNDS:
            assert np.array_equal(element.decode(element.encode(values, round=mode, over="error")), values)
        return
    points, codes = element.finite, element.finite_codes
    assert np.array_equal(element.decode(codes), points) and (np.diff(points) > 0).all()
    some = points if points.size <= 256 else np.sort(rng.choice(points, 256, replace=False))
    middles = points[:-1] / 2 + points[1:] / 2
    middles = middles if middles.size <= 256 else rng.choice(middles, 256)
    low, high = points[0], points[-1]
    x = np.sort(np.r_[some, middles, np.nextafter(middles, np.inf), low + (high - low) * rng.random(200)])
    x = x[(x >= low) & (x <= high)]
    at = np.clip(np.searchsorted(points, x, side="right") - 1, 0, len(points) - 2)
    below, above = points[at], points[at + 1]
    for mode in ROUNDS:
        q = element.decode(element.encode(x, round=mode))
        assert (np.diff(q) >= 0).all(), mode
        assert np.array_equal(element.decode(element.encode(some, round=mode, over="error")), some), mode
        assert ((q == below) | (q == above)).all(), mode
        if mode.startswith("nearest"):
            assert (np.abs(q - x) <= np.minimum(np.abs(x - below), np.abs(above - x))).all(), mode  # differences are exact near x
        if mode == "up":
            assert (q >= x).all()
        if mode == "down":
            assert (q <= x).all()
        if mode == "zero" and element.has_zero:
            assert (np.abs(q) <= np.abs(x)).all()


@cache
def check_array(fmt: Format) -> None:
    """An array goes there and back; the way back is the reference's. Its numbers are such that wide scales can hold them."""
    size = min(max(fmt.element.max, -fmt.element.min, 2.0**-60), 2.0**60)
    w = (np.random.default_rng(0).standard_normal((5, 37)) * size).astype(np.float32)
    try:
        parts = quantize_parts(w, fmt)
    except FormatError as error:  # narrow scales or offsets: refused by name, and never where all have float32's range
        stored = [*(level.element for level in fmt.levels), *([fmt.offset] if fmt.offset else [])]
        found = re.search(r"block \[.*\].* needs the (scale|offset) .*, and (\S+) ends at", str(error))
        assert found is not None and found[2] in {str(element) for element in stored}, error
        assert min(element.max for element in stored) < 2.0**100
        return
    back = dequantize_parts(parts, fmt, w.shape)
    assert np.isfinite(back).all()
    assert np.array_equal(back, linear.dequantize(parts, fmt, w.shape))


@settings(max_examples=COUNT - COUNT * 3 // 5, **QUIET)  # type: ignore[arg-type]
@given(invalid())
def test_invalid_definitions_are_refused_where_they_are_wrong(definition: Definition) -> None:
    with pytest.raises(FormatError) as caught:
        Spec.parse(definition.text) if definition.spec else Format(definition.text)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    found = re.search(r" at position (\d+)(?:;.*)?$", message)
    if found is not None:
        assert int(found[1]) == definition.position, message
    else:  # a name that nothing knows, alone on its line: it is named
        assert definition.position == 0 and definition.culprit == definition.text and definition.culprit in message, message
