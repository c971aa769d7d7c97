"""What the linker sees: an object compiled for one instruction set must not hold code that another path could link to."""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
FLAGS = {
    "generic": [],
    "avx2": AVX2,
    "avxvnni": [*AVX2, "-mavxvnni"],
    "avx512vl": [*AVX512, "-mavx512vnni", "-DANYBIT_LANES=256"],
    "avx512": AVX512,
    "avx512vnni": [*AVX512, "-mavx512vnni"],
    "avx512vbmi": [*AVX512, "-mavx512vnni", "-mavx512vbmi"],
}
SHORT = "generic", "avx2", "avx512vbmi"


def kernel_sources() -> list[str]:
    text = (ROOT / "CMakeLists.txt").read_text()
    return text.split("set(kernel_sources ", 1)[1].split(")", 1)[0].split()


@pytest.mark.skipif(shutil.which("g++") is None or shutil.which("nm") is None, reason="needs g++ and nm")
@pytest.mark.parametrize("isa", FLAGS)
def test_kernel_objects_hold_no_weak_symbols(isa: str, tmp_path: Path) -> None:
    if isa != "generic" and platform.machine() != "x86_64":
        pytest.skip("x86-64 only")
    if isa not in SHORT and "ANYBIT_FULL" not in os.environ:
        pytest.skip("the same sources as those of the other sets, with ANYBIT_FULL=1")
    sources = kernel_sources()
    assert "native/linear.cc" in sources

    def compiled(source: str) -> list[str]:
        target = tmp_path / f"{Path(source).stem}.o"
        # -O1 inlines less than the build does, so a shared inline function would show here first
        flags = ["-std=gnu++17", "-O1", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti", "-w", f"-DANYBIT_ISA={isa}", *FLAGS[isa]]
        subprocess.run(["g++", *flags, "-c", str(ROOT / source), "-o", str(target)], check=True)
        return subprocess.run(["nm", "-C", str(target)], capture_output=True, text=True, check=True).stdout.splitlines()

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for symbols in pool.map(compiled, sources):
            weak = [line for line in symbols if len(line.split()) > 2 and line.split()[1] in "WVu"]
            assert weak == []
            defined = [line.split(maxsplit=2)[2] for line in symbols if len(line.split()) > 2 and line.split()[1] in "TDRB"]
            assert defined
            assert all(name.startswith(f"anybit::{isa}::") for name in defined), defined
