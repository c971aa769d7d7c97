"""Transforms, branches, rounded activations and given scales: the bits of the reference on every instruction set, however cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from anybit.activations import ActSpec
from anybit.errors import NoKernelError, NonFiniteError, ShapeError
from anybit.formats import Format
from anybit.kernels import cpu
from anybit.linear import Branch, Linear
from anybit.reference import around, blocks
from anybit.reference.linear import operands
from anybit.tensor import QTensor, fake_quantize, quantize
from anybit.transforms import Transform, apply, fold

ISAS = tuple(cpu.native.supported_isas())


@pytest.fixture(autouse=True)
def settings_restored() -> Iterator[None]:
    before, threads = cpu.isa(), cpu.native.threads()
    yield
    cpu.use_isa(before)
    cpu.set_threads(threads)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return rng(seed).standard_normal(shape, np.float32)


def orthogonal(size: int, count: int, seed: int = 0) -> np.ndarray:
    return np.stack([np.linalg.qr(normal(size, size, seed=seed + i))[0] for i in range(count)]).astype(np.float32)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype == np.float32 and np.array_equal(a.view(np.uint32), b.view(np.uint32))


def transforms(k: int) -> list[tuple[Transform, Any]]:
    """Every kind on k numbers, each with its reference."""
    signs, factors = np.where(normal(k) < 0, np.float32(-1), np.float32(1)), np.exp(normal(k, seed=1))
    places = rng(2).permutation(k)
    found: list[tuple[Transform, Any]] = [
        (Transform("scale", data=factors), lambda x: around.scale(x, factors)),
        (Transform("shift", data=normal(k, seed=3)), lambda x: around.shift(x, normal(k, seed=3))),
        (Transform("permute", data=places), lambda x: around.permute(x, places)),
    ]
    for block in [b for b in (1, 2, 8, 16, 32, 64, 256) if k % b == 0]:
        found += [
            (Transform("hadamard", block), lambda x, b=block: around.hadamard(x, b)),
            (
                Transform("hadamard", block, seed=2**40 + 7),
                lambda x, b=block: around.hadamard(around.scale(x, around.signs(2**40 + 7, k)), b),
            ),
            (Transform("hadamard", block, signs), lambda x, b=block: around.hadamard(around.scale(x, signs), b)),
        ]
    for block in [b for b in (1, 3, 16, 20, 48) if k % b == 0]:
        one, each = orthogonal(block, 1)[0], orthogonal(block, k // block, 9)
        found += [
            (Transform("rotate", block, one), lambda x, r=one: around.rotate(x, r)),
            (Transform("rotate", block, each), lambda x, r=each: around.rotate(x, r)),
        ]
    return found


@pytest.mark.parametrize("k", [1, 7, 16, 33, 60, 96, 256, 1000, 1024])
def test_transforms(k: int) -> None:
    found = transforms(k)
    for isa in ISAS:
        cpu.use_isa(isa)
        for threads in (1, 2):
            cpu.set_threads(threads)
            for m in (1, 5):
                x = normal(m, k, seed=m) * np.exp2(rng(4).integers(-8, 8, (m, 1))).astype(np.float32)
                for transform, reference in found:
                    fresh = Transform(transform.kind, transform.block, transform.data, transform.seed)
                    assert same(apply([fresh], x), reference(x)), (isa, threads, m, transform.kind, transform.block)
                chain = [transform for transform, _ in found[1:8]]
                want = x
                for _, reference in found[1:8]:
                    want = reference(want)
                assert same(apply(chain, x), want), (isa, "a chain")
                assert same(apply(chain, x[m // 2 :][:1]), want[m // 2 :][:1]), "a row by itself"


def test_folding_undoes_transforms() -> None:
    k = 96
    w, bias, x = normal(20, k, seed=1), normal(20, seed=2), normal(6, k, seed=3)
    want = x.astype(np.float64) @ w.T.astype(np.float64) + bias
    for transform, _ in transforms(k):
        folded, added = fold([transform], w, bias)
        got = Linear(QTensor.dense(folded), added, (transform,))(x)
        assert np.abs(got - want).max() < 2e-4, transform.kind
    chain = tuple(transform for transform, _ in transforms(k))
    folded, added = fold(chain, w)
    assert added is not None, "a shift makes a bias"
    assert np.abs(Linear(QTensor.dense(folded), added, chain)(x) - (want - bias)).max() < 1e-3
    with pytest.raises(ShapeError, match="a factor is 0"):
        fold([Transform("scale", data=np.zeros(k, np.float32))], w)


def of(weight: QTensor) -> Any:
    n, k = weight.shape
    return operands(weight.logical(), weight.format, (n, k))


def by_blocks(fmt: str) -> Any:
    """The exact rational reference of a format, each row by itself."""
    made = Format(fmt)
    rule = "floor" if made.levels[0].element.name == "e8m0" else "absmax"
    return lambda x: np.concatenate([blocks.quantize(row[None], made, rule)[1].astype(np.float32) for row in x])


def branches_of(n: int, k: int, fmt: str | None) -> list[Branch]:
    """Low ranks of several formats, and outlier columns; residual columns in `fmt`."""
    index = np.sort(rng(7).choice(k, min(5, k), replace=False))
    most = np.sort(rng(8).choice(k, min(17, k), replace=False))
    found = [
        Branch("low_rank", quantize(normal(3, k, seed=11), "bf16"), quantize(normal(n, 3, seed=12), "fp32")),
        Branch("low_rank", quantize(normal(16, k, seed=13), "int8@32"), quantize(normal(n, 16, seed=14), "uint4@16:fp16+zp=fp16")),
        Branch("columns", quantize(normal(n, len(index), seed=15), "fp16"), index=index),
    ]
    return [*found, Branch("residual", quantize(normal(n, len(most), seed=16), fmt), index=most)] if fmt else found


def as_reference(branches: list[Branch]) -> list[dict[str, Any]]:
    return [
        {"kind": b.kind, "a": of(b.a), "b": None if b.b is None else of(b.b), "index": b.index} for b in branches if b.a is not None
    ]  # fmt: skip


def check(weight_fmt: str, act: ActSpec | None, n: int, k: int, some: slice) -> None:
    """A layer with these activations and branches on every instruction set, thread count, whole and row by row."""
    integer = act is not None and act.kernel_name == "int8"
    kinds = branches_of(n, k, None if act is None else weight_fmt)[some]
    w, bias, x = normal(n, k, seed=21), normal(n, seed=22), normal(5, k, seed=23)
    x[1] *= np.float32(1e-30)
    x[2, : k // 2] = 0
    parts = QTensor.logical(quantize(w, weight_fmt))
    mode = "int8" if integer else by_blocks(act.format.explicit) if act is not None else None
    given = act.scale if act is not None else None
    for isa in ISAS:
        cpu.use_isa(isa)
        weight = QTensor.pack(Format(weight_fmt), (n, k), parts)
        again = [Branch(b.kind, _fresh(b.a), _fresh(b.b), b.index) for b in kinds]
        linear = Linear(weight, bias, act=act, branches=tuple(again))
        want = around.linear(x, of(weight), mode, given, as_reference(again), bias)
        for threads in (1, 2):
            cpu.set_threads(threads)
            assert same(linear(x), want), (weight_fmt, act, isa, threads, np.abs(linear(x) - want).max())
        assert same(linear(x[3:4]), want[3:4]), "a row by itself"


def _fresh(tensor: QTensor | None) -> QTensor | None:
    return None if tensor is None else QTensor.pack(tensor.format, tensor.shape, tensor.logical())


@pytest.mark.parametrize(
    "some",
    [slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4), slice(0, 4)],
    ids=["dense rank", "coded rank", "columns", "residual", "all"],
)
@pytest.mark.parametrize(("n", "k"), [(17, 70), (48, 300)])
def test_branches(some: slice, n: int, k: int) -> None:
    check("int4@32", None, n, k, some)
    check("int4@32", ActSpec.named("int8"), n, k, some)
    check("nf4@64", ActSpec.named("int8"), n, k, some)  # a table of 16 bits
    check("uint4@32:fp16+off", ActSpec.named("int8", 0.03), n, k, some)


@pytest.mark.parametrize("act", ["mxfp4", "nvfp4", "mxfp8", "fp8_e4m3fn@token:fp32"])
def test_rounded_activations(act: str) -> None:
    for fmt, some in (("int4@32", slice(0, 0)), ("mxfp4", slice(3, 4)), ("uint4@32:fp16+zp=fp16", slice(2, 3))):
        check(fmt, ActSpec.named(act), 17, 70, some)


@pytest.mark.parametrize("fmt", ["int8@32", "nf4@channel", "uint4@600:fp16+zp", "ternary@256:fp16", "int4@16x32"])
@pytest.mark.parametrize("scale", [0.02, 1e-6, 3.0])
def test_a_given_scale(fmt: str, scale: float) -> None:
    check(fmt, ActSpec.named("int8", scale), 33, 130, slice(0, 0))


ROUNDED = (
    "mxfp8",
    "mxfp6",
    "mxfp4",
    "nvfp4",
    "fp8_e5m2@token",
    "int8_sym@token:fp16",
    "nf4@64",
    "int6@16",
    "bf16",
    "fp16",
    "posit8@32",
    "fp4_e2m1@48:ufp8_e5m3",
)


@pytest.mark.parametrize("act", ROUNDED)
def test_tokens_are_rounded_as_arrays_of_their_own(act: str) -> None:
    """All widths, magnitudes from subnormal to near float32's end where scales reach, zero rows: what `fake_quantize` gives each row."""
    spec = ActSpec.named(act)
    assert spec is not None
    levels = Format(act).levels
    wide = act == "nvfp4" or (levels and levels[0].element.name in ("fp32", "bf16", "e8m0"))
    for isa in ISAS:
        cpu.use_isa(isa)
        for k in (1, 15, 16, 64, 200, 2500):
            power = rng(k).integers(-130 if wide else -6, 100 if wide else 6, (6, 1)).astype(np.float32)
            x = normal(6, k, seed=k) * np.exp2(power)
            x[2] = 0
            got = cpu.native.round_tokens(spec.rounding(), x)
            want = np.concatenate([fake_quantize(row[None], act) for row in x])
            assert same(got, want), (isa, k)


