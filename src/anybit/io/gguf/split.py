"""A model in several GGUF files, as llama-gguf-split writes them: NAME-00001-of-00003.gguf and its siblings.

The first file has all fields, the others only `split.no` (from 0), `split.count` and `split.tensors.count`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from anybit.errors import FileFormatError
from anybit.io.gguf.container import Container
from anybit.io.strict_json import shown

MAX_FILES = 1000
_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


class Joined(Container):
    """Several files as one. `path` and `metadata` are the first's; `tensors` those of all."""

    def __init__(self, files: list[Container]) -> None:
        first = files[0]
        self.path, self.metadata, self.version, self.order = first.path, first.metadata, first.version, first.order
        self.size = sum(file.size for file in files)
        self._files = files
        self._owner: dict[str, Container] = {}
        for file in files:
            for name in file.tensors:
                if name in self._owner:
                    what = f"is in {self._owner[name].path} too{file.place(name)}"
                    raise FileFormatError(f"{file.path}: tensor {shown(name)} {what}; fetch the files again")
                self._owner[name] = file
        self.tensors = {name: file.tensors[name] for name, file in self._owner.items()}

    def place(self, name: str) -> str:
        owner = self._owner.get(name, self._files[0])
        return owner.place(name).replace(")", f" of {owner.path.name})")

    def blocks(self, name: str) -> NDArray[Any]:
        self.info(name)
        return self._owner[name].blocks(name)

    def release(self, name: str) -> None:
        self.info(name)
        self._owner[name].release(name)

    def close(self) -> None:
        for file in self._files:
            file.close()


def _says(file: Container, key: str, value: int) -> bool:
    """Whether a field is this number; it may be missing, or anything else."""
    found = file.metadata.get(key)
    return type(found) is int and found == value


def open_all(path: Path) -> Container:
    """A GGUF file, joined with its siblings if it is the first of several.

    Raises: FileFormatError: a damaged file; one that is not the first; a sibling that is missing, or not the part that its name says.
    """
    first = Container(path)
    count = first.metadata.get("split.count", 0)
    if type(count) is not int or count in (0, 1):
        return first
    match = _NAME.fullmatch(path.name)
    if match is None or int(match[3]) != count or count > MAX_FILES:
        what = f"field 'split.count' is {count}, so it should be called NAME-00001-of-{count:05}.gguf"
        raise FileFormatError(f"{path}: {what}{first.metadata.at('split.count')}; rename it")
    if int(match[2]) != 1 or not _says(first, "split.no", 0):
        what = f"one of {count} files and not the first{first.metadata.at('split.no')}"
        raise FileFormatError(f"{path}: {what}; give {match[1]}-00001-of-{count:05}.gguf")
    files = [first]
    for number in range(1, count):
        file = Container(path.with_name(f"{match[1]}-{number + 1:05}-of-{count:05}.gguf"))
        if not (_says(file, "split.no", number) and _says(file, "split.count", count)):
            what = f"fields 'split.no' and 'split.count' do not say {number} of {count}{file.metadata.at('split.no')}"
            raise FileFormatError(f"{file.path}: {what}; fetch the files again")
        files.append(file)
    joined, listed = Joined(files), first.metadata.get("split.tensors.count")
    if listed is not None and not _says(first, "split.tensors.count", len(joined.tensors)):
        raise FileFormatError(
            f"{path}: field 'split.tensors.count' is {shown(listed, 40)}, but there are {len(joined.tensors)}"
            f"{first.metadata.at('split.tensors.count')}; fetch the files again"
        )
    return joined
