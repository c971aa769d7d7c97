"""Methods: how codes are chosen. One file each; `METHODS` finds them by name."""

from anybit.methods.method import METHODS, Method, Parts
from anybit.methods.quality import sample, sqnr_db
from anybit.methods.rtn import dequantize_parts, part_shapes, quantize_parts, stored_grids
from anybit.methods.scales import SCALES, Range, Rule

__all__ = [
    "METHODS",
    "SCALES",
    "Method",
    "Parts",
    "Range",
    "Rule",
    "dequantize_parts",
    "part_shapes",
    "quantize_parts",
    "sample",
    "sqnr_db",
    "stored_grids",
]
