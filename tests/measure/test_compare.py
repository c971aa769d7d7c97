"""Ranking formats: bits that are counted, noise that is measured, and what is refused."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from anybit.errors import FileFormatError, UsageError
from anybit.measure.compare import load_source, rank
from anybit.methods import dequantize_parts, quantize_parts


def test_bits_noise_and_pareto(tmp_path: Path) -> None:
    w = np.random.default_rng(0).standard_normal((8, 96)).astype(np.float32)
    np.save(tmp_path / "w.npy", w)
    x = load_source(str(tmp_path / "w.npy"))
    rows = rank(["int8@32", "int4@32", "int2@32", "fp32", "int4@32:fp32", "ternary@32+scale=absmax"], x, "w.npy")
    assert [row.name for row in rows] == ["int2@32", "ternary@32+scale=absmax", "int4@32", "int4@32:fp32", "int8@32", "fp32"]
    assert [row.bits for row in rows] == [Fraction(5, 2)] * 2 + [Fraction(9, 2), Fraction(5), Fraction(17, 2), Fraction(32)]
    q = dequantize_parts(quantize_parts(w, "int4@32"), rows[2].spec.format, w.shape)
    noise = np.square(q - w.astype(float)).sum()
    assert rows[2].sqnr_db == pytest.approx(10 * math.log10(np.square(w.astype(float)).sum() / noise))
    assert rows[-1].sqnr_db == math.inf and rows[-1].pareto and rows[0].pareto and not rows[1].pareto


def test_a_format_that_loses_nothing_is_not_beaten_by_one_of_more_bits() -> None:
    rows = rank(["fp32", "fp16", "int16@channel"], np.ones((4, 64), np.float32), "ones")
    assert [row.pareto for row in rows if row.name == "fp32"] == [False]


def test_zeros_have_no_ratio() -> None:
    rows = rank(["int4@32", "e8m0"], np.zeros((2, 64), np.float32), "zeros")
    assert rows[0].sqnr_db == math.inf and all(not row.pareto for row in rows[1:])


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is normal, laplace, t4, or the path of a \.npy file; did you mean normal\?"):
        load_source("norml")
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY garbage")
    np.save(tmp_path / "text.npy", np.array(["a"]))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "empty.npy", np.zeros((3, 0)))
    np.savez(tmp_path / "many", a=np.ones(3))
    (tmp_path / "many.npz").rename(tmp_path / "many.npy")
    (tmp_path / "folder.npy").mkdir()
    for name, message in [
        ("nowhere.npy", "No such file"), ("folder.npy", "directory"), ("a.npy", "no .npy array"), ("text.npy", "real numbers"),
        ("object.npy", "no .npy array"), ("empty.npy", r"its shape is \[3, 0\]"), ("many.npy", "real numbers"),
    ]:  # fmt: skip
        with pytest.raises(FileFormatError, match=message) as caught:
            load_source(str(tmp_path / name))
        assert "\n" not in str(caught.value) and name in str(caught.value)
