import hashlib
import struct
from pathlib import Path
from platform import python_version

import pytest

from anybit.errors import FileFormatError, UsageError
from anybit.measure import text


class Bytes:
    """One token a byte, shifted by one so that 0 stays the separator."""

    def encode(self, content: str) -> list[int]:
        return [byte + 1 for byte in content.encode()]


@pytest.fixture
def stdlib(tmp_path: Path) -> Path:
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "decoder.py").write_text("dd")
    (tmp_path / "json" / "__init__.py").write_text("ii")
    (tmp_path / "json" / "notes.txt").write_text("never read")
    (tmp_path / "csv.py").write_text("cc")
    (tmp_path / "os.py").write_text("not held out")
    return tmp_path


def test_files_are_sorted_by_path_and_missing_modules_are_named(stdlib: Path) -> None:
    files, missing = text.held_out_files(stdlib)
    assert [path.relative_to(stdlib).as_posix() for path in files] == ["csv.py", "json/__init__.py", "json/decoder.py"]
    assert set(missing) == set(text.HELD_OUT) - {"csv", "json"}


def test_every_file_is_preceded_by_the_separator_and_the_digest_is_of_the_ids(stdlib: Path) -> None:
    found = text.default_text(Bytes(), tokens=8, stdlib=stdlib)
    expected = [0, 100, 100, 0, 106, 106, 0, 101, 101]
    assert found.ids.tolist() == expected
    assert found.tokens == 8
    assert found.digest == hashlib.sha256(struct.pack("<9I", *expected)).hexdigest()
    assert found.python == python_version()
    assert found.describe()["tokens_sha256"] == found.digest


def test_too_little_text_says_what_is_missing(stdlib: Path) -> None:
    with pytest.raises(UsageError, match=r"give 8 tokens, 9 are asked for; it lacks argparse, .*--text FILE"):
        text.default_text(Bytes(), tokens=9, stdlib=stdlib)


def test_the_running_interpreter_has_enough() -> None:
    found = text.default_text(Bytes())
    assert found.tokens == text.DEFAULT_TOKENS >= 32_768
    assert found.missing == ()
    assert text.default_text(Bytes(), tokens=100).digest != found.digest


def test_user_files_keep_their_order(tmp_path: Path) -> None:
    one, two = tmp_path / "b.txt", tmp_path / "a.txt"
    one.write_text("x")
    two.write_text("yz")
    found = text.text_from_files(Bytes(), [one, two])
    assert found.ids.tolist() == [0, 121, 0, 122, 123]
    assert found.source == "b.txt, a.txt"
    assert text.text_from_files(Bytes(), [one, two], tokens=2).ids.tolist() == [0, 121, 0]


def test_user_files_that_cannot_serve(tmp_path: Path) -> None:
    bad, empty = tmp_path / "bad.txt", tmp_path / "empty.txt"
    bad.write_bytes(b"ok \xff")
    empty.write_text("")
    with pytest.raises(FileFormatError, match=r"bad\.txt: text at byte 3: not UTF-8"):
        text.text_from_files(Bytes(), [bad])
    with pytest.raises(UsageError, match="no text"):
        text.text_from_files(Bytes(), [empty])
