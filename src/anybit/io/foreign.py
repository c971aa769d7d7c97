"""Models in other tools' containers, under Hugging Face's tensor names, each tensor as it is coded there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from anybit.io.coded import Coded
from anybit.io.hf import CONFIG, read_config


class Sidecar(Protocol):
    """A file that a copy of a model takes along: a path is one, and so is what a container holds in its own way."""

    @property
    def name(self) -> str: ...

    def read_bytes(self) -> bytes: ...


@dataclass(frozen=True)
class Made:
    """A file that is made when it is read."""

    name: str
    make: Callable[[], bytes]

    def read_bytes(self) -> bytes:
        """The file's content. Raises what `make` raises."""
        return self.make()


@dataclass(frozen=True)
class Stored:
    """One tensor: its shape, how to read it, how to give its pages back, and for messages where it lies (` (at byte 7)`)."""

    shape: tuple[int, ...]
    read: Callable[[], Coded]
    release: Callable[[], None] = lambda: None
    at: str = ""


@dataclass(frozen=True)
class Foreign:
    """An opened model: `config` as config.json would say it, `tensors` by Hugging Face's names, `eos` the end-of-text token ids.

    `container` is what `anybit inspect` calls it, `close` drops the maps. For messages: `field` gives the place of a field of `config`,
    of one that is not there the place of what lacks it; `lacks` the list of tensors.
    """

    path: Path
    container: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    sidecars: tuple[Sidecar, ...]
    eos: tuple[int, ...]
    close: Callable[[], None]
    field: Callable[[Sequence[str]], str]
    lacks: str

    def place(self, name: str) -> str:
        """For messages: where a tensor lies; for one that is not there, the list that lacks it."""
        return self.tensors[name].at if name in self.tensors else self.lacks


def open_foreign(path: Path) -> Foreign | None:
    """Opens a model of another tool; None: the path is none, so that `open_model` says what it is.

    Raises: FileFormatError: it is one, but damaged or of a kind that cannot be represented exactly (named, with the reason).
    """
    if path.suffix == ".gguf" and path.is_file():
        from anybit.io.gguf.model import open_gguf

        return open_gguf(path)
    if (path / CONFIG).is_file():
        from anybit.io.containers import open_quantized

        config = read_config(path / CONFIG)
        if config.get("quantization_config") is not None:
            return open_quantized(path, config)
    return None
