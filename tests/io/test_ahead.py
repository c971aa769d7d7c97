"""Making the next tensor while the last one is written: order, one ahead and no more, errors where they belong."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from anybit.io.ahead import ahead


def test_the_next_is_made_while_this_one_is_used() -> None:
    made: list[int] = []
    ready = threading.Event()

    def items() -> Iterator[int]:
        for i in range(5):
            made.append(i)
            if i == 1:
                ready.set()
            yield i

    with closing(ahead(items())) as coming:
        assert next(coming) == 0
        assert ready.wait(10), "1 is made before anybody asks for it"
        assert 2 not in made
        assert list(coming) == [1, 2, 3, 4]
    assert made == list(range(5))


def test_no_more_are_made_than_asked_for() -> None:
    made: list[int] = []
    ready = threading.Event()

    def items() -> Iterator[int]:
        for i in range(9):
            made.append(i)
            if i == 3:
                ready.set()
            yield i

    with closing(ahead(items(), 3)) as coming:
        assert next(coming) == 0
        assert ready.wait(10), "1 to 3 are made before anybody asks for them"
        assert max(made) == 3
    assert max(made) == 3, "what was not begun is not made when nobody takes it"


def test_an_error_comes_where_its_item_would_have() -> None:
    def items() -> Iterator[int]:
        yield 0
        yield 1
        raise ValueError("no third")

    seen = []
    with pytest.raises(ValueError, match="no third"):
        for item in ahead(items()):
            seen.append(item)
    assert seen == [0, 1]


def test_nothing_goes_on_after_it_was_closed() -> None:
    def items() -> Iterator[int]:
        yield from range(100)

    before = threading.active_count()
    coming = ahead(items())
    assert next(coming) == 0
    coming.close()
    assert threading.active_count() == before
    assert list(ahead(())) == []


def test_an_item_is_let_go_when_the_next_one_is_asked_for() -> None:
    class Kept(np.ndarray):
        pass

    coming = ahead(np.zeros(3).view(Kept) for _ in range(4))
    item = next(coming)
    gone = weakref.ref(item)
    del item
    next(coming)
    assert gone() is None
    coming.close()
