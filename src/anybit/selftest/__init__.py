"""What a user can check on their own machine: formats, packing and kernels against the slow, exact definitions of `anybit.reference`."""

from anybit.selftest.check import Check, Outcome, Step, WrongError, run
from anybit.selftest.quick import quick_checks

__all__ = ["Check", "Outcome", "Step", "WrongError", "quick_checks", "run"]
