"""GPTQ against the paper's algorithm in float64, over every kind of element and block; native and NumPy loops are one."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from calibrated import damped, gathered, layer, loss, rounded

from anybit.errors import FormatError, UsageError
from anybit.formats import Spec, bound
from anybit.kernels.cpu import native, set_threads, use_isa
from anybit.methods.columns import Columns
from anybit.methods.curvature import curvature
from anybit.methods.feedback import Feedback
from anybit.methods.gptq import Gptq
from anybit.methods.rtn import dequantize_parts, quantize_parts, stored_grids
from anybit.methods.scales import SCALES
from anybit.methods.settle import can_settle, settle
from anybit.methods.statistics import Statistics
from anybit.methods.step import STEPS

KINDS = (
    "int4@32", "int3@32+zp", "uint4@32:fp16+zp=fp16", "int2@24+off", "uint3@16:uint6@96:fp16+off", "int8@channel", "int4@tensor",
    "int4@8x32", "fp4_e2m1@16:fp8_e4m3fn@tensor:fp32", "mxfp4", "nf4@32", "posit6@32", "pot4@32", "ternary@32", "bipolar2@32", "fp8_e4m3fn",
    "int4@32+scale=clip", "int5@40+scale=mse", "log5_f1@32", "fp12_e4m7@32",
)  # fmt: skip


def by_the_paper(w: np.ndarray, h: np.ndarray, order: np.ndarray, nearest: Callable[[int, np.ndarray], np.ndarray]) -> np.ndarray:
    """Algorithm 1, one column after the other, in float64: U = cholesky(h^-1) upper, w_later -= (w_i - q_i) / U_ii U_i,later."""
    w, q = w.astype(np.float64)[:, order], np.zeros(w.shape)
    u = np.linalg.cholesky(np.linalg.inv(h[np.ix_(order, order)])).T
    for i in range(w.shape[1]):
        q[:, i] = nearest(int(order[i]), w[:, i])
        w[:, i:] -= np.outer((w[:, i] - q[:, i]) / u[i, i], u[i, i:])
    back = np.empty_like(q)
    back[:, order] = q
    return back


def grid(parts: dict[str, np.ndarray], spec: Spec, shape: tuple[int, int]) -> Callable[[int, np.ndarray], np.ndarray]:
    """The nearest value of a column's stored grid, by looking at all of them."""
    fmt = bound(spec.format, parts)
    held = stored_grids(parts, fmt, shape)
    values = fmt.element.finite
    tall, wide = fmt.blocks[0].on(shape)

    def nearest(column: int, x: np.ndarray) -> np.ndarray:
        at = np.arange(shape[0]) // tall, np.full(shape[0], column // wide)
        zero = 0.0 if held.zero is None else held.zero[at].astype(np.float64)[:, None]
        all_values = (values - zero) * held.scale[at].astype(np.float64)[:, None]
        all_values = all_values + (0.0 if held.offset is None else held.offset[at].astype(np.float64)[:, None])
        return np.take_along_axis(all_values, np.abs(all_values - x[:, None]).argmin(axis=1)[:, None], axis=1)[:, 0]

    return nearest


@pytest.mark.parametrize("order", ["activation", "natural"])
@pytest.mark.parametrize("expression", ["int4@32", "int3@32+zp", "nf4@32", "int2@24+off", "mxfp4", "int4@tensor", "uint4@32:fp16+zp=fp16"])
def test_equals_the_paper(expression: str, order: str) -> None:
    w, x, _ = layer(k=96)
    target = rounded(Gptq(order=order, importance=False), w, expression, gathered(x))
    spec = Spec.parse(expression)
    parts = quantize_parts(w, spec)
    h = damped(x)
    by_size = np.argsort(-np.square(x.astype(np.float64)).sum(axis=0), kind="stable")
    expected = by_the_paper(w, h, by_size if order == "activation" else np.arange(96), grid(parts, spec, w.shape))
    nearest = dequantize_parts(parts, spec.format, w.shape)
    for row in range(len(w)):  # rows that nearest codes serve better keep them
        if loss(w[row], nearest[row], h) < loss(w[row], expected[row], h):
            expected[row] = nearest[row]
    assert abs(loss(w, target.rounded, h) / loss(w, expected, h) - 1) < 1e-6
    assert loss(w, target.rounded, h) < 0.75 * loss(w, nearest, h)


@pytest.mark.parametrize("expression", [*KINDS, "d4@32", "ovp4_int@32", "kmeans3@32", "int8@32+nest=4.2"])
def test_without_correlation_it_is_nearest(expression: str) -> None:
    w, _, _ = layer()
    stats = gathered(np.eye(96, dtype=np.float32) * 3)
    spec = Spec.parse(expression)
    target = rounded(Gptq(), w, expression, stats)
    nearest = quantize_parts(w, spec)
    assert all(np.array_equal(target.parts[name], nearest[name]) for name in nearest)


MORE = "d4@32", "ovp4_int@32", "kmeans3@32", "vq4d2_k1@32", "int8@32+nest=4.2+open=4", "int4@8x32+scale=wmse"


