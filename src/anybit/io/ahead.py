"""The next tensor is made while the last one is written: both leave Python's lock for most of their time."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()


def ahead(items: Iterable[T]) -> Generator[T, None, None]:
    """The same items in the same order, each made in a second thread while the one before is used: one more is held than without.

    Raises: what making an item raises, where the item would have come. An iterator that is closed early waits for the item in hand.
    """
    source = iter(items)
    with ThreadPoolExecutor(1, "anybit-ahead") as pool:
        coming = pool.submit(next, source, _END)
        while True:
            item = coming.result()
            if item is _END:
                return
            coming = pool.submit(next, source, _END)
            yield item
            del item
