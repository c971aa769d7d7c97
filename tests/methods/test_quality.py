"""Signal-to-noise ratios of formats on synthetic sources."""

from __future__ import annotations

import math

import pytest

from anybit.errors import UsageError
from anybit.formats import named_formats
from anybit.methods import sqnr_db


def test_sqnr_of_known_quantizers() -> None:
    """NMSE figures of the scale rules in decibels; uniform int8 from its step: amax is about 3.5 sigma over 4,096 numbers."""
    assert abs(sqnr_db("mxfp4") + 10 * math.log10(0.01323)) < 0.05
    assert abs(sqnr_db("q4_0+scale=signmax") + 10 * math.log10(0.00739)) < 0.05
    # A step of 3.62 / 127, error step^2 / 12; amax of 4,096 normals spreads from 3.2 to 4.2.
    assert abs(sqnr_db("int8@channel") + 10 * math.log10((3.62 / 127) ** 2 / 12)) < 0.7
    assert sqnr_db("fp32") == math.inf and sqnr_db("bf16") > 50


def test_order_within_families() -> None:
    for source in ("normal", "laplace", "t4"):
        for better, worse in (("int8@channel", "int4@32"), ("int4@32", "int4@128"), ("int4@128", "int3@128"), ("int3@128", "int2@64"),
                              ("mxfp8", "mxfp6"), ("mxfp6", "mxfp4"), ("nvfp4", "mxfp4"), ("mxfp4+scale=mse", "mxfp4")):  # fmt: skip
            assert sqnr_db(better, source) > sqnr_db(worse, source), (source, better, worse)


def test_every_name_has_a_ratio() -> None:
    for named in named_formats():
        value = sqnr_db(named.name, n=4096)
        assert value == sqnr_db(named.name, n=4096) and (value > -10 if named.name != "e8m0" else True) and not math.isnan(value), (
            named.name
        )


def test_unknown_source() -> None:
    with pytest.raises(UsageError, match="no source named 'norml'; there is normal, laplace, t4; did you mean normal"):
        sqnr_db("int4@32", source="norml")
