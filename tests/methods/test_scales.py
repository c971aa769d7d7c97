"""Scale rules against measured figures for synthetic weights: normalised mean squared error, Gauss, Laplace, Student t (4 degrees)."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import anybit
from anybit.errors import FormatError, NonFiniteError, ShapeError, UnknownNameError, UsageError
from anybit.formats import Format, Spec
from anybit.methods import SCALES, dequantize_parts, quantize_parts

# Measured with the peers' rules (each written anew, in the project's research) on 4096 x 1024 independent weights.
FIGURES = {
    "mxfp4": (0.01323, 0.01604, 0.01732),  # OCP MX, ggml
    "mxfp4+scale=even": (0.01253, 0.01531, 0.01675),  # compressed-tensors: up from 1.75 on
    "mxfp4+scale=ceil": (0.01335, 0.01742, 0.01946),  # ARCQuant
    "fp4_e2m1@32:e8m0@tensor:fp32+scale=floor0.75": (0.01387, 0.01755, 0.01943),  # FP-Quant
    "mxfp4+scale=mse": (0.01247, 0.01503, 0.01634),
    "nvfp4": (0.00904, 0.00859, 0.00846),
    "nvfp4+scale=4over6": (0.00756, 0.00761, 0.00757),
    "int4@32:fp32": (0.00942, 0.01464, 0.01731),
    "int4_sym@32:fp32": (0.00942, 0.01464, 0.01731),
    "int4@32:fp32+scale=clip": (0.00942, 0.01464, 0.01731),
    "int4@32:fp32+scale=full": (0.00900, 0.01404, 0.01660),  # compressed-tensors
    "int4@32:fp32+scale=signmax": (0.00739, 0.01140, 0.01343),  # ggml
    "int4@128:fp32+scale=full": (0.01229, 0.02298, 0.03355),
    "int4@128:fp32+scale=signmax": (0.01066, 0.01988, 0.02899),
    "int4@128:fp32+scale=mse": (0.01020, 0.01910, 0.02786),
    "int4@32:fp32+scale=mse": (0.00747, 0.01188, 0.01413),
}
# The two searches of integers were measured with 45 candidates of their own; ours are other 27.
SEARCHED = 0.01


def source(kind: int, shape: tuple[int, int], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    draw = (rng.standard_normal, lambda s: rng.laplace(size=s), lambda s: rng.standard_t(4, size=s))[kind]
    return draw(shape).astype(np.float32)


def error_of(x: np.ndarray, text: str, importance: np.ndarray | None = None) -> np.ndarray:
    """Squared errors of each value."""
    back = dequantize_parts(quantize_parts(x, text, importance=importance), Spec.parse(text).format, x.shape)
    return np.square((back - x).astype(np.float64))


def nmse(x: np.ndarray, text: str) -> float:
    return float(error_of(x, text).sum() / np.square(x, dtype=np.float64).sum())


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("text", FIGURES)
def test_measured_figures(text: str, kind: int) -> None:
    """Tolerance: 4 standard errors of the difference of two samples of the two sizes, from the spread between 128-value blocks.

    A ratio e/p of block means has variance var(e - ratio * p) / (blocks * mean(p)^2); the published figure's sample is 4 times ours. Half a
    unit of its last digit is added.
    """
    x = source(kind, (2048, 512), seed=5)
    error = error_of(x, text).reshape(-1, 128).mean(1)
    power = np.square(x.astype(np.float64)).reshape(-1, 128).mean(1)
    ratio = error.mean() / power.mean()
    one = np.std(error - ratio * power) / np.sqrt(error.size) / power.mean()
    more = SEARCHED * ratio if text.startswith("int4") and text.endswith("mse") else 0
    assert abs(ratio - FIGURES[text][kind]) <= 4 * one * np.sqrt(1 + 1 / 4) + 5e-6 + more, (ratio, one)


def test_nvfp4_search_is_at_least_as_good_as_the_measured_one() -> None:
    """26 candidates that shrink scales only were measured at 0.00739, 0.00729, 0.00731; ours may grow them too."""
    for kind, figure in enumerate((0.00739, 0.00729, 0.00731)):
        assert 0.85 * figure < nmse(source(kind, (1024, 512), seed=6), "nvfp4+scale=mse") < figure


# How much of absmax's error is left, at most: Gauss, Laplace.
KQUANT = {
    "q2_k": (0.68, 0.68),
    "q3_k": (0.55, 0.55),
    "q4_k": (0.85, 0.85),
    "q5_k": (0.90, 0.90),
    "q6_k": (0.85, 0.88),
    "q4_1": (0.85, 0.85),
}


@pytest.mark.parametrize("text", KQUANT)
def test_kquant_beats_absmax_and_mse(text: str) -> None:
    for kind in (0, 1):
        x = source(kind, (256, 512), seed=3)
        plain, searched, joint = (nmse(x, f"{text}+scale={rule}") for rule in ("absmax", "mse", "kquant"))
        assert joint < searched < plain and joint < KQUANT[text][kind] * plain, (kind, joint / plain, joint / searched)


@pytest.mark.parametrize("text", ["q2_k", "q3_k", "q4_k", "q5_k"])
def test_kquant_fits_scales_of_scales(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under importance, the second level and its neighbours take off some of what the first level alone leaves."""
    x = source(0, (128, 512), seed=9)
    importance = np.random.default_rng(9).lognormal(0, 1, 512)

    def error() -> float:
        parts = quantize_parts(x, f"{text}+scale=kquant", importance=importance)
        return float((np.square(dequantize_parts(parts, anybit.Format(text), x.shape) - x, dtype=np.float64) * importance).mean())

    fitted = error()
    monkeypatch.setitem(SCALES._items, "kquant", replace(SCALES["kquant"], stiffness=None))
    assert fitted < {"q2_k": 0.985, "q3_k": 1.0, "q4_k": 0.99, "q5_k": 0.98}[text] * error()


