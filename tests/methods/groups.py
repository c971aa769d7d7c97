"""Groups of a made-up block with heavy-tailed, correlated inputs, and what a group computes, for the tests of transforms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anybit.calibrate.block import Assignment, Block
from anybit.calibrate.forward import FloatBlock, members, run_block
from anybit.calibrate.inputs import branch, clear, cleared, transformed
from anybit.formats import Spec
from anybit.methods.nearest import Nearest
from anybit.methods.statistics import NEEDS, Statistics
from anybit.methods.step import Group, GroupStep
from anybit.models import describe
from anybit.models.spec import ModelSpec

HEADS, KV, DIM, WIDTH, INNER, TOKENS = 6, 3, 16, 48, 72, 90


def described(qk_norm: bool = False, bias: bool = True) -> ModelSpec:
    """Widths that are no powers of two, grouped queries; with biases (Qwen2) or normalised keys (Qwen3)."""
    family = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]} if qk_norm else {}
    if bias and not qk_norm:
        family = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "attention_bias": True, "mlp_bias": True}
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 40, "hidden_size": WIDTH, "num_attention_heads": HEADS,
        "num_key_value_heads": KV, "head_dim": DIM, "intermediate_size": INNER, "num_hidden_layers": 2, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    }  # fmt: skip
    return describe(config | family, "test")


def arrays_of(spec: ModelSpec, index: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
    """Float weights of a block; columns and rows of very different size."""
    from anybit.calibrate.run import block_tensors

    rng = np.random.default_rng(seed)
    shapes = {t.name: t.shape for t in spec.tensors}
    made = {}
    for name in block_tensors(spec, index):
        shape = shapes[name]
        if len(shape) == 1:
            made[name] = (1 + 0.3 * rng.standard_normal(shape)).astype(np.float32)
        else:
            w = rng.standard_normal(shape) * np.exp(0.5 * rng.standard_normal(shape[1])) * np.exp(0.5 * rng.standard_normal((shape[0], 1)))
            made[name] = (w / np.sqrt(shape[1])).astype(np.float32)
    return made


def hidden(seed: int = 5) -> np.ndarray:
    """float32[tokens, width] with a few outlier channels."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((TOKENS, WIDTH)) @ (np.eye(WIDTH) + 0.2 * rng.standard_normal((WIDTH, WIDTH)))
    x[:, [3, 17]] *= 20
    return x.astype(np.float32)


@dataclass
class Made:
    """A block with statistics of its float inputs, and what it gave before any step."""

    spec: ModelSpec
    block: Block
    x: np.ndarray
    inputs: dict[str, np.ndarray]
    output: np.ndarray

    def apply(self, step: GroupStep) -> None:
        """What calibration does with a step."""
        for role, group in self.block.groups.items():
            if step.serves(role):
                self.block.refresh(group)
                group.producer = self.block.producer(role)
                step.apply(group)
                self.block.take_back(group)

    def run(self, tapped: dict[str, np.ndarray] | None = None) -> np.ndarray:
        """The float block's output now, branches that belong to the float model included."""
        from anybit.calibrate.block import RoundedBlock

        runs = RoundedBlock(self.block)

        def tap(role: str, x: np.ndarray) -> None:
            if tapped is not None:
                tapped[role] = runs.transformed(role, x)

        return run_block(self.block.layer, runs, self.x, self.spec.norm_eps, tap)

    def check_float(self) -> None:
        """Outputs stay to 1e-5 of their size, and moved statistics are those of the inputs as they come now."""
        seen: dict[str, np.ndarray] = {}
        now = self.run(seen)
        assert np.abs(now - self.output).max() < 1e-5 * np.abs(self.output - self.x).max()
        for role, group in self.block.groups.items():
            check_moved(group.stats, seen[role])


def check_moved(stats: Statistics, x: np.ndarray) -> None:
    """Statistics that moved under transforms equal gathered ones."""
    fresh = Statistics(x.shape[1], frozenset(NEEDS) - {"cross"}, expected=len(x))
    fresh.add(x, "x")
    for name in ("xtx", "mean", "variance", "importance", "rows", "absmax"):
        a, b = getattr(stats, name), getattr(fresh, name)
        assert a is not None and np.allclose(a, b, rtol=2e-4, atol=2e-5 * np.abs(b).max()), name


def made(expression: str = "int4@16", act: str | None = None, seed: int = 0, **shape: bool) -> Made:
    """A block ready for steps, every matrix to become `expression`."""
    spec = described(**shape)
    layer = spec.layers[0]
    choices = {n: Assignment(Spec.parse(expression), Nearest(), act=act) for names in members(layer).values() for n in names}
    block = Block.of(layer, 0, arrays_of(spec, seed=seed), choices)
    x = hidden()
    inputs: dict[str, np.ndarray] = {}

    def tap(role: str, h: np.ndarray) -> None:
        inputs[role] = h.copy()

    output = run_block(layer, FloatBlock({n: a.copy() for n, a in block.arrays.items()}), x, spec.norm_eps, tap)
    for role, group in block.groups.items():
        group.stats = Statistics(group.k, frozenset(NEEDS) - {"cross"}, expected=TOKENS)
        group.stats.add(inputs[role], role)
    return Made(spec, block, x, inputs, output)


def product(group: Group, x: np.ndarray) -> list[np.ndarray]:
    """What the float matrices of a group give on its raw input, biases left out."""
    whole = transformed(group.pre, x)
    ready = clear(whole, cleared(group))
    found = []
    for t in group.targets:
        columns = [branch(a, whole, ready, group, t.format) for a in t.added if a.kind == "columns"]
        found.append(ready @ t.weight.T + sum(columns))
    return found
