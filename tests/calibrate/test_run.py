from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import anybit
from anybit.calibrate import Assignment, Finished, Plan, calibrate, calibration_text
from anybit.calibrate.forward import FloatBlock, rms_norm, run_block
from anybit.calibrate.run import block_tensors
from anybit.errors import NonFiniteError, UsageError
from anybit.formats import Spec
from anybit.linear import Linear
from anybit.methods import quantize_parts
from anybit.methods.nearest import Nearest
from anybit.methods.statistics import Statistics
from anybit.methods.step import Correction, Target
from anybit.model import Model
from anybit.models.spec import ModelSpec
from anybit.transforms import Transform, apply


class Weights:
    """A loaded model's float values."""

    def __init__(self, model: Model, changed: Mapping[str, np.ndarray] | None = None) -> None:
        self.spec: ModelSpec = model.spec
        self._model, self._changed = model, changed or {}

    def array(self, name: str) -> np.ndarray:
        if name in self._changed:
            return self._changed[name]
        held = self._model.weights[name]
        return held.weight.dequantize() if isinstance(held, Linear) else held

    def rows(self, name: str, index: np.ndarray) -> np.ndarray:
        return self.array(name)[index]


@pytest.fixture(scope="module")
def model() -> Model:
    return anybit.load("pycoder-5m")


@pytest.fixture(scope="module")
def ids(model: Model) -> np.ndarray:
    return calibration_text(model.tokenizer, sequences=3, length=45, seed=7).ids


def plan(model: Model, expression: str = "int4@32", **options: object) -> Plan:
    names = [name for name in model.linears if "layers" in name]
    return Plan({name: Assignment(Spec.parse(expression), Nearest(), act=None) for name in names}, **options)  # type: ignore[arg-type]


def test_the_float_blocks_are_the_engines_model(model: Model, ids: np.ndarray) -> None:
    held, spec = Weights(model), model.spec
    x = held.array(spec.embedding)[ids[0]]
    for index, layer in enumerate(spec.layers):
        x = run_block(layer, FloatBlock({n: held.array(n) for n in block_tensors(spec, index)}), x, spec.norm_eps)
    logits = rms_norm(x, held.array(spec.norm), spec.norm_eps) @ held.array(spec.head).T
    assert np.abs(logits - model.logits(ids[0])).max() < 2e-3


def test_nearest_gives_the_codes_of_quantize(model: Model, ids: np.ndarray) -> None:
    found = list(calibrate(Weights(model), plan(model), ids))
    assert [f.index for f in found] == [0, 1, 2, 3, 4, -1]
    other = model.quantize("int4@32")
    for finished in found[:-1]:
        assert [len(g.targets) for g in finished.groups.values()] == [3, 1, 2, 1]
        assert 0 < finished.loss < 0.05
        for group in finished.groups.values():
            for target in group.targets:
                assert np.array_equal(target.rounded, other.linears[target.name].weight.dequantize())


def test_groups_in_sequence_see_the_rounded_ones_before_them(model: Model, ids: np.ndarray) -> None:
    seen: dict[str, dict[str, np.ndarray]] = {}
    for how in ("block", "group"):
        stats: dict[str, np.ndarray] = {}
        choices = plan(model, "int3@32").choices
        watch = Nearest()

        class Watch(Correction):
            needs = frozenset({"xtx"})

            def correct(self, target: Target, found: Statistics, stats: dict[str, np.ndarray] = stats) -> None:
                assert found.xtx is not None and found.count == ids.size
                stats[target.name] = found.xtx

        chosen = {n: Assignment(c.spec, watch, (Watch(),)) for n, c in choices.items()}
        list(calibrate(Weights(model), Plan(chosen, sequential=how), ids))
        seen[how] = stats
    first, o = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.o_proj.weight"
    assert np.array_equal(seen["block"][first], seen["group"][first])
    assert not np.array_equal(seen["block"][o], seen["group"][o])


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_run_that_was_killed_goes_on_with_the_same_bits(model: Model, ids: np.ndarray, tmp_path: Path, after: int) -> None:
    todo = plan(model, "int4@32+scale=mse", digest="one")
    whole = list(calibrate(Weights(model), todo, ids))

    def kill(event: object) -> None:
        if getattr(event, "done") == after and getattr(event, "loss") is None:  # noqa: B009
            raise Killed

    with pytest.raises(Killed):
        list(calibrate(Weights(model), todo, ids, tmp_path / "w", progress=kill))
    with pytest.raises(UsageError, match=r"give --resume to go on with it"):
        list(calibrate(Weights(model), todo, ids, tmp_path / "w"))
    other = plan(model, "int4@32+scale=mse", digest="other")
    with pytest.raises(UsageError, match=r"another run's state \('digest' differs\)"):
        list(calibrate(Weights(model), other, ids, tmp_path / "w", resume=True))
    again = list(calibrate(Weights(model), todo, ids, tmp_path / "w", resume=True))
    assert len(again) == len(whole)
    for a, b in zip(whole, again, strict=True):
        assert a.loss == b.loss and a.groups.keys() == b.groups.keys() and a.arrays.keys() == b.arrays.keys()
        for role, group in a.groups.items():
            for s, t in zip(group.targets, b.groups[role].targets, strict=True):
                assert s.parts is not None and t.parts is not None and s.parts.keys() == t.parts.keys()
                assert all(np.array_equal(s.parts[p], t.parts[p]) and s.parts[p].dtype == t.parts[p].dtype for p in s.parts)
    assert not list((tmp_path / "w").glob("hidden*"))


