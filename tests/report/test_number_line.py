"""Values on a line of characters: each in its column, at any width."""

from __future__ import annotations

import numpy as np
import pytest

from anybit.report.number_line import LEAST_WIDTH, choose, label, number_line, scatter


def test_each_value_has_its_column_and_its_label() -> None:
    values = [-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]
    title, marks, axis, labels = number_line(values, 97)
    assert title == "15 values on a linear line"
    assert marks.count("|") == 15 and len(marks) == 97
    assert [i for i, c in enumerate(marks) if c == "|"] == [round((v + 6) * 8) for v in values]
    assert axis.count("+") == len(labels.split()) == 15
    assert labels.split() == [f"{v:g}" for v in values]


@pytest.mark.parametrize("width", [1, 24, 40, 80, 133, 200])
def test_it_is_as_wide_as_asked_and_counts_every_value(width: int) -> None:
    for values in (np.arange(256.0), np.exp2(np.arange(-127, 128)), np.r_[-3.0, 1e-20, 1e20], np.array([5.0]), np.array([-2.0, -1.0])):
        lines = number_line(values, width)
        assert max(map(len, lines[1:])) <= max(width, LEAST_WIDTH) and len(lines[2]) == max(width, LEAST_WIDTH)
        if "#" not in lines[1]:
            assert sum(1 if c == "|" else int(c) for c in lines[1] if c != " ") == len(values)


def test_the_scale_fits_the_values() -> None:
    even, powers = np.arange(-128, 128.0), np.exp2(np.arange(-20, 20.0))
    both_signs = np.r_[-powers[::-1], 0, powers]
    assert choose(even, 100).kind == "linear" and choose(powers, 100).kind == choose(both_signs, 100).kind == "logarithmic"
    scale = choose(both_signs, 101)
    columns = [scale.column(v) for v in both_signs.tolist()]
    assert columns == sorted(columns) and columns[0] == 0 and columns[-1] == 100 and scale.column(0.0) == 50
    assert [100 - c for c in reversed(columns)] == columns
    assert choose(-powers, 50).column(float(-powers[0])) == 49


def test_labels() -> None:
    assert [label(v) for v in (448.0, -0.6961928, 2.0**-9, 2.0**-75, -(2.0**100), 65504.0, 1e20, 0.0)] == [
        "448", "-0.6962", "2^-9", "2^-75", "-2^100", "65504", "1e+20", "0",
    ]  # fmt: skip


def test_pairs_in_a_frame() -> None:
    lines = scatter(np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 1.0]]), 11, 5)
    assert lines[0].startswith("4 pairs: first 0 to 1 rightwards")
    assert lines[2] == "|2         *|" and lines[6] == "|*          |" and lines[1] == lines[-1] == "+-----------+"
