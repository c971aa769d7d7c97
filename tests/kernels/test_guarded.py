"""No kernel touches memory outside its operands: `guarded.py` runs them between protected pages, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    paths = [str(HERE), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300)


def test_operands_between_protected_pages() -> None:
    result = run(str(HERE / "guarded.py"))
    assert result.returncode == 0, result.stderr[-2000:]
    assert "no access outside" in result.stdout


def test_the_guard_bites() -> None:
    """One byte before or after is enough to die."""
    for at_end, reach in ((True, "view.ctypes.data + view.nbytes"), (False, "view.ctypes.data - 1")):
        code = (
            f"import ctypes, numpy as np, guarded; view = guarded.guarded(np.ones(3, np.float32), {at_end}); ctypes.string_at({reach}, 1)"
        )
        assert run("-c", code).returncode == -signal.SIGSEGV
