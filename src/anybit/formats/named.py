"""Whole formats with names of their own, and the list of everything that has one."""

from __future__ import annotations

from dataclasses import dataclass

from anybit.formats.family import families

ALIASES: dict[str, tuple[str, str]] = {
    "mxfp4": ("fp4_e2m1@32:e8m0", "OCP MX v1.0: FP4 in blocks of 32, power-of-two scales"),
    "mxfp6": ("fp6_e3m2@32:e8m0", "OCP MX v1.0: FP6 E3M2 in blocks of 32"),
    "mxfp6_e2m3": ("fp6_e2m3@32:e8m0", "OCP MX v1.0: FP6 E2M3 in blocks of 32"),
    "mxfp8": ("fp8_e4m3fn@32:e8m0", "OCP MX v1.0: FP8 E4M3 in blocks of 32"),
    "mxfp8_e5m2": ("fp8_e5m2@32:e8m0", "OCP MX v1.0: FP8 E5M2 in blocks of 32"),
    "mxint8": ("fixed8_f6@32:e8m0", "OCP MX v1.0: 8-bit fixed point, 6 fraction bits, in blocks of 32"),
    "nvfp4": ("fp4_e2m1@16:fp8_e4m3fn@tensor:fp32", "FP4 in blocks of 16, FP8 scales, one float32 scale a tensor"),
    "msfp12": ("int4_sym@16:e8m0", "block floating point: 16 values share an exponent"),
    "nf4_dq": ("nf4@64:dyn8@16384:fp32", "NF4 with double quantization: dynamic 8-bit scales of 64, float32 scales of 256 of them"),
    "q4_0": ("int4@32:fp16", "GGUF Q4_0 (its rule: +scale=signmax)"),
    "q4_1": ("uint4@32:fp16+off", "GGUF Q4_1: scale and minimum"),
    "q5_0": ("int5@32:fp16", "GGUF Q5_0"),
    "q5_1": ("uint5@32:fp16+off", "GGUF Q5_1"),
    "q8_0": ("int8@32:fp16", "GGUF Q8_0"),
    "q2_k": ("uint2@16:uint4@256:fp16+off", "GGUF Q2_K: 4-bit scales and minima in super-blocks"),
    "q3_k": ("int3@16:int6@256:fp16", "GGUF Q3_K: 6-bit scales in super-blocks"),
    "q4_k": ("uint4@32:uint6@256:fp16+off", "GGUF Q4_K: 6-bit scales and minima in super-blocks"),
    "q5_k": ("uint5@32:uint6@256:fp16+off", "GGUF Q5_K: 6-bit scales and minima in super-blocks"),
    "q6_k": ("int6@16:int8@256:fp16", "GGUF Q6_K: 8-bit scales in super-blocks"),
    "iq4_nl": ("iq4nl@32:fp16", "GGUF IQ4_NL: a codebook of 16 whole numbers"),
    "iq4_xs": ("iq4nl@32:int6@256:fp16", "GGUF IQ4_XS: the same, 6-bit scales in super-blocks"),
}
"""Name: (expression, one line)."""


@dataclass(frozen=True)
class NamedFormat:
    """A built-in name: an element (`blocked` false) or a whole format."""

    family: str
    name: str
    expression: str
    about: str
    blocked: bool


def named_formats() -> list[NamedFormat]:
    """Every built-in element and whole format, family after family; whole formats last, as family "block"."""
    elements = [
        NamedFormat(family.name, name, name, about, False) for family in families().values() for name, about in family.members.items()
    ]
    return elements + [NamedFormat("block", name, text, about, True) for name, (text, about) in ALIASES.items()]
