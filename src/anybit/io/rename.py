"""The two renames that Python does not have: one that never replaces, and one that exchanges. Linux, by renameat2(2)."""

from __future__ import annotations

import ctypes
import errno
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

_HERE = -100  # AT_FDCWD: paths count from the working directory
_NOREPLACE, _EXCHANGE = 1, 2
_MISSING = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


@lru_cache(maxsize=1)
def _renameat2() -> Any:
    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


def _rename(source: Path, target: Path, flag: int) -> bool:
    """False: this system or file system has no such rename. Raises: OSError."""
    call = _renameat2()
    if call is None:
        return False
    if call(_HERE, os.fsencode(source), _HERE, os.fsencode(target), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in _MISSING:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))


def exchange(source: Path, target: Path) -> bool:
    """Each takes the other's name, at once. False: not possible here. Raises: OSError, such as FileNotFoundError."""
    return _rename(source, target, _EXCHANGE)


def rename_new(source: Path, target: Path) -> None:
    """Renames unless the target exists. Raises: OSError, FileExistsError among them."""
    if not _rename(source, target, _NOREPLACE):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        os.rename(source, target)
