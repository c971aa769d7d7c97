"""Native kernels of product rules: sums of patterns on any weight, look-ups on coded ones."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from anybit.formats import Element
from anybit.kernels import KERNELS, Kernel, OpSpec
from anybit.kernels.cpu import isa, native
from anybit.products import LookupProduct, PatternProduct, Product
from anybit.products.product import act_bits


def _accept(spec: OpSpec) -> str | None:
    return None if spec.device == "cpu" and spec.op == "linear" else f"it is for linear on cpu, not {spec.op} on {spec.device}"


def _accept_patterns(spec: OpSpec) -> str | None:
    return _accept(spec) or (None if spec.act is None else "sums of patterns take float activations")


def _accept_lookup(spec: OpSpec) -> str | None:
    reason = _accept(spec)
    if reason is None and (spec.dense or spec.bits > 8 or spec.dim > 1 or spec.layout not in ("tile16x4", "rows")):
        reason = "look-ups take codes of up to 8 bits with scales"
    return reason or (None if spec.act is not None else "look-ups take codes: use int8 or int4 activations")


for _name, _kind, _accepts, _about in (
    ("linear_patterns", "patterns", _accept_patterns, "sums of float32 bit patterns (L-Mul, shift)"),
    ("linear_lookup", "lookup", _accept_lookup, "a table's entries: shuffles for codes of up to 4 bits, gathers beyond"),
):
    KERNELS.add(_name, Kernel(_name, 20, _accepts, isa, _about, products=(_kind,)))


def native_product(product: Product, element: Element | None, act: str | None) -> Any:
    """The native rule for weights of an element (None: float operands). One object for equal needs: layers share inputs by it."""
    if isinstance(product, PatternProduct):
        return _patterns(product, element if product.terms else None)
    assert isinstance(product, LookupProduct) and element is not None
    return _lookup(product, element, act)


@lru_cache(maxsize=256)
def _patterns(product: PatternProduct, element: Element | None) -> Any:
    terms = product.term_tables(element) if element is not None else None
    return native.Product.patterns(product.mantissa, product.offset, product.saturates, terms)


@lru_cache(maxsize=256)
def _lookup(product: LookupProduct, element: Element, act: str | None) -> Any:
    return native.Product.lookup(act_bits(act), element.bits, np.ascontiguousarray(product.table(element, act)))