def test_kquant_finds_a_grid_exactly() -> None:
    """Blocks that lie on a grid of their own come back as they were: q4_1 by an offset, q4_0 by a negative scale."""
    rng = np.random.default_rng(1)
    codes = np.concatenate([np.tile([0, 15], (64, 1)), rng.integers(0, 16, (64, 30))], axis=1)
    x = (codes * np.float32(0.25) - 1.5).astype(np.float32)
    assert error_of(x, "q4_1+scale=kquant").max() == 0
    y = (-0.5 * np.where(np.arange(32) == 3, -8, codes % 8 - 4)).astype(np.float32)
    assert error_of(y, "q4_0+scale=kquant").max() == 0 and error_of(y, "q4_0").max() > 0


@pytest.mark.parametrize("text", ["int4@64+scale=mse", "q4_k+scale=kquant", "q4_0+scale=kquant", "int4@64+scale=lp2", "nvfp4+scale=4over6"])
def test_importance_weighs_errors(text: str) -> None:
    """With importance its own objective falls and the plain one rises; ones change nothing; the two shapes agree."""
    x = source(0, (64, 512), seed=2)
    weight = np.exp(np.random.default_rng(3).normal(0, 2, 512)).astype(np.float32)
    plain, weighted = error_of(x, text), error_of(x, text, weight)
    assert (weighted * weight).sum() < (plain * weight).sum() and weighted.sum() > plain.sum()
    assert np.array_equal(error_of(x, text, np.ones(512)), plain)
    assert np.array_equal(error_of(x, text, np.tile(weight, (64, 1))), weighted)
    assert np.isfinite(error_of(x, text, np.zeros(512))).all()
    cube = x.reshape(4, 16, 512)
    for shaped in (weight, np.tile(weight, (4, 16, 1))):
        assert np.array_equal(error_of(cube, text, shaped).reshape(x.shape), weighted)


def test_importance_that_does_not_fit() -> None:
    x, ones = np.ones((4, 32), np.float32), np.ones(32)
    with pytest.raises(FormatError, match=r"w: scale=wmse needs importance, one number a column; use scale=mse without"):
        quantize_parts(x, "int4@32+scale=wmse", "w")
    with pytest.raises(FormatError, match=r"importance was given, and scale=absmax does not look at errors; use scale=wmse"):
        quantize_parts(x, "int4@32", "w", ones)
    with pytest.raises(FormatError, match=r"a format without scales does not look"):
        quantize_parts(x, "bf16", "w", ones)
    with pytest.raises(ShapeError, match=r"w: importance is \[32\] or \[4, 32\], not \[31\]"):
        quantize_parts(x, "int4@32+scale=mse", "w", ones[1:])
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(NonFiniteError, match=r"w: importance must be finite and not negative"):
            quantize_parts(x, "int4@32+scale=mse", "w", np.where(np.arange(32) == 4, bad, ones))
    assert anybit.quantize(x, "int4@32+scale=wmse", importance=ones).shape == x.shape
    from anybit.methods import METHODS

    METHODS.add("deaf", lambda w, spec, name="": quantize_parts(w, spec, name))
    try:
        with pytest.raises(UsageError, match=r"method deaf takes no importance"):
            anybit.quantize(x, "int4@32+scale=wmse", method="deaf", importance=ones)
    finally:
        del METHODS._items["deaf"]


