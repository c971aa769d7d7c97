"""Steps of groups against formulas of their papers, in float64; and what holds for all: outputs stay, statistics move along."""

import numpy as np
import pytest
from groups import DIM, HEADS, INNER, KV, TOKENS, WIDTH, check_moved, made, product

from anybit.calibrate.block import RoundedBlock
from anybit.errors import UsageError
from anybit.formats import Spec
from anybit.methods.awq import AWQ, clipped, output_error, rounded
from anybit.methods.equalize import Equalize
from anybit.methods.hadamard import Hadamard, largest_block
from anybit.methods.outlier_columns import OutlierColumns
from anybit.methods.permute_outliers import PermuteOutliers, clustered, sorted_by
from anybit.methods.residual_channels import ResidualChannels, channel_count
from anybit.methods.rotation import hadamard_matrix
from anybit.methods.rtn import dequantize_parts, quantize_parts
from anybit.methods.smoothquant import SmoothQuant, smoothing
from anybit.methods.static_activations import StaticActivations, reach
from anybit.methods.statistics import Statistics
from anybit.methods.step import STEPS, GroupStep

EXACT = [
    SmoothQuant(), SmoothQuant(alpha=0.8), SmoothQuant(roles="down o"), AWQ(grid=5), AWQ(grid=5, duo=True), Equalize(),
    Equalize(norms=True), Hadamard(), Hadamard(block=8), Hadamard(seed=None),
    PermuteOutliers(over=1.5), PermuteOutliers(order="sort"), PermuteOutliers(order="sort", by="weights", online=True),
    OutlierColumns(top=5, threshold=None, format="fp32"), OutlierColumns(threshold=3.0, format="fp32"), ResidualChannels(multiple=4),
    StaticActivations(), StaticActivations(per="channel"),
]  # fmt: skip


@pytest.mark.parametrize("step", EXACT, ids=str)
@pytest.mark.parametrize("shape", [{}, {"qk_norm": True}], ids=["biases", "qk-norm"])
def test_the_float_model_stays_and_statistics_move(step: GroupStep, shape: dict[str, bool]) -> None:
    tested = made(act="int8", **shape)
    before = {role: [t.weight.copy() for t in g.targets] for role, g in tested.block.groups.items()}
    tested.apply(step)
    if isinstance(step, PermuteOutliers) and step.online:
        assert [p.kind for g in tested.block.groups.values() for p in g.pre] == ["permute"] * 4
    tested.check_float()
    for role, group in tested.block.groups.items():
        changed = any(not np.array_equal(t.weight, w) for t, w in zip(group.targets, before[role], strict=True))
        acted = changed or group.pre or any(t.added for t in group.targets) or group.act_scale is not None
        assert bool(acted) or not step.serves(role) or isinstance(step, (Equalize, AWQ)), role
        assert not (changed and not step.serves(role)) or role in ("qkv", "gate_up"), "folded into v_proj and up_proj alone"


def test_two_steps_in_a_row() -> None:
    tested = made("int4@16")
    steps = [SmoothQuant(), PermuteOutliers(order="sort"), Equalize(), Hadamard(block=4), SmoothQuant(alpha=0.3), Hadamard(block=8, seed=3)]
    for step in steps:
        tested.apply(step)
    tested.check_float()
    kinds = [p.kind for p in tested.block.groups["down"].pre]
    assert kinds == ["hadamard", "scale", "hadamard"], "after a rotation nothing can be folded into what is before it"
    assert [p.kind for p in tested.block.groups["qkv"].pre] == ["permute", "hadamard", "scale", "hadamard"]


def test_branches_come_last() -> None:
    tested = made()
    tested.apply(OutlierColumns(top=2, threshold=None, roles="gate_up"))
    with pytest.raises(UsageError, match=r"layer 0, gate_up: steps that add branches come after those that change a layer's input"):
        tested.apply(SmoothQuant(roles="gate_up"))
    tested.apply(SmoothQuant(roles="down"))
    assert [p.kind for p in tested.block.groups["down"].pre] == ["scale"], "a branch beside up_proj: nothing is folded into it"


