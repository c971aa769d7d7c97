"""Products and what they must give, in a file for driver.cc: kernels of a machine without Python are held to it (`make neon`).

    python tests/kernels/golden/write.py FILE

Fields of a case are those of the native module's `Weight.make`, recorded as Python hands them over; results come from anybit.reference.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cases import CODED, DENSE, WITNESSES, Case, spread

from anybit.kernels import weights
from anybit.reference import linear
from anybit.tensor import QTensor

MAGIC = 0x616E7962


class Recorded:
    """Stands in for the native module's Scale and Weight: keeps what they are made of."""

    @staticmethod
    def make(**fields: Any) -> dict[str, Any]:
        return fields


class Recorder:
    """Stands in for the native module while weights are made."""

    Scale = Weight = Recorded

    def __getattr__(self, name: str) -> Any:
        return getattr(NATIVE, name)


NATIVE = weights.native


def numbers(out: BinaryIO, *values: int) -> None:
    out.write(struct.pack(f"<{len(values)}q", *values))


def array(out: BinaryIO, values: np.ndarray | None, dtype: type) -> None:
    """Length in elements (-1: none), then the elements."""
    if values is None:
        numbers(out, -1)
        return
    flat = np.ascontiguousarray(values).reshape(-1)
    assert flat.dtype == dtype, (flat.dtype, dtype)
    numbers(out, flat.size)
    out.write(flat.tobytes())


def grid(out: BinaryIO, fields: dict[str, Any]) -> None:
    numbers(out, *(int(fields.get(name, 0)) for name in ("kind", "rows", "columns", "bits", "mantissa", "has_sign", "paired")))
    out.write(struct.pack("<f", fields["factor"]))
    array(out, fields["table"], np.float32)
    array(out, fields["data"], np.uint8)


def scale(out: BinaryIO, fields: dict[str, Any] | None) -> None:
    numbers(out, 0 if fields is None else 1)
    if fields is not None:
        grid(out, fields)
        out.write(struct.pack("<f", fields["whole"]))
        numbers(out, fields.get("each", 0))
        if fields.get("each"):
            grid(out, fields["second"])


def write(out: BinaryIO, case: Case, act: str | None) -> None:
    weights.native = Recorder()
    try:
        weight = QTensor.pack(case.format, case.shape, case.parts)
        fields = weight.native
    finally:
        weights.native = NATIVE
    numbers(out, MAGIC, *(int(fields[name]) for name in ("n", "k", "bits", "dense", "block", "zero_flip")), int(fields.get("trits", False)))
    out.write(struct.pack("<2f", fields["step"], fields["float_step"]))
    array(out, fields["codes"], np.uint8)
    array(out, fields["integers"], np.int32)
    array(out, fields["table"], np.float32)
    array(out, fields["values"], np.float32)
    array(out, fields["zero"], np.uint8)
    array(out, fields.get("index"), np.uint8)
    scale(out, fields["scale"])
    scale(out, fields["offset"])
    numbers(out, case.m, 0 if act is None else 1)
    array(out, case.x, np.float32)
    array(out, case.bias, np.float32)
    array(out, linear.matmul(case.x, case.parts, case.format, case.shape, act, case.bias), np.float32)


def main() -> None:
    count = 0
    with open(sys.argv[1], "wb") as out:
        for case in (*WITNESSES, *(case for text in (*CODED, *DENSE) for case in spread(text, 4) if "escape" not in text)):
            coded = case.format.block is not None and case.format.element.bits <= 8
            for act in (None, "int8") if coded else (None,):
                write(out, case, act)
                count += 1
    print(f"{count} products in {sys.argv[1]}")


if __name__ == "__main__":
    main()
