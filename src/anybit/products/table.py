"""Table products: any function of two small codes, for approximate multipliers."""

from __future__ import annotations

import os
import re
from functools import lru_cache, partial

import numpy as np

from anybit.errors import UsageError
from anybit.products.product import PRODUCTS, LookupProduct, ProductRule

ACTS = ("int8", "int4")


def exact(q: np.ndarray, t: np.ndarray) -> np.ndarray:
    """q t."""
    return q * t


def truncated(q: np.ndarray, t: np.ndarray, columns: int) -> np.ndarray:
    """sign(q t) times the sum of the partial products a_i b_j 2^(i + j) of |q| and |t| with i + j >= columns; the lower ones are left out.

    Source: Schulte and Swartzlander, Truncated multiplication with correction constant, VLSI Signal Processing VI (1993), without the
    constant.
    """
    a, b = np.abs(q), np.abs(t)
    total = np.zeros(np.broadcast_shapes(a.shape, b.shape), np.int64)
    for i in range(8):
        rest = max(columns - i, 0)
        total += ((a >> i) & 1) * ((b >> rest << rest) << i)
    return np.sign(q) * np.sign(t) * total


def mitchell(q: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Mitchell's logarithmic multiplier of the magnitudes, with the product's sign.

    |q| = 2^i (1 + a), |t| = 2^j (1 + b): 2^(i + j) (1 + a + b) if a + b < 1, else 2^(i + j + 1) (a + b); zero if one is zero. Whole numbers
    give a whole number, and never more than the product.

    Source: Mitchell, Computer multiplication and division using binary logarithms, IRE Transactions on Electronic Computers EC-11 (1962),
    512-517.
    """
    a, b = np.abs(q), np.abs(t)
    i, j = (np.frexp(np.maximum(x, 1).astype(np.float64))[1].astype(np.int64) - 1 for x in (a, b))
    rest = ((a - (1 << i)) << j) + ((b - (1 << j)) << i)  # 2^(i + j) (a + b)
    unit = 1 << (i + j)
    return np.where((a == 0) | (b == 0), 0, np.sign(q) * np.sign(t) * np.where(rest < unit, unit + rest, 2 * rest))


@lru_cache(maxsize=32)
def _read(path: str, stamp: tuple[int, int]) -> LookupProduct:
    name = f"table={path}"
    try:
        array = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"product rule '{name}': no .npy file that can be read: {error}") from None
    shapes = [(1 << a, 1 << w) for a in (4, 8) for w in range(1, 9)]
    if not isinstance(array, np.ndarray) or array.dtype not in (np.dtype("<i2"), np.dtype("<i4")) or array.shape not in shapes:
        given = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise UsageError(f"product rule '{name}': {given} is no int16 or int32 table [2^4 or 2^8, 2^w] with w from 1 to 8")
    entries = np.ascontiguousarray(array, np.int32)
    entries.flags.writeable = False
    return LookupProduct(name, ("int4",) if len(entries) == 16 else ("int8",), entries=entries)


@lru_cache(maxsize=32)
def _named(name: str, argument: str) -> LookupProduct | None:
    if argument in ("exact", "mitchell"):
        return LookupProduct(name, ACTS, {"exact": exact, "mitchell": mitchell}[argument])
    match = re.fullmatch(r"trunc([1-9]|1[0-4])", argument)
    return LookupProduct(name, ACTS, partial(truncated, columns=int(match[1]))) if match else None


def parse(text: str) -> LookupProduct | None:
    """`table=exact`, `table=truncN`, `table=mitchell`, or `table=FILE.npy`: int16 or int32, [2^a, 2^w], the activation's code first."""
    name, equals, argument = text.partition("=")
    if name != "table":
        return None
    if not equals or not argument:
        raise UsageError("product rule 'table' needs a table: table=exact, table=truncN, table=mitchell or table=FILE.npy")
    if not argument.endswith(".npy"):
        found = _named(text, argument)
        if found is None:
            raise UsageError(f"product rule '{text}': a table is exact, truncN (N from 1 to 14), mitchell, or a file FILE.npy")
        return found
    try:
        status = os.stat(argument)
    except (OSError, ValueError) as error:
        raise UsageError(f"product rule '{text}': no .npy file that can be read: {error}") from None
    return _read(argument, (status.st_mtime_ns, status.st_size))


PRODUCTS.add(
    "table",
    ProductRule(
        "table", "entries of a table by both codes", "table=exact, table=truncN, table=mitchell, table=FILE.npy",
        "Mitchell (1962); Schulte and Swartzlander (1993)", parse,
    ),
)  # fmt: skip
