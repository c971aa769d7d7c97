"""The examples of CONTRIBUTING.md, run as they stand there: put where they say, found by the registries, held to the tests beside them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS: dict[str, str] = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL))
# Example: its test in the document, and tests of the repository that have to see and accept what it adds.
EXAMPLES = {
    "src/anybit/formats/elements/cubes.py": ("tests/formats/test_cubes.py", ["tests/formats/test_element_oracles.py", "-k", "cubes"]),
    "src/anybit/layouts/halves.py": ("tests/layouts/test_halves.py", ["tests/layouts/test_every_layout.py", "-k", "halves"]),
    "src/anybit/methods/clipped.py": ("tests/methods/test_clipped.py", []),
    "src/anybit/kernels/untiled.py": ("tests/kernels/test_untiled.py", []),
    "src/anybit/io/targets/npz.py": ("tests/io/test_npz.py", []),
}
# A pytest plugin that lets the package see the example's folder as if the file lay in its own.
PLUGIN = """
import importlib
importlib.import_module({package!r}).__path__.append({folder!r})
"""


def run_pytest(tmp_path: Path, example: str, tests: list[str]) -> subprocess.CompletedProcess[str]:
    source = tmp_path / example
    source.parent.mkdir(parents=True)
    source.write_text(BLOCKS[example])
    package = ".".join(Path(example).parts[1:-1])
    (tmp_path / "overlay.py").write_text(PLUGIN.format(package=package, folder=str(source.parent)))
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "pytest", "-p", "overlay", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True)


def test_every_block_with_a_path_is_run() -> None:
    assert set(BLOCKS) == set(EXAMPLES) | {test for test, _ in EXAMPLES.values()}


@pytest.mark.parametrize("example", EXAMPLES)
def test_one_file_and_its_test(example: str, tmp_path: Path) -> None:
    name, others = EXAMPLES[example]
    (tmp_path / Path(name).name).write_text(BLOCKS[name])
    done = run_pytest(tmp_path, example, [str(tmp_path / Path(name).name)])
    assert done.returncode == 0, done.stdout + done.stderr
    if others:
        (tmp_path / "again").mkdir()
        done = run_pytest(tmp_path / "again", example, others)
        assert done.returncode == 0 and "passed" in done.stdout, done.stdout + done.stderr


def test_the_tests_need_the_examples(tmp_path: Path) -> None:
    """Each test of the document fails where another example was put instead."""
    names = list(EXAMPLES)
    for example, wrong in zip(names, names[1:] + names[:1], strict=True):
        folder = tmp_path / Path(example).stem
        folder.mkdir()
        test = folder / Path(EXAMPLES[example][0]).name
        test.write_text(BLOCKS[EXAMPLES[example][0]])
        assert run_pytest(folder, wrong, [str(test)]).returncode == 1


@pytest.mark.parametrize("name", BLOCKS)
def test_they_pass_the_lint_and_type_rules(name: str, tmp_path: Path) -> None:
    """ruff as in the repository, and what mypy asks of every function: types of all arguments and of the result."""
    (tmp_path / "block.py").write_text(BLOCKS[name])
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--config", str(ROOT / "pyproject.toml"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for node in ast.walk(ast.parse(BLOCKS[name])):
        if isinstance(node, ast.FunctionDef):
            assert node.returns is not None and all(a.annotation for a in node.args.args if a.arg != "self"), node.name
    for node in ast.parse(BLOCKS[name]).body:  # as tests/test_architecture.py asks of the package; each family's `parse` is covered
        if name.startswith("src/") and isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node) or node.name == "parse", node.name
