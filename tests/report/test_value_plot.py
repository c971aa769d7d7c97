"""The picture of a format is well formed, complete, and its error curve right."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from anybit.formats import parse_element
from anybit.report.value_plot import WIDTH, Picture, draw, relative_errors

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", ["fp4_e2m1", "fp8_e4m3fn", "e8m0", "nf4", "uint1", "binary", "ternary", "bf16", "int16", "codebook_-4_-1"])
def test_well_formed_and_inside(name: str) -> None:
    element = parse_element(name)
    text = draw(Picture(f"{name} <&>", "facts", element.values))
    root = ElementTree.fromstring(text)
    assert root.get("width") == str(WIDTH) and "nan" not in re.sub(r">-?nan<|title>[^<]*nan[^<]*<", "", text).replace("nominal", "")
    for tag, keys in (("line", ("x1", "x2")), ("rect", ("x",)), ("text", ("x",))):
        for item in root.iter(SVG + tag):
            for key in keys:
                assert 0 <= float(item.get(key, "0")) <= WIDTH
    cells = [item for item in root.iter(SVG + "rect") if item.get("fill-opacity")]
    assert len(cells) == (len(element.values) if element.bits <= 8 else 0)
    assert not re.search(r"<script|href|@import|url\(", text)  # one file that needs no other


def test_pairs_are_drawn_as_points() -> None:
    pairs = np.array([[a, b] for a in range(-2, 2) for b in range(-2, 2)], float)
    root = ElementTree.fromstring(draw(Picture("pairs", "", pairs)))
    assert len(list(root.iter(SVG + "circle"))) == 16
    assert [item.text for item in root.iter(SVG + "text")][2:] == ["-2", "-2", "2", "2", "first weight", "second weight"]


@pytest.mark.parametrize("name", ["posit8", "fp8_e5m2", "fp8_e5m2fnuz", "int8", "log8_f3", "p3109_p1", "e8m0"])
def test_values_fit_their_cells(name: str) -> None:
    """16 in a row of 880 pixels, 55 each: eight characters of 10 pixels' type, 6.4 wide in wide fonts."""
    root = ElementTree.fromstring(draw(Picture(name, "", parse_element(name).values)))
    cells = [item.text or "" for item in root.iter(SVG + "text") if item.get("font-size") == "10"]
    assert len(cells) == 256 and max(map(len, cells)) <= 8, max(cells, key=len)
    for text, value in zip(cells, parse_element(name).values, strict=True):
        assert float(text) == value or abs(float(text) - value) <= (0.005 if len(text) < 8 else 0.05) * abs(value) or np.isnan(value)


def test_many_values_are_labelled_at_round_numbers() -> None:
    root = ElementTree.fromstring(draw(Picture("int16", "", parse_element("int16").values)))
    line = next(item for item in root.iter(SVG + "text") if item.text == "linear").get("y")
    labels = [float(item.text or "") for item in root.iter(SVG + "text") if item.get("y") == str(float(line or 0) + 13)]
    assert len(labels) > 6 and sum(v % 5000 != 0 for v in labels) == 2, labels


def test_the_legend_lies_above_the_curves() -> None:
    root = ElementTree.fromstring(draw(Picture("int8", "", parse_element("int8").values)))
    title = next(item for item in root.iter(SVG + "text") if (item.text or "").startswith("worst relative"))
    named = [item for item in root.iter(SVG + "text") if item.text in ("positive", "negative")]
    assert len(named) == 2 and all(item.get("y") == title.get("y") for item in named)


@pytest.mark.parametrize("name", ["fp4_e2m1", "fp8_e4m3fn", "nf4", "int8", "e8m0", "codebook_-1_-0.5_0_0.3_1", "codebook_1_2_4"])
@pytest.mark.parametrize("sign", [1, -1])
def test_relative_errors_are_those_of_encoding(name: str, sign: int) -> None:
    """The curve bounds the error of dense samples and is reached by one of them within 1 %."""
    element = parse_element(name)
    if not (sign * element.finite > 0).any():
        return
    top = np.abs(element.finite[sign * element.finite > 0]).max()
    edges = np.geomspace(max(element.smallest if element.smallest == element.smallest else 1, top / 2**12) / 2, top * 2, 40)
    curve = relative_errors(element.finite, sign, edges)
    for low, high, worst in zip(edges[:-1], edges[1:], curve, strict=True):
        x = np.geomspace(low, high, 4001)
        errors = np.abs(element.decode(element.encode(sign * x)) - sign * x) / x
        assert errors.max() <= worst * (1 + 1e-12) + 1e-15
        assert errors.max() >= worst * 0.99 - 1e-12
