"""Published codebooks against their constructions: the numbers are computed again here, not compared with themselves."""

from __future__ import annotations

import numpy as np
import pytest

from anybit.formats import Format, parse_element
from anybit.methods.quality import sqnr_db


def normal_floats(bits: int) -> np.ndarray:
    """QLoRA's construction: quantiles from a tail of (1/2^(b+1) + 1/(2^(b+1) - 2)) / 2 on, one more positive than negative."""
    stats = pytest.importorskip("scipy.stats")
    half = 1 << (bits - 1)
    top = 1 - (1 / (4 * half) + 1 / (4 * half - 2)) / 2
    positive, negative = stats.norm.ppf(np.linspace(top, 0.5, half + 1)[:-1]), -stats.norm.ppf(np.linspace(top, 0.5, half)[:-1])
    return np.sort(np.r_[negative, 0, positive]) / positive.max()


@pytest.mark.parametrize("name", ["nf3", "nf4"])
def test_normal_floats(name: str) -> None:
    """The published float32 digits come from float32 quantiles: they agree to 5e-7."""
    element = parse_element(name)
    assert np.abs(element.values - normal_floats(element.bits)).max() < 5e-7


def test_abnormal_float() -> None:
    """Each free value is the median of the numbers that are nearest to it, for normals over the largest magnitude of their block of 64.

    That is what least absolute error means. The distribution of such a ratio below 1 is taken from 4 million draws: cells of 140,000 or
    more of them have their median within 3 standard errors of rank 1/2, 3 / (2 sqrt(140,000)) = 4e-3. The two values beside 0 are
    published a third into their cells from the side of 0.
    """
    rng = np.random.default_rng(0)
    blocks = rng.standard_normal((62_500, 64))
    top = np.abs(blocks).argmax(1)
    ratios = blocks / np.abs(blocks).max(1, keepdims=True)
    ratios = np.sort(np.delete(ratios.reshape(-1), top + np.arange(len(blocks)) * 64))
    values = parse_element("af4").values
    edges = np.r_[-1.0, (values[:-1] + values[1:]) / 2, 1.0]
    for i, value in enumerate(values):
        if value in (-1, 0, 1):
            continue
        low, here, high = np.searchsorted(ratios, [edges[i], value, edges[i + 1]])
        rank = {6: 2 / 3, 8: 1 / 3}.get(i, 1 / 2)
        assert abs((here - low) / (high - low) - rank) < 4e-3, (i, value)


def test_iq4nl() -> None:
    assert parse_element("iq4nl").values.tolist() == [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
    assert parse_element("iq4nl").table.kind == "i8"
    assert (Format("iq4_nl").bits_per_weight, Format("iq4_xs").bits_per_weight) == (4.5, 4.25)
    quants = pytest.importorskip("gguf.quants")
    assert list(quants.IQ4_NL.kvalues) == parse_element("iq4nl").values.tolist()


def test_dynamic_map() -> None:
    """bitsandbytes' construction in float32, step by step with torch: the same numbers but for the last bit."""
    torch = pytest.importorskip("torch")
    numbers = [0.0, 1.0]
    for i in range(7):
        bounds = torch.linspace(0.1, 1, 2**i + 1)
        means = (bounds[:-1] + bounds[1:]) / 2
        for sign in (1, -1):
            numbers += (sign * 10.0 ** (i - 6) * means).tolist()
    theirs = np.sort(np.array(numbers, np.float32))
    ours = parse_element("dyn8").values.astype(np.float32)
    assert ours.size == theirs.size == 256
    assert np.abs(ours.view(np.int32) - theirs.view(np.int32)).max() <= 1
    assert ours[127] == 0 and (ours[0], ours[255]) == (np.float32(-0.99296875), 1)


def test_double_quantization() -> None:
    """QLoRA's appetite: 8-bit scales of 64, float32 for 256 of them; almost as good as float32 scales."""
    fmt = Format("nf4_dq")
    assert fmt.explicit == "nf4@64:dyn8@16384:fp32" and fmt.size_bits((4096, 4096)) == 4096 * 4096 * 4 + 4096 * 64 * 8 + 4096 * 32
    assert sqnr_db("nf4@64:fp32") - 0.3 < sqnr_db("nf4_dq") < sqnr_db("nf4@64:fp32") + 0.3


def test_order_on_the_data_they_are_made_for() -> None:
    """Mean squared error of normal numbers: int4 < af4 <= nf4 in blocks of 64, nf3 above int3."""
    assert sqnr_db("int4@64:fp32") < sqnr_db("nf4@64:fp32") and sqnr_db("int3@64:fp32") < sqnr_db("nf3@64:fp32")
    assert sqnr_db("iq4_nl") > sqnr_db("q4_0")
