"""Sums over blocks for searches of scales: the bits of eight lanes added up in NumPy, on every instruction set and number of threads."""


import numpy as np
import pytest

from anybit.formats import Format
from anybit.kernels import cpu
from anybit.kernels.cpu import native, set_threads
from anybit.kernels.rounding import SUMS, block_codes, block_ends, block_sums, block_values

ELEMENTS = ["int4", "uint3", "nf4", "fp8_e4m3fn", "posit8", "pot4"]
SIZES = [(1, 37), (7, 11), (8, 300), (9, 5), (33, 70), (256, 17), (2047, 2), (2048, 3), (2049, 2), (5001, 1)]


def lanes(terms: np.ndarray) -> np.ndarray:
    """Sums of float64[blocks, size] over the last axis: by place modulo 8, one after the other, then folded."""
    blocks, size = terms.shape
    padded = np.zeros((blocks, -(-size // 8) * 8))
    padded[:, :size] = terms
    total = np.zeros((blocks, 8))
    for at in range(0, padded.shape[1], 8):
        total += padded[:, at : at + 8]
    return ((total[:, 0] + total[:, 4]) + (total[:, 2] + total[:, 6])) + ((total[:, 1] + total[:, 5]) + (total[:, 3] + total[:, 7]))


def expected(
    element: str, what: str, x: np.ndarray, scale: np.ndarray, offset: np.ndarray | None, before: np.ndarray | None, weight: np.ndarray,
    end: float,
) -> np.ndarray:  # fmt: skip
    """The definition in native/sums.h, in NumPy; x float32[blocks, size], weight of its shape."""
    found = Format(element).element
    y = x if before is None else x - before[:, None]
    divisor = np.where(scale == 0, np.float32(np.inf), scale)[:, None]
    with np.errstate(over="ignore"):
        ratio = np.clip((y if offset is None else y - offset[:, None]) / divisor, -np.float32(end), np.float32(end))
    t = found.values.astype(np.float32)[found.encode(ratio)]
    if what == "loss":
        value = t * scale[:, None]
        value = value if offset is None else value + offset[:, None]
        return lanes((x.astype(np.float64) - value) ** 2 * weight)[:, None]
    wide, y64 = t.astype(np.float64), y.astype(np.float64)
    wt, wy = weight * wide, weight * y64
    pairs = [weight, wt, wy, wt * wide, wt * y64, wy * y64]
    return np.stack([lanes(each) for each in (pairs if what == "pairs" else pairs[3:5])], axis=1)


@pytest.mark.parametrize("what", [what for what in SUMS if what != "power"])
@pytest.mark.parametrize("element", ELEMENTS)
def test_sums_are_those_of_the_definition(isa: str, element: str, what: str) -> None:
    rng = np.random.default_rng(len(element))
    for turn, (size, blocks) in enumerate(SIZES):
        x = (rng.standard_normal((blocks, size)) * 3).astype(np.float32)
        scale = (rng.random(blocks) + 0.1).astype(np.float32) * rng.choice([-1, 1], blocks).astype(np.float32)
        scale[::7] = 0
        scale[3::7] = 1e-42  # ratios leave float32
        offset = rng.standard_normal(blocks).astype(np.float32) if turn % 2 else None
        before = rng.standard_normal(blocks).astype(np.float32) if turn % 3 == 1 and what != "loss" else None
        some = 1 if blocks % 2 else 2
        weight = None if turn % 4 == 0 else rng.random(some * size)
        spread = np.ones(x.shape) if weight is None else np.resize(weight, x.size).reshape(x.shape)
        end = None if turn % 5 else 2.5
        policy = "nearest-even", "saturate"
        found = block_sums(Format(element).element, *policy, what, x.reshape(-1), size, scale, offset, before, weight, end)
        assert found is not None
        least = 3.4028234663852886e38 if end is None else end
        assert np.array_equal(found, expected(element, what, x, scale, offset, before, spread, least)), (size, blocks)


@pytest.mark.parametrize("power", [0.1, 0.5, 1.0, 2.4, 3.0, 10.0])
def test_powers_are_near_and_the_same_everywhere(isa: str, power: float) -> None:
    """Errors from 1e-36 to 1e6 of their unit, and none; against NumPy's power one by one, and against plain C++ in blocks."""
    element, rng = Format("int4").element, np.random.default_rng(3)
    x = (rng.standard_normal(6007) * 10.0 ** rng.uniform(-36, 6, 6007)).astype(np.float32)
    x[::11] = rng.integers(-8, 8, len(x[::11]))
    unit, ones = 10.0 ** rng.uniform(-3, 3, 6007), np.ones(6007, np.float32)
    found = block_sums(element, "nearest-even", "saturate", "power", x, 1, ones, unit=unit, power=power)
    error = np.abs(x.astype(np.float64) - element.values[element.encode(x)]) / unit
    with np.errstate(under="ignore", over="ignore"):
        wanted = np.power(error, power)
    assert found is not None
    tiny = wanted < 2.0**-1019
    assert np.allclose(found[~tiny, 0], wanted[~tiny], rtol=1e-12, atol=0) and (found[tiny, 0] < 2.0**-1018).all() and tiny.any()
    given = (element, "nearest-even", "saturate", "power", x[:5984], 17, ones[:352], ones[:352], None, rng.random(34))
    again = block_sums(*given, unit=unit[:352], power=power)
    cpu.use_isa("generic")
    plain = block_sums(*given, unit=unit[:352], power=power)
    assert again is not None and plain is not None and np.array_equal(again, plain)


def test_what_leaves_the_range_costs_infinitely_much() -> None:
    element = Format("fp8_e5m2").element
    x, ones = np.array([1e38, -1e38, 3.0, 60000.0], np.float32), np.ones(4, np.float32)
    found = block_sums(element, "nearest-even", "inf", "power", x, 1, ones, unit=np.ones(4), power=2.4)
    assert found is not None and found[:, 0].tolist()[:3] == [np.inf, np.inf, 0.0] and np.isfinite(found[3, 0])
    found = block_sums(Format("int4").element, "nearest-even", "saturate", "power", x[:2], 1, ones[:2], unit=np.full(2, 1e-300), power=10.0)
    assert found is not None and (found == np.inf).all()


def test_threads_change_no_bit() -> None:
    rng = np.random.default_rng(1)
    x, scale = rng.standard_normal(3001 * 77).astype(np.float32), rng.random(3001).astype(np.float32)
    before, found = native.threads(), []
    for threads in (1, 2, 5):
        set_threads(threads)
        found.append(block_sums(Format("int5").element, "nearest-even", "saturate", "pairs", x, 77, scale, scale))
    set_threads(before)
    assert all(each is not None and np.array_equal(each, found[0]) for each in found)


def test_what_has_no_native_rounding_is_left() -> None:
    x = np.ones(8, np.float32)
    assert block_sums(Format("e8p").element, "nearest-even", "saturate", "loss", x, 8, x[:1]) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"size": 0}, "whole blocks"), ({"size": 3}, "whole blocks"), ({"size": 4}, "whole blocks"), ({"what": 4}, "what"),
        ({"offset": np.ones(3, np.float32)}, "offset"), ({"before": np.ones(1, np.float32)}, "before"),
        ({"weight": np.ones(9)}, "weight"), ({"weight": np.ones(0)}, "weight"), ({"end": 0.0}, "end"), ({"end": float("nan")}, "end"),
        ({"what": 3}, "unit"), ({"what": 3, "unit": np.ones(1)}, "unit"), ({"what": 3, "unit": np.ones(2), "power": 11.0}, "power"),
        ({"what": 2, "before": np.ones(2, np.float32)}, "before"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change: dict[str, object], says: str) -> None:
    from anybit.kernels.rounding import rounding

    plan = rounding(Format("int4").element, "nearest-even", "saturate", "saturate")
    assert plan is not None
    given = {
        "round": plan._native, "what": 0, "x": np.ones(16, np.float32), "size": 8, "scale": np.ones(2, np.float32), "offset": None,
        "before": None, "weight": None, "end": 1.0,
    }  # fmt: skip
    assert native.block_sums(**given).shape == (2, 6)
    with pytest.raises(ValueError, match=says):
        native.block_sums(**(given | change))


@pytest.mark.parametrize(("size", "blocks"), SIZES)
def test_ends_of_blocks(size: int, blocks: int, isa: str) -> None:
    rng = np.random.default_rng(size)
    x = rng.standard_normal((blocks, size)).astype(np.float32) * np.float32(1e30)
    low, high = block_ends(x.reshape(-1), size)
    assert np.array_equal(low, x.min(axis=1)) and np.array_equal(high, x.max(axis=1))
    for place in {0, size // 2, size - 1}:  # what is not finite, wherever it lies, is seen, and in its own block alone
        for bad in (np.nan, np.inf, -np.inf):
            broken = x.copy()
            broken[blocks // 2, place] = bad
            for found, clean in zip(block_ends(broken.reshape(-1), size), (low, high), strict=True):
                assert np.isnan(found[blocks // 2])
                assert np.array_equal(np.delete(found, blocks // 2), np.delete(clean, blocks // 2))


@pytest.mark.parametrize(("size", "blocks"), SIZES)
@pytest.mark.parametrize("bits", [2, 4, 5, 8])
def test_values_of_blocks(size: int, blocks: int, bits: int, isa: str) -> None:
    rng = np.random.default_rng(size)
    table = rng.standard_normal(1 << bits).astype(np.float32)
    codes = rng.integers(0, 1 << bits, (blocks, size), np.uint8)
    scale, zero, offset = (rng.standard_normal(blocks).astype(np.float32) for _ in range(3))
    for zeros in (None, zero):
        for offsets in (None, offset):
            value = table[codes] if zeros is None else table[codes] - zeros[:, None]
            value = value * scale[:, None] if offsets is None else value * scale[:, None] + offsets[:, None]
            out = np.full(blocks * size, np.nan, np.float32)
            assert block_values(table, codes.reshape(-1), size, scale, zeros, offsets, out)
            assert np.array_equal(out, value.reshape(-1))
    if bits < 8:
        codes[-1, -1] = 1 << bits
        assert not block_values(table, codes.reshape(-1), size, scale, None, None, out)


@pytest.mark.parametrize(("size", "blocks"), [(1, 600), (7, 110), (16, 40), (33, 70), (2047, 2), (2048, 3), (2049, 2), (5001, 1)])
@pytest.mark.parametrize("name", ["int4", "uint3", "nf4", "fp8_e4m3fn", "posit8", "int12"])
def test_codes_of_blocks(size: int, blocks: int, name: str, isa: str) -> None:
    rng, element = np.random.default_rng(size), Format(name).element
    x = rng.standard_normal((blocks, size)).astype(np.float32)
    scale = rng.uniform(0.01, 1, blocks).astype(np.float32)
    scale[0], scale[-1] = 1e-38, 0 if blocks > 1 else 1e-38  # quotients that are infinite, and a block without a scale
    zero, offset = rng.integers(-3, 9, blocks).astype(np.float32), rng.standard_normal(blocks).astype(np.float32)
    for zeros, whole in ((None, False), (zero, False), (zero, True)):
        for offsets in (None, offset):
            for end in (None, 2.5):
                with np.errstate(over="ignore"):
                    ratio = (x if offsets is None else x - offsets[:, None]) / np.where(scale == 0, np.float32(np.inf), scale)[:, None]
                    ratio = ratio if end is None else np.clip(ratio, np.float32(-end), np.float32(end))
                    ratio = ratio if zeros is None else (np.rint(ratio) if whole else ratio) + zeros[:, None]
                found = block_codes(element, "nearest-even", x.reshape(-1), size, scale, zeros, offsets, whole, end)
                assert found is not None
                assert np.array_equal(found, element._codes(ratio.reshape(-1), "nearest-even", "saturate"))
    assert block_codes(element, "nearest-even", x.reshape(-1)[:size], size, scale[:1], None, None, False, None) is None or size >= 512
