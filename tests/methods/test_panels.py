"""Rows are shared out by their number alone, so that the number of threads changes no bit."""

import time
from collections.abc import Iterator
from threading import get_ident

import numpy as np
import pytest
from calibrated import gathered, layer, rounded

from anybit.formats import Spec
from anybit.kernels.cpu import native, set_threads
from anybit.methods.descent import Descent
from anybit.methods.gptq import Gptq
from anybit.methods.panels import by_panels, in_order, panels
from anybit.methods.rtn import dequantize_parts, quantize_parts


@pytest.mark.parametrize("rows", [0, 1, 63, 127, 128, 129, 1000, 1024, 1025, 4097, 9001])
def test_each_row_is_in_one_panel(rows: int) -> None:
    found = panels(rows)
    assert [row for panel in found for row in range(panel.start, panel.stop)] == list(range(rows))
    assert all(128 <= panel.stop - panel.start <= 1024 for panel in found[:-1])
    assert by_panels(rows, lambda panel: panel) == found


def test_what_a_panel_raises_is_raised() -> None:
    def fail(rows: slice) -> None:
        if rows.start:
            raise ValueError(f"row {rows.start}")

    with pytest.raises(ValueError, match=r"row 128"):
        by_panels(300, fail)
    assert by_panels(300, lambda rows: rows.start) == [0, 128, 256]  # and the next is served


@pytest.mark.parametrize("then", [None, Descent()])
def test_threads_change_no_bit(then: Descent | None) -> None:
    w, x, _ = layer(n=301, k=200, seed=7)
    stats = gathered(x)

    def codes(rows: slice, threads: int) -> np.ndarray:
        set_threads(threads)
        target = rounded(Gptq(), w[rows], "int3@40", stats)
        if then is not None:
            then.correct(target, stats)
        assert target.parts is not None
        return target.parts["codes"]

    found = [codes(slice(0, 301), threads) for threads in (1, 2, 5)]
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
    assert np.array_equal(codes(slice(128, 256), 2), found[0][128:256]), "rows are independent"


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = native.threads()
    set_threads(request.param)
    yield request.param
    set_threads(before)


def test_items_come_in_order_and_only_a_few_ahead(threads: int) -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.002 * (item % 3))
        return item * item

    for count, (at, value) in enumerate(zip(range(40), in_order(range(40), work), strict=True)):
        assert value == at * at
        assert len(begun) <= count + 2 + threads
    assert sorted(begun) == list(range(40))
    assert list(in_order([], work)) == []


def test_what_fails_is_raised_and_the_next_is_served(threads: int) -> None:
    taken = []
    with pytest.raises(ZeroDivisionError):
        for value in in_order(range(9), lambda item: 1 // (item - 4)):
            taken.append(value)
    assert taken == [-1, -1, -1, -1]
    assert list(in_order(range(5), lambda item: -item)) == [0, -1, -2, -3, -4]


def test_inside_another_it_runs_where_it_is(threads: int) -> None:
    def work(rows: slice) -> bool:
        return set(in_order(range(6), lambda _: get_ident())) == {get_ident()}

    assert all(by_panels(700, work))
    outer = list(in_order(range(3), lambda _: work(slice(0))))
    assert outer == [True] * 3


def test_error_states_come_along(threads: int) -> None:
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        list(in_order(range(3), lambda _: np.ones(3) / np.zeros(3)))


@pytest.mark.parametrize(
    "expression",
    ["int4@32", "nvfp4", "int3@24+scale=mse", "uint4@32:uint6@256:fp16+off+scale=kquant", "int4@8x16+zp", "int5@64+round=sr16+seed=3"],
)
def test_parts_do_not_depend_on_threads(expression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slabs and a rest, on one thread and on five."""
    monkeypatch.setattr("anybit.methods.rtn.SLAB", 1 << 17)
    x = np.random.default_rng(5).standard_normal((775, 531), np.float32)
    found = []
    for count in (1, 5):
        before = native.threads()
        set_threads(count)
        parts = quantize_parts(x, expression)
        found.append((parts, dequantize_parts(parts, Spec.parse(expression).format, x.shape)))
        set_threads(before)
    (one, values), (five, again) = found
    assert all(np.array_equal(one[name], five[name]) for name in one)
    assert np.array_equal(values, again)
