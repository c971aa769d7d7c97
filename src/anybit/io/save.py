"""Saves that happen wholly or not at all, a loss of power included.

A directory is written as `.anybit-tmp-<pid>-<random>` beside its target. Every file is synced, then `manifest.json` with the size and
SHA-256 of each, then the directory; it is renamed to the target, and the parent is synced. Whatever fails on the way, an interrupt
included, removes the temporary; what a killed process left is removed by the next save into the same parent.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from anybit.errors import AnybitError, OutputError
from anybit.io.manifest import MANIFEST, listing, manifest_text
from anybit.io.strict_json import shown

CHUNK = 4 << 20

_TEMP = re.compile(r"\.anybit-tmp-(\d{1,10})-[0-9a-f]{12}")
_ABANDONED = 3600  # seconds after which a temporary without a lock counts as abandoned even if its process id is in use again
_MINE: set[Path] = set()
_DISK = {
    errno.ENOSPC: "the disk is full; free some space or choose another place",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another place",
    errno.EFBIG: "the file would exceed the allowed file size; choose another place or a smaller shard size",
    errno.EIO: "the disk reported an input/output error; choose another disk",
    errno.EROFS: "the file system is read-only; choose another place",
}


def _failed(target: Path, error: OSError) -> OutputError:
    reason = _DISK.get(error.errno or 0) or f"{error.strerror or error}; check the path and its permissions"
    return OutputError(f"cannot write {target}: {reason}")


@contextmanager
def create(path: str | os.PathLike[str]) -> Iterator[int]:
    """A new file's descriptor, closed at the end. Raises: OutputError: it exists, or cannot be made or closed."""
    path = Path(path)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise OutputError(f"{path} exists; remove it or choose another name") from None
    except OSError as error:
        raise _failed(path, error) from None
    try:
        yield fd
    except BaseException:
        os.close(fd)
        raise
    try:
        os.close(fd)
    except OSError as error:
        raise _failed(path, error) from None


def write_all(fd: int, data: Any, path: str | os.PathLike[str]) -> None:
    """Writes every byte of a buffer, however few the system takes at a time. Raises: OutputError."""
    view = memoryview(data).cast("B")
    try:
        while view.nbytes:
            view = view[os.write(fd, view[:CHUNK]) :]
    except OSError as error:
        raise _failed(Path(path), error) from None


def sync(path: Path) -> None:
    """Waits until a file's or directory's contents are on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the path's lock, or None if another process holds it. The system drops the lock with its process."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:
        return fd  # a file system without locks: the process id alone decides
    return fd


def _unlock(fd: int | None) -> None:
    if fd is not None:
        with suppress(OSError):  # by then the save has succeeded or failed on its own
            os.close(fd)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    """Removes a temporary file or tree. What cannot be removed stays for the next save: it must not hide the error that led here."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def remove_stale(parent: Path) -> list[Path]:
    """Removes temporaries in `parent` whose process is gone; returns them. Those that another process works on are left alone."""
    gone = []
    for path in parent.iterdir():
        match = _TEMP.fullmatch(path.name)
        if match is None or path in _MINE:
            continue
        pid = int(match[1])
        try:
            fd = _lock(path)
            if fd is None:
                continue
            try:
                # an own process id is one that was used before; a living one may be a save between its mkdir and its lock
                if pid == os.getpid() or not _alive(pid) or time.time() - path.stat().st_mtime > _ABANDONED:
                    _remove(path)
                    gone.append(path)
            finally:
                os.close(fd)
        except OSError:
            continue  # another save removed it first, or it belongs to another user
    return gone


def _check_free(target: Path, replace: bool = False) -> None:
    """Raises: OutputError: the target exists and is not to be replaced. OSError, ValueError: it never can (a name too long, a NUL)."""
    try:
        os.lstat(target)
    except FileNotFoundError:
        return
    if not replace:
        raise OutputError(f"{target} exists; remove it or choose another name")


def _prepare(target: Path, replace: bool) -> Path:
    """Checks the target, clears stale temporaries and names a new one."""
    parent = target.parent
    try:
        _check_free(target, replace)
        if not parent.is_dir():
            raise OutputError(f"cannot write {target}: the directory {parent} does not exist; create it first")
        remove_stale(parent)
    except ValueError as error:
        raise OutputError(f"cannot write {shown(str(target))}: {error}; choose another name") from None
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise _failed(target, error) from None
    return parent / f".anybit-tmp-{os.getpid()}-{secrets.token_hex(6)}"


@contextmanager
def _cleared(target: Path, temp: Path) -> Iterator[None]:
    """Removes `temp` if the block fails, and turns the system's errors about it into OutputError."""
    _MINE.add(temp)
    try:
        yield
    except BaseException as error:
        _remove(temp)
        if isinstance(error, OutputError) and str(temp) in str(error):  # the temporary's name would tell a user nothing
            raise OutputError(str(error).replace(str(temp), str(target))) from None
        if isinstance(error, OSError) and not isinstance(error, AnybitError) and (error.errno in _DISK or temp.name in str(error)):
            raise _failed(target, error) from error
        raise
    finally:
        _MINE.discard(temp)


@contextmanager
def atomic_directory(target: str | os.PathLike[str], digests: dict[str, str] | None = None) -> Iterator[Path]:
    """A directory to fill, which becomes `target` when the block ends without an exception, and vanishes otherwise.

    Args: target, must not exist; digests, SHA-256 by relative name of files whose writer computed them already (others are read again).
    Raises: OutputError: the target exists, its parent does not, or the disk fails. Other exceptions of the block pass through.
    """
    target = Path(os.path.abspath(target))
    temp = _prepare(target, replace=False)
    with _cleared(target, temp):
        os.mkdir(temp)
        lock = _lock(temp)
        try:
            yield temp
            names = listing(temp)
            text = manifest_text(temp, names, digests or {})
            for name in names:
                sync(temp / name)
            with create(temp / MANIFEST) as fd:
                write_all(fd, text, target)
            sync(temp / MANIFEST)
            for folder in [temp, *(path for path in temp.rglob("*") if path.is_dir())]:
                sync(folder)
            _check_free(target)
            os.rename(temp, target)
            try:
                sync(target.parent)
            except BaseException:
                os.rename(target, temp)  # all or nothing: what may not survive a loss of power is not there at all
                raise
        finally:
            _unlock(lock)


@contextmanager
def atomic_file(target: str | os.PathLike[str], replace: bool = True) -> Iterator[BinaryIO]:
    """A binary file to write, which takes `target`'s place when the block ends without an exception, and vanishes otherwise.

    Raises: OutputError: the disk fails, the directory does not exist, or `target` exists and `replace` is False.
    """
    target = Path(os.path.abspath(target))
    temp = _prepare(target, replace)
    with _cleared(target, temp):
        with open(temp, "xb") as file:
            lock = _lock(temp)
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
            finally:
                _unlock(lock)
        if not replace:
            _check_free(target)
        os.replace(temp, target)
        sync(target.parent)
