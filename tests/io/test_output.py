"""Files are written in whole pieces of 2 MiB, whatever pieces they come in."""

import ctypes
import errno
import hashlib
import mmap
import os
from pathlib import Path

import pytest

from anybit.errors import OutputError
from anybit.io import output
from anybit.io.output import PAGE, create, digested

PIECES = [0, 1, 77, PAGE - 78, PAGE, 3 * PAGE + 5, 0, PAGE - 5, 2 * PAGE - 1, 4096, 5 * PAGE // 2]


def data_of(pieces: list[int]) -> list[bytes]:
    return [bytes([i + 1]) * n for i, n in enumerate(pieces)]


def test_writes_begin_and_end_at_whole_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    write = os.write

    def counted(fd: int, view: memoryview) -> int:
        calls.append(len(view))
        return write(fd, view)

    monkeypatch.setattr(os, "write", counted)
    with create(tmp_path / "x") as file:
        for piece in data_of(PIECES):
            file.write(piece)
    assert (tmp_path / "x").read_bytes() == b"".join(data_of(PIECES))
    assert all(n % PAGE == 0 and n for n in calls[:-1])
    assert 0 < calls[-1] < PAGE


def test_the_system_may_take_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, view: write(fd, view[: max(1, len(view) // 3)]))
    with create(tmp_path / "x") as file:
        for piece in data_of(PIECES):
            file.write(piece)
    assert (tmp_path / "x").read_bytes() == b"".join(data_of(PIECES))


def test_nothing_is_flushed_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), create(tmp_path / "x") as file:
        file.write(b"held")
        raise ZeroDivisionError
    assert (tmp_path / "x").read_bytes() == b""
    with pytest.raises(OutputError, match="exists"), create(tmp_path / "x"):
        pass


@pytest.mark.parametrize("passing", [False, True])
def test_the_disk_begins_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passing: bool) -> None:
    told: list[tuple[int, int]] = []

    def advised(fd: int, first: int, size: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        assert first + size == os.fstat(fd).st_size, "all that came"
        told.append((first, size))
        raise OSError(errno.EINVAL, "a file system that takes no advice")

    monkeypatch.setattr(os, "posix_fadvise", advised)
    monkeypatch.setattr(output, "BEHIND", 2 * PAGE)
    with create(tmp_path / "x", passing) as file:
        for piece in data_of(PIECES):
            file.write(piece)
    assert (tmp_path / "x").read_bytes() == b"".join(data_of(PIECES))
    ends = [first + size for first, size in told]
    assert len(told) > 2 and all(2 * PAGE <= b - a <= 4 * PAGE for a, b in zip([0, *ends], ends, strict=False))
    assert [first for first, _ in told] == ([0] * len(told) if passing else [0, *ends[:-1]])


def resident(path: Path) -> float:
    """The share of a file's pages that lie in memory."""
    size = path.stat().st_size
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        found = (ctypes.c_ubyte * (size // mmap.PAGESIZE))()
        first = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(first), ctypes.c_size_t(size), found) == 0
    return sum(each & 1 for each in found) / len(found)


def test_what_passes_leaves_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "BEHIND", 2 * PAGE)
    held = {}
    for name in ("told", "kept", "passing"):
        with create(tmp_path / name, name == "passing") as file:
            for _ in range(16):
                file.write(bytes(PAGE))
            file.sync()
            file.write(bytes(2 * PAGE))  # whose advice finds the others on the disk
        if name == "told":
            os.sync()
            with (tmp_path / name).open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        held[name] = resident(tmp_path / name)
    if held["told"] > 0.5:
        pytest.skip("this file system lives in memory")
    assert held["kept"] > 0.8
    assert held["passing"] < 0.2


def test_the_digest_is_of_what_was_written(tmp_path: Path) -> None:
    with digested(tmp_path / "x") as file:
        for piece in data_of(PIECES):
            file.write(piece)
    whole = b"".join(data_of(PIECES))
    assert (tmp_path / "x").read_bytes() == whole
    assert file.sha256 == hashlib.sha256(whole).hexdigest()
