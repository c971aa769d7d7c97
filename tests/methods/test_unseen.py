"""What no calibration token reaches (an expert that is never chosen) is rounded all the same, and said; bad inputs are refused by name."""

import numpy as np
import pytest
from calibrated import layer

import anybit
from anybit.calibrate import Assignment, Plan, calibrate
from anybit.errors import NonFiniteError
from anybit.formats import Spec
from anybit.linear import Linear
from anybit.methods.gptq import Gptq
from anybit.methods.nearest import Nearest
from anybit.methods.rtn import quantize_parts
from anybit.methods.statistics import NEEDS, Statistics
from anybit.methods.step import STEPS, Correction, Group, GroupStep, Rounding, Target
from anybit.models.spec import ModelSpec

EXPRESSIONS = {"nupes": "pow4_a0.6@32", "matgptq": "int8@32+nest=4.2", "hqq": "uint4@32+zp=fp16", "ldlq": "e8p@32"}
KIND = {
    kind: sorted(name for name in STEPS if issubclass(STEPS[name], kind)) for kind in (Rounding, Correction, GroupStep)
}  # fmt: skip


def unseen(name: str) -> Target:
    return Target("w", layer()[0], Spec.parse(EXPRESSIONS.get(name, "int4@32")))


def nothing() -> Statistics:
    return Statistics(96, frozenset(NEEDS))


@pytest.mark.parametrize("name", KIND[Rounding])
def test_roundings(name: str) -> None:
    target, step = unseen(name), STEPS[name]()
    assert isinstance(step, Rounding)
    step.round(target, nothing())
    assert np.isfinite(target.rounded).all() and np.abs(target.rounded - target.weight).max() < np.abs(target.weight).max()
    if step.asks(target.spec):
        assert any("no token reached it" in note for note in target.notes), target.notes
    if name not in ("hqq", "nupes"):  # which need no data to be better
        plain = Spec.parse(str(target.spec).split("+open")[0])
        assert target.parts is not None and np.array_equal(target.parts["codes"], quantize_parts(target.weight, plain)["codes"])


@pytest.mark.parametrize("name", KIND[Correction])
def test_corrections(name: str) -> None:
    target, step = unseen(name), STEPS[name]()
    assert isinstance(step, Correction)
    STEPS["nearest"]().round(target, nothing())  # type: ignore[attr-defined]
    before = target.rounded
    step.correct(target, nothing())
    after = target.rounded + sum((added.b @ added.a for added in target.added if added.b is not None), np.zeros(1, np.float32))
    assert np.isfinite(after).all() and np.square(after - target.weight).sum() <= np.square(before - target.weight).sum()


@pytest.mark.parametrize("name", KIND[GroupStep])
def test_steps_of_groups(name: str) -> None:
    """The layer computes what it did: its matrix and transforms together, or with what pruning takes away."""
    target, step = unseen(name), STEPS[name]()
    assert isinstance(step, GroupStep)
    group = Group("o", 0, [target], nothing(), None, [], "int8", 3, 32)
    step.apply(group)
    x = layer(seed=1)[1][:20]
    from anybit.calibrate.inputs import transformed

    y, want = transformed(group.pre, x) @ group.targets[0].weight.T, x @ layer()[0].T
    pruned = name in ("flap", "magnitude", "two_four")
    assert np.isfinite(y).all() and (pruned or np.abs(y - want).max() < 1e-4 * np.abs(want).max())


class Weights:
    """The bundled model's float values, some changed."""

    def __init__(self, changed: dict[str, np.ndarray]) -> None:
        self._model = anybit.load("pycoder-5m")
        self.spec: ModelSpec = self._model.spec
        self._changed = changed

    def array(self, name: str) -> np.ndarray:
        held = self._model.weights[name]
        return self._changed.get(name, held.weight.dequantize() if isinstance(held, Linear) else held)

    def rows(self, name: str, index: np.ndarray) -> np.ndarray:
        return self.array(name)[index]


def plan() -> Plan:
    names = [name for name in anybit.load("pycoder-5m").linears if "layers" in name]
    return Plan({name: Assignment(Spec.parse("int4@64"), Gptq()) for name in names})


def test_a_model_without_tokens_and_a_layer_without_input() -> None:
    """No sequence at all; and an up_proj of zeros, after which down_proj's inputs are all zero."""
    found = list(calibrate(Weights({}), plan(), np.zeros((0, 16), np.int32)))
    assert [sum("no token reached it: rounded to nearest" in note for note in f.notes) for f in found] == [7, 7, 7, 7, 7, 0]
    up = "model.layers.2.mlp.up_proj.weight"
    zeros = {up: np.zeros((768, 256), np.float32)}
    found = list(calibrate(Weights(zeros), plan(), np.arange(32, dtype=np.int32).reshape(2, 16)))
    notes = [note for f in found for note in f.notes if "down_proj" in note and "keep the codes" not in note]
    assert notes == ["model.layers.2.mlp.down_proj.weight: its statistics have no factor at any damping: rounded to nearest"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_inputs_that_are_not_finite_are_refused_by_name(value: float) -> None:
    name = "model.layers.3.self_attn.v_proj.weight"
    bad = np.array(Weights({}).array(name))
    bad[5, 6] = value
    with pytest.raises(NonFiniteError, match=r"layer 3, input of model.layers.3.self_attn.o_proj.weight: its input is not finite at"):
        list(calibrate(Weights({name: bad}), plan(), np.arange(32, dtype=np.int32).reshape(2, 16)))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("act", [None, "int8", "fp8_e4m3fn@token"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_layers_that_nothing_is_gathered_of_are_named_too(value: float, act: str | None) -> None:
    """Only the first layer's statistics are asked for; the others run, rounded."""
    name = "model.layers.3.self_attn.v_proj.weight"
    bad = np.array(Weights({}).array(name))
    bad[5, 6] = value
    choices = {n: Assignment(Spec.parse("int4@64"), Gptq() if ".0." in n else Nearest(), act=act) for n in plan().choices if n != name}
    ids = np.arange(32, dtype=np.int32).reshape(2, 16)
    with pytest.raises(NonFiniteError, match=r"layer 3(, input of model\.layers\.3\.self_attn\.o_proj\.weight)?: .*not finite") as error:
        list(calibrate(Weights({name: bad}), Plan(choices), ids))
    assert (act == "fp8_e4m3fn@token") == ("o_proj" in str(error.value)), "where activations are rounded it is seen at once"
