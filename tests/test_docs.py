"""What the documents say, held to the code: examples run; files, classes, fields, commands, options, variables and exit codes exist."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import re
from pathlib import Path

import click
import pytest

from anybit import errors
from anybit.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "bench" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}
IDS = list(TEXT)
SOURCE = ROOT / "src" / "anybit"
COMMAND = re.compile(r"(?:^|[$;&] |bin/)anybit ([a-z]+)([^#;&|]*)")


def commands(text: str) -> list[tuple[str, str]]:
    """(command, its arguments) wherever a page shows what to type: in code spans, indented lines and fences."""
    fenced = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)).splitlines()
    code = [*re.findall(r"`([^`\n]+)`", text), *re.findall(r"^    (\S.*)$", text, re.MULTILINE), *fenced]
    return [found for line in code for found in COMMAND.findall(line)]


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("page", [page for page in IDS if page != "CONTRIBUTING.md" and python_blocks(TEXT[page])])
def test_python_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a page run one after the other in one namespace; a comment that is a value is compared with its line's value."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in python_blocks(TEXT[page]):
        if ">>>" in block:
            runner = doctest.DocTestRunner(verbose=False)
            runner.run(doctest.DocTestParser().get_doctest(block, names, page, page, 0), clear_globs=False)
            assert runner.failures == 0
            continue
        exec(compile(block, page, "exec"), names)
        for line, shown in re.findall(r"^(\S.*?) {2,}# (Fraction.*|array.*|-?[0-9.]+)$", block, re.MULTILINE):
            assert repr(eval(line, names)) == shown, line


def test_the_readme_has_examples_with_values() -> None:
    assert len(re.findall(r" {2,}# (?:Fraction|array)", "".join(python_blocks(TEXT["README.md"])))) >= 2


@pytest.mark.parametrize("page", IDS)
def test_commands_and_options_exist(page: str) -> None:
    context = click.Context(main)
    known = main.list_commands(context)
    for name, rest in commands(TEXT[page]):
        assert name in known, f"{page}: anybit {name}"
        command = main.get_command(context, name)
        assert command is not None
        options = {option for parameter in command.params for option in parameter.opts} | {"--help", "--version"}
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest):
            assert option in options, f"{page}: anybit {name} {option}"


def test_every_command_is_in_the_readme() -> None:
    assert set(main.list_commands(click.Context(main))) <= {name for name, _ in commands(TEXT["README.md"])}


def anchors(text: str) -> set[str]:
    """The anchors that a page's headings get."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", IDS)
def test_links_and_their_anchors_lead_somewhere(page: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", TEXT[page]):
        if "://" in target:
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), f"{page}: {target}#{anchor}"


@pytest.mark.parametrize("page", IDS)
def test_files_that_are_named_exist(page: str) -> None:
    """In the package or the repository; what is not there yet stands under a heading that says so, outputs under `anybit-demo/`."""
    text = TEXT[page].split("## Not there yet")[0].replace("`anybit-demo/", "")
    examples = set(re.findall(r"```python\n# (\S+\.py)\n", text))
    for name in set(re.findall(r"`((?:[\w.-]+/)+[\w.-]*\.(?:py|cc|h|md|json|safetensors|c))`", text)) - examples:
        places = (ROOT / name, SOURCE / name, ROOT / "docs" / name, (ROOT / page).parent / name)
        assert any(path.exists() for path in places), f"{page}: {name}"


def test_classes_of_the_model_are_where_it_says() -> None:
    rows = re.findall(r"^\| ([^|]*) \| (`[^|]*`) \|", TEXT["docs/model.md"].split("## Fields")[0], re.MULTILINE)
    assert len(rows) > 10
    for names, places in rows:
        first, *others = re.findall(r"`([\w/.]+)`", places)
        paths = [SOURCE / first, *((SOURCE / first).parent / other for other in others)]
        text = "\n".join(file.read_text() for path in paths for file in ([path] if path.is_file() else sorted(path.glob("*.py"))))
        for name in re.findall(r"`([A-Z]\w+)`", names):
            assert re.search(rf"^class {name}\b", text, re.MULTILINE), f"{name} is not in {places}"


def test_fields_of_the_model_are_those_of_the_code() -> None:
    section = TEXT["docs/model.md"].split("## Fields")[1].split("## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE)
    homes = {}
    for path in SOURCE.rglob("*.py"):
        for name in re.findall(r"^class (\w+)", path.read_text(), re.MULTILINE):
            homes[name] = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
    assert len(rows) > 20
    for name, cell in rows:
        kind = getattr(importlib.import_module(homes[name]), name)
        assert re.findall(r"`(\w+)`", cell) == [field.name for field in dataclasses.fields(kind)], name


def test_exit_codes_are_those_of_the_exceptions() -> None:
    rows = {name: int(code) for code, name in re.findall(r"^\| (\d+) \| `(\w+Error)` \|", TEXT["docs/errors.md"], re.MULTILINE)}
    kinds = {n: k.exit_code for n, k in vars(errors).items() if inspect.isclass(k) and issubclass(k, errors.AnybitError)}
    del kinds["AnybitError"]
    assert rows == kinds


def test_variables_and_targets_exist() -> None:
    python = [*SOURCE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    code = "\n".join(path.read_text() for path in [*python, *(ROOT / "native").iterdir(), ROOT / "CMakeLists.txt"])
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page, text in TEXT.items():
        for name in re.findall(r"`(ANYBIT_\w+)", text):
            assert name in code, f"{page}: {name}"
        for name in re.findall(r"(?:`|^ {4}|&& )make ([a-z][\w-]*)", text, re.MULTILINE):
            assert name in targets, f"{page}: make {name}"


def test_no_page_names_the_machine_that_wrote_it() -> None:
    for page, text in TEXT.items():
        assert not re.search(r"(?<![\w.])/(?:tmp|work|root|home)/", text), page
