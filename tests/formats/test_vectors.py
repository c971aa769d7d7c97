"""Elements of several weights against two independent definitions: decoding of every code, encoding by trying every vector."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest

from anybit.errors import FormatError, NonFiniteError, ShapeError
from anybit.formats import Format, Vector, named_formats, parse_element
from anybit.formats.elements.lattice import SignedGrid
from anybit.formats.vector import nearest
from anybit.reference.grid_vectors import GridVectors
from anybit.reference.rational_vectors import RationalVectors

FIXED = [n.name for n in named_formats() if not n.blocked and parse_element(n.name).dim > 1 and not parse_element(n.name).learned]


def learned(name: str, seed: int = 0) -> Vector:
    element = parse_element(name)
    assert element.table_shape is not None
    table = np.random.default_rng(seed).standard_normal(element.table_shape).astype(np.float32) / 2
    bound = element.bind(table.round(3))
    assert isinstance(bound, Vector)
    return bound


@cache
def element_of(name: str) -> Vector:
    found = learned(name) if name.startswith("vq") else parse_element(name)
    assert isinstance(found, Vector)
    return found


def groups(element: Vector, count: int) -> np.ndarray:
    """float64[m, dim], float32 numbers: random ones of several spreads, vectors, middles of two (exact ties), zero, far."""
    rng = np.random.default_rng(2)
    pairs = element.values[rng.integers(0, len(element.values), (count, 2))]
    spread = np.exp2(rng.integers(-3, 5, (count, 1)))
    random = (rng.standard_normal((count, element.dim)) * spread).astype(np.float32)
    ends = np.array([[0.0], [1e6], [-1e6]]) * np.ones(element.dim)
    return np.concatenate([random, pairs[:, 0], pairs.mean(axis=1), np.round(random * 2) / 2, ends]).astype(np.float32).astype(np.float64)


ALL = [*FIXED, "vq8d2", "vq3d4_k2", "vq4d8_k3"]


@pytest.mark.parametrize("name", ALL)
def test_decode_of_every_code(name: str) -> None:
    element = element_of(name)
    walked = GridVectors(element.fields).values
    assert np.array_equal(element.values, walked)
    codes = np.arange(1 << element.bits, dtype=element.code_dtype)
    assert np.array_equal(element.decode(codes.reshape(2, -1)), walked.reshape(2, -1, element.dim))
    exact = RationalVectors(element.fields).values
    assert np.array_equal(np.array([[float(v) for v in point] for point in exact]), walked)
    assert (element.min, element.max) == (walked.min(), walked.max()) and element.has_zero == bool((walked == 0).any())
    assert element.table.kind == "f32" and np.array_equal(element.table.values, walked.astype(np.float32))
    for bad in (np.array([1 << element.bits]), np.array([-1]), np.array([0.5])):
        with pytest.raises(FormatError, match="codes"):
            element.decode(bad)


@pytest.mark.parametrize("name", ALL)
def test_the_nearest_vector(name: str) -> None:
    """All groups by the grid, some by fractions; ties are exact and go to the smallest code."""
    element = element_of(name)
    x = groups(element, 400 if element.bits <= 8 else 40)
    walked = GridVectors(element.fields)
    expected = walked.encode(x)
    codes = element.encode(x.reshape(1, 1, -1)).reshape(-1)
    assert codes.dtype == element.code_dtype
    if name.startswith("vq"):  # random books: middles are no exact ties in float64
        distance = [np.square(walked.values[c] - x).sum(axis=1) for c in (codes.astype(int), expected)]
        assert np.allclose(*distance, rtol=1e-12, atol=0) and np.mean(codes == expected) > 0.9
    else:
        assert np.array_equal(codes, expected)
        assert np.array_equal(element.encode(x.astype(np.float32).reshape(-1)), expected)
    exact = RationalVectors(element.fields)
    few = x[:: len(x) // (8 if element.bits > 8 else 100)]
    assert np.array_equal([exact.encode(row) for row in few], walked.encode(few))
    assert np.array_equal(nearest(element.values, x), expected if not name.startswith("vq") else codes)


def test_ties_are_among_the_samples() -> None:
    """The middles that the test above takes are ties of many codes, or it would not see which one is taken."""
    for name in ("ovp4_int", "d4"):
        element = element_of(name)
        distance = np.square(groups(element, 400)[:, None] - element.values).sum(axis=2)
        assert np.mean((distance == distance.min(axis=1)[:, None]).sum(axis=1) > 1) > 0.2


def test_pairs_by_hand() -> None:
    """OliVe's values: abfloat E2M1 outliers above the normal ones, the victim zero, the low half first."""
    element = parse_element("ovp4_int")
    expected = [[1, 2], [7, -1], [96, 0], [12, 0], [0, -96], [0, 0], [0, 0]]
    assert element.decode([0x21, 0xF7, 0x87, 0x81, 0xF8, 0x88, 0x80]).tolist() == expected
    assert sorted({abs(v) for v in element.values.reshape(-1)} - set(range(8))) == [12, 16, 24, 32, 48, 64, 96]
    flint = parse_element("ovp4_flint")
    sizes = sorted({abs(v) for v in flint.values.reshape(-1)})
    assert sizes == [0, 1, 2, 3, 4, 6, 8, 16, 24, 32, 48, 64, 96, 128, 192]
    wide = parse_element("ovp8_int")
    assert wide.max == 15 * 2.0**19 and np.sort(wide.finite[wide.finite > 127])[:2].tolist() == [144, 160]
    # two outliers: the larger one stays; both weights up to the largest normal value: no victim
    assert element.decode(element.encode([50.0, 20.0, 7.0, -7.0, 3.0, -30.0])).tolist() == [[48, 0], [7, -7], [0, -32]]


