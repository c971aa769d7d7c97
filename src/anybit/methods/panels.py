"""Some rows of a matrix at a time, on all threads: where rows are independent, nothing larger than a panel of them is held."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

from anybit.kernels.cpu import native

T = TypeVar("T")
_LEAST, _MOST, _COUNT, _STEP = 128, 1024, 8, 64
_BLAS = Lock()


def panels(rows: int) -> list[slice]:
    """Panels of at most 1,024 rows, eight of them or more where that leaves each 128. They depend on `rows` alone."""
    size = min(_MOST, max(_LEAST, -(-rows // _COUNT // _STEP) * _STEP))
    return [slice(at, min(at + size, rows)) for at in range(0, rows, size)]


def by_panels(rows: int, work: Callable[[slice], T]) -> list[T]:
    """What `work` returns of each panel, in order. It runs on as many threads as `set_threads` says, each with a BLAS of one thread: sums
    then depend on the panels, not on the number of threads, and no thread of BLAS spins beside the others. Must not be nested."""
    from threadpoolctl import threadpool_limits  # looks at all loaded libraries

    with _BLAS, threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(native.threads()) as pool:
        return list(pool.map(work, panels(rows)))
