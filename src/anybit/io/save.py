"""Saves that happen wholly or not at all, a loss of power included.

A directory is written as `.anybit-tmp-<pid>-<start>-<random>` beside its target. Every file is synced, then `manifest.json` with the size
and SHA-256 of each, then the directory; it is renamed to the target, and the parent is synced. Whatever fails on the way, an interrupt
included, removes the temporary; what a killed process left is removed by the next save into the same parent.

A living save is told from an abandoned one by the lock that it holds, which the system drops with its process. Whoever removes a
temporary takes the lock first, and a save that finds its new directory locked or gone takes another name. Where a file system has no
locks, the process id and its start time decide (an id that is in use again has another start), and only after an hour without a change:
the disk may be shared with machines that have other process ids.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from anybit.errors import AnybitError, OutputError
from anybit.io.manifest import MANIFEST, listing, manifest_text, read_manifest
from anybit.io.output import DISK, Output, create, failed, opened
from anybit.io.strict_json import shown

_TEMP = re.compile(r"\.anybit-tmp-(\d{1,10})-(?:(\d{1,20})-)?[0-9a-f]{12}")
_UNTOUCHED = 3600  # seconds without a change after which a temporary may be abandoned, on a file system without locks
_TRIES = 100
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
_MINE: set[Path] = set()


def sync(path: Path) -> None:
    """Waits until a file's or directory's contents are on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _NoLocksError(Exception):
    """The file system has no locks."""


def _lock(path: Path) -> int | None:
    """A descriptor that holds the path's lock, or None if another one holds it. The system drops the lock with its last holder.

    Raises: OSError: the path is gone or not ours. _NoLocksError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError as error:
        os.close(fd)
        raise _NoLocksError from error
    return fd


def _unlock(fd: int | None) -> None:
    if fd is not None:
        with suppress(OSError):  # by then the save has succeeded or failed on its own
            os.close(fd)


def _start(pid: int) -> int | None:
    """When a process began, in clock ticks since the machine did; 0 where the system does not tell; None: there is no such process."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    return int(stat[stat.rindex(b")") :].split()[20])  # the second field is a name, which may hold anything


def _abandoned(path: Path, pid: int, start: int | None) -> bool:
    """Whether nobody works on a temporary, as far as can be told without locks."""
    begun = _start(pid)
    if begun is not None and (not start or not begun or begun == start):
        return False
    newest = max(os.lstat(each).st_mtime for each in (path, *path.rglob("*")))
    return time.time() - newest > _UNTOUCHED


def _remove(path: Path) -> None:
    """Removes a temporary file or tree. What cannot be removed stays for the next save: it must not hide the error that led here."""
    if _is_folder(path):
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
        held: int | None = None
        try:
            held = _lock(path)
            if held is None:
                continue
        except _NoLocksError:
            if not _abandoned(path, int(match[1]), int(match[2] or 0)):
                continue
        except OSError:
            continue  # another save removed it first, or it belongs to another user
        try:
            _remove(path)
            gone.append(path)
        finally:
            _unlock(held)
    return gone


def _check_free(target: Path, replace: bool = False) -> None:
    """Raises: OutputError: the target exists and is not to be replaced. OSError, ValueError: it never can (a name too long, a NUL)."""
    try:
        os.lstat(target)
    except FileNotFoundError:
        return
    if not replace:
        raise OutputError(f"{target} exists; remove it or choose another name")


def _new_temporary(parent: Path) -> Path:
    pid = os.getpid()
    return parent / f".anybit-tmp-{pid}-{_start(pid) or 0}-{secrets.token_hex(6)}"


def _claim(temp: Path) -> tuple[bool, int | None]:
    """Locks a new temporary: whether it is ours, and the lock if there are any. Another save may have taken it for a stale one."""
    try:
        lock = _lock(temp)
    except _NoLocksError:
        return True, None
    except FileNotFoundError:
        return False, None
    try:
        if lock is not None and os.fstat(lock).st_ino == os.lstat(temp).st_ino:
            return True, lock
    except FileNotFoundError:
        pass
    _unlock(lock)
    return False, None


def _prepare(target: Path, replace: bool) -> None:
    """Checks the target and clears stale temporaries."""
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
        raise failed(target, error) from None


