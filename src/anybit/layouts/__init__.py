"""Where bits lie: packing of codes, scales and zero points into stored arrays, and back. Each layout is one file of this folder."""

from anybit.layouts.layout import (
    ANY,
    LAYOUTS,
    Geometry,
    Layout,
    Parts,
    Sizes,
    default_layout,
    geometry,
    rows_owned,
    scale_parts,
    sizes_known,
)

__all__ = [
    "ANY",
    "LAYOUTS",
    "Geometry",
    "Layout",
    "Parts",
    "Sizes",
    "default_layout",
    "geometry",
    "rows_owned",
    "scale_parts",
    "sizes_known",
]
