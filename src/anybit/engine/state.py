"""What the engine remembers of one sequence."""

from __future__ import annotations

from typing import Any

from anybit.errors import UsageError


class State:
    """Keys and values of the tokens seen so far, in pages of 64 tokens, float32 or coded (`CacheSpec`). Made by `Engine.state`, extended by
    `Engine.forward`.

    Forks share pages and copy one only before it is written, so that a common prompt is computed and held once.
    """

    def __init__(self, native: Any, limit: int) -> None:
        self.native = native
        self.limit = limit

    @property
    def length(self) -> int:
        """Tokens held."""
        return int(self.native.length)

    @property
    def nbytes(self) -> int:
        """Bytes of the pages that this state refers to, shared ones included."""
        return int(self.native.nbytes)

    def truncate(self, length: int) -> None:
        """Forgets the tokens from `length` on. UsageError: a cache with a window no longer holds what goes on from there; fork before."""
        try:
            self.native.truncate(length)
        except ValueError as error:
            raise UsageError(f"the cache cannot go back from {self.length} tokens to {length}: {error}; fork or snapshot before") from None

    def fork(self) -> State:
        """An independent continuation from here."""
        return State(self.native.fork(), self.limit)

    def snapshot(self) -> State:
        """What `restore` goes back to."""
        return self.fork()

    def restore(self, snapshot: State) -> None:
        """Becomes what it was when the snapshot was taken."""
        self.native, self.limit = snapshot.native.fork(), snapshot.limit

    def __repr__(self) -> str:
        return f"State(length={self.length}, limit={self.limit}, nbytes={self.nbytes})"
