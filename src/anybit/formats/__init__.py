"""Number formats: what codes mean. Pure Python and NumPy; knows no other part of anybit."""

from anybit.formats.block import Block, Box
from anybit.formats.element import Element
from anybit.formats.family import FAMILIES, Family, families, parse_element, register_folder
from anybit.formats.format import Format, Level
from anybit.formats.learned import bound
from anybit.formats.listed import brought_along, listed
from anybit.formats.named import ALIASES, NamedFormat, named_formats
from anybit.formats.packing import PACKINGS, Packing
from anybit.formats.policy import Policy, Spec
from anybit.formats.rounding import NONFINITES, OVERS, ROUNDS
from anybit.formats.table import Table
from anybit.formats.vector import Vector, codes_shape, cut_reason

__all__ = [
    "ALIASES",
    "FAMILIES",
    "NONFINITES",
    "OVERS",
    "PACKINGS",
    "ROUNDS",
    "Block",
    "Box",
    "Element",
    "Family",
    "Format",
    "Level",
    "NamedFormat",
    "Packing",
    "Policy",
    "Spec",
    "Table",
    "Vector",
    "bound",
    "brought_along",
    "codes_shape",
    "cut_reason",
    "families",
    "listed",
    "named_formats",
    "parse_element",
    "register_folder",
]
