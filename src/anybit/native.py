"""The native module: its one importer, for layouts and kernels alike."""

from __future__ import annotations

import importlib
from typing import Any

from anybit.errors import MissingDependencyError

try:
    native: Any = importlib.import_module("anybit.kernels._native")
except ImportError as error:  # the one place that can say what is wrong with the build
    raise MissingDependencyError(f"the native module does not load ({error}); build it with 'pip install .' or 'make native'") from error
