"""New files, written in large pieces at multiples of their size.

A system that keeps files in memory in pieces as large as the writes that made them keeps 2 MiB in one place for a write of 2 MiB at a
multiple of 2 MiB, and many small pages for anything else. A map of the file is then read faster: fewer addresses have to be looked up.

The disk is told to begin as soon as `BEHIND` bytes have come, so that the sync at the end waits for little. What is written for another
tool passes through: its pages leave memory once they are on the disk. A file larger than memory then pushes nothing else out, and memory
that was just given back is faster than new one (in a virtual machine whose host lends it page by page: seven times).
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from anybit.errors import OutputError

PAGE = 2 << 20
BEHIND = 32 << 20  # bytes: of 8 to 64 MiB the fastest, by little
_MOST = 4 << 20  # bytes a call: an interrupt waits for no more
DISK = {
    errno.ENOSPC: "the disk is full; free some space or choose another place",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another place",
    errno.EFBIG: "the file would exceed the allowed file size; choose another place or a smaller shard size",
    errno.EIO: "the disk reported an input/output error; choose another disk",
    errno.EROFS: "the file system is read-only; choose another place",
}


def failed(target: Path, error: OSError) -> OutputError:
    """The one line that says why a path cannot be written."""
    reason = DISK.get(error.errno or 0) or f"{error.strerror or error}; check the path and its permissions"
    return OutputError(f"cannot write {target}: {reason}")


class Output:
    """A file being written from its beginning. Holds the bytes after the last multiple of `PAGE`, until `flush`.

    `passing`: what is on the disk need not stay in memory.
    Raises: OutputError, of every method: the disk fails. What has been written by then is unknown.
    """

    def __init__(self, fd: int, path: Path, passing: bool = False) -> None:
        self._fd, self._path, self._passing = fd, path, passing
        self._rest = bytearray()
        self._size = self._begun = 0  # bytes that the system has, and those that the disk has been told of

    def write(self, data: Any) -> None:
        """Appends every byte of a buffer, in C order. Pieces of whole pages are not copied."""
        view = memoryview(data)
        view = view.cast("B") if view.nbytes else memoryview(b"")
        if self._rest:
            missing = PAGE - len(self._rest)
            self._rest += view[:missing]
            view = view[missing:]
            if len(self._rest) < PAGE:
                return
            self.flush()
        whole = view.nbytes - view.nbytes % PAGE
        self._put(view[:whole])
        self._rest += view[whole:]

    def flush(self) -> None:
        """Hands what is held to the system. Once, at the end: what comes after it no longer lies at multiples of `PAGE`."""
        self._put(memoryview(self._rest))
        self._rest = bytearray()

    def _put(self, view: memoryview) -> None:
        try:
            while view.nbytes:  # the system may take less than it is given
                count = os.write(self._fd, view[:_MOST])
                view = view[count:]
                self._size += count
                if self._size - self._begun >= BEHIND:
                    self._begin()
        except OSError as error:
            raise failed(self._path, error) from None

    def _begin(self) -> None:
        """Has the disk begin with what came since the last call, and lets go of what it has finished where that passes through.

        Advice: the system writes before it drops anything, waits for nothing, and tells of no error, so that the sync does.
        """
        first = 0 if self._passing else self._begun
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # a file system that takes no advice
                os.posix_fadvise(self._fd, first, self._size - first, os.POSIX_FADV_DONTNEED)
        self._begun = self._size

    def sync(self) -> None:
        """Flushes, and waits until everything is on the disk."""
        self.flush()
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise failed(self._path, error) from None


@contextmanager
def opened(path: Path, flags: int, passing: bool = False) -> Iterator[Output]:
    """A path opened for writing, flushed and closed at the end of a block that does not fail. Raises: OutputError."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o666)
    except FileExistsError:
        raise OutputError(f"{path} exists; remove it or choose another name") from None
    except OSError as error:
        raise failed(path, error) from None
    try:
        output = Output(fd, path, passing)
        yield output
        output.flush()
    except BaseException:
        os.close(fd)
        raise
    try:
        os.close(fd)
    except OSError as error:
        raise failed(path, error) from None


def create(path: str | os.PathLike[str], passing: bool = False) -> AbstractContextManager[Output]:
    """A new file to write, as `opened`. Raises: OutputError: also, the file exists."""
    return opened(Path(path), os.O_CREAT | os.O_EXCL, passing)


class Digested:
    """A file being written whose SHA-256 is taken on the way: of large pieces in another thread, while the system copies them."""

    def __init__(self, file: Output, pool: Executor) -> None:
        self._file, self._pool, self._digest = file, pool, hashlib.sha256()

    def write(self, data: Any) -> None:
        """As `Output.write`."""
        if memoryview(data).nbytes < PAGE // 8:  # less than the other thread's wake is worth
            self._digest.update(data)
            self._file.write(data)
            return
        hashed = self._pool.submit(self._digest.update, data)
        try:
            self._file.write(data)
        finally:
            hashed.result()

    @property
    def sha256(self) -> str:
        """Of all that was written, in hexadecimal."""
        return self._digest.hexdigest()


@contextmanager
def digested(path: str | os.PathLike[str], passing: bool = False) -> Iterator[Digested]:
    """A new file to write, as `create`, with its digest; synced, because what goes wrong before a file is closed is told to it alone."""
    with create(path, passing) as file, ThreadPoolExecutor(1, "anybit-digest") as pool:
        yield Digested(file, pool)
        file.sync()
