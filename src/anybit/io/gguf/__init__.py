"""GGUF files: `open` gives a lazy mapping from tensor names to QTensors.

>>> from anybit.io import gguf
>>> gguf.open("missing.gguf")
Traceback (most recent call last):
    ...
anybit.errors.FileFormatError: missing.gguf: cannot be opened: No such file or directory; check the path and its permissions
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from anybit.io.gguf.container import Container, GgufTensor
from anybit.io.gguf.tensors import coded

if TYPE_CHECKING:
    from anybit.tensor import QTensor


class GgufFile(Mapping[str, "QTensor"]):
    """A GGUF file as a mapping from tensor name to QTensor, read when it is asked for.

    Codes and scales are the file's own: nothing is quantized again. `metadata` maps the file's fields, `info(name)` tells a tensor's type,
    shape and place without reading it. Looking up a tensor raises FileFormatError: there is none, or it holds what no format can express.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.container = Container(path)

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.container.metadata

    def info(self, name: str) -> GgufTensor:
        """A tensor's type, shape and place. FileFormatError: no such tensor."""
        return self.container.info(name)

    def __getitem__(self, name: str) -> QTensor:
        from anybit.io.packed import packed

        if name not in self.container.tensors:
            raise KeyError(name)
        return packed(coded(self.container, name))

    def __contains__(self, name: object) -> bool:
        return name in self.container.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.container.tensors)

    def __len__(self) -> int:
        return len(self.container.tensors)

    def close(self) -> None:
        """Drops the map of the file. QTensors that were read stay."""
        self.container.close()

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open(path: str | os.PathLike[str]) -> GgufFile:
    """Opens a GGUF file, version 2 or 3, little or big endian. Cost: parses the header and maps the file.

    Raises: FileFormatError, always with the file, the field, the byte and what to do.
    """
    return GgufFile(path)


__all__ = ["Container", "GgufFile", "GgufTensor", "open"]