def test_percentile_by_sorting() -> None:
    """The scale is the sorted magnitude of that rank over qmax, in blocks of any length and shape."""
    x = source(2, (6, 1000), seed=4)
    for percent, rank in ((99.9, 999), (99.0, 990), (50.0, 500), (100.0, 1000), (99.95, 1000)):
        for kind in (np.float32, np.float64):
            parts = quantize_parts(x.astype(kind), f"int4@channel+scale=p{percent:g}")
            assert np.array_equal(parts["scale.0"].view(np.float32)[:, 0], (np.sort(np.abs(x))[:, rank - 1] / 7.0).astype(np.float32)), (
                percent
            )
    tensor = quantize_parts(x, "int4@tensor+scale=p99.9")["scale.0"].view(np.float32).item()
    assert tensor == np.float32(np.sort(np.abs(x), axis=None)[5993] / 7.0)
    assert not quantize_parts(np.zeros((2, 32), np.float32), "int4@32+scale=p50")["codes"].any()


def test_percentiles_and_powers_move_the_way_they_should() -> None:
    """Clipping lowers the median error and raises the largest; a higher power lowers the largest."""
    x = source(2, (64, 1024), seed=7)
    assert np.median(error_of(x, "int4@channel+scale=p99")) < np.median(error_of(x, "int4@channel")) / 2
    most = [error_of(x, f"int4@channel+scale={rule}").reshape(64, -1).max(1).mean() for rule in ("lp1", "lp2", "lp2.4", "lp4", "lp8")]
    assert most == sorted(most, reverse=True) and most[0] > 2 * most[-1]
    for p in (1.0, 2.4, 4.0):
        costs = [np.power(error_of(x, f"int4@channel+scale={rule}"), p / 2).sum() for rule in (f"lp{p:g}", "lp8", "absmax")]
        assert costs[0] < costs[1] and costs[0] < costs[2], p
    assert error_of(x, "int4@channel+scale=sigma3").sum() < error_of(x, "int4@channel").sum()


def test_clip_keeps_off_the_most_negative_code() -> None:
    """A power-of-two scale that was rounded down lets absmax reach -8; clip stops at -7, as int4_sym does."""
    x = source(0, (64, 512), seed=8)
    lowest = [Format("int4").element.decode(quantize_parts(x, f"int4@32:e8m0+scale={rule}")["codes"]).min() for rule in ("absmax", "clip")]
    assert lowest == [-8, -7]
    clipped, sym = quantize_parts(x, "int4@32:e8m0+scale=clip"), quantize_parts(x, "int4_sym@32:e8m0+scale=absmax")
    assert all(np.array_equal(clipped[part], sym[part]) for part in sym)
    lopsided = quantize_parts(x, "codebook_-1_0_1_2@32+scale=clip")
    assert np.array_equal(lopsided["codes"], quantize_parts(x, "codebook_-1_0_1_2@32+scale=absmax")["codes"])


def test_exponent_rules_by_hand() -> None:
    """amax of each block: where the exponent of the FP4 scale steps. floor at 8, even at 7, ceil above 6; E4M3 has 3 mantissa bits."""
    for text, edges in (("mxfp4", (8.0, 7.0, 6.0)), ("mxfp8", (512.0, 496.0, 448.0)), ("int8@32:e8m0", (128.0, 127.5, 127.0))):
        for rule, edge in zip(("floor", "even", "ceil"), edges, strict=True):
            at = edge if rule != "ceil" else np.nextafter(np.float32(edge), np.float32(np.inf))
            amax = np.array([np.nextafter(np.float32(at), np.float32(0)), at, 2 * at], np.float32)
            found = quantize_parts(np.repeat(amax[:, None], 32, 1), f"{text}+scale={rule}")["scale.0"][:, 0].astype(int) - 127
            assert found.tolist() == [0, 1, 2], (text, rule, found)


