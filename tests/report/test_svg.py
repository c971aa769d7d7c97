import random
import re
from fractions import Fraction
from xml.etree import ElementTree

import pytest

from anybit.report.svg import HEIGHT, WIDTH, Box, Point, _place, frontier, pareto

DEMO = [
    Point("int8@channel", Fraction(259, 32), 5e-5, 4.7e-4), Point("int4@32", Fraction(9, 2), 0.0079),
    Point("int4@128", Fraction(33, 8), 0.0118), Point("int3@128", Fraction(25, 8), 0.065, 0.0651),
    Point("int2@64", Fraction(9, 4), 1.1, 1.1), Point("ternary@256", Fraction(33, 16), 2.37), Point("mxfp8", Fraction(33, 4), 8.4e-4),
    Point("mxfp6", Fraction(25, 4), 0.0026), Point("mxfp4", Fraction(17, 4), 0.0124), Point("nvfp4", Fraction(9, 2), 0.0074),
    Point("nf4@64", Fraction(17, 4), 0.0068),
]  # fmt: skip


def draw(points: list[Point], **more: str) -> ElementTree.Element:
    return ElementTree.fromstring(pareto(points, "bits", "KL", "float", **more))


def test_it_is_well_formed_and_shows_every_point() -> None:
    root = draw(DEMO, second="int8")
    texts = [element.text for element in root.iter("text")]
    for point in DEMO:
        assert point.label in texts
    filled = [c for c in root.iter("circle") if c.get("fill") != "none"]
    hollow = [c for c in root.iter("circle") if c.get("fill") == "none"]
    assert len(filled) == len(DEMO) + 1  # and one in the legend
    assert len(hollow) == sum(point.second is not None for point in DEMO) + 1
    for circle in filled:
        assert 0 < float(circle.get("cx", "")) < WIDTH
        assert 0 < float(circle.get("cy", "")) < HEIGHT


def test_positions_are_linear_in_bits_and_logarithmic_in_loss() -> None:
    points = [Point("a", Fraction(2), 1.0), Point("b", Fraction(4), 0.1), Point("c", Fraction(8), 0.001)]
    a, b, c = [(float(e.get("cx", "")), float(e.get("cy", ""))) for e in draw(points).iter("circle")][:3]
    assert (c[0] - b[0]) == pytest.approx(2 * (b[0] - a[0]), abs=0.3)
    assert (c[1] - b[1]) == pytest.approx(2 * (b[1] - a[1]), abs=0.3)
    assert c[1] > a[1]  # less loss is further down


def boxes(root: ElementTree.Element, labels: set[str]) -> list[Box]:
    """The labels' rectangles, from a width that is a little less than the one they were placed with."""
    found = []
    for element in root.iter("text"):
        if element.text in labels:
            x, y = float(element.get("x", "")), float(element.get("y", ""))
            found.append(Box(x, y - 9, x + 0.55 * 13 * len(element.text or ""), y + 2))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_labels_cover_neither_each_other_nor_a_point(seed: int) -> None:
    rng = random.Random(seed)
    points = DEMO if seed == 0 else [
        Point(f"fmt{i}@{rng.choice((16, 32, 128))}", Fraction(rng.randint(32, 144), 16), 10 ** rng.uniform(-4, 0.5)) for i in range(14)
    ]  # fmt: skip
    root = draw(points)
    labels = boxes(root, {point.label for point in points})
    assert len(labels) == len(points)
    for i, box in enumerate(labels):
        assert all(box.overlap(other) == 0 for other in labels[i + 1 :])
        assert box.x0 >= 0
        assert box.x1 <= WIDTH
        for circle in root.iter("circle"):
            x, y = float(circle.get("cx", "")), float(circle.get("cy", ""))
            assert box.overlap(Box(x - 3, y - 3, x + 3, y + 3)) == 0


def test_a_label_with_no_free_place_takes_the_least_bad_one() -> None:
    everywhere = [Box(0, 0, WIDTH, HEIGHT)]
    box, _ = _place(400, 200, 50, everywhere)
    assert 300 < box.x0 < 500


def test_the_frontier_against_its_definition() -> None:
    rng = random.Random(1)
    points = [Point(str(i), Fraction(rng.randint(16, 128), 16), 10 ** rng.uniform(-4, 0)) for i in range(60)]
    points.append(Point("same", points[0].bits, points[0].loss))
    best = frontier(points)
    for point in points:
        beaten = any(
            other.bits <= point.bits and other.loss <= point.loss and (other.bits, other.loss) != (point.bits, point.loss)
            for other in points
        )
        assert ((point.bits, point.loss) in [(b.bits, b.loss) for b in best]) == (not beaten)
    assert len({(b.bits, b.loss) for b in best}) == len(best)


def test_names_are_escaped_and_nothing_is_fetched() -> None:
    text = pareto([Point('<script>&"', Fraction(4), 0.1)], "<b>", "&", "'")
    assert "<script" not in text
    ElementTree.fromstring(text)
    assert "http" not in text
    standalone = pareto(DEMO, "bits", "KL", "float", standalone=True)
    assert re.findall(r"https?://[^\"]*", standalone) == ["http://www.w3.org/2000/svg"]
    ElementTree.fromstring(standalone)


def test_nothing_and_one_point() -> None:
    assert "nothing to plot" in pareto([Point("zero", Fraction(8), 0.0)], "bits", "KL", "float")
    assert "one" in [element.text for element in draw([Point("one", Fraction(8), 0.5)]).iter("text")]