def test_lattices_are_those_of_the_papers() -> None:
    """d4, e8p before shifting: exactly the half-integer vectors with an even sum in a ball (and E8P's 28 further magnitudes)."""

    def ball(dim: int, norm: float) -> set[tuple[float, ...]]:
        near = [v for v in np.arange(-3.5, 4) if v * v <= norm]
        kept: list[tuple[float, ...]] = [()]
        for _ in range(dim):  # prefix by prefix: all of them would be 8^8
            kept = [(*p, v) for p, v in product(kept, near) if sum(c * c for c in (*p, v)) <= norm]
        return {p for p in kept if sum(p) % 2 == 0}

    assert {tuple(v) for v in parse_element("d4").values} == ball(4, 9) and len(ball(4, 9)) == 256
    values = parse_element("e8p").values
    # the published code: magnitudes in the upper byte, signs of the last seven (the last one lowest), plus 1/4 in the lowest bit
    assert values[1].tolist() == [0.75] * 8 and values[2].tolist() == [-0.75, *[0.25] * 6, -0.75]
    assert values[255 << 8 | 1].tolist() == [-1.25, 1.75, 0.75, 0.75, 1.75, 1.75, 1.75, 0.75]
    plus = values[1::2] - 0.25
    assert np.array_equal(plus, values[::2] + 0.25)
    inner = ball(8, 10)
    outer = {tuple(v) for v in plus} - inner
    assert inner <= {tuple(v) for v in plus} and len(inner) == 227 * 128
    assert len(outer) == 28 * 128 and all(sum(v) % 2 == 0 and sum(c * c for c in v) == 12 for v in outer)


def test_lattice_error_on_a_normal_source() -> None:
    """E8P keeps 2 bits a weight at 10.3 dB where four numbers, the best there are (Max 1960), keep 9.30 dB."""
    x = np.random.default_rng(0).standard_normal((4000, 8))
    for name, least in (("e8p", 10.25), ("d4", 9.75)):
        element = parse_element(name)
        scale = 1.0 if name == "e8p" else 0.85
        error = element.decode(element.encode(x / scale)).reshape(x.shape) * scale - x
        assert 10 * np.log10(1 / np.square(error).mean()) > least


@pytest.mark.parametrize("name", ["ovp4_int", "e8p", "vq8d4"])
def test_policies(name: str) -> None:
    element = element_of(name)
    x = np.zeros((2, 8), np.float32)
    for policy in ({"round": "up"}, {"over": "error"}):
        with pytest.raises(FormatError, match="takes the nearest vector"):
            element.encode(x, **policy)
    with pytest.raises(FormatError, match="has no NaN"):
        element.encode(x, nonfinite="propagate")
    with pytest.raises(ShapeError, match="rows of 7 are no multiple"):
        element.encode(x[:, :7])
    with pytest.raises(ShapeError, match="not a single one"):
        element.encode(1.0)
    x[1, 3], x[0, 0] = np.nan, -np.inf
    with pytest.raises(NonFiniteError, match=r"2 non-finite value\(s\), the first -inf at index \[0, 0\]"):
        element.encode(x)
    tame = element.encode(x, nonfinite="saturate")
    assert np.array_equal(tame, element.encode(np.where(np.isnan(x), 0, np.where(np.isinf(x), -1e30, x))))


