"""The checks of `anybit selftest` without --full: about a minute."""

from __future__ import annotations

from anybit.selftest.check import Check
from anybit.selftest.elements import built_in, element_checks
from anybit.selftest.products import product_checks
from anybit.selftest.storage import storage_checks


def quick_checks() -> list[Check]:
    """Elements, packing, products."""
    return [*element_checks(*built_in()), *storage_checks(), *product_checks()]
