"""Parts of an array on all threads: panels of a matrix' rows, or slabs in their order. What is computed does not depend on the threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from threading import Lock, local
from typing import TypeVar

from anybit.kernels.cpu import native

S = TypeVar("S")
T = TypeVar("T")
_LEAST, _MOST, _COUNT, _STEP = 128, 1024, 8, 64
_AT_ONCE = 8
"""Slabs at once: each takes some ten megabytes."""
_BLAS = Lock()
_here = local()


def panels(rows: int) -> list[slice]:
    """Panels of at most 1,024 rows, eight of them or more where that leaves each 128. They depend on `rows` alone."""
    size = min(_MOST, max(_LEAST, -(-rows // _COUNT // _STEP) * _STEP))
    return [slice(at, min(at + size, rows)) for at in range(0, rows, size)]


def by_panels(rows: int, work: Callable[[slice], T]) -> list[T]:
    """What `work` returns of each panel, in order. It runs on as many threads as `set_threads` says, each with a BLAS of one thread: sums
    then depend on the panels, not on the number of threads, and no thread of BLAS spins beside the others. Must not be nested."""
    from threadpoolctl import threadpool_limits  # looks at all loaded libraries

    parts = panels(rows)
    with _BLAS, threadpool_limits(limits=1, user_api="blas"), _pool(min(native.threads(), len(parts)) or 1) as pool:
        return list(pool.map(work, parts))


def in_order(items: Sequence[S], work: Callable[[S], T]) -> Iterator[T]:
    """What `work` returns of each item, in order, on as many threads as `set_threads` says, a few items ahead of who takes it; on this
    thread alone where it is one of those already. `work` must not use BLAS."""
    threads = min(native.threads(), len(items), _AT_ONCE)
    if threads <= 1 or getattr(_here, "working", False):
        yield from map(work, items)
        return
    with _pool(threads) as pool:
        ahead: deque[Future[T]] = deque()
        for item in items:
            if len(ahead) > threads:
                yield ahead.popleft().result()
            ahead.append(pool.submit(copy_context().run, work, item))  # NumPy's error states are the context's
        while ahead:
            yield ahead.popleft().result()


def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, initializer=_start, initargs=(threads == native.threads(),))


def _start(alone: bool) -> None:
    """`alone`: these are all the threads that there should be, so native code on them starts no more."""
    _here.working = True
    if alone:
        native.stay_alone()