def test_a_given_scale_of_a_format() -> None:
    """One block in all with that scale; of nvfp4 the second level. Checked by hand."""
    x = normal(4, 64)
    found = ActSpec.named("fp8_e4m3fn@tensor:fp32", 0.01)
    assert found is not None and not found.dynamic
    want = Format("fp8_e4m3fn").element.decode(Format("fp8_e4m3fn").element.encode(x / np.float32(0.01))).astype(np.float32) * np.float32(
        0.01
    )
    assert same(cpu.native.round_tokens(found.rounding(), x), want)
    x[3, 0] = 1e30  # far out of range: saturates
    assert cpu.native.round_tokens(found.rounding(), x)[3, 0] == np.float32(448) * np.float32(0.01)
    second = ActSpec.named("nvfp4", 0.001)
    assert second is not None
    e4m3, e2m1 = Format("fp8_e4m3fn").element, Format("fp4_e2m1").element
    rows = x[:3].reshape(3, 4, 16)
    scales = e4m3.decode(e4m3.encode(np.abs(rows).max(axis=2) / 6.0 / np.float64(np.float32(0.001)))).astype(np.float32) * np.float32(0.001)
    want = e2m1.decode(e2m1.encode(rows / scales[..., None])).astype(np.float32) * scales[..., None]
    assert same(cpu.native.round_tokens(second.rounding(), np.ascontiguousarray(x[:3])), want.reshape(3, 64))


