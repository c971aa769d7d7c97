"""From a growing list of tokens to pieces of text: characters are never split, stop strings never leak."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"  # what a tokenizer gives for bytes that are no complete character


class Decodes(Protocol):
    """What is needed of a tokenizer (a `tokenizers.Tokenizer` has it)."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


class Detokenizer:
    """Gives the text that each further token adds; the pieces together are the text of all tokens.

    Tokens are decoded in a short window that begins where the last piece began, because some tokenizers treat the first token of
    a text differently (they drop its leading space). Text that ends in an incomplete character waits for the tokens that complete
    it. The window starts with the end of the prompt for the same reason.

    Cost: two decodes of a few tokens for each token.
    """

    def __init__(self, tokenizer: Decodes, prompt: Sequence[int] = ()) -> None:
        self._decode = tokenizer.decode
        self._window = list(prompt[-4:])
        self._seen = self._decode(self._window) if self._window else ""
        if self._seen.endswith(REPLACEMENT):  # the prompt ends inside a character: what follows cannot be told apart from it
            self._window, self._seen = [], ""
        self._fresh = len(self._window)  # where the tokens begin that have given no text yet

    def push(self, token: int) -> str:
        """The text that is certain once this token is known; often empty."""
        self._window.append(token)
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT) or len(text) <= len(self._seen):
            return ""
        piece = text[len(self._seen) :]
        self._window = self._window[self._fresh :]
        self._seen = self._decode(self._window)
        self._fresh = len(self._window)
        return piece

    def finish(self) -> str:
        """What was held back, incomplete characters as U+FFFD."""
        piece = self._decode(self._window)[len(self._seen) :]
        self._window, self._seen, self._fresh = [], "", 0
        return piece


class StopFilter:
    """Passes text on until a stop string appears, holding back any end that could become one.

    >>> stop = StopFilter(["END"])
    >>> [stop.push(piece) for piece in ("a E", "N", "x EN", "D z")], stop.hit
    (['a ', '', 'ENx ', ''], 'END')
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.hit: str | None = None

    def push(self, piece: str) -> str:
        """The text that may be shown. After a hit nothing more comes; `hit` is the stop string."""
        if self.hit is not None:
            return ""
        if not self._stops:
            return piece
        text = self._held + piece
        # The stop string that is complete first, whatever the cuts between pieces; of two that end together the longer.
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, at, self.hit = min(found)
            self._held = ""
            return text[:at]
        keep = max(self._overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back and became no stop string."""
        text, self._held = self._held, ""
        return text

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of the text that begins the stop string."""
        for n in range(min(len(stop) - 1, len(text)), 0, -1):
            if text.endswith(stop[:n]):
                return n
        return 0
