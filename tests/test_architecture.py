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
    "layouts": {"formats", "native"},
    "methods": {"arrays", "formats", "kernels", "transforms"},
    "reference": set(),
    "native": set(),
    "products": {"formats"},
    "kernels": {"formats", "layouts", "native", "products"},
    "arrays": set(),
    "device_arrays": {"arrays"},
    "device": {"device_arrays", "device_vectors", "formats"},
    "device_vectors": {"device_arrays", "formats"},
    "device_numpy": {"device", "device_arrays", "formats", "methods"},
    "device_blocks": {"device", "device_arrays", "device_numpy", "formats", "methods"},
    "device_gptq": {"device", "device_arrays", "device_blocks", "formats", "methods"},
    "elementwise": {"arrays", "device", "formats", "kernels", "tensor"},
    "tensor": {"arrays", "device_blocks", "device_gptq", "formats", "layouts", "methods", "kernels", "linear", "products"},
    "cache": {"formats", "methods"},
    "activations": {"formats", "methods"},
    "transforms": {"formats", "kernels", "layouts"},
    "linear": {"activations", "formats", "tensor", "transforms", "kernels", "products"},
    "around": {"formats", "linear", "tensor", "transforms"},
    "models": set(),
    "graphs": {"formats", "methods", "models"},
    "calibrate": {"activations", "formats", "io", "kernels", "measure", "methods", "models", "transforms"},
    "recipes": {"activations", "cache", "calibrate", "formats", "io", "kernels", "layouts", "linear", "measure", "methods", "model",
                "models", "stored", "streaming", "tensor", "transforms"},
    "io": {"formats", "layouts", "models", "tensor"},  # but for io/packed.py and io/gguf: files alone
    "foreign": {"formats", "io", "linear", "models", "stored", "tensor"},
    "engine": {"cache", "models", "linear", "kernels", "products"},
    "report": set(),
    "measure": {"formats", "layouts", "methods", "linear", "tensor", "kernels", "models", "engine"},
    "stored": {"around", "cache", "formats", "layouts", "methods", "kernels", "io", "linear", "tensor", "products"},
    "streaming": {"foreign", "formats", "layouts", "methods", "io", "linear", "models", "products", "stored", "tensor"},
    "model": {
        "cache", "formats", "layouts", "methods", "foreign", "io", "linear", "models", "stored", "streaming", "tensor", "engine",
        "products",
    },
    "sources": {"foreign", "formats", "layouts", "methods", "io", "models", "stored", "tensor"},
    "export": {"formats", "layouts", "io", "sources", "stored", "tensor"},
    "verification": {"export", "io", "model", "sources"},
    "selftest": {"elementwise", "formats", "layouts", "kernels", "tensor", "reference", "io"},
    "errors": set(),
    "registry": set(),
}
ANYONE = {"cli", "data", "__init__", "__main__"}  # the commands use everything, nobody uses them


def imports(path: Path) -> set[str]:
    """Every module that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: imports are absolute"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names if node.module == "anybit"}
    return found


def test_every_part_has_its_arrows() -> None:
    parts = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in FILES}
    assert parts <= set(ALLOWED) | ANYONE, parts - set(ALLOWED) - ANYONE


@pytest.mark.parametrize("package", ALLOWED)
def test_arrows_point_one_way(package: str) -> None:
    files = [path for path in FILES if path.relative_to(SOURCE).parts[0] in (package, f"{package}.py")]
    assert files
    for path in files:
        used = {name.split(".")[1] for name in imports(path) if name.startswith("anybit.")} - {"__version__"}
        assert used <= ALLOWED[package] | BASE | {package}, f"{path.relative_to(ROOT)} imports {used - ALLOWED[package] - BASE - {package}}"


def test_io_knows_tensors_in_one_place() -> None:
    """Readers give format expressions and arrays; one file makes tensors of them."""
    files = [path for path in FILES if path.relative_to(SOURCE).parts[0] == "io"]
    users = {path.name for path in files if {"anybit.tensor", "anybit.layouts"} & imports(path)}
    assert users == {"packed.py", "__init__.py"}, "gguf/__init__.py names the type only"


def test_one_file_imports_the_native_module() -> None:
    assert [path.name for path in FILES if "anybit.kernels._native" in path.read_text()] == ["native.py"]


def test_no_pickle_no_network_no_torch_no_code_from_files() -> None:
    code = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "runpy", "code", "ctypes", "subprocess"}
    network = {"socket", "ssl", "urllib", "http", "ftplib", "smtplib", "requests", "httpx", "aiohttp", "asyncio", "huggingface_hub"}
    heavy = {"torch", "transformers", "pandas", "ml_dtypes", "gfloat"}
    for path in FILES:
        tree = ast.parse(path.read_text())
        libc = {"ctypes"} if path == SOURCE / "io" / "rename.py" else set()  # renameat2, of the libc that Python itself runs on
        assert not {name.split(".")[0] for name in imports(path)} & ((code - libc) | network | heavy), path
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert not {node.func.id for node in calls if isinstance(node.func, ast.Name)} & {"eval", "exec", "compile", "__import__"}, path
        assert not {keyword.arg for node in calls for keyword in node.keywords} & {"trust_remote_code", "allow_pickle"}, path
        for node in calls:  # names of modules that are loaded by name are written down, or a registry's folder
            if isinstance(node.func, ast.Attribute) and node.func.attr == "import_module":
                assert path.name in {"registry.py", "__init__.py", "main.py"} or isinstance(node.args[0], ast.Constant), path


def test_scipy_is_loaded_where_it_is_used() -> None:
    """Importing it takes longer than most commands."""
    users = {path.name for path in FILES if any(name.split(".")[0] == "scipy" for name in imports(path))}
    assert users <= {"allocate.py", "curvature.py"}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in getattr(node, "names", [])]
            assert not any(name.split(".")[0] == "scipy" for name in names if isinstance(name, str)), path


def test_public_functions_and_classes_say_what_they_are() -> None:
    """But for what an ancestor's docstring covers: methods of elements and layouts, and each family's `parse`."""
    for path in FILES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree) or not tree.body, path
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                covered = node.name == "parse" and path.parent.name == "elements"
                assert covered or ast.get_docstring(node), f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def test_files_that_the_design_names_exist() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    for name in re.findall(r"`(tests/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name