def test_damage_is_named(model: Model, ids: np.ndarray) -> None:
    name = "model.layers.1.mlp.gate_proj.weight"
    bad = np.array(Weights(model).array(name))
    bad[3, 4] = np.nan
    with pytest.raises(NonFiniteError, match=r"layer 1, input of model.layers.1.mlp.down_proj.weight: its input is not finite at"):
        choices = {n: Assignment(Spec.parse("int4@32+scale=wmse"), Nearest()) for n in plan(model).choices}
        list(calibrate(Weights(model, {name: bad}), Plan(choices), ids))


def made(needs: set[str], parts: list[np.ndarray]) -> Statistics:
    stats = Statistics(parts[0].shape[1], frozenset(needs), most_rows=16, expected=sum(len(p) for p in parts))
    for part in parts:
        stats.add(part, "x", part * np.float32(1.25))
    return stats


def test_statistics_are_those_of_all_tokens_and_move_with_the_input() -> None:
    rng = np.random.default_rng(3)
    parts = [(rng.standard_normal((n, 24)) * np.exp(rng.standard_normal(24)) + 1).astype(np.float32) for n in (1, 37, 20)]
    x = np.concatenate(parts).astype(np.float64)
    everything = {"xtx", "cross", "absmax", "mean", "variance", "rows"}
    found = made(everything, parts)
    assert found.count == 58 and found.xtx is not None and found.absmax is not None and found.mean is not None
    assert found.rows is not None and len(found.rows) == 16

    def check(stats: Statistics, y: np.ndarray, absmax: bool = True) -> None:
        for a, b in ((stats.xtx, y.T @ y), (stats.cross, 1.25 * y.T @ y), (stats.mean, y.mean(0)), (stats.variance, y.var(0)),
                     (stats.importance, (y * y).mean(0))):  # fmt: skip
            assert a is not None and np.allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())
        if absmax:
            assert stats.absmax is not None and np.allclose(stats.absmax, np.abs(y).max(0), rtol=1e-5)

    check(found, x)
    scale = np.exp(rng.standard_normal(24))
    check(found.scaled(scale), x * scale)
    index = rng.permutation(24)
    check(found.permuted(index), x[:, index])
    q = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    check(found.rotated(q), x @ np.kron(np.eye(3), q).T, absmax=False)
    eighths = [Transform("hadamard", 8)]
    h = apply(eighths, np.eye(8, dtype=np.float32))
    assert np.allclose(h @ h.T, np.eye(8), atol=1e-6) and np.allclose(h[0], 8**-0.5)
    check(found.rotated(h), apply(eighths, x.astype(np.float32)).astype(np.float64), absmax=False)


def test_calibration_text_is_not_evaluation_text(model: Model) -> None:
    from anybit.calibrate.text import library_files
    from anybit.measure.text import held_out_files

    held_out = set(held_out_files()[0])
    files = library_files()
    assert len(files) > 100 and not held_out & set(files)
    one, two = (calibration_text(model.tokenizer, sequences=2, length=64, seed=s) for s in (0, 1))
    assert one.ids.shape == (2, 64) and one.digest != two.digest
    with pytest.raises(UsageError, match=r"has \d+ tokens, 999 sequences of 512 are 511488"):
        calibration_text(model.tokenizer, [files[0]], sequences=999)


def test_a_layer_kept_in_float_leaves_its_group_alone(model: Model, ids: np.ndarray) -> None:
    todo = plan(model)
    kept = "model.layers.0.self_attn.k_proj.weight"
    fewer = Plan({n: c for n, c in todo.choices.items() if n != kept})
    found: list[Finished] = list(calibrate(Weights(model), fewer, ids))
    assert [t.name for t in found[0].groups["qkv"].targets] == [kept.replace("k_proj", "q_proj"), kept.replace("k_proj", "v_proj")]
    assert np.array_equal(found[0].arrays[kept], Weights(model).array(kept))
    assert quantize_parts(found[0].arrays[kept], "int4@32")["codes"].shape == (128, 256)
