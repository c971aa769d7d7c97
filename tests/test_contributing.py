"""The three examples of CONTRIBUTING.md, run as they stand there."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import anybit
from anybit.errors import UnknownNameError
from anybit.formats.family import FAMILIES, _find
from anybit.kernels import KERNELS, OpSpec, choose
from anybit.methods import METHODS
from anybit.reference.linear import matmul
from anybit.registry import Registry

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
EXAMPLES = dict(re.findall(r"```python\n# src/anybit/\w+(?:/elements)?/(\w+)\.py\n(.*?)```", TEXT, re.DOTALL))


@pytest.fixture
def example(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Imports one example from a file of its own; the registries forget it afterwards."""
    name = request.param
    registries: list[Registry] = [FAMILIES, METHODS, KERNELS]
    for registry in registries:
        list(registry)  # filled from the folder before the example comes
        monkeypatch.setattr(registry, "_items", dict(registry._items))
    (tmp_path / f"example_{name}.py").write_text(EXAMPLES[name])
    monkeypatch.syspath_prepend(tmp_path)
    __import__(f"example_{name}")
    yield
    _find.cache_clear()


def test_there_are_three() -> None:
    assert sorted(EXAMPLES) == ["clipped", "cubes", "tiny"]


@pytest.mark.parametrize("example", ["cubes"], indirect=True)
def test_a_format_runs_on_the_native_kernel_at_once(example: None) -> None:
    fmt = anybit.Format("cubes4@32:fp16")
    assert fmt.element.values.tolist()[:3] == [0, 1, 8]
    assert fmt.element.table.kind == "i16"
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((33, 100)).astype(np.float32), rng.standard_normal((3, 100)).astype(np.float32)
    q = anybit.quantize(w, fmt)
    for act in (None, "int8"):
        expected = matmul(x, q.logical(), fmt, q.shape, act)
        assert np.array_equal(q.matmul(x, act).view(np.uint32), expected.view(np.uint32))
    assert np.abs(q.dequantize() - w).max() < np.abs(w).max() / 2


@pytest.mark.parametrize("example", ["clipped"], indirect=True)
def test_a_method_is_found_by_name(example: None) -> None:
    w = np.random.default_rng(0).standard_t(2, (16, 64)).astype(np.float32)
    plain, clipped = anybit.quantize(w, "int4@64"), anybit.quantize(w, "int4@64", method="clipped")
    assert np.abs(clipped.dequantize()).max() < np.abs(plain.dequantize()).max()
    assert np.abs(clipped.dequantize() - w).mean() < np.abs(plain.dequantize() - w).mean()


def test_methods_are_gone_afterwards() -> None:
    with pytest.raises(UnknownNameError):
        METHODS["clipped"]


@pytest.mark.parametrize("example", ["tiny"], indirect=True)
def test_a_kernel_is_chosen_by_priority_and_explained_otherwise(example: None) -> None:
    spec = OpSpec("linear", "tile16x4", 1, False, "i8", 1, "", "int8")
    assert choose(spec).kernel.name == "linear_tiny"
    assert choose(spec).others["linear_tile16x4"] == "linear_tiny comes first"
    other = choose(OpSpec("linear", "tile16x4", 4, False, "i8", 1, "", "int8"))
    assert other.kernel.name == "linear_tile16x4"
    assert other.others["linear_tiny"] == "it is for one-bit codes"
