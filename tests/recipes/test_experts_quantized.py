"""Mixtures of experts from files to quantized files: what each expert's statistics are of, what becomes of one that no token reaches."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anybit
from anybit.calibrate import Assignment, Plan, calibrate
from anybit.calibrate.forward import FloatBlock, members, rms_norm, run_block
from anybit.calibrate.importance import importance_of
from anybit.calibrate.run import block_tensors
from anybit.errors import UsageError
from anybit.formats import Spec
from anybit.io.hf import open_model
from anybit.measure.speed import model_speed
from anybit.methods import quantize_parts
from anybit.methods.nearest import Nearest
from anybit.methods.rotate_residual import RotateResidual
from anybit.methods.statistics import Statistics
from anybit.methods.step import STEPS, GroupStep, Rounding, Target
from anybit.models import Experts
from anybit.models.spec import ModelSpec
from anybit.recipes.mixed import candidates
from anybit.recipes.plan import bits_per_weight, estimate, make_plan, rows
from anybit.recipes.quantize import quantize_recipe
from anybit.recipes.schema import Recipe, parse_recipe
from anybit.recipes.source import FloatSource
from anybit.reference import ops
from anybit.streaming import quantize_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from mixtures import MIXTRAL, QWEN, write_mixture

IDS = np.random.default_rng(5).integers(0, 4096, (3, 40)).astype(np.int32)
CONFIGS = {"mixtral": MIXTRAL, "qwen": QWEN}


@pytest.fixture(scope="module", params=CONFIGS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixture(tmp_path_factory.mktemp("mixture") / "model", CONFIGS[request.param])


def matrices(spec: ModelSpec) -> list[str]:
    return [name for layer in spec.layers for names in members(layer).values() for name in names]


class Listening(Rounding):
    """Rounds to nearest, and keeps what it was told."""

    heard: dict[str, Statistics]

    def __init__(self, needs: frozenset[str] = frozenset({"xtx"})) -> None:
        object.__setattr__(self, "heard", {})
        object.__setattr__(self, "wanted", needs)

    def asks(self, spec: Spec) -> frozenset[str]:
        return self.wanted  # type: ignore[no-any-return,attr-defined]

    def round(self, target: Target, stats: Statistics) -> None:
        self.heard[target.name] = stats
        target.parts = quantize_parts(target.weight, target.spec)


def listened(path: Path, expression: str = "int4@8", needs: frozenset[str] = frozenset({"xtx"}), **options: Any) -> dict[str, Statistics]:
    model, step = FloatSource(path), Listening(needs)
    choices = {name: Assignment(Spec.parse(expression), step) for name in matrices(model.spec)}
    list(calibrate(model, Plan(choices, **options), IDS))
    return step.heard


def test_the_float_blocks_are_the_engines_model(source: Path) -> None:
    held, model = FloatSource(source), anybit.load(source)
    spec = model.spec
    x = held.array(spec.embedding)[IDS[0]]
    for index, layer in enumerate(spec.layers):
        x = run_block(layer, FloatBlock({n: held.array(n) for n in block_tensors(spec, index)}), x, spec.norm_eps)
    logits = rms_norm(x, held.array(spec.norm), spec.norm_eps) @ held.array(spec.head).T
    want = model.logits(IDS[0])
    assert np.abs(logits - want).max() < 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("sequential", ["block", "group"])
def test_statistics_are_of_the_tokens_that_were_sent(source: Path, sequential: str) -> None:
    """Of the first layer, whose input nothing has changed; by the reference's routing of the float model. With "group" attention is rounded
    before, so that only the sums are known."""
    held = FloatSource(source)
    spec, layer = held.spec, held.spec.layers[0]
    assert isinstance(layer.mlp, Experts)
    found = listened(source, sequential=sequential)
    arrays = {n: held.array(n) for n in block_tensors(spec, 0)}
    seen = [0] * len(layer.mlp.experts)
    squares = [0.0] * len(layer.mlp.experts)
    for ids in IDS:
        normed: list[np.ndarray] = []

        def look(role: str, x: np.ndarray, normed: list[np.ndarray] = normed) -> None:
            if role == "o":
                normed.append(x)

        x = held.array(spec.embedding)[ids]
        run_block(layer, FloatBlock(arrays), x, spec.norm_eps, look)
        h = rms_norm(x + normed[0] @ arrays[layer.mixer.o].T, arrays[layer.mlp_norm], spec.norm_eps)
        chosen, _ = ops.route(h @ arrays[layer.mlp.router].T, layer.mlp.chosen, layer.mlp.renormalise)
        for expert in range(len(seen)):
            mine = h[(chosen == expert).any(axis=1)]
            seen[expert] += len(mine)
            squares[expert] += float(np.square(mine, dtype=np.float64).sum())
    assert sum(seen) == IDS.size * layer.mlp.chosen and seen[-1] == 0 and min(seen[:-1]) > 0
    counts = [found[part.gate].count for part in layer.mlp.experts]
    assert sum(counts) == IDS.size * layer.mlp.chosen
    for part, count, want, square in zip(layer.mlp.experts, counts, seen, squares, strict=True):
        assert found[part.up] is found[part.gate] and found[part.down].count == count
        if sequential == "block":
            assert count == want
            xtx = found[part.gate].xtx
            assert xtx is not None and np.trace(xtx) == pytest.approx(square, rel=1e-5)
    assert found[layer.mixer.q].count == IDS.size


def test_the_originals_inputs_are_of_the_same_tokens(source: Path) -> None:
    """What GPTAQ asks for: of the first layer both models' inputs are one, and of the next X^T of the tokens that the quantized model's
    router chose, in number."""
    found = listened(source, needs=frozenset({"xtx", "cross"}))
    spec = FloatSource(source).spec
    first, last = spec.layers[0].mlp, spec.layers[-1].mlp
    assert isinstance(first, Experts) and isinstance(last, Experts)
    for part in first.experts:
        stats = found[part.gate]
        assert stats.xtx is not None and stats.cross is not None and np.allclose(stats.xtx, stats.cross, rtol=1e-4, atol=1e-3)
    assert sum(found[part.down].count for part in last.experts) == IDS.size * last.chosen
    a = found[last.experts[0].gate]
    assert a.xtx is not None and a.cross is not None and a.count
    near = np.linalg.norm(a.xtx - a.cross) / np.linalg.norm(a.xtx)
    assert 1e-4 < near < 0.7, "other inputs, of the same tokens"


GPTQ: dict[str, Any] = {
    "version": 1, "name": "experts", "calibration": {"sequences": 3, "length": 40},
    "rules": [{"match": "layers", "format": "int4@8", "rounding": "gptq"}],
}  # fmt: skip


def recipe(**changes: Any) -> Recipe:
    return parse_recipe(GPTQ | changes, "test")


def test_an_expert_without_tokens_is_rounded_to_nearest_and_named(source: Path, tmp_path: Path) -> None:
    result = quantize_recipe(source, tmp_path / "out", recipe())
    original, made = anybit.load(source), anybit.load(tmp_path / "out")
    sparse = [layer.mlp for layer in original.spec.layers if isinstance(layer.mlp, Experts)]
    lonely = [name for mlp in sparse for part in mlp.experts[-1:] for name in (part.gate, part.up, part.down)]
    told = [note for note in result.notes if "no token reached it: rounded to nearest" in note]
    assert sorted(told) == sorted(f"{name}: no token reached it: rounded to nearest" for name in lonely)
    nearest = original.quantize("int4@8").linears
    same = [
        name for name in matrices(original.spec)
        if np.array_equal(made.linears[name].weight.dequantize(), nearest[name].weight.dequantize())
    ]  # fmt: skip
    assert set(lonely) <= set(same) and len(same) < len(lonely) + 3, "all others are chosen by GPTQ"
    for mlp in sparse:
        assert np.array_equal(made.weights[mlp.router], original.weights[mlp.router])
        assert mlp.router not in made.quantized and made.plain[mlp.router][0] == "BF16"


def test_few_tokens_are_better_than_none(source: Path, tmp_path: Path) -> None:
    """Experts see fewer tokens than they have inputs: damping serves, and the first layer's outputs are nearer than by rounding alone."""
    losses = []
    for i, rounding in enumerate(["gptq", {"nearest": {"importance": True}}]):
        rules = [{"match": "layers", "format": "int4@8+scale=mse", "rounding": rounding}]
        losses.append(quantize_recipe(source, tmp_path / str(i), recipe(rules=rules)).layers[0].loss)
    assert 0 < losses[0] < losses[1]


