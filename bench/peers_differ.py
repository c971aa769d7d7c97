"""Where libraries that emulate number formats are wrong or differ: each claim of docs/peers.md, run against what is installed.

    python bench/peers_differ.py                 every claim whose library is installed, beside anybit's answer
    python bench/peers_differ.py pychop-hole     one claim

Exit code 1: a claim no longer holds for the version that the page names, or anybit does not give the right answer.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

import anybit
from anybit.errors import NonFiniteError
from anybit.formats import parse_element

warnings.simplefilter("ignore")
INF, NAN = math.inf, math.nan


@dataclass(frozen=True)
class Claim:
    """package, tested: what was run when the page was written. theirs, ours: run the case; right: what the definition says."""

    name: str
    package: str
    tested: str
    about: str
    right: list[float]
    theirs: Callable[[], Any]
    ours: Callable[[], Any]


def ours(x: Any, name: str, dtype: Any = np.float32, **policy: str) -> list[float]:
    """anybit's values of numbers in an element."""
    element = parse_element(name)
    return np.asarray(element.decode(element.encode(np.array(x, dtype), **policy))).tolist()


def middles(name: str, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Middles between neighbouring positive values, moved by a factor so near 1 that float32 cannot see it, and the right results."""
    points = parse_element(name).finite
    points = points[points > 0]
    return (points[:-1] / 2 + points[1:] / 2) * factor, points[1:] if factor > 1 else points[:-1]


def misrounded(name: str, cast: Callable[[np.ndarray], np.ndarray]) -> list[float]:
    """How many of those come out wrong."""
    count = 0
    for factor in (1 + 2.0**-40, 1 - 2.0**-40):
        x, right = middles(name, factor)
        count += int(np.sum(np.asarray(cast(x), np.float64) != right))
    return [float(count)]


def our_misrounded(name: str) -> list[float]:
    element = parse_element(name)
    return misrounded(name, lambda x: element.decode(element.encode(x)))


# ------------------------------------------------------------------------------------------------------------ how each is called
def chop(exponent: int, mantissa: int, x: list[float], mode: int = 1, dtype: Any = np.float64) -> list[float]:
    pychop = importlib.import_module("pychop")
    pychop.backend("numpy")
    rounder = pychop.Chop(exp_bits=exponent, sig_bits=mantissa, rmode=mode)
    return np.asarray(rounder(np.array(x, dtype)), np.float64).tolist()


def chop_mx(x: np.ndarray) -> list[float]:
    pychop = importlib.import_module("pychop")
    pychop.backend("numpy")
    return np.asarray(pychop.mx_quantize(x, format="mxfp4_e2m1", block_size=32))[1, :3].tolist()


def torch_cast(x: Any, name: str) -> list[float]:
    torch = importlib.import_module("torch")
    values: list[float] = torch.tensor(x).to(getattr(torch, name)).double().tolist()
    return values


def ml_cast(x: Any, name: str, dtype: Any = np.float32) -> list[float]:
    kind = np.dtype(getattr(importlib.import_module("ml_dtypes"), name))
    return np.array(x, dtype).astype(kind).astype(np.float64).tolist()


def gfloat_e8m0(x: list[float]) -> list[float]:
    gfloat, formats = importlib.import_module("gfloat"), importlib.import_module("gfloat.formats")
    return [float(gfloat.round_float(formats.format_info_ocp_e8m0, v)) for v in x]


def qtorch(x: list[float]) -> list[float]:
    torch, quant = importlib.import_module("torch"), importlib.import_module("qtorch.quant")
    values: list[float] = quant.float_quantize(torch.tensor(x), exp=4, man=3, rounding="nearest").tolist()
    return values


def qtorch_posit(value: float) -> list[float]:
    torch, quant = importlib.import_module("torch"), importlib.import_module("qtorch_plus.quant")
    rounded = quant.posit_quantize(torch.full((10_000,), value), nsize=8, es=1, rounding="stochastic")
    return sorted(set(rounded.tolist()))


ROWS = np.ones((2, 40), np.float32)
ROWS[0, 39] = 1000  # the end of a row of 40: a block of 32 that ran on would hold the next row's first 24

CLAIMS = (
    Claim(
        "pychop-hole", "pychop", "0.6.2", "float16 (5, 10): just below twice the overflow threshold numbers become 0, and 65520 a number"
        " that float16 has not", [INF, INF, INF, INF], lambda: chop(5, 10, [65520, 65536, 100_000, 131_072]),
        lambda: ours([65520, 65536, 100_000, 131_072], "fp16", over="inf"),
    ),
    Claim(
        "pychop-hole-e4m3", "pychop", "0.6.2", "IEEE-like E4M3 (4, 3): 248 becomes 256, 300 becomes 0", [INF, INF, INF],
        lambda: chop(4, 3, [248, 300, 512]), lambda: ours([248, 300, 512], "fp8_e4m3", over="inf"),
    ),
    Claim(
        "pychop-odd", "pychop", "0.6.2", "rounding to odd (rmode 9) changes numbers that the format has", [1.0, 2.0],
        lambda: chop(4, 3, [1.0, 2.0], 9), lambda: ours([1.0, 2.0], "fp8_e4m3", round="odd"),
    ),
    Claim(
        "pychop-ties-zero", "pychop", "0.6.2", "ties toward zero (rmode 7) go down instead: wrong for negative numbers", [1.0, -1.0],
        lambda: chop(4, 3, [1.0625, -1.0625], 7), lambda: ours([1.0625, -1.0625], "fp8_e4m3", round="nearest-zero"),
    ),
    Claim(
        "pychop-ties-away", "pychop", "0.6.2", "ties away from zero (rmode 8) go up instead: wrong for negative numbers", [1.125, -1.125],
        lambda: chop(4, 3, [1.0625, -1.0625], 8), lambda: ours([1.0625, -1.0625], "fp8_e4m3", round="nearest-away"),
    ),
    Claim(
        "pychop-subnormal", "pychop", "0.6.2", "float32 just above half the smallest E4M3 number becomes 0", [2.0**-9],
        lambda: chop(4, 3, [0.0009765626], 1, np.float32), lambda: ours([0.0009765626], "fp8_e4m3"),
    ),
    Claim(
        "pychop-mx-rows", "pychop", "0.6.2", "MX blocks run over the ends of rows: 1000 at the end of one makes 0 of the next row's 1.0",
        [1.0, 1.0, 1.0], lambda: chop_mx(ROWS), lambda: anybit.fake_quantize(ROWS, "mxfp4")[1, :3].tolist(),
    ),
    Claim(
        "torch-e4m3fn-saturates", "torch", "2.13.0", "E4M3FN saturates numbers and infinity; by ml_dtypes they become", [NAN, NAN],
        lambda: torch_cast([465.0, INF], "float8_e4m3fn"),
        lambda: ours([465.0, INF], "fp8_e4m3fn", over="nan", nonfinite="propagate"),
    ),
    Claim(
        "torch-double-rounding", "torch", "2.13.0", "E4M3FN from float64 goes through float32: wrong next to middles, of 250",
        [0.0], lambda: misrounded("fp8_e4m3fn", lambda x: np.array(torch_cast(x, "float8_e4m3fn"))), lambda: our_misrounded("fp8_e4m3fn"),
    ),
    Claim(
        "torch-e8m0-sign", "torch", "2.13.0", "E8M0 drops the sign and gives 2^-127 for zero; out of range it is, as NaN",
        [NAN, NAN], lambda: torch_cast([-4.0, 0.0], "float8_e8m0fnu"), lambda: ours([-4.0, 0.0], "e8m0", over="nan"),
    ),
    Claim(
        "ml_dtypes-nan", "ml_dtypes", "0.6.0", "NaN becomes -0 in E3M2, E2M3 and E2M1, without a word; refused, it is an error", [NAN],
        lambda: ml_cast([NAN], "float4_e2m1fn"), lambda: refused(NAN, "fp4_e2m1"),
    ),
    Claim(
        "ml_dtypes-double-rounding", "ml_dtypes", "0.6.0", "E4M3FN from float64 goes through float32: wrong next to middles, of 250", [0.0],
        lambda: misrounded("fp8_e4m3fn", lambda x: np.array(ml_cast(x, "float8_e4m3fn", np.float64))),
        lambda: our_misrounded("fp8_e4m3fn"),
    ),
    Claim(
        "ml_dtypes-bf16-double-rounding", "ml_dtypes", "0.6.0", "bfloat16 from float64 likewise, of 65276", [0.0],
        lambda: misrounded("bf16", lambda x: np.array(ml_cast(x, "bfloat16", np.float64))), lambda: our_misrounded("bf16"),
    ),
    Claim(
        "ml_dtypes-e8m0-ties", "ml_dtypes", "0.6.0", "E8M0: ties go up; to the even code they go", [2.0, 8.0],
        lambda: ml_cast([3.0, 6.0], "float8_e8m0fnu"), lambda: ours([3.0, 6.0], "e8m0"),
    ),
    Claim(
        "gfloat-e8m0", "gfloat", "0.5.2", "E8M0: -4, 0 and 2^-140 become numbers that it has not; out of range they are, as NaN",
        [NAN, NAN, NAN], lambda: gfloat_e8m0([-4.0, 0.0, 2.0**-140]), lambda: ours([-4.0, 0.0, 2.0**-140], "e8m0", over="nan"),
    ),
    Claim(
        "qtorch-ties", "qtorch", "0.3.0", "nearest takes ties away from zero; to even they go", [1.0, -1.0],
        lambda: qtorch([1.0625, -1.0625]), lambda: ours([1.0625, -1.0625], "fp8_e4m3"),
    ),
    Claim(
        "qtorch-nan", "qtorch", "0.3.0", "E4M3 has no NaN and no infinity: both become 480", [NAN, INF], lambda: qtorch([NAN, INF]),
        lambda: ours([NAN, INF], "fp8_e4m3", nonfinite="propagate"),
    ),
    Claim(
        "qtorch-plus-stochastic", "qtorch-plus", "0.2.0", "stochastic rounding of posits rounds to nearest: 10,000 times a tie, one result",
        [1.0, 1.0625], lambda: qtorch_posit(1.03125), lambda: None,
    ),
)  # fmt: skip


def refused(value: float, name: str) -> list[float]:
    """NaN stands for an error."""
    try:
        return ours([value], name)
    except NonFiniteError:
        return [NAN]


def same(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(x == y or (math.isnan(x) and math.isnan(y)) for x, y in zip(a, b, strict=True))


def run(claim: Claim) -> dict[str, Any]:
    """One row: what is right, what the library and anybit give, and whether the page still says the truth."""
    row: dict[str, Any] = {"name": claim.name, "package": claim.package, "tested": claim.tested, "about": claim.about, "right": claim.right}
    try:
        row["version"] = version(claim.package).split("+")[0]
    except PackageNotFoundError:
        return row | {"version": None, "verdict": "not installed"}
    mine, theirs = claim.ours(), claim.theirs()
    row |= {"theirs": theirs, "ours": mine}
    if mine is not None and not same(mine, claim.right):
        return row | {"verdict": "anybit is wrong"}
    if not same(theirs, claim.right):
        return row | {"verdict": "differs"}
    return row | {"verdict": "no longer differs" if row["version"] == claim.tested else "agrees in this version"}


def show(values: Any) -> str:
    return "-" if values is None else ", ".join(f"{v:g}" for v in values)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="claims; all by default")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    unknown = set(args.names) - {claim.name for claim in CLAIMS}
    if unknown:
        parser.error(f"no claim named {', '.join(sorted(unknown))}; there are {', '.join(claim.name for claim in CLAIMS)}")
    rows = []
    for claim in CLAIMS:
        if args.names and claim.name not in args.names:
            continue
        row = run(claim)
        rows.append(row)
        if not args.json:
            print(f"{row['verdict']:<14} {claim.name} ({claim.package} {row['version'] or claim.tested}): {claim.about}", flush=True)
            if "theirs" in row:
                found = f"right {show(claim.right)} | {claim.package} {show(row['theirs'])} | anybit {show(row['ours'])}"
                print(f"{'':<14} {found}", flush=True)
    if args.json:
        print(json.dumps([{k: str(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]))
    return int(any(row["verdict"] in ("anybit is wrong", "no longer differs") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
