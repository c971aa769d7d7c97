"""Registry, and the table of errors in the documentation."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from anybit import errors
from anybit.errors import AnybitError, UnknownNameError, near_misses
from anybit.registry import Registry

DOCS = Path(__file__).parents[1] / "docs"


def test_names_items_and_near_misses() -> None:
    fruits: Registry[int] = Registry("fruit")
    fruits.add("apple", 1)

    @fruits.register("pear")
    def pear() -> int:
        return 2

    assert list(fruits) == ["apple", "pear"] and len(fruits) == 2 and "apple" in fruits and 3 not in fruits and fruits["pear"] is pear
    with pytest.raises(UnknownNameError, match=r"^no fruit named 'aple'; did you mean apple\?$"):
        fruits["aple"]
    with pytest.raises(KeyError, match=r"^no fruit named 'x'; there are apple, pear$"):
        fruits["x"]
    with pytest.raises(ValueError, match="two fruits named 'apple'"):
        fruits.add("apple", 3)
    assert fruits["apple"] == 1


def folder(path: Path, name: str, **files: str) -> str:
    package = path / name
    package.mkdir()
    for file, text in {"__init__": "", **files}.items():
        (package / f"{file}.py").write_text(text)
    return name


def test_importing_the_folder_fills_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    init = "from anybit.registry import Registry\nITEMS = Registry('item', folder='filled_folder')\n"
    one = "from filled_folder import ITEMS\nITEMS.add('one', 1)\n"
    name = folder(tmp_path, "filled_folder", __init__=init, first=one, second=one.replace("one", "two").replace("1", "2"))
    items = importlib.import_module(name).ITEMS
    assert "filled_folder.first" not in sys.modules, "not before someone asks"
    assert sorted(items) == ["one", "two"] and items["two"] == 2


def test_an_import_error_propagates_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    items: Registry[int] = Registry("item", folder=folder(tmp_path, "broken_folder", part="import no_such_module"))
    for ask in (lambda: items["x"], lambda: list(items), lambda: "x" in items, lambda: len(items)):
        with pytest.raises(ModuleNotFoundError, match="no_such_module"):
            ask()


def test_near_misses() -> None:
    assert near_misses("int5", ["int4", "int8", "nf4"]).startswith("; did you mean int")
    assert near_misses("zebra", ["int4"]) == ""


def children(kind: type[AnybitError]) -> list[type[AnybitError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in children(child))]


def test_the_documentation_lists_every_error_with_its_exit_code() -> None:
    rows = [line.split("|") for line in (DOCS / "errors.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    listed = {row[2].strip(" `"): int(row[1]) for row in rows[1:] if row[2].strip().startswith("`")}
    ours = {kind.__name__: kind.exit_code for kind in children(AnybitError)[1:] if kind.__module__ == errors.__name__}
    assert {name: code for name, code in listed.items() if name != "KeyboardInterrupt"} == ours


@pytest.mark.parametrize("kind", children(AnybitError))
def test_messages_are_one_printable_line(kind: type[AnybitError]) -> None:
    if kind.__module__ != errors.__name__:
        pytest.skip("an internal subclass")
    error = kind("a\nb\x1b[2J\u202e ü\udc80")
    assert str(error) == r"a\nb\x1b[2J\u202e ü\udc80"
    assert error.exit_code in (2, 3, 4, 5, 6)