@pytest.mark.parametrize("act", [None, "int8"])
def test_saved_streamed_and_opened_it_generates_the_same(source: Path, act: str | None, tmp_path: Path) -> None:
    model = anybit.load(source).quantize("int4@8+scale=mse", act=act)
    spec = model.spec
    assert model.quantized == set(matrices(spec)), "no router"
    model.save(tmp_path / "saved")
    quantize_file(source, tmp_path / "streamed", "int4@8+scale=mse", act=act)
    prompts = ["def f(x):\n", "class A:\n    def __init__(self", "import os"]
    want = model.generate(prompts, max_tokens=20)
    assert len(set(want)) == 3
    for name in ("saved", "streamed"):
        again = anybit.load(tmp_path / name)
        assert again.generate(prompts, max_tokens=20) == want
        assert [again.generate(prompt, max_tokens=20) for prompt in prompts] == want
        assert np.array_equal(again.logits(IDS[0]), model.logits(IDS[0]))
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("saved", "streamed")]
    assert files[0] == files[1]


def test_the_plan_counts_every_expert(source: Path, tmp_path: Path) -> None:
    held, chosen = FloatSource(source), recipe()
    plan = make_plan(chosen, held.spec)
    table = rows(plan, held.spec, {t.name: held.dtype(t.name) for t in held.spec.tensors})
    quantize_recipe(source, tmp_path / "out", chosen)
    stored = open_model(tmp_path / "out").quantization
    assert stored is not None
    assert {row.name: row.nbytes for row in table} == {name: layer.nbytes for name, layer in stored.layers.items()}
    assert [row.name for row in table if row.method != "kept"] == matrices(held.spec) or set(plan.choices) == set(matrices(held.spec))
    assert bits_per_weight(table, plan) == anybit.load(tmp_path / "out").quantized_bits_per_weight
    rough = estimate(plan, table, held.spec, chosen)
    assert rough.model_bytes == sum(row.nbytes or 0 for row in table)


