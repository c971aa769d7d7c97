"""What tests of several folders share."""

import signal
from collections.abc import Iterator

import pytest

from anybit.kernels import cpu


@pytest.fixture(autouse=True)
def ends_when_told_to() -> Iterator[None]:
    """The command's entry point takes SIGTERM for itself, and a test that calls it would leave it so: the tests could not be stopped."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if signal.getsignal(signal.SIGTERM) is not before:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture(params=cpu.native.supported_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this machine in turn; afterwards the one that was in use before."""
    before = cpu.isa()
    cpu.use_isa(request.param)
    yield request.param
    cpu.use_isa(before)
