"""The shape of the code: who may import whom, and what nobody may."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "anybit"
FILES = sorted(SOURCE.rglob("*.py"))

BASE = {"errors", "registry"}
ALLOWED: dict[str, set[str]] = {
    "formats": set(),
    "layouts": {"formats"},
    "methods": {"formats"},
    "reference": set(),
    "kernels": {"formats", "layouts"},
    "tensor": {"formats", "layouts", "methods", "kernels", "linear"},
    "linear": {"formats", "tensor", "kernels"},
    "models": set(),
    "io": set(),
    "engine": {"models", "linear", "kernels"},
    "report": set(),
}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names if node.module == "anybit"}
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_arrows_point_one_way(package: str) -> None:
    files = [path for path in FILES if path.relative_to(SOURCE).parts[0] in (package, f"{package}.py")]
    assert files
    for path in files:
        used = {name.split(".")[1] for name in imports(path) if name.startswith("anybit.")} - {"__version__"}
        assert used <= ALLOWED[package] | BASE | {package}, f"{path.relative_to(ROOT)} imports {used - ALLOWED[package] - BASE - {package}}"


def test_one_file_imports_the_native_module() -> None:
    assert [path.name for path in FILES if "anybit.kernels._native" in path.read_text()] == ["cpu.py"]


def test_no_pickle_no_network_no_torch_no_code_from_files() -> None:
    banned = {"pickle", "marshal", "shelve", "socket", "urllib", "http", "requests", "torch", "transformers", "dill", "joblib"}
    for path in FILES:
        tops = {name.split(".")[0] for name in imports(path)}
        assert not tops & banned, path
        nodes = ast.walk(ast.parse(path.read_text()))
        calls = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        assert not calls & {"eval", "exec", "compile", "__import__"}, path


def test_links_in_the_documents_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "bench" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    checked = 0
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
                checked += 1
    assert checked > 10


def test_files_that_the_design_names_exist() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    for name in re.findall(r"`(tests/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name
