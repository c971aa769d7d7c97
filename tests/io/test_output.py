"""Files are written in whole pieces of 2 MiB, whatever pieces they come in."""

import hashlib
import os
from pathlib import Path

import pytest

from anybit.errors import OutputError
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


def test_the_digest_is_of_what_was_written(tmp_path: Path) -> None:
    with digested(tmp_path / "x") as file:
        for piece in data_of(PIECES):
            file.write(piece)
    whole = b"".join(data_of(PIECES))
    assert (tmp_path / "x").read_bytes() == whole
    assert file.sha256 == hashlib.sha256(whole).hexdigest()
