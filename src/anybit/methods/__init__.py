"""Methods: how codes are chosen. One file each; `METHODS` finds them by name."""

from anybit.methods.method import METHODS, Method, Parts
from anybit.methods.rtn import dequantize_parts, part_shapes, quantize_parts
from anybit.methods.scales import SCALES, Range, Rule

__all__ = ["METHODS", "SCALES", "Method", "Parts", "Range", "Rule", "dequantize_parts", "part_shapes", "quantize_parts"]
