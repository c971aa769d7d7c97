"""Rounding to GGUF's lists of points: every legal choice tried by hand, llama.cpp's own errors, rows that are awkward, what is refused."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import numpy as np
import pytest

from anybit.errors import FormatError, NonFiniteError, ShapeError
from anybit.formats import Format
from anybit.formats.points import Points
from anybit.io.gguf.kind import KINDS, writers
from anybit.methods import points as search
from anybit.methods.points import Blocks, Search, quantize_to_points
from anybit.methods.rtn import dequantize_parts

LISTS = [name for name in KINDS if KINDS[name].points is not None]
IMPORTANCE = np.exp(np.random.default_rng(11).standard_normal(512))
BIG = {"IQ1": 1.25, "IQ2": 0.35, "IQ3": 0.15}


def of(name: str) -> Points:
    found = KINDS[name].points
    assert found is not None
    return found


def made(kind: str, w: np.ndarray, **options: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Parts and what they mean."""
    fmt = Format(KINDS[kind].format)
    parts = quantize_to_points(w, fmt, of(kind), **options)
    return parts, dequantize_parts(parts, fmt, w.shape)


def error(name: str, w: np.ndarray, weigh: np.ndarray | float = 1.0, **options: Any) -> float:
    """Weighted squared error over the weighted squares."""
    wide = w.astype(np.float64)
    return float((weigh * np.square(made(name, w, **options)[1] - wide)).sum() / (weigh * np.square(wide)).sum())


