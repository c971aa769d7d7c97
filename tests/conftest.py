"""What tests of several folders share."""

from collections.abc import Iterator

import pytest

from anybit.kernels import cpu


@pytest.fixture(params=cpu.native.supported_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this machine in turn; afterwards the one that was in use before."""
    before = cpu.isa()
    cpu.use_isa(request.param)
    yield request.param
    cpu.use_isa(before)
