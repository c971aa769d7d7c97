"""A native kernel added from Python: it prepares weights its own way, and serves products, layers and the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anybit
from anybit.formats import Format
from anybit.kernels import KERNELS, Kernel, OpSpec, choose
from anybit.kernels.cpu import isa, op_spec
from anybit.kernels.weights import dense_weight
from anybit.layouts import LAYOUTS
from anybit.linear import ActSpec, Branch, Linear, check_kernel
from anybit.tensor import QTensor


def accepts(spec: OpSpec) -> str | None:
    return None if spec.dense and spec.bits == 8 and spec.act is None else "it is for 8-bit numbers without scales"


def prepare(weight: QTensor) -> Any:
    codes = {"codes": weight.expanded().astype(np.float16).view(np.uint16)}
    return dense_weight("fp16", weight.shape, LAYOUTS["tile16x1"].pack(Format("fp16"), weight.shape, codes)["codes"])


@pytest.fixture
def halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """8-bit floats as float16, which has all their values: half the memory of `linear_expanded`, the same bits."""
    monkeypatch.setattr(KERNELS, "_items", {name: KERNELS[name] for name in KERNELS})
    KERNELS.add("linear_halved", Kernel("linear_halved", 5, accepts, isa, "8-bit floats in 16 bits", prepare=prepare))


def test_a_tensor(halved: None) -> None:
    w, x = np.random.default_rng(0).standard_normal((2, 33, 100), np.float32)
    q, wide = (anybit.quantize(w, "fp8_e4m3fn") for _ in range(2))
    assert check_kernel(q, None).kernel.name == "linear_halved"
    assert check_kernel(q, None).others["linear_expanded"] == "linear_halved comes first"
    expanded = wide.prepared(KERNELS["linear_expanded"])
    assert np.array_equal(q.matmul(x), expanded.matmul(x, 0, None, None))
    assert np.array_equal(q.dequantize(), wide.expanded()) and np.array_equal(q.rows([3, 32]), wide.expanded()[[3, 32]])
    assert q.native is q.prepared(KERNELS["linear_halved"]), "prepared once"
    assert np.array_equal(q.matmul(x, product="lmul"), wide.matmul(x, product="lmul")), "sums of patterns run what is prepared"


def test_a_model(halved: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.arange(40, dtype=np.int32)
    model = anybit.load("pycoder-5m").quantize("fp8_e4m3fn")
    model.save(tmp_path / "q")
    assert {row["kernel"] for row in model.explain() if row["name"] in model.quantized} == {"linear_halved"}
    got = model.logits(ids)
    monkeypatch.undo()
    other = anybit.load(tmp_path / "q")
    assert {row["kernel"] for row in other.explain() if row["name"] in other.quantized} == {"linear_expanded"}
    assert np.array_equal(got, other.logits(ids))


def test_each_kernel_prepares_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for int8 activations leaves the weight of float ones alone, in layers and in the branches that share their activations."""
    monkeypatch.setattr(KERNELS, "_items", {name: KERNELS[name] for name in KERNELS})
    made: list[QTensor] = []

    def keep(weight: QTensor) -> Any:
        made.append(weight)
        return weight.to("tile16x4").native

    def integers(spec: OpSpec) -> str | None:
        return None if spec.act == "int8" else "it takes int8 activations"

    KERNELS.add("linear_integers", Kernel("linear_integers", 99, integers, isa, "integers", prepare=keep))
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((20, 70), np.float32), rng.standard_normal((3, 70), np.float32)
    a, index = anybit.quantize(rng.standard_normal((20, 2)).astype(np.float32), "int4@32"), np.array([3, 9])
    q, plain = (anybit.quantize(w, "int4@32") for _ in range(2))
    assert np.array_equal(q.matmul(x), plain.native.matmul(x, 0, None, None)) and not made
    branch = Branch("residual", a, None, index)
    layer = Linear(q, act=ActSpec.named("int8"), branches=(branch,))
    want = Linear(plain, act=ActSpec.named("int8"), branches=(branch,))
    got = layer(x)
    assert made == [a, q]
    monkeypatch.undo()
    assert np.array_equal(got, want(x))


def test_a_kernel_needs_something_to_run() -> None:
    with pytest.raises(ValueError, match="kernel linear_nothing has no run and no prepare"):
        Kernel("linear_nothing", 1, accepts, isa, "nothing")


def test_what_has_no_layout_of_its_own_kernel_is_unpacked_or_expanded() -> None:
    spec = {fmt: op_spec(Format(fmt), "some_new_layout", None) for fmt in ("int4@32", "int12@32", "bf16")}
    assert {fmt: choose(one, native=True).kernel.name for fmt, one in spec.items()} == {
        "int4@32": "linear_unpacked", "int12@32": "linear_expanded", "bf16": "linear_expanded",
    }  # fmt: skip
