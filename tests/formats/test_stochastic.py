"""Stochastic rounding: the words, the definition against both references, bias, signs, seeds, checkpoints' policy."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

import anybit
from anybit.errors import FormatError
from anybit.formats import Policy, Spec, parse_element
from anybit.formats.stochastic import drawn, words
from anybit.methods.rtn import dequantize_parts, quantize_parts
from anybit.reference.grid import Grid
from anybit.reference.philox import philox
from anybit.reference.rational import Rational

ELEMENTS = [
    "fp8_e4m3fn", "fp4_e2m1", "int4", "uint3", "nf4", "binary", "e8m0", "codebook_1_2_4", "codebook_-3_1_0.25_2", "fp6_e3m2_b5_ns",
    "fp8_e4m3fnuz", "fp5_e2m2ieee_b40", "ternary", "codebook_0.1_3e-11",
]  # fmt: skip


def test_words_are_philox_by_place() -> None:
    place = np.arange(3, 53)
    expected = philox(np.stack([place // 4, 0 * place, 0 * place, 0 * place], -1), [5, 9])[np.arange(50), place % 4]
    assert np.array_equal(words(5 + (9 << 32), 3, 50), expected)


@pytest.mark.parametrize("bits", [1, 16, 17, 24, 32])
@pytest.mark.parametrize("start", [0, 7, 64, 128, 128 * 2**28 - 100])
def test_words_of_rounding_by_place(bits: int, start: int) -> None:
    """Value by value, from the reference's counters: sixteen of them serve 128 values a half; another sixteen have the lower halves."""
    found = drawn(5 + (9 << 32), start, 200, bits)
    for i, word in enumerate(found.tolist(), start):
        counter = 16 * (i // 128) + i % 32 // 2
        upper, lower = (
            philox([counter & 0xFFFFFFFF, counter >> 32, stream, 0], [5, 9]).tolist()[i % 128 // 32] >> 16 * (i % 2) & 0xFFFF
            for stream in (0, 1)
        )
        assert word >> 32 - bits == (upper << 16 | lower) >> 32 - bits


def test_no_half_serves_two_places() -> None:
    """Of 4096 places all halves are there once: those of the counters 0 to 511, of both streams."""
    counters = np.arange(512)
    for shift, stream in ((16, 0), (0, 1)):
        w = philox(np.stack([counters, 0 * counters, 0 * counters + stream, 0 * counters], -1), [1, 2])
        every = np.sort(np.concatenate([w & 0xFFFF, w >> 16], axis=None))
        assert np.array_equal(np.sort(drawn(1 + (2 << 32), 0, 4096, 32) >> shift & 0xFFFF), every)


@pytest.mark.parametrize("name", ELEMENTS)
@pytest.mark.parametrize("bits", [1, 8, 24, 32])
def test_both_references(name: str, bits: int) -> None:
    element = parse_element(name)
    rng = np.random.default_rng(0)
    x = rng.standard_normal(300) * element.max * rng.choice([1, 0.3, 0.01, 1e-9], 300)
    x = np.r_[x, element.finite, -element.finite, 0.0, -0.0, element.beyond]
    word = drawn(7, 0, x.size, bits)
    exact, walked = Rational(element.fields), Grid(element.fields)
    for over in ("saturate", "nan", "inf"):
        if (over == "nan" and not element.has_nan) or (over == "inf" and not element.has_inf):
            continue
        expected = np.array([exact.stochastic(float(v), bits, int(w), over) for v, w in zip(x, word, strict=True)])
        assert np.array_equal(walked.stochastic(x, bits, word, over), expected)
        assert np.array_equal(element.encode(x, round=f"sr{bits}", over=over, seed=7), expected)


def test_wide_elements_by_fractions() -> None:
    """tf32 and float32 have too many values to list: their neighbours are those of the next mantissa."""
    x = np.random.default_rng(0).standard_normal(4000) * 10
    codes = parse_element("tf32").encode(x, round="sr24", seed=3)
    step = np.ldexp(1.0, np.frexp(x)[1] - 11)
    low = np.floor(np.abs(x) / step)
    up = (drawn(3, 0, x.size, 24) >> 8) < (np.abs(x) / step - low) * 2.0**24
    assert np.array_equal(parse_element("tf32").decode(codes), np.copysign((low + up) * step, x))


@pytest.mark.parametrize("name", ["fp8_e4m3fn", "fp4_e2m1", "int8_sym", "bf16", "nf4"])
def test_exact_values_stay_and_signs_mirror(name: str) -> None:
    element = parse_element(name)
    values = element.finite
    assert np.array_equal(element.decode(element.encode(values, round="sr24", seed=1)), values)
    if name != "nf4":
        x = np.random.default_rng(0).standard_normal(5000) * min(element.max / 2, 1e3)
        up, down = (element.decode(element.encode(v, round="sr24", seed=9)) for v in (x, -x))
        assert np.array_equal(up, -down)


@pytest.mark.parametrize("fraction", [1e-3, 0.25, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("bits", [16, 24, 32])
def test_bias(fraction: float, bits: int) -> None:
    """The share of a million that go up lies within 3 standard errors of the fraction (rounded up to N bits)."""
    count = 1_000_000
    x = np.full(count, 1 + fraction / 8, np.float32)
    share = (anybit.round(x, "fp8_e4m3fn", f"sr{bits}", seed=4) > 1).mean()
    p = np.ceil((float(x[0]) - 1) * 8 * 2.0**bits) / 2.0**bits
    assert abs(share - p) < 3 * np.sqrt(p * (1 - p) / count)


def test_over_the_end() -> None:
    """Saturating numbers beyond the last become the last; infinity is drawn in proportion."""
    x = np.full(100_000, 460.0, np.float32)  # between 448 and the 480 that would come next
    assert np.all(anybit.round(x, "fp8_e4m3fn", "sr24") == 448)
    ends = anybit.round(np.full(100_000, 248.0, np.float32), "fp8_e4m3", "sr24", over="inf")  # half-way from 240 to 256
    assert set(ends.tolist()) == {240.0, np.inf} and abs(np.isinf(ends).mean() - 0.5) < 0.01


def test_names_and_seeds() -> None:
    assert Policy(round="sr") == Policy(round="sr24") and str(Policy(round="sr8", seed=5)) == "+round=sr8+seed=5"
    assert Spec.parse("int4@32+round=sr+seed=18446744073709551615").policy.seed == (1 << 64) - 1
    for seed in (-1, 1 << 64, 1.5, True):
        with pytest.raises(FormatError, match="use an integer from 0 to"):
            Policy(seed=seed)  # type: ignore[arg-type]
    for name in ("sr0", "sr33", "sr08", "stochastic"):
        with pytest.raises(FormatError, match="use one of"):
            Policy(round=name)


@pytest.mark.parametrize("text", ["int4@32", "nvfp4", "uint4@64:fp16+zp", "int4@32+off", "fp8_e4m3fn", "int3@8x4"])
def test_quantized_weights(text: str) -> None:
    """Place decides, not slabs: neighbours of the grid, the same codes again, others with another seed, unbiased on the whole."""
    w = np.random.default_rng(0).standard_normal((40, 300)).astype(np.float32)
    spec = Spec.parse(f"{text}+round=sr24+seed=3")
    parts, nearest = quantize_parts(w, spec), quantize_parts(w, text)
    assert all(np.array_equal(parts[name], part) for name, part in quantize_parts(w, spec).items())
    assert not np.array_equal(parts["codes"], quantize_parts(w, f"{text}+round=sr24+seed=4")["codes"])
    error = dequantize_parts(parts, spec.format, w.shape) - w
    worst = np.abs(dequantize_parts(nearest, spec.format, w.shape) - w).max()
    assert np.abs(error).max() < 2.5 * worst and abs(error.mean()) < 4 * error.std() / np.sqrt(w.size)


def test_tensors_of_a_model_are_rounded_by_bits_of_their_own(tmp_path: Path) -> None:
    """Their seeds are SHA-256's of the given seed and the name; the same from a file, from memory and by hand; other modes know no seed."""
    text, ours = "int4@64:fp32+round=sr24+seed=7", "model.layers.0.mlp.up_proj.weight"
    spec = Spec.parse(text)
    digest = hashlib.sha256(b"\7\0\0\0\0\0\0\0" + ours.encode()).digest()
    assert spec.for_tensor(ours).policy == Policy(round="sr24", seed=sum(byte << 8 * i for i, byte in enumerate(digest[:8])))
    assert Spec.parse("int4@64+seed=7").for_tensor(ours) == Spec.parse("int4@64+seed=7")
    dense = anybit.load("pycoder-5m")
    made = dense.quantize(text)
    anybit.model.quantize_file("pycoder-5m", tmp_path / "m", text)
    stored = anybit.load(tmp_path / "m")
    assert made.policy == stored.policy == "+scale=absmax+round=sr24+seed=7"
    w = dense.linears[ours].weight.dequantize()
    want = anybit.quantize(w, spec.for_tensor(ours)).logical()["codes"]
    assert np.array_equal(made.linears[ours].weight.logical()["codes"], want)
    assert np.array_equal(stored.linears[ours].weight.logical()["codes"], want)
    assert not np.array_equal(anybit.quantize(w, text).logical()["codes"], want)


def test_the_errors_of_two_tensors_are_not_correlated() -> None:
    """Under one seed the values at one place go up together; under seeds of their own the correlation is that of chance."""
    x = np.random.default_rng(0).uniform(0, 7, (2, 40_000)).astype(np.float32)
    spec = Spec.parse("int4+round=sr24+seed=3")

    def correlation(*specs: Spec) -> float:
        errors = [anybit.round(v, "int4", s.policy.round, seed=s.policy.seed) - v for v, s in zip(x, specs, strict=True)]
        return float(np.corrcoef(*errors)[0, 1])

    assert abs(correlation(spec, spec) - 0.5) < 0.05  # 1/12, the words' variance, by 1/6, the errors'
    assert abs(correlation(spec.for_tensor("a"), spec.for_tensor("b"))) < 4 / np.sqrt(x.shape[1])