def test_smoothquant_is_equation_4() -> None:
    tested = made()
    w = {name: a.copy() for name, a in tested.block.arrays.items()}
    x = tested.inputs["qkv"].astype(np.float64)
    layer = tested.block.layer
    largest = np.abs(np.concatenate([w[n] for n in (layer.mixer.q, layer.mixer.k, layer.mixer.v)])).max(axis=0)
    s = np.abs(x).max(axis=0) ** 0.7 / largest.astype(np.float64) ** 0.3
    tested.apply(SmoothQuant(alpha=0.7, roles="qkv"))
    norm = tested.block.arrays[layer.mixer_norm]
    assert np.allclose(norm, w[layer.mixer_norm] / s, rtol=1e-5) and not tested.block.groups["qkv"].pre
    assert np.allclose(tested.block.arrays[layer.mixer.k], w[layer.mixer.k] * s, rtol=1e-5)
    assert np.array_equal(smoothing(np.float64([0, 4, 4]), np.float64([1, 0, 1]), 0.5), [1, 1, 2]), "channels that are dead stay"


def test_shared_channels_of_values_get_one_factor() -> None:
    tested = made()
    attention = tested.block.layer.mixer
    o = tested.block.arrays[attention.o].copy()
    tested.apply(SmoothQuant(roles="o"))
    ratio = (tested.block.arrays[attention.o] / o)[0].reshape(KV, HEADS // KV, DIM)
    assert np.allclose(ratio[:, 0], ratio[:, 1], rtol=1e-5) and np.ptp(ratio) > 0.1


def test_equalized_ranges_are_equal() -> None:
    tested = made()
    mlp = tested.block.layer.mlp
    up, down = (tested.block.arrays[n].astype(np.float64) for n in (mlp.up, mlp.down))
    tested.apply(Equalize())
    want = np.sqrt(np.abs(up).max(axis=1) * np.abs(down).max(axis=0))
    rows, columns = np.abs(tested.block.arrays[mlp.up]).max(axis=1), np.abs(tested.block.arrays[mlp.down]).max(axis=0)
    assert np.allclose(rows, want, rtol=1e-5) and np.allclose(columns, want, rtol=1e-5)
    assert tested.block.groups["gate_up"].targets[0].weight.shape == (INNER, WIDTH)


def test_awq_is_the_best_of_its_grid() -> None:
    for expression, duo in (("int3@16", False), ("int4@24", True), ("mxfp4", False)):
        tested = made(expression)
        group = tested.block.groups["gate_up"]
        x, w = tested.inputs["gate_up"].astype(np.float64), [t.weight.astype(np.float64) for t in group.targets]
        spec = Spec.parse(expression)
        errors = []
        size = spec.format.block.size  # type: ignore[union-attr]
        mean_w = np.mean([np.concatenate([np.abs(v[:, i : i + size]) / np.abs(v[:, i : i + size]).max(axis=1, keepdims=True)
                                          for i in range(0, WIDTH, size)], axis=1).mean(axis=0) for v in w], axis=0)  # fmt: skip
        for i in range(11):
            s = np.sqrt((x * x).mean(axis=0)) ** (i / 10) / (mean_w ** (1 - i / 10) if duo else 1)
            s = s / np.sqrt(s.max() * s.min())
            error = 0.0
            for v in w:
                parts = quantize_parts((v * s).astype(np.float32), spec)
                error += np.square(x @ (dequantize_parts(parts, spec.format, v.shape) / s - v).T).sum()
            errors.append(error)
        plain = sum(np.square(x @ (rounded(v.astype(np.float32), spec, None) - v).T).sum() for v in w)
        group.producer = tested.block.producer("gate_up")
        AWQ(grid=10, duo=duo).apply(group)
        assert group.stats.xtx is not None
        got = sum(output_error(rounded(t.weight, spec, None) - t.weight, group.stats.xtx) for t in group.targets)
        assert got == pytest.approx(min([plain, *errors]), rel=1e-3) and got < 0.9 * plain


def test_clipping_lowers_each_blocks_error() -> None:
    tested = made("int3@16")
    group = tested.block.groups["down"]
    (target,), xtx = group.targets, group.stats.xtx
    assert xtx is not None
    before = target.weight
    after = clipped(target, xtx)
    assert not np.array_equal(before, after) and (np.abs(after) <= np.abs(before)).all()
    for start in range(0, INNER, 16):
        part = slice(start, min(start + 16, INNER))
        errors = []
        for w in (before, after):
            delta = (rounded(w, target.spec, None) - before)[:, part].astype(np.float64)
            errors.append(np.einsum("nk,kl,nl->n", delta, xtx[part, part].astype(np.float64), delta))
        assert (errors[1] <= errors[0] * (1 + 1e-5)).all() and errors[1].sum() < 0.97 * errors[0].sum()


def test_hadamard_blocks() -> None:
    for k, wish, block in ((48, None, 16), (48, 8, 8), (72, 16, 8), (81, None, 1), (256, None, 256), (768, 512, 256)):
        assert largest_block(k, wish) == block


def test_hadamard_weights_are_turned_by_the_matrix() -> None:
    tested = made()
    w = tested.block.groups["down"].targets[0].weight.astype(np.float64)
    tested.apply(Hadamard(seed=None, roles="down"))
    want = w @ np.kron(np.eye(INNER // 8), hadamard_matrix(8))
    assert np.allclose(tested.block.groups["down"].targets[0].weight, want, atol=1e-6)
    x = tested.inputs["down"]
    spread = RoundedBlock(tested.block).transformed("down", x)
    assert np.abs(spread).max() < np.abs(x).max() and np.allclose(np.square(spread).sum(), np.square(x).sum(), rtol=1e-5)


def test_permutations_sort_within_what_can_be_folded() -> None:
    score = np.array([1.0, 3.0, 9.0, 2.0, 30.0, 2.0])
    assert clustered(score, 3).tolist() == [4, 2, 0, 1, 3, 5] and sorted_by(score).tolist() == [4, 2, 1, 3, 5, 0]
    tested = made()
    attention = tested.block.layer.mixer
    v, gate = tested.block.arrays[attention.v].copy(), tested.block.arrays[tested.block.layer.mlp.gate].copy()
    tested.apply(PermuteOutliers(order="sort", roles="o down"))
    o, down = tested.block.groups["o"], tested.block.groups["down"]
    assert not o.pre and not down.pre, "folded into rows"
    assert down.stats.absmax is not None and (np.diff(down.stats.absmax) <= 0).all()
    assert o.stats.absmax is not None
    assert (np.diff(o.stats.absmax.reshape(KV, HEADS // KV, DIM).max(axis=1), axis=1) <= 0).all(), "within each head of values"
    for head in range(KV):
        rows = slice(head * DIM, (head + 1) * DIM)
        assert sorted(map(tuple, tested.block.arrays[attention.v][rows])) == sorted(map(tuple, v[rows]))
    assert not np.array_equal(tested.block.arrays[tested.block.layer.mlp.gate], gate), "gate_proj's rows follow up_proj's"


def test_outlier_columns_take_the_largest_and_clear_them() -> None:
    tested = made("int4@16", act="int8")
    x, before = tested.inputs["gate_up"], {t.name: t.weight for t in tested.block.groups["gate_up"].targets}
    tested.apply(OutlierColumns(threshold=float(np.sort(np.abs(x).max(axis=0))[-3]), roles="gate_up"))
    group = tested.block.groups["gate_up"]
    want = np.sort(np.argsort(-np.abs(x).max(axis=0))[:3])
    for target in group.targets:
        (added,) = target.added
        assert added.index is not None and added.kind == "columns" and np.array_equal(added.index, want) and added.a.shape == (INNER, 3)
        assert not target.weight[:, want].any()
    for target, y in zip(group.targets, product(group, x), strict=True):
        exact = x.astype(np.float64) @ before[target.name].T
        stored = np.abs(x[:, want]) @ np.abs(before[target.name][:, want]).T * 2.0**-8  # the columns are bf16
        assert (np.abs(y - exact) <= stored + 1e-4).all()
    for target in group.targets:
        target.parts = quantize_parts(target.weight, target.spec)
    runs = RoundedBlock(tested.block)
    ready = runs.prepare("gate_up", x)
    assert not ready[:, want].any() and np.abs(ready).max() < np.abs(x).max()
    limited = OutlierColumns(threshold=0.01, top=2, roles="down")
    tested.apply(limited)
    assert tested.block.groups["down"].targets[0].added[0].a.shape == (WIDTH, 2)


def test_residual_channels_halve_the_error_of_activations() -> None:
    rows = np.float32([[8, 1, 2, 0.5], [0, 0, 0, 4]])
    assert channel_count(rows, 0.125, 1) == 2 and channel_count(rows, 0.125, 4) == 4 and channel_count(rows, 0.2, 1) == 2
    errors = []
    for step in (None, ResidualChannels(channels=40, roles="down")):
        tested = made("fp4_e2m1@8", act="fp4_e2m1@8")
        x, group = tested.inputs["down"], tested.block.groups["down"]
        (target,) = group.targets
        if step is not None:
            tested.apply(step)
        target.parts = quantize_parts(target.weight, target.spec)
        runs = RoundedBlock(tested.block)
        y = runs.linear("down", target.name, runs.prepare("down", x))
        bias = 0 if target.bias is None else target.bias
        errors.append(np.square(y - bias - x @ target.rounded.T).sum())
        if step is not None:
            (added,) = target.added
            assert added.kind == "residual" and added.format == "fp4_e2m1@8" and added.index is not None
            assert set(added.index) == set(np.argsort(-np.abs(x).max(axis=0))[:40])
    assert errors[1] < 0.5 * errors[0]
    noted = made("fp4_e2m1@8")
    noted.apply(ResidualChannels())
    assert noted.block.groups["down"].targets[0].notes == ["its activations are float: rounding leaves nothing of them"]


def test_static_scales() -> None:
    assert reach("int8") == 127 and reach("fp8_e4m3fn@tensor") == 448 and reach("nvfp4") == 6 * 448
    with pytest.raises(UsageError, match=r"activations in mxfp8 take no given scale; use int8"):
        reach("mxfp8")
    tested = made("int8@16", act="int8")
    tested.apply(StaticActivations(roles="o"))
    group = tested.block.groups["o"]
    assert group.act_scale == pytest.approx(np.abs(tested.inputs["o"]).max() / 127)
    tested.apply(StaticActivations(roles="gate_up", per="channel"))
    group = tested.block.groups["gate_up"]
    assert group.act_scale == pytest.approx(1 / 127, rel=1e-5) and group.stats.absmax is not None
    assert np.allclose(group.stats.absmax, 1, rtol=1e-5)
    for target in tested.block.groups["o"].targets:
        target.parts = quantize_parts(target.weight, target.spec)
    ready = RoundedBlock(tested.block).prepare("o", tested.inputs["o"])
    scale = tested.block.groups["o"].act_scale
    assert scale is not None
    codes = ready / np.float32(scale)
    assert np.abs(codes - np.rint(codes)).max() < 1e-4 and np.abs(codes).max() == pytest.approx(127)


def test_a_searched_static_scale_errs_least() -> None:
    tested = made("int8@16", act="int4_sym@tensor")
    group = tested.block.groups["qkv"]
    x = np.random.default_rng(8).standard_normal((TOKENS, WIDTH)).astype(np.float32)
    group.stats = Statistics(WIDTH, frozenset({"absmax", "rows"}), expected=TOKENS)
    group.stats.add(x, "x")
    tested.apply(StaticActivations(roles="qkv", search=True))
    assert group.act_scale is not None
    most = np.abs(x).max()
    scales = [share * most / 7 for share in np.linspace(1, 0.3, 29)]
    errors = [np.square(np.clip(np.rint(x.astype(np.float64) / s), -7, 7) * s - x).sum() for s in scales]
    assert group.act_scale == pytest.approx(scales[int(np.argmin(errors))]) and min(errors) < 0.9 * errors[0]


def test_options_are_checked() -> None:
    for name, options, message in (
        ("smoothquant", {"alpha": 1.5}, r"'alpha' is 1.5; it must lie from 0 to 1"),
        ("smoothquant", {"roles": "mlp"}, r"'roles' is 'mlp'; it must be some of qkv, o, gate_up, down"),
        ("awq", {"grid": 0}, r"'grid' is 0; it must lie from 1"),
        ("hadamard", {"block": 12}, r"'block' is 12; it must be a power of two"),
        ("permute_outliers", {"by": "size"}, r"'by' is 'size'; there is input and weights"),
        ("outlier_columns", {"threshold": None}, r"give 'threshold' or 'top'"),
        ("residual_channels", {"share": 1.0}, r"'share' is 1.0"),
        ("static_activations", {"per": "token"}, r"'per' is 'token'; there is tensor and channel"),
        ("rotate_residual", {"kind": "fft"}, r"'kind' is 'fft'; there is hadamard and orthogonal"),
    ):
        with pytest.raises(UsageError, match=message):
            STEPS[name].made(options, "recipe")


def test_what_no_token_reached_stays() -> None:
    for step in (SmoothQuant(), AWQ(), PermuteOutliers(), OutlierColumns(), ResidualChannels(), StaticActivations()):
        tested = made(act="int8")
        for group in tested.block.groups.values():
            group.stats = Statistics(group.k, group.stats.needs)
        before = {n: a.copy() for n, a in tested.block.arrays.items()}
        tested.apply(step)
        assert all(np.array_equal(before[n], a) for n, a in tested.block.arrays.items())
        assert all("no token reached it" in g.targets[0].notes[0] for g in tested.block.groups.values())


def test_moved_statistics_are_held_to_gathered_ones() -> None:
    tested = made()
    with pytest.raises(AssertionError, match="xtx"):
        check_moved(tested.block.groups["qkv"].stats, tested.inputs["qkv"] * np.float32(1.01))
