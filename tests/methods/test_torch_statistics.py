"""Statistics of torch tensors are those of NumPy arrays, to float32's rounding of sums; methods take them, and weights in tensors."""

import numpy as np
import pytest
from calibrated import layer

from anybit.errors import NonFiniteError, ShapeError
from anybit.formats import Spec
from anybit.methods.gptq import Gptq
from anybit.methods.nearest import Nearest
from anybit.methods.rtn import quantize_parts
from anybit.methods.statistics import NEEDS, Statistics
from anybit.methods.step import Target

torch = pytest.importorskip("torch")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def both(device: str, dtype: str = "float32", first_numpy: bool = False) -> tuple[Statistics, Statistics]:
    _, x, off = layer(tokens=300)
    made = [Statistics(96, frozenset(NEEDS), most_rows=40, expected=300) for _ in range(2)]
    for i, (start, stop) in enumerate(((0, 100), (100, 101), (101, 300))):
        a, b = x[start:stop], off[start:stop]
        t, u = (torch.from_numpy(part).to(device).to(getattr(torch, dtype)) for part in (a, b))
        if dtype != "float32":
            a, b = (part.float().cpu().numpy() for part in (t, u))
        made[0].add(a, "layer", b)
        made[1].add(*((a, "layer", b) if first_numpy and i == 0 else (t, "layer", u)))
    return made[0], made[1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "first_numpy"), [("float32", False), ("bfloat16", False), ("float32", True)])
def test_sums_are_the_same(device: str, dtype: str, first_numpy: bool) -> None:
    want, there = both(device, dtype, first_numpy)
    assert torch.is_tensor(there.xtx) and there.xtx.device.type == device and torch.is_tensor(there.m2)
    got = there.host()
    assert got.count == want.count == 300 and want.host() is want
    for name, tolerance in (("xtx", 2e-6), ("cross", 2e-6), ("absmax", 0), ("mean", 1e-12), ("variance", 1e-12), ("rows", 0)):
        a, b = getattr(got, name), getattr(want, name)
        assert isinstance(a, np.ndarray) and a.dtype == b.dtype and np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1), name
    assert got.scaled(np.full(96, 2.0)).count == 300 and got.nbytes == want.nbytes


@pytest.mark.parametrize("device", DEVICES)
def test_codes_are_the_same(device: str) -> None:
    """The same sums give the same codes; sums that differ by rounding nearly all."""
    w, _, _ = layer()
    tensor = torch.from_numpy(w).to(device)
    want, there = both(device)
    for step in (Gptq(), Nearest(importance=True)):
        parts = []
        for weight, stats in ((w, want), (tensor, want), (tensor, there.host())):
            target = Target("w", weight, Spec.parse("int4@32+scale=mse"))
            step.round(target, stats)
            assert target.parts is not None and isinstance(target.weight, np.ndarray)
            parts.append(target.parts["codes"])
        assert np.array_equal(parts[0], parts[1]) and (parts[0] == parts[2]).mean() > 0.99
    assert np.array_equal(quantize_parts(torch.from_numpy(w), "int4@32")["codes"], quantize_parts(w, "int4@32")["codes"])


def test_bad_tensors_are_refused_by_name() -> None:
    stats = Statistics(4, frozenset({"xtx"}))
    stats.add(torch.ones(3, 4), "layer 7")
    bad = torch.ones(2, 4)
    bad[1, 2] = float("nan")
    with pytest.raises(NonFiniteError, match=r"layer 7: its input is not finite at calibration token 4, channel 2"):
        stats.add(bad, "layer 7")
    with pytest.raises(ShapeError, match=r"layer 7: inputs are \[tokens, 4\], not \[2, 5\]"):
        stats.add(torch.ones(2, 5), "layer 7")
    with pytest.raises(ShapeError, match=r"the original inputs are needed"):
        Statistics(4, frozenset({"cross"})).add(torch.ones(2, 4), "x")