def test_mse_is_never_worse_than_its_start() -> None:
    """Block by block: the search includes the rule that it starts from."""
    cases = ((0, "mxfp4"), (2, "nvfp4"), (1, "int4@32"), (0, "ternary@64"), (0, "binary@64"), (2, "int4@32+zp"), (2, "q4_1"))
    for kind, text in cases:
        x = source(kind, (64, 256), seed=1)
        fmt = Format(text)
        errors = []
        for rule in ("floor" if text == "mxfp4" else "absmax", "mse"):
            back = dequantize_parts(quantize_parts(x, f"{text}+scale={rule}"), fmt, x.shape)
            assert fmt.block is not None and fmt.block.size is not None
            errors.append(np.square((back - x).astype(np.float64)).reshape(-1, fmt.block.size).sum(1))
        assert np.all(errors[1] <= errors[0] * (1 + 1e-12)), text
        assert errors[1].sum() < errors[0].sum(), text


def test_mse_reaches_the_optimum_of_few_values() -> None:
    """Lloyd-Max for a normal source with 2 and 3 values: NMSE 0.3634 and 0.1902; the search has steps of 3 %, so within 3 %."""
    x = source(0, (256, 1024), seed=2)
    for text, optimum in (("binary@1024:fp32+scale=mse", 0.3634), ("ternary@1024:fp32+scale=mse", 0.1902)):
        back = dequantize_parts(quantize_parts(x, text), Spec.parse(text).format, x.shape)
        assert abs(np.square(back - x).mean() / np.square(x).mean() / optimum - 1) < 0.03


def test_absmax_clips_nothing() -> None:
    """With exact scales the largest magnitude of a block is kept: it lands on the largest code, or inside for lopsided elements."""
    x = source(2, (32, 128), seed=0)
    amax = np.abs(x).max(1)
    for text in ("int4@channel", "int8@channel", "fp4_e2m1@channel", "int5_sym@channel", "nf4@channel"):
        back = dequantize_parts(quantize_parts(x, text), Format(text), x.shape)
        assert np.allclose(np.abs(back).max(1), amax, rtol=1e-6), text
    back = dequantize_parts(quantize_parts(x, "codebook_-1_0_1_2@channel+scale=absmax"), Format("codebook_-1_0_1_2@channel"), x.shape)
    assert np.all(back.min(1) <= x.min(1) * (1 - 1e-6))


def test_signmax_mirrors_blocks() -> None:
    """The value of largest magnitude is exact and takes the most negative code, whatever its sign."""
    x = np.array([[8.0, -3.0, 1.0, 0.0], [-8.0, 3.0, 1.0, 0.0]], np.float32)
    parts = quantize_parts(x, "q4_0+scale=signmax")
    assert parts["codes"][:, 0].tolist() == [8, 8] and parts["scale.0"].view(np.float16).ravel().tolist() == [-1, 1]
    assert np.array_equal(dequantize_parts(parts, Format("q4_0"), x.shape), x)


def test_rules_have_names_and_sources() -> None:
    assert sorted(SCALES) == [
        "4over6",
        "absmax",
        "ceil",
        "clip",
        "down",
        "even",
        "floor",
        "full",
        "kquant",
        "lp",
        "mse",
        "p",
        "sigma",
        "signmax",
        "wmse",
    ]
    told = ("ceil", "clip", "down", "even", "floor", "full", "kquant", "signmax", "4over6", "wmse")
    assert all("ource" in SCALES[name].about for name in told)
    assert (
        all(SCALES[name].about for name in ("lp2", "p99.9", "sigma3")) and SCALES["lp2.4"].number == 2.4 and SCALES["lp2.4"].name == "lp2.4"
    )
    # Each has its row in the documentation.
    text = (Path(__file__).parents[2] / "docs/expressions.md").read_text()
    rows = re.findall(r"^\| `([a-z0-9]+)[A-Z]?` \|", text.split("## Scale rules")[1].split("\n## ")[0], re.M)
    assert set(SCALES) <= set(rows) and {row for row in rows if row not in SCALES} == set(), rows
    for name, message in (
        ("lp", r"scale=lp needs a number from 0.1 to 10, as in scale=lp5.05"),
        ("lp99", r"scale=lp99: lp takes a number from 0.1 to 10"),
        ("mse3", r"scale=mse3: mse takes no number"),
        ("percentile99", r"no scale rule named 'percentile99'"),
    ):
        with pytest.raises(UnknownNameError, match=message):
            SCALES[name]