def test_rules_leave_routers_alone(source: Path) -> None:
    spec = FloatSource(source).spec
    routers = [t.name for t in spec.tensors if t.role == "router"]
    everything = recipe(rules=[{"match": ".", "format": "int8@channel"}])
    assert routers and not set(routers) & set(make_plan(everything, spec).choices)
    gate = r"(mlp|block_sparse_moe)\.gate\."
    kept = recipe(rules=[{"match": gate, "keep": True}, {"match": "layers", "format": "int4@8"}])
    make_plan(kept, spec)
    named = recipe(rules=[{"match": gate, "format": "int8@channel"}, {"match": "layers", "format": "int4@8"}])
    with pytest.raises(UsageError, match=r"is for routers, as 'model\.layers\.0\..*gate\.weight', which choose experts and stay"):
        make_plan(named, spec)


CHANGING = sorted(name for name in STEPS if issubclass(STEPS[name], GroupStep) and name not in ("flap", "magnitude", "two_four"))


@pytest.mark.parametrize("name", CHANGING)
def test_steps_of_groups_keep_the_float_model(name: str, source: Path) -> None:
    """Each on all groups, those of an expert without tokens too; then nearly nothing is rounded."""
    step, model = STEPS[name](), FloatSource(source)
    assert isinstance(step, GroupStep)
    choices = {n: Assignment(Spec.parse("int16@8:fp32"), Nearest()) for n in matrices(model.spec)}
    for finished in calibrate(model, Plan(choices, group_steps=(step,)), IDS):
        assert finished.index == -1 or 0 <= finished.loss < 1e-6, (finished.index, finished.loss)