@pytest.mark.parametrize("expression", [*KINDS, *MORE])
def test_is_better_than_nearest_for_every_format(expression: str) -> None:
    w, x, _ = layer()
    stats = gathered(x)
    target = rounded(Gptq(), w, expression, stats)
    spec = Spec.parse(expression)
    weighs = spec.format.element.learned or (spec.format.block is not None and SCALES[spec.scale_rule].searches)
    nearest = quantize_parts(w, spec, importance=stats.importance if weighs else None)
    before = loss(w, dequantize_parts(nearest, spec.format, w.shape), damped(x))
    assert loss(w, target.rounded, damped(x)) < (1 if "open" in expression else 0.9) * before


@pytest.mark.parametrize("expression", KINDS)
def test_native_and_numpy_loops_are_one(expression: str) -> None:
    w, x, _ = layer(n=131, k=300, seed=4)
    spec = Spec.parse(expression)
    found = curvature(gathered(x))
    assert found is not None
    columns = Columns(quantize_parts(w, spec), spec, w.shape)
    assert columns.native_plan() is not None
    couplings = (found.coupling(), None, None), (found.coupling(), np.triu(found.coupling() * np.float32(0.1), 1), None)
    sweep = (found.matrix / found.matrix.diagonal()).astype(np.float32)
    start = w - dequantize_parts(quantize_parts(w, spec), spec.format, w.shape)
    for coupling, second, error in (*couplings, (sweep, None, start)):
        slow = Feedback(columns, w, coupling, found.order, second, error, use_native=False, doubt=True).run()
        for isa in native.supported_isas():
            for threads in (1, 2):
                use_isa(isa)
                set_threads(threads)
                fast = Feedback(columns, w, coupling, found.order, second, error, doubt=True).run()
                assert listed(fast) == listed(slow)
                assert all(np.array_equal(getattr(fast, name), getattr(slow, name)) for name in ("codes", "error", "moved"))
    use_isa(native.supported_isas()[-1])


def listed(run: Feedback) -> list[tuple[int, int]]:
    return sorted((int(row), int(column)) for rows, columns in run.doubtful for row, column in zip(rows, columns, strict=True))


FINE = "int14@32", "uint13@24+zp", "uint13@32:fp16+zp=fp16", "uint15@tensor:fp32+off", "fp16_e5m10@channel", "log14_f10@32"


@pytest.mark.parametrize("block", [128, 40])
@pytest.mark.parametrize("expression", FINE)
def test_every_code_is_that_of_float64(expression: str, block: int) -> None:
    """Formats so fine that float32 often takes the wrong side of a switch: the loop lists those, and what is made of them is exact."""
    w, x, _ = layer(n=150, k=300, seed=3)
    stats, spec = gathered(x), Spec.parse(expression)
    found = curvature(stats)
    assert found is not None and stats.xtx is not None
    parts = quantize_parts(w, spec)
    h = stats.xtx.astype(np.float64)
    h += 0.01 * h.diagonal().mean() * np.eye(len(h))
    grids, element = stored_grids(parts, spec.format, w.shape), spec.format.element
    middles = (element.finite[1:] + element.finite[:-1]) / 2
    tall, wide = spec.format.blocks[0].on(w.shape)

    def nearest(column: int, x: np.ndarray) -> np.ndarray:
        at = np.arange(len(w)) // tall, np.full(len(w), column // wide)
        zero = np.float32(0) if grids.zero is None else grids.zero[at]
        offset = np.float32(0) if grids.offset is None else grids.offset[at]
        ratio = (x - offset.astype(np.float64)) / grids.scale[at].astype(np.float64) + zero
        unit = element.finite[np.searchsorted(middles, ratio)].astype(np.float32) - zero
        return (unit * grids.scale[at] + offset).astype(np.float64)

    columns, cost = Columns(parts, spec, w.shape), found.pivots
    run = Feedback(columns, w, found.coupling(), found.order, cost=cost, doubt=True).run(block)
    expected = by_the_paper(w, h, found.order, nearest)

    def rows_apart() -> int:
        values = dequantize_parts({**parts, "codes": run.stored_codes()}, spec.format, w.shape)
        assert np.array_equal(run.stored_error(), w - values)
        return int((values != expected).any(axis=1).sum())

    assert rows_apart() >= 3
    settle(run, found, block)
    assert rows_apart() == 0
    assert np.allclose(run.losses, found.losses(run.stored_error()), rtol=1e-4)


def test_what_cannot_be_settled_is_not() -> None:
    found = curvature(gathered(layer()[1]))
    assert found is not None
    assert can_settle(found, "nearest-even") and can_settle(found, "nearest-away")
    assert not can_settle(found, "down")  # one side of a switch is the value itself
    assert not can_settle(replace(found, backward=found.backward.astype(np.float32)), "nearest-even")