def test_outputs_are_transformed_too() -> None:
    w, x, bias = quantize(normal(32, 64), "int4@32"), normal(4, 64, seed=1), normal(32, seed=2)
    post = (Transform("hadamard", 16, seed=1), Transform("permute", data=rng(3).permutation(32)), Transform("rotate", 8, orthogonal(8, 4)))
    plain = Linear(w, bias, act=ActSpec.named("int8"))
    assert same(Linear(w, bias, act=ActSpec.named("int8"), post=post)(x), apply(post, plain(x)))


def test_what_is_refused() -> None:
    w = quantize(normal(32, 64), "int4@32")
    bad = [
        (Transform("hadamard", 48), "block=48 does not divide it"), (Transform("hadamard", 64 // 2 * 3), "does not divide"),
        (Transform("turn"), "it is none of scale, shift, permute, hadamard, rotate"), (Transform("scale"), "it needs data"),
        (Transform("scale", 8, np.ones(64, np.float32)), "need a block, and nothing else has one"),
        (Transform("permute", data=np.zeros(64, np.int64)), "must be a permutation"),
        (Transform("scale", data=np.ones(64)), r"data must be float32 of shape \[64\], not float64"),
        (Transform("rotate", 16, np.ones((8, 8), np.float32)), r"shape \[16, 16\] or \[4, 16, 16\]"),
        (Transform("hadamard", 16, np.full(64, 2, np.float32)), "signs must be 1 and -1"),
        (Transform("hadamard", 16, np.ones(64, np.float32), 3), "not both"),
        (Transform("shift", data=np.full(64, np.nan, np.float32)), "must be finite"),
    ]  # fmt: skip
    for transform, message in bad:
        with pytest.raises(ShapeError, match=message):
            Linear(w, pre=(transform,))(normal(1, 64))
    with pytest.raises(ShapeError, match=r"block=96 is no power of two"):
        Transform("hadamard", 96).check(192)
    for branch, message in [
        (Branch("high_rank"), "it is none of low_rank, columns, residual"),
        (Branch("low_rank", quantize(normal(4, 64), "bf16"), quantize(normal(32, 5), "bf16")), r"a must be \[r, 64\] and b \[32, r\]"),
        (Branch("columns", quantize(normal(32, 2), "bf16"), index=np.array([5, 3])), "ascending"),
        (Branch("columns", quantize(normal(32, 2), "bf16"), index=np.array([3, 64])), "from 0 to 63"),
        (Branch("columns", quantize(normal(31, 2), "bf16"), index=np.array([3, 5])), r"a must be \[32, 2\]"),
    ]:
        with pytest.raises(ShapeError, match=message):
            Linear(w, branches=(branch,))(normal(1, 64))
    left = Branch("residual", quantize(normal(32, 2), "int4@32"), index=np.array([3, 5]))
    with pytest.raises(NoKernelError, match="needs dynamic activations, or int8 ones"):
        Linear(w, branches=(left,))(normal(1, 64))
    with pytest.raises(NoKernelError, match="float activations"):
        Linear(w, act=ActSpec.named("int8"), branches=(Branch("residual", quantize(normal(32, 2), "bf16"), index=np.array([3, 5])),))(
            normal(1, 64)
        )


def test_numbers_that_are_not_finite() -> None:
    w, x = quantize(normal(32, 64), "int4@32"), normal(5, 64)
    x[3, 7] = np.inf
    big = Transform("scale", data=np.full(64, 3e38, np.float32))
    rank = Branch("low_rank", quantize(np.full((2, 64), 3e38, np.float32), "fp32"), quantize(normal(32, 2), "fp32"))
    for linear, what in [
        (Linear(w, act=ActSpec.named("mxfp8")), "the input is not finite in row 3"),
        (Linear(w, pre=(Transform("hadamard", 8),)), "transformed input is not"),
        (Linear(w, act=ActSpec.named("int8", 0.1)), "the input is not finite in row 3"),
        (Linear(w, pre=(Transform("rotate", 8, orthogonal(8, 8)),)), "the input is not finite in row 3"),
        (Linear(w, branches=(rank,)), "the input is not finite in row 3"),
    ]:  # fmt: skip
        with pytest.raises(NonFiniteError, match=what):
            linear(x)
    x[3, 7] = 5
    with pytest.raises(NonFiniteError, match="the transformed input is not finite in row 0"):
        Linear(w, pre=(big,))(x)
    with pytest.raises(NonFiniteError, match="the input of a branch is not finite in row 0"):
        Linear(w, branches=(rank,))(x)
    x[4] = 1e6
    with pytest.raises(NonFiniteError, match="the input, rounded to its format, needs a scale that the format does not hold in row 4"):
        Linear(w, act=ActSpec.named("fp4_e2m1@16:fp8_e4m3fn"))(x)


def test_equal_inputs_are_one() -> None:
    """Layers whose transforms are equal share them; another seed, block, column or scale does not."""
    from anybit.linear import native_input

    one, two = Transform("scale", data=np.ones(64, np.float32)), Transform("scale", data=np.ones(64, np.float32))
    assert one == two and hash(one) == hash(two) and one != Transform("scale", data=np.full(64, 2, np.float32))
    act = ActSpec.named("mxfp8")
    held = native_input((one,), (), act, 64)
    assert native_input((two,), (), ActSpec.named("mxfp8"), 64) is held
    for other in (native_input((two,), (3,), act, 64), native_input((two,), (), None, 64), native_input((two, one), (), act, 64)):
        assert other is not held
    assert native_input((), (), ActSpec.named("int8"), 64) is None and native_input((), (), ActSpec.named("int8", 1.0), 64) is not None
    w = quantize(normal(32, 64), "int4@32")
    assert Linear(w, pre=(one,)).input_key == Linear(w, pre=(two,)).input_key != Linear(w).input_key
