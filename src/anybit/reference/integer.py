"""Integer-only networks on Python integers, one number at a time; rounding by exact fractions.

Takes a program as plain data, {"low", "high", "steps"}: each step a dict with "kind", "name", "inputs", "zeros" and its numbers, as
`IntegerNetwork.plain` writes them. Shares no code with `anybit.graphs`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

Image = list[list[list[int]]]


def run(program: dict[str, Any], q: Any) -> dict[str, Any]:
    """Every value by name for one sample q, nested lists of int: [channels][rows][columns], or [features] behind a reshape."""
    values = {"input": q}
    for step in program["steps"]:
        given = [_minus(values[name], zero) for name, zero in zip(step["inputs"], step["zeros"], strict=True)]
        values[step["name"]] = _STEPS[step["kind"]](step, *given)
    return values


def nearest(value: Fraction) -> int:
    """floor(value + 1/2)."""
    return math.floor(value + Fraction(1, 2))


def _minus(value: Any, zero: int) -> Any:
    return [_minus(each, zero) for each in value] if isinstance(value, list) else value - zero


def _each_channel(values: Sequence[Any], change: Any) -> list[Any]:
    def walk(value: Any, channel: int) -> Any:
        return [walk(each, channel) for each in value] if isinstance(value, list) else change(value, channel)

    return [walk(value, channel) for channel, value in enumerate(values)]


def _of(numbers: list[int], channel: int) -> int:
    return numbers[channel] if len(numbers) > 1 else numbers[0]


def _times(value: int, b: list[int], c: list[int], channel: int) -> int:
    return nearest(Fraction(value * _of(b, channel), 2 ** _of(c, channel)))


def _end(value: int, out: dict[str, Any]) -> int:
    return min(max(value + out["zero"], out["low"]), out["high"])


def _requantized(values: list[Any], out: dict[str, Any] | None) -> list[Any]:
    if out is None:
        return values
    return _each_channel(values, lambda value, channel: _end(_times(value, out["b"], out["c"], channel), out))


def _windows(image: list[list[int]], step: dict[str, Any]) -> Iterator[list[list[tuple[int, int, int]]]]:
    """For each row of windows, the windows as (place in the kernel, ..., number) of the numbers that lie inside the image."""
    (high, wide), (down, right), (up, left) = step["kernel"], step["stride"], step["padding"]
    rows, columns = len(image), len(image[0])
    for top in range(-up, rows + up - high + 1, down):
        yield [
            [
                (i, j, image[top + i][start + j])
                for i in range(high)
                for j in range(wide)
                if 0 <= top + i < rows and 0 <= start + j < columns
            ]
            for start in range(-left, columns + left - wide + 1, right)
        ]


def _convolve(step: dict[str, Any], x: Image) -> Image:
    weight, groups = step["weight"], step["groups"]
    each = len(weight[0])
    places = {"kernel": (len(weight[0][0]), len(weight[0][0][0])), "stride": step["stride"], "padding": step["padding"]}
    found = [list(_windows(channel, places)) for channel in x]
    out = []
    for o, kernel in enumerate(weight):
        first = o // (len(weight) // groups) * each
        rows = range(len(found[0]))
        out.append([
            [
                step["bias"][o] + sum(kernel[k][i][j] * v for k in range(each) for i, j, v in found[first + k][r][s])
                for s in range(len(found[0][r]))
            ]
            for r in rows
        ])  # fmt: skip
    return _requantized(out, step["out"])


def _multiply(step: dict[str, Any], x: list[int]) -> list[int]:
    sums = [b + sum(w * v for w, v in zip(row, x, strict=True)) for row, b in zip(step["weight"], step["bias"], strict=True)]
    return _requantized(sums, step["out"])


def _sum(step: dict[str, Any], x: list[Any], y: list[Any]) -> list[Any]:
    left, right = (
        _each_channel(value, lambda v, channel, i=i: _times(v, step["b"][i], step["c"][i], channel)) for i, value in enumerate((x, y))
    )

    def add(a: Any, b: Any) -> Any:
        return [add(*pair) for pair in zip(a, b, strict=True)] if isinstance(a, list) else _end(a + b, step["out"])

    return [add(*pair) for pair in zip(left, right, strict=True)]


def _average(step: dict[str, Any], x: Image) -> Image:
    sums = [[[sum(v for _, _, v in window) for window in row] for row in _windows(channel, step)] for channel in x]
    return _requantized(sums, step["out"])


def _maximum(step: dict[str, Any], x: Image) -> Image:
    zero = step["zeros"][0]
    return [[[max(v for _, _, v in window) + zero for window in row] for row in _windows(channel, step)] for channel in x]


def _positive(step: dict[str, Any], x: list[Any]) -> list[Any]:
    return _each_channel(x, lambda value, _: max(value, 0) + step["zeros"][0])


def _reshape(step: dict[str, Any], x: list[Any]) -> list[int]:
    def flat(value: Any) -> Iterator[int]:
        if isinstance(value, list):
            for each in value:
                yield from flat(each)
        else:
            yield value + step["zeros"][0]

    return list(flat(x))


def _rescale(step: dict[str, Any], x: list[Any]) -> list[Any]:
    return _requantized(x, step["out"])


_STEPS: dict[str, Any] = {
    "Convolve": _convolve, "Multiply": _multiply, "Sum": _sum, "Average": _average, "Maximum": _maximum, "Positive": _positive,
    "Reshape": _reshape, "Rescale": _rescale,
}  # fmt: skip
