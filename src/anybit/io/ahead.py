"""The next tensors are made while the last one is written: both leave Python's lock for most of their time."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()


def ahead(items: Iterable[T], depth: int = 1) -> Generator[T, None, None]:
    """The same items in the same order, made in a second thread while those before are used: up to `depth` more are held than without.

    Raises: what making an item raises, where the item would have come. An iterator that is closed early waits for the item in hand.
    """
    source = iter(items)
    coming: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(1, "anybit-ahead") as pool:
        try:
            coming.extend(pool.submit(next, source, _END) for _ in range(depth))
            while True:
                item = coming.popleft().result()
                if item is _END:
                    return
                coming.append(pool.submit(next, source, _END))
                yield item
                del item
        finally:
            for future in coming:
                future.cancel()