def weighed(w: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """What an error of each value weighs in llama.cpp's searches that have importance: large values more, by the mean square of 256."""
    wide = w.astype(np.float64).reshape(-1, 256)
    return importance * np.sqrt(2 * np.square(wide).mean(1, keepdims=True) + np.square(wide)).reshape(w.shape)


def rows(kind: str) -> np.ndarray:
    """float32[8, 512] of one sort."""
    rng = np.random.default_rng(7)
    w = rng.standard_normal((8, 512))
    if kind == "heavy":
        w = rng.standard_t(3, (8, 512))
    if kind == "outlier":
        w = w * 0.001
        w[:, 100] = 1.0
    if kind == "zeros":
        w[:, :200] = 0
        w[3] = 0
    if kind == "uneven":
        w *= np.exp(rng.standard_normal((8, 16))).repeat(32, axis=1)
    return (w * {"tiny": 1e-5, "huge": 3e5}.get(kind, 0.02)).astype(np.float32)


# ---------------------------------------------------------------------------------------------- the meaning of the parts
@pytest.mark.parametrize("name", LISTS)
def test_what_gguf_py_reads(name: str) -> None:
    """Our codes in the type's blocks: gguf-py's values are ours, bit for bit."""
    gguf = pytest.importorskip("gguf")
    kind, w = KINDS[name], rows("uneven")
    parts, mine = made(name, w)
    blocks = np.zeros((8, 2), kind.dtype)
    writers()[name](parts, blocks)
    theirs = gguf.dequantize(blocks.view(np.uint8).reshape(8, -1), gguf.GGMLQuantizationType[name])
    assert np.array_equal(theirs, mine)
    assert of(name).refusal(parts["codes"], parts["scale.0"]) is None


@pytest.mark.parametrize("name", LISTS)
def test_other_codes_are_told_apart(name: str) -> None:
    """Every kind of code that the type cannot store is seen, one at a time."""
    points, (parts, _) = of(name), made(name, rows("plain"))
    codes, scales, count = parts["codes"], parts["scale.0"], len(of(name).numbers)

    def changed(at: Any, to: Any) -> str | None:
        other = codes.copy()
        other[at] = to
        return points.refusal(other, scales)

    listed = {tuple(p) for p in points.places.tolist()}
    absent = next(p for p in product(range(count), repeat=points.dim) if p not in listed)
    assert f"one of its {len(listed)} points" in (changed((2, slice(0, points.dim)), absent) or "")
    turned = (codes[1, 9] + count) % (2 * count)
    want = {"even": "odd number of signs", "shift": "not all shifted alike"}.get(points.signs)
    assert (changed((1, 9), turned) is None) if want is None else want in (changed((1, 9), turned) or "")
    for wrong in (0, 2, 2 * points.steps + 1):
        other = scales.copy()
        other[3, 1] = wrong
        assert "a scale is not odd" in (points.refusal(codes, other) or "")


# ---------------------------------------------------------------------------------------------- the search
def best_by_hand(points: Points, x: np.ndarray, w: np.ndarray, scale: float) -> float:
    """Least weighted squared error of one group over all points and all legal signs or shifts, in float64."""
    numbers = np.array(points.numbers, np.float64)[points.places]
    per = points.group // points.dim
    x, w = x.reshape(per, points.dim).astype(np.float64), w.reshape(per, points.dim).astype(np.float64)
    if points.signs == "shift":
        return min(float(sum((w[i] * (x[i] - scale * (numbers + t)) ** 2).sum(1).min() for i in range(per))) for t in (0.125, -0.125))
    costs = []
    for signs in product((1, -1), repeat=points.group):
        if points.signs == "even" and np.prod(signs) < 0:
            continue
        s = np.array(signs).reshape(per, points.dim)
        costs.append(sum((w[i] * (x[i] - scale * s[i] * numbers) ** 2).sum(1).min() for i in range(per)))
    return float(min(costs))


@pytest.mark.parametrize("name", LISTS)
def test_points_are_the_best_there_are(name: str) -> None:
    """For a given scale, group by group: as trying everything, but for an even number of signs, where two of eight weights may turn."""
    points, rng = of(name), np.random.default_rng(3)
    x, w = rng.standard_normal((1, 256)).astype(np.float32), rng.lognormal(0, 1, (1, 256)).astype(np.float32)
    scale = BIG[name[:3]]
    blocks = Blocks(Search(points), x, w)
    found = blocks.rounded(np.full(blocks.grid, scale), thorough=True)
    q = np.array(points.numbers)[points.places[found.index[0]]].reshape(256)
    q = q + np.where(found.negative[0], -0.125, 0.125) if points.signs == "shift" else np.where(found.negative[0], -q, q)
    got = (w[0].astype(np.float64) * (x[0] - scale * q) ** 2).reshape(-1, points.group).sum(1)
    count = 4 if points.signs == "even" else 8
    want = np.array([best_by_hand(points, *(a[0].reshape(-1, points.group)[g] for a in (x, w)), scale) for g in range(count)])
    assert (got[:count] >= want * (1 - 1e-5)).all()
    if points.signs == "even":
        assert got[:count].sum() <= want.sum() * 1.01
    else:
        np.testing.assert_allclose(got[:count], want, rtol=1e-4)
    loss = found.error(np.full(blocks.grid, scale)) + (w * x.astype(np.float64) ** 2).reshape(*blocks.grid, -1).sum(2)
    np.testing.assert_allclose(loss[0], got.reshape(blocks.grid[1], -1).sum(1), rtol=1e-4)


@pytest.mark.parametrize("name", LISTS)
def test_search_of_scales_is_near_exhaustion(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many more starts and candidates find little more."""
    w = rows("uneven")
    usual = error(name, w)
    monkeypatch.setattr(search, "starts_of", lambda points: np.geomspace(0.5, 2.5, 40))
    monkeypatch.setattr(search, "_NEAR", (0, -1, 1, -2, 2, -3, 3))
    monkeypatch.setattr(search, "_TURNS", 6)
    thorough = error(name, w)
    assert usual <= thorough * 1.01


@pytest.mark.parametrize("name", LISTS)
def test_importance_moves_errors(name: str) -> None:
    """Channels that count more get smaller errors; one that counts nothing does not disturb; [k] and the array's shape are one."""
    w, weigh = rows("plain"), np.ones(512)
    weigh[::4] = 25.0
    assert error(name, w, weigh, importance=weigh) < error(name, w, weigh) * 0.97
    parts, _ = made(name, w, importance=weigh)
    other, _ = made(name, w, importance=np.broadcast_to(weigh, w.shape))
    assert all(np.array_equal(parts[part], other[part]) for part in parts)
    weigh[:300] = 0
    assert np.isfinite(error(name, w, weigh, importance=weigh))


# llama.cpp's weighted error over the weighted squares for the first two rows of a sort, with importance of ones and with IMPORTANCE:
# ggml_quantize_chunk of llama-cpp-python 0.3.36, read back
LLAMA = {
    "IQ2_XXS": {
        "plain": (0.0977, 0.0833), "heavy": (0.0968, 0.0875), "outlier": (0.0985, 0.2918),
        "zeros": (0.0967, 0.0745), "uneven": (0.0939, 0.0773),
    },
    "IQ2_XS": {
        "plain": (0.0712, 0.0582), "heavy": (0.0646, 0.0562), "outlier": (0.0552, 0.1293),
        "zeros": (0.0695, 0.0548), "uneven": (0.059, 0.0478),
    },
    "IQ2_S": {
        "plain": (0.0502, 0.0436), "heavy": (0.0545, 0.0498), "outlier": (0.0515, 0.1219),
        "zeros": (0.0501, 0.0411), "uneven": (0.0466, 0.0405),
    },
    "IQ3_XXS": {
        "plain": (0.0251, 0.0188), "heavy": (0.0225, 0.0194), "outlier": (0.0193, 0.06),
        "zeros": (0.025, 0.0172), "uneven": (0.0218, 0.0149),
    },
    "IQ3_S": {
        "plain": (0.0147, 0.0117), "heavy": (0.0148, 0.0139), "outlier": (0.0165, 0.0558),
        "zeros": (0.3059, 0.3941), "uneven": (0.0143, 0.0118),
    },
    "IQ1_S": {
        "plain": (0.1841, 0.1533), "heavy": (0.1972, 0.1857), "outlier": (0.0879, 0.2324),
        "zeros": (0.1829, 0.1413), "uneven": (0.1884, 0.1546),
    },
    "IQ1_M": {
        "plain": (0.1628, 0.1252), "heavy": (0.1507, 0.1247), "outlier": (0.0629, 0.1483),
        "zeros": (0.1611, 0.1189), "uneven": (0.1494, 0.125),
    },
}  # fmt: skip


@pytest.mark.parametrize("sort", ["plain", "heavy", "outlier", "zeros", "uneven"])
@pytest.mark.parametrize("name", LISTS)
def test_errors_are_below_llama_cpps(name: str, sort: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the weights that its search has and ours, before d grows."""
    monkeypatch.setattr(search, "_UNBIASED", 0.0)
    w = rows(sort)[:2]
    for theirs, importance in zip(LLAMA[name][sort], (np.ones(512), IMPORTANCE), strict=True):
        assert error(name, w, weighed(w, importance), importance=importance) <= theirs, importance[:2]


@pytest.mark.parametrize("name", LISTS)
def test_values_are_not_too_small(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Least squares shorten the projection on x by the error's share; most of that is undone, and the error grows by its square at most."""
    w = rows("plain")
    weigh, wide = weighed(w, np.ones(512)), w.astype(np.float64)

    def projection() -> float:
        return float((weigh * wide * made(name, w)[1]).sum() / (weigh * wide * wide).sum())

    after, grown = projection(), error(name, w, weigh)
    monkeypatch.setattr(search, "_UNBIASED", 0.0)
    before, least = projection(), error(name, w, weigh)
    assert before == pytest.approx(1 - least, rel=2e-3)
    assert 0.6 * least < after - before < 0.8 * least
    assert least < grown < least + least**2


# ---------------------------------------------------------------------------------------------- awkward rows
@pytest.mark.parametrize("name", LISTS)
def test_zeros_stay_zero(name: str) -> None:
    parts, mine = made(name, np.zeros((2, 256), np.float32))
    assert not mine.any() and not parts["scale.1"].any()
    w = rows("zeros")
    assert not made(name, w)[1][3].any()


@pytest.mark.parametrize("name", LISTS)
def test_numbers_near_float16s_ends(name: str) -> None:
    """d below float16's last number: an odd multiple of it where that is nearer than nothing; beyond its largest: refused."""
    plain = error(name, rows("plain"))
    assert error(name, rows("plain") * np.float32(2.0**10)) == plain, "powers of two change nothing"
    tiny = rows("plain") * np.float32(1e-5)
    assert error(name, tiny) < 1
    assert not made(name, rows("plain") * np.float32(2.0**-120))[1].any()
    with pytest.raises(FormatError, match=r"w: 256 values from row 5, column 256 need the scale .* fp16 ends at 65504"):
        tiny[5, 256:] *= np.float32(1e15)
        made(name, tiny, name="w")


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_dtypes(dtype: Any) -> None:
    w = rows("plain").astype(dtype)
    one, two = made("IQ3_S", w)[0], made("IQ3_S", w.astype(np.float32))[0]
    assert all(np.array_equal(one[part], two[part]) for part in one)


def test_refusals() -> None:
    w = rows("plain")
    with pytest.raises(ShapeError, match=re.escape("array: rows of 320 are no whole blocks of 256, as IQ2_XS has them")):
        made("IQ2_XS", np.zeros((2, 320)))
    with pytest.raises(ShapeError, match=re.escape("importance is [512] or [8, 512], not [511]")):
        made("IQ2_XS", w, importance=np.ones(511))
    with pytest.raises(NonFiniteError, match="importance must be finite and not negative"):
        made("IQ2_XS", w, importance=-np.ones(512))
    w[6, 300] = np.nan
    with pytest.raises(NonFiniteError, match="the first nan at row 6, column 300"):
        made("IQ2_XS", w)