def test_the_stream_is_rotated_with_its_routers(source: Path, tmp_path: Path) -> None:
    rotated = recipe(
        steps=[{"rotate_residual": {}}], rules=[{"match": "layers", "format": "int8@8:fp32", "rounding": "nearest"}], calibration={}
    )
    quantize_recipe(source, tmp_path / "out", rotated)
    made, original = anybit.load(tmp_path / "out"), anybit.load(source)
    mlp = original.spec.layers[0].mlp
    assert isinstance(mlp, Experts)
    turned = original.weights[mlp.router] * original.weights[original.spec.layers[0].mlp_norm] @ RotateResidual().matrix(72)
    assert np.abs(made.weights[mlp.router] - turned).max() < 1e-5 and made.plain[mlp.router][0] == "F32"
    want = original.logits(IDS[0])
    assert np.square(made.logits(IDS[0]) - want).mean() < 1e-3 * np.square(want).mean()


def test_importance_leaves_out_what_nothing_reaches(source: Path) -> None:
    model = FloatSource(source)
    found = importance_of(model, IDS)
    sparse = [layer.mlp for layer in model.spec.layers if isinstance(layer.mlp, Experts)]
    lonely = {name for mlp in sparse for part in mlp.experts[-1:] for name in (part.gate, part.up, part.down)}
    assert set(found) == set(matrices(model.spec)) - lonely


def test_budgets_count_what_a_token_reads(source: Path) -> None:
    """An expert that nothing reached costs nothing; bit operations are of the experts that a token takes."""
    wanted = {"bits": 8.0, "bit_operations": 128.0, "formats": ["int2@8", "int4@8", "int8@8"], "cost": "hawq"}
    found = candidates(source, recipe(allocation=wanted), IDS, tokens=40)
    spec, costs = found.model.spec, found.costs
    sparse = [layer.mlp for layer in spec.layers if isinstance(layer.mlp, Experts)]
    for mlp in sparse:
        last, first = mlp.experts[-1], mlp.experts[0]
        assert set(costs[last.up].values()) == {0.0} and costs[first.up]["int2@8"] > costs[first.up]["int4@8"] > 0
    _, operations = found.budgets(parse_recipe(GPTQ | {"allocation": wanted}, "test").allocation)  # type: ignore[arg-type]
    mlp, q = sparse[0], spec.layers[0].mixer.q
    up = mlp.experts[0].up
    assert operations.use[up]["int4@8"] == pytest.approx(found.weights[up] * 128 * mlp.chosen / len(mlp.experts))
    assert operations.use[q]["int4@8"] == found.weights[q] * 128
    assert sum(each["int4@8"] for each in operations.use.values()) == pytest.approx(operations.limit)


def test_speed_counts_the_bytes_that_a_token_reads(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = anybit.load(source)
    ticks = iter(range(10_000))
    monkeypatch.setattr("anybit.measure.speed.time.perf_counter", lambda: float(next(ticks)))
    speed = model_speed(model, prompt=4, tokens=2, repeats=1)  # every step takes one second
    idle = [layer.mlp.experts[layer.mlp.chosen :] for layer in model.spec.layers if isinstance(layer.mlp, Experts)]
    unread = sum(model.linears[name].nbytes for parts in idle for part in parts for name in (part.gate, part.up, part.down))
    table = model.linears[model.spec.embedding].nbytes
    assert speed.read_gb_s == pytest.approx((model.nbytes - table - unread) / 1e9)
