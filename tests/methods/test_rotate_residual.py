"""Steps of a whole model: rotations and sorted heads leave the float model's logits, and do what they are for."""

from typing import Any

import numpy as np
import pytest
from groups import DIM, HEADS, KV, WIDTH, arrays_of, described

from anybit.calibrate.forward import FloatBlock, rms_norm, run_block
from anybit.methods.rotate_residual import RotateResidual
from anybit.methods.rotation import hadamard_matrix, orthogonal, random_hadamard, signs
from anybit.methods.sort_heads import SortHeads
from anybit.methods.step import ModelStep
from anybit.models.spec import ModelSpec
from anybit.transforms import Transform

IDS = np.random.default_rng(4).integers(0, 40, 33)


class Small:
    """Two blocks with a tied head."""

    def __init__(self, spec: ModelSpec) -> None:
        rng = np.random.default_rng(1)
        self.spec = spec
        table = rng.standard_normal((spec.vocab, spec.width)).astype(np.float32)
        table[:, [5, 11]] *= 15  # outlier channels of the residual stream
        self.ends = {spec.embedding: table, spec.norm: (1 + 0.3 * rng.standard_normal(spec.width)).astype(np.float32)}
        self.blocks = [arrays_of(spec, i, seed=i) for i in range(2)]

    def apply(self, step: ModelStep) -> None:
        step.prepare(self.spec)
        for i, arrays in enumerate(self.blocks):
            step.block(self.spec, i, arrays)
        step.ends(self.spec, self.ends)

    def run(self, tap: Any = None) -> np.ndarray:
        x = self.ends[self.spec.embedding][IDS]
        for i, arrays in enumerate(self.blocks):
            x = run_block(self.spec.layers[i], FloatBlock(arrays), x, self.spec.norm_eps, tap)
        head = self.ends.get("lm_head.weight", self.ends[self.spec.embedding])
        return rms_norm(x, self.ends[self.spec.norm], self.spec.norm_eps) @ head.T


STEPS = [RotateResidual(), RotateResidual(kind="orthogonal", seed=7), RotateResidual(heads=False), SortHeads(), SortHeads(keys=False)]


@pytest.mark.parametrize("shape", [{}, {"qk_norm": True}, {"bias": False}], ids=["biases", "qk-norm", "plain"])
@pytest.mark.parametrize("step", STEPS, ids=str)
def test_logits_stay(step: ModelStep, shape: dict[str, bool]) -> None:
    model = Small(described(**shape))
    before, old = model.run(), [{n: a.copy() for n, a in b.items()} for b in model.blocks]
    model.apply(step)
    assert np.abs(model.run() - before).max() < 1e-5 * np.abs(before).max()
    attention = model.spec.layers[1].mixer
    changed = {n for n, a in model.blocks[1].items() if not np.array_equal(a, old[1][n])}
    assert attention.v in changed and attention.o in changed
    if isinstance(step, SortHeads):
        assert (attention.k in changed) == (attention.q in changed) == (step.keys and not shape.get("qk_norm"))
        assert "lm_head.weight" not in model.ends
    else:
        assert (model.ends[model.spec.norm] == 1).all() and model.ends["lm_head.weight"].shape == (40, WIDTH)


def test_rotation_is_the_papers() -> None:
    """W' = (W diag(norm)) Q, o' = Q^T o R, v' = R^T (v diag(norm)) Q."""
    model = Small(described(bias=False))
    layer, old = model.spec.layers[0], {n: a.astype(np.float64) for n, a in model.blocks[0].items()}
    step = RotateResidual(seed=3)
    model.apply(step)
    q, r = step.matrix(WIDTH), step.matrix(DIM, 1)
    mixer, now = layer.mixer, model.blocks[0]
    assert np.allclose(now[mixer.k], old[mixer.k] * old[layer.mixer_norm] @ q, atol=1e-5)
    assert np.allclose(now[layer.mlp.down], q.T @ old[layer.mlp.down], atol=1e-5)
    assert np.allclose(now[mixer.v], np.kron(np.eye(KV), r).T @ (old[mixer.v] * old[layer.mixer_norm]) @ q, atol=1e-5)
    assert np.allclose(now[mixer.o], q.T @ old[mixer.o] @ np.kron(np.eye(HEADS), r), atol=1e-5)
    assert not np.allclose(step.matrix(DIM, 1), step.matrix(DIM, 2)), "each layer's heads have signs of their own"


def test_rotation_spreads_outliers() -> None:
    peaks = []
    for step in (None, RotateResidual()):
        model = Small(described())
        if step is not None:
            model.apply(step)
        seen: list[float] = []

        def tap(role: str, x: np.ndarray, seen: list[float] = seen) -> None:
            if role == "qkv":
                seen.append(float(np.mean(np.max(np.abs(x), axis=1) / np.sqrt(np.mean(np.square(x), axis=1)))))

        model.run(tap)
        peaks.append(seen)
    assert all(b < 0.65 * a for a, b in zip(*peaks, strict=True)), peaks


@pytest.mark.parametrize("n", [1, 2, 16, 48, 80, 256, 7])
def test_matrices_are_orthogonal(n: int) -> None:
    for made in (random_hadamard(n, 5), orthogonal(n, 5)):
        assert np.allclose(made @ made.T, np.eye(n), atol=1e-12)
        assert np.array_equal(made, random_hadamard(n, 5)) or np.array_equal(made, orthogonal(n, 5))
    even = n & -n
    made = random_hadamard(n, 5)
    if n == even:
        assert np.allclose(np.abs(made), n**-0.5) and np.allclose(made, signs(n, 5)[:, None] * hadamard_matrix(n))
    else:
        assert (made != 0).all(), "every number goes everywhere"
    assert np.array_equal(signs(n, 9), Transform("hadamard", 1, seed=9).signs(n))


def test_heads_are_sorted() -> None:
    model = Small(described(bias=False))
    mixer = model.spec.layers[0].mixer
    old = {n: a.copy() for n, a in model.blocks[0].items()}
    model.apply(SortHeads())
    v, k = (np.linalg.norm(model.blocks[0][n], axis=1).reshape(KV, DIM) for n in (mixer.v, mixer.k))
    assert (np.diff(v, axis=1) <= 0).all() and (k[:, : DIM // 2] >= k[:, DIM // 2 :]).all()
    before = np.linalg.norm(old[mixer.k], axis=1).reshape(KV, DIM)
    assert np.allclose(np.sort(before.reshape(KV, 2, -1), axis=1), np.sort(k.reshape(KV, 2, -1), axis=1)), "pairs kept their places"
