"""Refitted scales against least squares, descent against trying every code; never worse on the objective."""

import numpy as np
import pytest
from calibrated import damped, gathered, layer, loss, rounded

from anybit.formats import Format, Spec, bound
from anybit.methods.curvature import curvature
from anybit.methods.descent import Descent
from anybit.methods.gptq import Gptq
from anybit.methods.nearest import Nearest
from anybit.methods.refit import Refit, table_refitted
from anybit.methods.rtn import dequantize_parts, stored_grids
from anybit.methods.step import Correction, Target

FORMATS = (
    "int4@32", "int3@32+zp", "uint4@32:fp16+zp=fp16", "int2@24+off", "uint3@16:uint6@48:fp16+off+scale=kquant", "int8@channel",
    "int4@tensor", "int4@8x32", "fp4_e2m1@16:fp8_e4m3fn@tensor:fp32", "mxfp4", "kmeans3@32", "ternary@32", "d4@32", "int4@32+scale=signmax",
)  # fmt: skip


def corrected(step: Correction, target: Target, stats: object) -> float:
    before = {name: part.copy() for name, part in (target.parts or {}).items()}
    first = target.rounded
    step.correct(target, stats)  # type: ignore[arg-type]
    assert target.parts is not None and before.keys() == target.parts.keys()
    assert all(before[name].dtype == target.parts[name].dtype and before[name].shape == target.parts[name].shape for name in before)
    return float(np.abs(first - target.rounded).max())


@pytest.mark.parametrize("expression", FORMATS)
@pytest.mark.parametrize("first", [Nearest(), Gptq()])
def test_never_worse(expression: str, first: Nearest | Gptq) -> None:
    w, x, _ = layer()
    stats, h = gathered(x), damped(x)
    target = rounded(first, w, expression, stats)
    start = loss(w, target.rounded, h)
    moved = corrected(Refit(), target, stats)
    refit = loss(w, target.rounded, h)
    assert refit <= start * (1 + 1e-6)
    # Powers of two seldom have a better neighbour; everything finer has.
    assert expression == "mxfp4" or (moved > 0 and refit < start)
    corrected(Descent(sweeps=2), target, stats)
    assert loss(w, target.rounded, h) <= refit * (1 + 1e-6)
    if isinstance(first, Nearest) and "d4" not in expression:
        assert loss(w, target.rounded, h) < 0.75 * start


@pytest.mark.parametrize("expression", ["int4@32:fp32", "int3@32:fp32+zp", "uint2@24:fp32+off", "int4@8x32:fp32", "int4@tensor"])
def test_scales_are_least_squares(expression: str) -> None:
    """float32 scales, swept until they stand still, are the joint solution of all of a row's scales and offsets."""
    w, x, _ = layer(n=16, k=72)
    h = damped(x)
    target = rounded(Nearest(), w, expression, gathered(x))
    Refit(sweeps=200).correct(target, gathered(x))
    fmt = Format(expression)
    assert target.parts is not None
    grids = stored_grids(target.parts, fmt, w.shape)
    tall, wide = fmt.blocks[0].on(w.shape)
    units = fmt.element.values[target.parts["codes"]]
    if grids.zero is not None:
        units = units - np.repeat(np.repeat(grids.zero, tall, 0), wide, 1)[:16, :72]
    blocks = -(-72 // wide)
    for top in range(0, 16, tall):
        rows = range(top, top + tall)
        columns = []
        for block in range(blocks):
            held = np.zeros((tall, 72))
            held[:, block * wide : (block + 1) * wide] = units[top : top + tall, block * wide : (block + 1) * wide]
            columns.append(held)
            if fmt.offset is not None:
                columns.append((np.arange(72) // wide == block) * np.ones((tall, 1)))
        a = np.array([[sum(p[r] @ h @ q[r] for r in range(tall)) for q in columns] for p in columns])
        b = np.array([sum(p[r] @ h @ w[top + r] for r in range(tall)) for p in columns])
        solved = np.linalg.solve(a, b)
        best = sum(loss(w[r], sum(c * q[i] for c, q in zip(solved, columns, strict=True)), h) for i, r in enumerate(rows))
        found = sum(loss(w[r], target.rounded[r], h) for r in rows)
        assert best <= found * (1 + 1e-6) and found < best * (1 + 1e-3)


def test_no_single_code_is_better_after_descent() -> None:
    w, x, _ = layer(n=5, k=32)
    h = damped(x)
    target = rounded(Nearest(), w, "int3@16", gathered(x))
    Descent(sweeps=30, refit=False).correct(target, gathered(x))
    fmt = bound(Format("int3@16"), target.parts or {})
    assert target.parts is not None
    at_rest = target.parts["codes"].copy()
    for row in range(5):
        least = loss(w[row], target.rounded[row], h)
        for column in range(32):
            for code in range(8):
                codes = at_rest.copy()
                codes[row, column] = code
                other = dequantize_parts({**target.parts, "codes": codes}, fmt, w.shape)
                assert loss(w[row], other[row], h) >= least * (1 - 1e-6)


def test_nothing_to_go_by() -> None:
    w, x, _ = layer()
    stats = gathered(x[:0])
    for step in (Refit(), Descent()):
        target = rounded(Nearest(), w, "int4@32", stats)
        assert corrected(step, target, stats) == 0
    target = rounded(Gptq(), w, "fp8_e4m3fn", gathered(x))
    assert corrected(Refit(), target, gathered(x)) == 0
    assert curvature(stats) is None and Spec.parse("int4").format.block is None


@pytest.mark.parametrize("expression", ["kmeans3@32:fp32", "kmeans2@tensor"])
def test_learned_values_are_least_squares(expression: str) -> None:
    w, x, _ = layer(n=16, k=64)
    h = damped(x)
    target = rounded(Nearest(), w, expression, gathered(x))
    assert target.parts is not None
    found = curvature(gathered(x), order="natural")
    assert found is not None
    parts = table_refitted(w, target.parts, target.spec, found)
    scale = stored_grids(parts, bound(Format(expression), parts), w.shape).scale
    wide = 64 // scale.shape[1]
    spread = np.broadcast_to(np.repeat(scale, wide, axis=1), w.shape).astype(np.float64)
    shares = [np.where(parts["codes"] == code, spread, 0) for code in range(len(parts["table"]))]
    a = np.array([[((p @ h) * q).sum() for q in shares] for p in shares])
    b = np.array([((p @ h) * w).sum() for p in shares])
    values = np.linalg.lstsq(a, b, rcond=None)[0]
    best = loss(w, sum(v * q for v, q in zip(values, shares, strict=True)), h)
    got = loss(w, dequantize_parts(parts, Format(expression), w.shape), h)
    assert best * (1 - 1e-6) <= got < best * (1 + 1e-4) and got < 0.98 * loss(w, target.rounded, h)
