"""What a measurement was taken on: processor, instruction sets, cores, memory, versions. Every reported speed carries it."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FLAGS = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni", "amx_int8",
    "asimd", "asimddp", "i8mm",
)  # fmt: skip
PACKAGES = ("numpy", "safetensors", "tokenizers", "click", "rich")


def machine() -> dict[str, Any]:
    """Facts of this machine and of the kernels that it would use; unknown ones are None. Reads /proc and /sys, runs nothing."""
    cpu = _cpu_info()
    found = {
        "cpu": cpu.get("model name") or cpu.get("Hardware") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": cores(),
        "features": [flag for flag in FLAGS if flag in (cpu.get("flags") or cpu.get("Features") or "").split()],
        "last_level_cache_bytes": last_level_cache(),
        "memory_bytes": _memory_total(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "anybit": _anybit_version(),
    }
    return found | kernels()


def kernels() -> dict[str, Any]:
    """The instruction set that the native kernels use, those that they could use, and their threads."""
    from anybit.kernels.cpu import isa, native

    return {"isa": isa(), "isas": list(native.supported_isas()), "threads": int(native.threads())}


def cores() -> int:
    """Cores that this process may use: those of its affinity mask, as far as the quotas of its control groups reach."""
    from anybit.kernels.cpu import native

    return int(native.usable_cores())


def last_level_cache(default: int | None = None) -> int | None:
    """Bytes of the largest cache of core 0, or `default` where the system does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = _read(path).strip()
        if text[:-1].isdigit() and text[-1:] in "KM":
            sizes.append(int(text[:-1]) << (10 if text[-1] == "K" else 20))
    return max(sizes, default=default)


def summary(facts: dict[str, Any]) -> str:
    """One line for below a table."""
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, kernels {facts['isa']}; {facts['system']};"
        f" Python {facts['python']}, anybit {facts['anybit']}"
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cpu_info() -> dict[str, str]:
    first = _read(Path("/proc/cpuinfo")).split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _memory_total() -> int | None:
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) << 10
    return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _anybit_version() -> str:
    from anybit import __version__

    return __version__ if sys.flags.optimize == 0 else f"{__version__} (python -O)"
