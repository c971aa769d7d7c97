"""Switch points of all gaps at once are those of each gap by fractions."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from anybit.formats import ROUNDS, parse_element
from anybit.formats.element import switches
from anybit.formats.rounding import switch_point, switch_points


def one_by_one(chain: np.ndarray, codes: np.ndarray, mode: str, ties: tuple[Fraction, ...]) -> np.ndarray:
    gaps = zip(pairwise(chain.tolist()), pairwise(codes.tolist()), ties, strict=True)
    return np.array([switch_point(a, b, m, n, mode, tie) for (a, b), (m, n), tie in gaps])


def middles(chain: np.ndarray) -> tuple[Fraction, ...]:
    return tuple((Fraction(a) + Fraction(b)) / 2 for a, b in pairwise(chain.tolist()))


@pytest.mark.parametrize("mode", ROUNDS)
@pytest.mark.parametrize("most", [0, 3, 900, 1020])
def test_chains_of_any_float64(mode: str, most: int) -> None:
    """Middles that float64 holds and that it does not, of both signs, up to its ends and down to its subnormals; codes of any parity."""
    rng = np.random.default_rng(most)
    spread = rng.standard_normal(3000) * 2.0 ** rng.integers(-most, most + 1, 3000).astype(float)
    near = np.nextafter(spread[:500], np.inf)
    whole = rng.integers(-50, 50, 400) / 4
    ends = [0.0, 5e-324, -5e-324, 1.7e308, -1.7e308] if most == 1020 else [0.0]
    chain = np.unique(np.r_[spread, -spread[:300], near, whole, ends])
    codes = rng.integers(0, 7000, len(chain))
    assert np.array_equal(switch_points(chain, codes, mode, None), one_by_one(chain, codes, mode, middles(chain)))


@pytest.mark.parametrize("mode", ROUNDS)
@pytest.mark.parametrize("name", ["fp16", "bf16", "int8_sym", "nf4", "e8m0", "posit8", "fp8_e4m3fnuz", "codebook_-3_1_0.25_2", "pot4_k2"])
def test_elements(name: str, mode: str) -> None:
    element = parse_element(name)
    assert element.ties_are_middles == (not name.startswith("posit"))
    chain = np.r_[element.beyond[0], element.finite, element.beyond[1]]
    assert not element.ties_are_middles or len(chain) > 1000 or element.ties == middles(chain)
    codes = np.r_[int(element.finite_codes[0]) ^ 1, element.finite_codes.astype(np.int64), int(element.finite_codes[-1]) ^ 1]
    found = switches(element, mode, "saturate").points
    assert len(found) == len(chain) - 1
    most = len(found)
    for i in np.unique(np.r_[: min(most, 300), np.random.default_rng(0).integers(0, most, 500), max(0, most - 300) : most]):
        a, b = float(chain[i]), float(chain[i + 1])
        assert found[i] == switch_point(a, b, int(codes[i]), int(codes[i + 1]), mode, element.ties[i])