@contextmanager
def _temporary(target: Path, replace: bool, make: Callable[[Path], None]) -> Iterator[Path]:
    """A new path beside the target that `make` made and this save has locked, for as long as the block runs; removed if it fails.

    Raises: OutputError, in place of the system's errors about it.
    """
    _prepare(target, replace)
    for _ in range(_TRIES):
        temp = _new_temporary(target.parent)
        lock: int | None = None
        _MINE.add(temp)
        try:
            make(temp)
            ours, lock = _claim(temp)
            if ours:
                yield temp
                return
        except BaseException as error:
            _remove(temp)
            if isinstance(error, OutputError) and str(temp) in str(error):  # the temporary's name would tell a user nothing
                raise OutputError(str(error).replace(str(temp), str(target))) from None
            if isinstance(error, OSError) and not isinstance(error, AnybitError) and (error.errno in DISK or temp.name in str(error)):
                raise failed(target, error) from error
            raise
        finally:
            _unlock(lock)
            _MINE.discard(temp)
    raise OutputError(f"cannot write {target}: other saves keep removing what this one begins; try again")


@contextmanager
def atomic_directory(target: str | os.PathLike[str], digests: dict[str, str] | None = None) -> Iterator[Path]:
    """A directory to fill, which becomes `target` when the block ends without an exception, and vanishes otherwise.

    Args: target, must not exist; digests, SHA-256 by relative name of files whose writer computed them already (others are read again).
    Raises: OutputError: the target exists, its parent does not, or the disk fails. Other exceptions of the block pass through.
    """
    target = Path(os.path.abspath(target))
    with _temporary(target, False, os.mkdir) as temp:
        yield temp
        names = listing(temp)
        text = manifest_text(temp, names, digests or {})
        for name in names:
            sync(temp / name)
        with create(temp / MANIFEST) as file:
            file.write(text)
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


def _private(path: Path) -> None:
    os.mkdir(path, 0o700)


@contextmanager
def scratch(parent: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """A new folder in `parent` (None: where the system has temporary files) for as long as the block runs. What a killed process left is
    removed by the next scratch or save there.

    Raises: OutputError: `parent` is not there, or the disk fails.
    """
    with _temporary(Path(os.path.abspath(parent or tempfile.gettempdir())) / "temporary files", True, _private) as temp:
        yield temp
        _remove(temp)


def renew_file(folder: Path, name: str, data: bytes) -> None:
    """Puts a file, new or in another version, into a saved directory whose manifest then lists it. Between the two the manifest does not
    match, so that a directory is renewed before it gets its name. Errors as `read_manifest` and `atomic_file`."""
    held = read_manifest(folder)["files"]
    with atomic_file(folder / name) as file:
        file.write(data)
    digests = {each: item["sha256"] for each, item in held.items() if each != name}
    text = manifest_text(folder, sorted({*held, name}), digests)
    with atomic_file(folder / MANIFEST) as file:
        file.write(text)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _empty(path: Path) -> None:
    with create(path):
        pass


@contextmanager
def atomic_file(target: str | os.PathLike[str], replace: bool = True, passing: bool = False) -> Iterator[Output]:
    """A file to write, which takes `target`'s place when the block ends without an exception, and vanishes otherwise.

    `passing`: as of `Output`.
    Raises: OutputError: the disk fails, the directory does not exist, or `target` exists and `replace` is False.
    """
    target = Path(os.path.abspath(target))
    with _temporary(target, replace, _empty) as temp:
        with opened(temp, 0, passing) as file:
            yield file
            file.sync()
        _put_in_place(temp, target, replace)


def _put_in_place(temp: Path, target: Path, replace: bool) -> None:
    """Gives a finished file its name and syncs the folder; if that fails, what was there before is there again."""
    if _is_folder(target):
        raise OutputError(f"{target} is a directory; remove it or choose another name")
    kept = _new_temporary(target.parent)  # a second name of the old version, until the new one is safe
    _MINE.add(kept)
    new, linked = False, False
    try:
        try:
            os.link(target, kept)
            linked = True
        except FileNotFoundError:
            new = True
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise  # without links nothing can be brought back: if the folder's sync fails, the new file stays
        if not new and not replace:
            raise OutputError(f"{target} exists; remove it or choose another name")
        os.replace(temp, target)
        try:
            sync(target.parent)
        except BaseException:
            if new:
                target.unlink()
            elif linked:
                os.replace(kept, target)
            raise
    finally:
        if linked:
            _remove(kept)
        _MINE.discard(kept)