@pytest.mark.parametrize("isa", native.supported_isas())
@pytest.mark.parametrize(("n", "k"), [(1, 1), (15, 70), (16, 64), (37, 129), (131, 200)])
def test_native_pieces_are_numpys(n: int, k: int, isa: str) -> None:
    rng = np.random.default_rng(n)
    use_isa(isa)
    order = rng.permutation(k)
    w, turned = rng.standard_normal((n, k), np.float32), np.empty((k, n), np.float32)
    native.columnwise(w, order, turned)
    assert np.array_equal(turned, w[:, order].T)
    xtx, lower = rng.standard_normal((k, k), np.float32), np.full((k, k), 7.0)
    native.ordered(xtx, order, 0.3, lower)
    assert np.array_equal(np.tril(lower), np.tril(xtx[np.ix_(order, order)].astype(np.float64) / 0.3))
    assert (lower[np.triu_indices(k, 1)] == 7).all()
    diagonal, unit = rng.uniform(1, 2, k), np.zeros((k, k), np.float32)
    native.unit(lower, diagonal, unit)
    assert np.array_equal(unit, np.triu(lower[::-1, ::-1] / diagonal).astype(np.float32))
    use_isa(native.supported_isas()[-1])


def test_native_pieces_check_what_they_get() -> None:
    square, order = np.zeros((3, 3), np.float32), np.arange(3)
    with pytest.raises(ValueError, match=r"no such column"):
        native.columnwise(square, np.array([0, 1, 3]), square.copy())
    with pytest.raises(ValueError, match=r"no such channel"):
        native.ordered(square, np.array([0, -1, 2]), 1.0, np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"square matrices"):
        native.ordered(square, order, 1.0, np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"square matrices"):
        native.unit(np.zeros((3, 3)), np.ones(2), square.copy())


def test_matrices_of_one_input_share_its_factor() -> None:
    _, x, _ = layer()
    stats = gathered(x)
    found = curvature(stats)
    assert curvature(stats) is found and curvature(stats, 0.02) is not found and curvature(stats, order="natural") is not found
    again = curvature(stats)
    assert again is not None and found is not None and np.array_equal(again.factor, found.factor)
    stats.add(x[:7], "layer")
    more = curvature(stats)
    assert more is not None and not np.array_equal(more.factor, found.factor)
    assert stats.scaled(np.full(96, 2.0)).factored is None


def test_awkward_statistics() -> None:
    w, x, _ = layer()
    x[:, [3, 50]] = 0
    target = rounded(Gptq(), w, "int4@32", gathered(x))
    assert target.notes == ["2 of 96 input channels are always zero"]
    few = gathered(x[:5])
    assert loss(w, rounded(Gptq(), w, "int4@32", few).rounded, damped(x[:5])) < loss(w, dequantize_parts(quantize_parts(w, "int4@32"),
                Spec.parse("int4@32").format, w.shape), damped(x[:5]))  # fmt: skip
    bad = gathered(x)
    assert bad.xtx is not None
    bad.xtx -= 0.02 * bad.xtx.diagonal().mean() * np.eye(96, dtype=np.float32)
    indefinite = rounded(Gptq(), w, "int4@32", bad)
    assert indefinite.notes[-1] == "damping was raised from 0.01 to 0.1: its statistics are singular"
    nobody = Statistics(96, frozenset({"xtx"}))
    target = rounded(Gptq(), w, "int4@32", nobody)
    assert target.notes == ["no token reached it: rounded to nearest"]
    assert np.array_equal(target.parts["codes"], quantize_parts(w, "int4@32")["codes"])
    bad.factored = None
    bad.xtx[:] = 100 - 99 * np.eye(96, dtype=np.float32)
    assert rounded(Gptq(), w, "int4@32", bad).notes == ["its statistics have no factor at any damping: rounded to nearest"]
    assert rounded(Gptq(), w, "fp32", gathered(x)).notes[-1] == "fp32 is as fine as the weights: rounded to nearest"


def test_refusals() -> None:
    w, x, _ = layer()
    with pytest.raises(FormatError, match=r"round=sr24 draws codes by chance: take the method nearest"):
        rounded(Gptq(), w, "int4@32+round=sr24", gathered(x))
    with pytest.raises(UsageError, match=r"gptq: order is 'act'; there is activation and natural"):
        STEPS["gptq"].made({"order": "act"}, "gptq")
    with pytest.raises(UsageError, match=r"gptq: damp is 0; it lies above 0"):
        STEPS["gptq"].made({"damp": 0}, "gptq")
    with pytest.raises(UsageError, match=r"gptq: block is 512; it is the number of columns that are handled together, 8 to 256"):
        STEPS["gptq"].made({"block": 512}, "gptq")


def test_blocks_of_columns_and_narrow_factors_change_nothing_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    w, x, _ = layer(k=300)
    found = [loss(w, rounded(Gptq(block=block), w, "int3@32", gathered(x)).rounded, damped(x)) for block in (8, 50, 128, 256)]
    monkeypatch.setattr("anybit.methods.curvature._DOUBLE", 64)  # float32 factors, as for more than 8192 channels
    found.append(loss(w, rounded(Gptq(), w, "int3@32", gathered(x)).rounded, damped(x)))
    # Another order of summing now and then rounds a target the other way, and its row goes on elsewhere.
    assert max(found) < 1.02 * min(found)
