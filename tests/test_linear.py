"""Linear and ActSpec: what runs around a weight in one call, and what is refused because nothing runs it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import anybit
from anybit.errors import NoKernelError, NonFiniteError, ShapeError
from anybit.formats import Format, Policy
from anybit.kernels import KERNELS, Kernel
from anybit.linear import ActSpec, Branch, Linear, Transform, check_kernel
from anybit.tensor import QTensor, quantize


def make(fmt: str = "int4@32", n: int = 20, k: int = 70) -> Linear:
    rng = np.random.default_rng(0)
    return Linear(quantize(rng.standard_normal((n, k), np.float32), fmt), rng.standard_normal(n, np.float32))


X = np.random.default_rng(1).standard_normal((3, 70), np.float32)


def quantized_input(x: np.ndarray, block: int) -> np.ndarray:
    """Dynamic int8 activations as docs/contract.md defines them: amax / 127 a block, ties to even."""
    out = np.empty_like(x)
    for row in range(len(x)):
        for start in range(0, x.shape[1], block):
            part = x[row, start : start + block]
            amax = np.abs(part).max()
            out[row, start : start + block] = np.rint(part * np.float32(127 / amax)) * (amax / np.float32(127))
    return out


def test_the_bias_comes_last() -> None:
    linear = make()
    assert linear.bias is not None
    assert np.array_equal(linear(X), replace(linear, bias=None)(X) + linear.bias)
    want = X.astype(np.float64) @ linear.weight.dequantize().T + linear.bias
    assert np.abs(linear(X) - want).max() < 1e-5
    assert linear(X[0]).shape == (20,) and linear(X[None, None]).shape == (1, 1, 3, 20)


def test_int8_activations_are_quantized_block_by_block() -> None:
    linear = replace(make(), act=ActSpec.named("int8"))
    want = quantized_input(X, 32).astype(np.float64) @ linear.weight.dequantize().T + linear.bias
    assert np.abs(linear(X) - want).max() < 1e-5
    assert np.abs(linear(X) - make()(X)).max() > 1e-3, "they make a difference"


def test_act_specs() -> None:
    assert ActSpec.named(None) is None and ActSpec.named("float") is None
    spec = ActSpec.named("int8")
    assert spec == ActSpec(Format("int8_sym")) and spec is not None and spec.kernel_name == "int8" and spec.dynamic
    assert make().act_name is None and replace(make(), act=spec).act_name == "int8"
    int4 = ActSpec.named("int4")
    assert int4 == ActSpec(Format("int4_sym")) and int4 is not None and int4.kernel_name == "int4"
    for name in ("int5", "INT8", "", "fp8"):
        with pytest.raises(NoKernelError, match="use float or int8") as error:
            ActSpec.named(name)
        assert error.value.exit_code == 6
    for other in (ActSpec(Format("uint4@32+zp")), ActSpec(Format("int8")), replace(spec, dynamic=False), replace(spec, scale=0.5)):
        with pytest.raises(NoKernelError, match="no kernel takes activations in"):
            replace(make(), act=other)(X)
    assert replace(spec, policy=Policy()) == spec
    for name, why in [("e8p@32", "one number a code"), ("fp8_e4m3fn@tensor", "on the other tokens"), ("int2@32", "absmax or floor")]:
        with pytest.raises(NoKernelError, match=why):
            ActSpec.named(name)
    rounded, given = ActSpec.named("mxfp4"), ActSpec.named("int8", 0.5)
    assert rounded is not None and rounded.kernel_name is None and rounded.text == "fp4_e2m1@32:e8m0"
    assert given is not None and given.kernel_name == "int8" and not given.dynamic and (given.text, given.scale) == ("int8", 0.5)
    assert replace(make(), act=rounded).act_text == "fp4_e2m1@32:e8m0 (rounded, multiplied as float)"
    assert replace(make(), act=given).act_text == "int8 (one scale)" and make().act_text == "float"
    with pytest.raises(NoKernelError, match="it must lie from 2"):
        ActSpec.named("int8", 1e-38)


def test_what_no_kernel_runs_is_refused() -> None:
    linear = make()
    for other in (
        replace(linear, pre=(Transform("hadamard", block=64),)), replace(linear, post=(Transform("scale"),)),
        replace(linear, branches=(Branch("low_rank"),)),
    ):  # fmt: skip
        with pytest.raises(ShapeError, match=r"block=64 does not divide it|it needs data|a must be"):
            other(X)
    for fmt in ("bf16", "int12@32", "fp8_e4m3fn"):
        assert make(fmt)(X).shape == (3, 20)
        with pytest.raises(NoKernelError, match="float activations"):
            replace(make(fmt), act=ActSpec.named("int8"))(X)


def test_an_unknown_transform_is_refused_without_assertions_too() -> None:
    """python -O leaves assertions out; a layer must not run without its transform because of it."""
    script = (
        "import numpy as np, anybit; from anybit.linear import Linear, Transform\n"
        "Linear(anybit.quantize(np.eye(16, 32), 'int4@32'), pre=(Transform('spin'),))(np.ones((1, 32)))"
    )
    done = subprocess.run([sys.executable, "-O", "-c", script], capture_output=True, text=True)
    assert done.returncode == 1 and "it is none of scale, shift, permute" in done.stderr, done.stderr


def test_weights_in_rows_run_as_explained() -> None:
    rows = make().weight.to("rows")
    for act in (None, "int8"):
        assert check_kernel(rows, act).kernel.name == "linear_tile16x4"
        assert np.array_equal(rows.matmul(X, act), make().weight.matmul(X, act))


def test_a_kernel_from_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """It serves products, with its input checked, and never the engine."""
    monkeypatch.setattr(KERNELS, "_items", {name: KERNELS[name] for name in KERNELS})
    seen = []

    def run(weight: QTensor, x: np.ndarray, act: str | None, bias: np.ndarray | None) -> np.ndarray:
        seen.append((x.shape, act))
        return np.zeros((len(x), weight.shape[0]), np.float32) + (0 if bias is None else bias)

    KERNELS.add("linear_zero", Kernel("linear_zero", 99, lambda spec: None, lambda: "any", "zeros", run))
    linear = replace(make(), act=ActSpec.named("int8"))
    assert linear.bias is not None
    assert np.array_equal(linear(X[None]), np.broadcast_to(linear.bias, (1, 3, 20))) and seen == [((3, 70), "int8")]
    bad = X.copy()
    bad[1, 3] = np.nan
    with pytest.raises(NonFiniteError, match="row 1"):
        linear(bad)
    choice = check_kernel(linear.weight, "int8", native=True)
    assert choice.kernel.name == "linear_tile16x4" and "natively" in choice.others["linear_zero"]
    assert linear.native.kind == "u8"


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"x of shape \[3, 69\] does not end in k = 70"):
        make()(X[:, :69])
    with pytest.raises(ShapeError, match=r"bias of shape \[3\] is not \[20\]"):
        replace(make(), bias=np.zeros(3, np.float32))(X)
    bad = X.copy()
    bad[2, 69] = -np.inf
    with pytest.raises(NonFiniteError, match="row 2"):
        make()(bad)


def test_layers_with_equal_keys_share_an_input() -> None:
    int8 = ActSpec.named("int8")
    same = [make(), make("int3@128"), make("bf16"), make(n=64)]
    assert len({linear.input_key for linear in same}) == 1, "float inputs are prepared alike for all"
    keys = {replace(make(fmt, k=k), act=int8).input_key for fmt, k in [("int4@32", 70), ("int3@64", 70), ("int4@32", 71)]}
    assert len(keys) == 3
    assert replace(make("int4@32"), act=int8).input_key == replace(make("nf4@32"), act=int8).input_key
    assert replace(make(), pre=(Transform("hadamard"),)).input_key != make().input_key
    assert replace(make(), product="lmul").input_key != make().input_key


def test_linear_is_public() -> None:
    assert anybit.Linear is Linear


def test_evaluation_names_the_first_bad_row_on_any_number_of_threads() -> None:
    from anybit.kernels.cpu import native

    logits, targets = np.zeros((4000, 32), np.float32), np.zeros(4000, np.int32)
    logits[5, 1] = logits[3900, 2] = np.nan
    for run in (lambda: native.row_nll(logits, targets), lambda: native.row_stats(np.zeros_like(logits), logits, targets)):
        with pytest.raises(ValueError, match=r"^row 5 holds"):
            run()


def test_a_misspelt_scale_rule_is_refused_before_any_tensor_is_read() -> None:
    from anybit.errors import FormatError, UnknownNameError
    from anybit.stored import check_request

    with pytest.raises(UnknownNameError, match=r"no scale rule named 'mze'; did you mean mse"):
        check_request("int4@32+scale=mze", None, "rtn")
    with pytest.raises(UnknownNameError, match=r"scale=lp needs a number from 0.1 to 10"):
        check_request("int4@32+scale=lp", None, "rtn")
    with pytest.raises(FormatError, match=r"scale=wmse needs importance, and no method measures it for a model yet; use scale=mse"):
        check_request("int4@32+scale=wmse", None, "rtn")
