"""The reference product against exact rational arithmetic, a second writing of itself, and mutants of that."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from cases import CODED, DENSE, EXPANDED, WITNESSES, Case, spread
from mutants import FLOAT_ONLY, INT8_ONLY, MUTANTS, plain

from anybit.errors import NonFiniteError, ShapeError
from anybit.reference.exact import exact_matmul
from anybit.reference.linear import act_edges, make_operands, matmul, matmul_operands, operands, quantize_activations


def acts(case: Case) -> tuple[str | None, ...]:
    """The kinds of activations that the format allows."""
    fmt = case.format
    return (None,) if fmt.block is None or fmt.element.bits > 8 else (None, "int8")


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


def test_activation_edges() -> None:
    assert act_edges(100, 32) == [0, 32, 64, 96, 100]
    assert act_edges(513, 512) == [0, 512, 513]
    assert act_edges(700, 600) == [0, 128, 256, 384, 512, 600, 700]
    assert act_edges(300, 300) == [0, 300]


def test_quantized_activations_by_hand() -> None:
    x = np.array([[1.27, -0.635, 0.015, 0, 2.0**-121, 0, 3, -3]], np.float32)
    q, s, sums = quantize_activations(x, [0, 4, 6, 8])
    assert q.tolist() == [[127, -64, 2, 0, 0, 0, 127, -127]]  # 0.635 * 100 is just above 63.5 in float32
    assert s.tolist() == [[np.float32(1.27) * np.float32(1 / 127), 0, np.float32(3) * np.float32(1 / 127)]]
    assert sums.tolist() == [[65, 0, 0]]


@pytest.mark.parametrize("kind", ["normal", "gaps", "tiny", "ties", "extreme"])
def test_quantized_activations_stay_near(kind: str) -> None:
    """|q| <= 127 and |x - s q| <= s (1/2 + 127 * 4 u), exactly; 2^-149 more for s's own rounding where it is subnormal."""
    case = Case("int4@32", 4, 1, 100, kind)
    q, s, _ = quantize_activations(case.x, act_edges(100, 32))
    assert np.abs(q.astype(int)).max() <= 127
    for i in range(4):
        for j in range(100):
            x, scale = Fraction(float(case.x[i, j])), Fraction(float(s[i, j // 32]))
            slack = scale * (Fraction(1, 2) + Fraction(127 * 4, 2**24)) if scale else Fraction(1, 2**120)
            assert abs(x - scale * int(q[i, j])) <= slack + Fraction(127, 2**149)


def test_non_finite_activations_are_named() -> None:
    x = np.ones((3, 40), np.float32)
    x[2, 33] = np.nan
    with pytest.raises(NonFiniteError, match="row 2, column 33 is nan"):
        quantize_activations(x, [0, 32, 40])


def test_refuses_what_the_contract_excludes() -> None:
    one = np.ones((1, 1), np.float32)
    with pytest.raises(ShapeError, match="integer table"):
        matmul_operands(one, make_operands(None, one, 1.0, [one], 1), "int8")
    with pytest.raises(ShapeError, match="float zero point"):
        make_operands(None, one, 1.0, [one], 1, float_zero=one, offsets=[one])


@pytest.mark.parametrize("expression", [*CODED, *DENSE, *EXPANDED])
def test_within_the_derived_bound_of_exact_arithmetic(expression: str) -> None:
    for case in spread(expression, 3, lengths=(15, 33, 65)):
        small = Case(expression, min(case.m, 2), min(case.n, 5), case.k, case.inputs, biased=False)
        w = operands(small.parts, small.format, small.shape)
        for act in acts(small):
            exact, bound = exact_matmul(small.x, w, act)
            got = matmul_operands(small.x, w, act)
            for i, j in np.ndindex(got.shape):
                assert abs(Fraction(float(got[i, j])) - exact[i][j]) <= bound[i][j], (str(small), act, i, j)


@pytest.mark.parametrize("expression", [*CODED, *DENSE, *EXPANDED])
def test_equals_its_plain_writing(expression: str) -> None:
    for case in spread(expression, 4):
        few = Case(expression, min(case.m, 3), min(case.n, 17), case.k, case.inputs, biased=case.biased)
        w = operands(few.parts, few.format, few.shape)
        for act in acts(few):
            assert same(matmul(few.x, few.parts, few.format, few.shape, act, few.bias), plain(few.x, w, act, few.bias)), (str(few), act)


@pytest.fixture(scope="module")
def right() -> dict[tuple[Case, str | None], np.ndarray]:
    return {(case, act): matmul(case.x, case.parts, case.format, case.shape, act, case.bias) for case in WITNESSES for act in acts(case)}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_told(mutant: str, right: dict[tuple[Case, str | None], np.ndarray]) -> None:
    for (case, act), want in right.items():
        if (mutant in FLOAT_ONLY and act is not None) or (mutant in INT8_ONLY and act is None):
            continue
        w = operands(case.parts, case.format, case.shape)
        if not same(plain(case.x, w, act, case.bias, mutant), want):
            return
    pytest.fail(f"no case tells '{mutant}' from the contract")
