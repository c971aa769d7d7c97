"""Rows are shared out by their number alone, so that the number of threads changes no bit."""

import numpy as np
import pytest
from calibrated import gathered, layer, rounded

from anybit.kernels.cpu import set_threads
from anybit.methods.descent import Descent
from anybit.methods.gptq import Gptq
from anybit.methods.panels import by_panels, panels


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
