"""How much memory this process uses: anonymous pages (its own data) and file pages (mapped weights) told apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from anybit.errors import MissingDependencyError

_FIELDS = {"VmHWM": "peak_bytes", "VmRSS": "resident_bytes", "RssAnon": "anonymous_bytes", "RssFile": "file_bytes"}


@dataclass(frozen=True)
class Memory:
    """Bytes of this process in memory. `peak_bytes` is the most that was resident since the start or since `reset_peak`."""

    peak_bytes: int
    resident_bytes: int
    anonymous_bytes: int
    file_bytes: int


def memory() -> Memory:
    """Reads /proc/self/status, whose figures may lag by some pages a thread. MissingDependencyError: no such file (only Linux has it)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError as error:
        raise MissingDependencyError(f"memory is measured through /proc/self/status, which this system lacks ({error.strerror})") from None
    found = {}
    for line in lines:
        key, _, value = line.partition(":")
        if key in _FIELDS:
            found[_FIELDS[key]] = int(value.split()[0]) << 10
    return Memory(**found)


def reset_peak() -> bool:
    """Lets `peak_bytes` begin anew; False where the kernel does not allow it (the peak is then the whole life's)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