def test_names() -> None:
    for text, reason in {
        "ovp4": "outlier-victim pairs are ovp4_int, ovp4_flint, ovp8_int", "vq8d3": "2, 4 or 8 weights", "vq13d8": "1 to 12 bits",
        "vq12d8_k3": "32 bits together", "kmeans9": "1 to 8 bits, not 9", "kmeans0": "1 to 8 bits", "iq2xxs@12": "cuts them",
        "ovp4_int@3": "codes 2 weights of a row together, and a block of 3 cuts them; use 2 or 4", "e8p@4": "cuts them; use 8",
        "e8p@32x1": "cuts them", "ovp4_int@32+zp": "zero points need integer codes", "int4@32:ovp4_int": "stored one by one",
        "int4@32:kmeans4": "is learned from the weights", "uint4@32+zp=kmeans4": "stored one by one",
        "int4@32+off=e8p": "stored one by one",
    }.items():  # fmt: skip
        with pytest.raises(FormatError, match=reason):
            Format(text)
    assert Format("vq8d8_k1") == Format("vq8d8") and str(Format("ovp4_int@channel")) == "ovp4_int@channel"
    assert float(Format("ovp4_int@channel").bits_per_weight) == 4 and float(Format("e8p@32").bits_per_weight) == 2.5


def test_any_signed_grid() -> None:
    """Grids that are no lattice, as GGUF's i-quants have them: 8 bits of index into odd magnitudes, 7 of signs whose number is even."""
    grid = np.random.default_rng(0).choice([1.0, 3.0, 5.0], (256, 8))
    for odd, shift in ((np.zeros(256, bool), 0.0), (grid[:, 0] > 1, 0.125)):
        bits = 15 + bool(shift)
        element = SignedGrid("grid", bits, 8, tuple(map(tuple, grid.tolist())), tuple(odd.tolist()), shift)
        walked = GridVectors(element.fields)
        assert np.array_equal(element.values, walked.values)
        unshifted = walked.values - np.where(np.arange(1 << bits) & 1, shift, -shift)[:, None]
        assert np.array_equal((unshifted < 0).sum(axis=1) % 2, odd.repeat(1 << bits - 8))
        x = groups(element, 30)
        assert np.array_equal(element.encode(x.reshape(-1)), walked.encode(x))


@pytest.mark.parametrize("name, kind, bits", [("iq2xxs", "IQ2_XXS", 2.0625), ("iq2xs", "IQ2_XS", 2.3125)])
def test_points_of_i_quants_are_those_of_files(name: str, kind: str, bits: float) -> None:
    """Blocks of GGUF with random bytes, read by its reader: all their magnitudes, under their scale, are vectors; and the sizes agree."""
    block = {"iq2xxs": 32, "iq2xs": 16}[name]
    assert float(Format(f"{name}@{block}:uint4@256:fp16").bits_per_weight) == bits
    element = element_of(name)
    size = {"iq2xxs": 66, "iq2xs": 74}[name]
    raw = np.random.default_rng(7).integers(0, 256, (64, size), np.uint8)
    raw[:, :2] = np.array([1.0], np.float16).view(np.uint8)  # the scale of each 256
    gguf = pytest.importorskip("gguf")
    values = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind]).reshape(-1, block)
    scale = np.abs(values).min(axis=1, keepdims=True)  # the magnitude 1, in every block of so many
    assert (np.isin(np.abs(values / scale), [1.0, 3.125, 5.375])).all()
    ratio = (values / scale).astype(np.float64)
    assert np.array_equal(element.decode(element.encode(ratio)).reshape(ratio.shape), ratio)
    seen = np.unique(element.encode(ratio) >> 7)
    assert len(seen) > len(element.fields["grid"]) * 0.9