def test_rules_that_a_format_cannot_serve() -> None:
    x = np.ones((2, 64), np.float32)
    for text, message in (
        ("int4@32+zp+scale=p99", r"scale=p99 looks at values around zero, and zero points move them; use absmax or mse"),
        ("int4@32+zp+scale=sigma3", r"scale=sigma3 looks at values around zero"),
        ("int4@32+zp+scale=kquant", r"scale=kquant looks at values around zero"),
        ("int4@32+zp+scale=4over6", r"scale=4over6 looks at values around zero"),
        ("int4@32+zp+scale=clip", r"scale=clip is symmetric, and zero points are not"),
        ("mxfp4+scale=kquant", r"scale=kquant fits scales finer than powers of two; use mse"),
        ("mxfp4+scale=4over6", r"scale=4over6 moves scales by less than a factor of two"),
    ):
        with pytest.raises(FormatError, match=message):
            quantize_parts(x, text)


@pytest.mark.parametrize("text", ["nf4@tensor:bf16@tensor:bf16", "int4@32:bf16@64:bf16@128:bf16", "int4@32:e8m0@64:fp32@tensor:bf16"])
def test_levels_of_wide_elements_neither_overflow_nor_vanish(text: str) -> None:
    """Largest scales brought to bf16's largest value would leave nothing to the level above but subnormals, and products would overflow."""
    w = np.random.default_rng(0).standard_normal((5, 300)).astype(np.float32)
    fmt = Format(text)
    back = dequantize_parts(quantize_parts(w, fmt), fmt, w.shape)
    one = Format(f"{fmt.element}@{fmt.block}:{'e8m0' if 'e8m0' in text else 'bf16'}")
    plain = dequantize_parts(quantize_parts(w, one), one, w.shape)
    assert np.abs(back - w).max() <= 2.1 * np.abs(plain - w).max()


@pytest.mark.parametrize("text, bound", [("e8p@channel", 0.002), ("d4@channel", 0.002), ("e8p@16", 0.01), ("d4@32", 0.002)])
def test_mse_reaches_even_blocks_of_vectors(text: str, bound: float) -> None:
    """All numbers alike: the best scale takes a vector in the middle, far above the one that brings them to the outermost."""
    for value in (0.3, -7.0, 1e-30, 2e37):
        assert nmse(np.full((3, 64), value, np.float32), text) < bound, value
    signs = np.where(np.random.default_rng(2).random((3, 64)) < 0.5, -1, 1).astype(np.float32)
    assert nmse(signs, text) < 0.6 * nmse(signs, f"{text}+scale=absmax")
    assert nmse(source(0, (16, 256), 1), text) < 0.12


@pytest.mark.parametrize("rows", ["channel", "4x256"])
def test_the_scale_constraints_of_zeroquant_fp(rows: str) -> None:
    """M1 and M2 (arXiv 2307.09782, section 4) by their formulas: powers of two above each scale; the largest of a row, or of some rows,
    over powers of two."""
    rng = np.random.default_rng(5)
    w = (rng.standard_normal((8, 512)) * np.exp2(rng.integers(-9, 3, (8, 1)))).astype(np.float32)
    w[:, 64:128] *= 1e-3
    w[3, :256] = w[3, 0]  # blocks that are all alike, at an exact power of the row's largest scale
    s = np.abs(w.astype(np.float64)).reshape(8, 16, 32).max(axis=2) / 6
    m1 = dequantize_parts(parts := quantize_parts(w, "fp4_e2m1@32:e8m0+scale=ceil"), Format("fp4_e2m1@32:e8m0"), w.shape)
    assert np.array_equal(2.0 ** (parts["scale.0"].astype(int) - 127), 2.0 ** np.ceil(np.log2(s))) and np.isfinite(m1).all()
    fmt = Format(f"fp4_e2m1@32:e8m0@{rows}:fp32")
    parts = quantize_parts(w, Spec.parse(f"{fmt}+scale=down"))
    largest = s.max(axis=1, keepdims=True) if rows == "channel" else s.reshape(2, 4, 2, 8).max(axis=(1, 3)).repeat(4, 0).repeat(8, 1)
    power = np.ceil(np.log2(largest / s) - 1e-6)
    assert np.array_equal(parts["scale.0"].astype(int) - 127, np.broadcast_to(-power, s.shape)) and power.max() > 5
    want = (largest.astype(np.float32) / 2.0**power).repeat(32, axis=1)
    codes = np.clip(w / want, -6, 6)
    grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    near = grid[np.abs(np.abs(codes)[..., None] - grid).argmin(axis=-1)] * np.sign(codes)
    assert np.abs(dequantize_parts(parts, fmt, w.shape) - near * want).max() <= 1e-6 * np.abs(w).max()
